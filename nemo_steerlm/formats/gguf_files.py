"""GGUF files as inputs: configuration, tokenizer and weights under Hugging Face names. Quantized weights are read as float32."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nemo_steerlm.core.errors import ConfigError, UsageError

ARCHITECTURE = "llama"

# Splitting before BPE merges, by `tokenizer.ggml.pre`: how llama.cpp's llama-vocab.cpp groups the names.
_DIGITS_APART = ("smollm", "starcoder", "refact", "command-r", "codeshell")
_PLAIN_BYTE_LEVEL = ("gpt-2", "mpt", "olmo", "phi-2")

LAYER_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
}
"""What a layer's weights are called in GGUF, and by Hugging Face."""
TENSORS = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight", "output.weight": "lm_head.weight"}


def open_gguf(path: str | Path) -> GGUFFile:
    """The file at ``path``, parsed once for all who ask (four seconds for a vocabulary of 49,000).

    Raises:
        UsageError: If there is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    return _parsed(path.resolve(), path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=1)
def _parsed(path: Path, _modified: int) -> GGUFFile:
    return GGUFFile(path)


class GGUFFile:
    """One memory-mapped ``.gguf`` of a Llama-architecture model."""

    def __init__(self, path: str | Path) -> None:
        """Map the file.

        Raises:
            UsageError: If it is no GGUF file.
            ConfigError: If its model is of another architecture.
        """
        import gguf

        self.path = Path(path)
        try:
            self._reader = gguf.GGUFReader(self.path)
        except (OSError, ValueError, IndexError, KeyError, OverflowError, MemoryError) as error:
            raise UsageError(f"{path}: not a GGUF file ({error})") from error
        found = self.value("general.architecture")
        if found != ARCHITECTURE:
            raise ConfigError(f"{path}: general.architecture is {found!r}; only {ARCHITECTURE!r} is supported")
        self._tensors = {_hugging_face_name(t.name): t for t in self._reader.tensors}

    def value(self, key: str, default: Any = None) -> Any:
        """The metadata value called ``key``; ``{arch}`` in it stands for the architecture."""
        field = self._reader.get_field(key.replace("{arch}", ARCHITECTURE))
        return default if field is None else field.contents()

    def config(self) -> dict[str, Any]:
        """What a Hugging Face ``config.json`` of this model says."""
        heads = self.value("{arch}.attention.head_count")
        config = {
            "model_type": "llama",
            "num_hidden_layers": self.value("{arch}.block_count"),
            "hidden_size": self.value("{arch}.embedding_length"),
            "intermediate_size": self.value("{arch}.feed_forward_length"),
            "num_attention_heads": heads,
            "num_key_value_heads": self.value("{arch}.attention.head_count_kv", heads),
            "head_dim": self.value("{arch}.rope.dimension_count"),
            "max_position_embeddings": self.value("{arch}.context_length"),
            # GGUF keeps float32, a checkpoint's author wrote decimals: 9.999999747378752e-06 is 1e-05.
            "rms_norm_eps": float(f"{self.value('{arch}.attention.layer_norm_rms_epsilon'):.6g}"),
            "rope_theta": float(self.value("{arch}.rope.freq_base", 10000.0)),
            "vocab_size": self.shape("model.embed_tokens.weight")[0],
            "tie_word_embeddings": "lm_head.weight" not in self._tensors,
            "bos_token_id": self.value("tokenizer.ggml.bos_token_id"),
            "eos_token_id": self.value("tokenizer.ggml.eos_token_id"),
            "torch_dtype": "float32",
        }
        scaling = self.value("{arch}.rope.scaling.type", "none")
        if scaling != "none":
            config["rope_scaling"] = {"rope_type": scaling, "factor": self.value("{arch}.rope.scaling.factor")}
        elif "rope_freqs.weight" in self._tensors:
            config["rope_scaling"] = _llama3_scaling(self.tensor("rope_freqs.weight"), config["rope_theta"], self.path)
        return config

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every weight's shape, rows first, by the name Hugging Face gives it."""
        return {name: self.shape(name) for name in self._tensors}

    @property
    def names(self) -> frozenset[str]:
        """Names of the weights, as Hugging Face spells them."""
        return frozenset(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one weight, rows first."""
        return tuple(int(size) for size in reversed(self._tensors[name].shape))

    def tensor(self, name: str) -> npt.NDArray[np.float32]:
        """One weight as float32, rotary halves in Hugging Face's order (GGUF interleaves them for q and k)."""
        import gguf

        stored = self._tensors[name]
        weight = np.array(gguf.dequantize(stored.data, stored.tensor_type), dtype=np.float32).reshape(self.shape(name))
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = self.value("{arch}.attention.head_count")
            if name.endswith("k_proj.weight"):
                heads = self.value("{arch}.attention.head_count_kv", heads)
            weight = weight.reshape(heads, -1, 2, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)
        return weight

    @functools.cached_property
    def tokens(self) -> list[str]:
        """The vocabulary, by id."""
        return list(self.value("tokenizer.ggml.tokens"))

    def tokenizer_kind(self) -> str:
        """``gpt2`` (byte-level BPE) or ``llama`` (sentencepiece).

        Raises:
            ConfigError: If it is another kind.
        """
        kind: str = self.value("tokenizer.ggml.model")
        if kind not in {"gpt2", "llama"}:
            raise ConfigError(f"{self.path}: tokenizer.ggml.model is {kind!r}; only 'gpt2' and 'llama' are supported")
        return kind

    def named_tokens(self) -> dict[str, str]:
        """``bos_token``, ``eos_token``, ``unk_token``, ``pad_token`` as far as the file names them."""
        keys = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
        ids = {name: self.value(f"tokenizer.ggml.{key}_token_id") for name, key in keys.items()}
        return {name: self.tokens[i] for name, i in ids.items() if i is not None}

    def tokenizer_json(self) -> str:
        """A byte-level BPE vocabulary as ``tokenizer.json``.

        Raises:
            ConfigError: If it is split into words in a way that is not known.
        """
        from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

        pre = self.value("tokenizer.ggml.pre", "default")
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=bool(self.value("tokenizer.ggml.add_space_prefix", False)))
        if pre in _DIGITS_APART:
            splitter = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
        elif pre in _PLAIN_BYTE_LEVEL:
            splitter = byte_level
        else:
            raise ConfigError(
                f"{self.path}: tokenizer.ggml.pre is {pre!r}, which is not supported; convert the Hugging Face folder instead"
            )
        vocabulary = {token: i for i, token in enumerate(self.tokens)}
        merges = [tuple(merge.split(" ", 1)) for merge in self.value("tokenizer.ggml.merges")]
        tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
        tokenizer.pre_tokenizer = splitter
        tokenizer.decoder = decoders.ByteLevel()
        types = self.value("tokenizer.ggml.token_type")
        control, user_defined = 3, 4
        tokenizer.add_special_tokens(
            [AddedToken(t, special=True, normalized=False) for t, k in zip(self.tokens, types, strict=True) if k == control]
        )
        tokenizer.add_tokens([AddedToken(t, normalized=False) for t, k in zip(self.tokens, types, strict=True) if k == user_defined])
        return json.dumps(json.loads(tokenizer.to_str()), ensure_ascii=False)

    def sentencepiece_model(self) -> bytes:
        """A sentencepiece vocabulary as a serialized model. GGUF numbers the kinds of pieces as sentencepiece does."""
        from sentencepiece import sentencepiece_model_pb2 as schema

        model = schema.ModelProto()
        scores, types = self.value("tokenizer.ggml.scores"), self.value("tokenizer.ggml.token_type")
        for piece, score, kind in zip(self.tokens, scores, types, strict=True):
            model.pieces.add(piece=piece, score=float(score), type=int(kind))
        trainer, normalizer = model.trainer_spec, model.normalizer_spec
        trainer.model_type = schema.TrainerSpec.BPE
        trainer.vocab_size = len(self.tokens)
        trainer.byte_fallback = True
        trainer.unk_id = self.value("tokenizer.ggml.unknown_token_id", 0)
        trainer.bos_id = self.value("tokenizer.ggml.bos_token_id", -1)
        trainer.eos_id = self.value("tokenizer.ggml.eos_token_id", -1)
        trainer.pad_id = -1
        normalizer.name = "identity"
        normalizer.add_dummy_prefix = bool(self.value("tokenizer.ggml.add_space_prefix", True))
        normalizer.remove_extra_whitespaces = bool(self.value("tokenizer.ggml.remove_extra_whitespaces", False))
        serialized: bytes = model.SerializeToString()
        return serialized


def _llama3_scaling(divisors: npt.NDArray[np.float32], theta: float, path: Path) -> dict[str, Any]:
    """Llama 3's scaling, of which GGUF keeps only what it divides each frequency by. Raises ConfigError where it is another one."""
    scaling = {
        "rope_type": "llama3",
        "factor": float(divisors.max()),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    if not np.allclose(divisors, llama3_divisors(scaling, theta, 2 * len(divisors)), rtol=1e-3):
        raise ConfigError(f"{path}: rope_freqs.weight is not Llama 3's rotary scaling; convert the Hugging Face folder instead")
    return scaling


def llama3_divisors(scaling: Mapping[str, Any], theta: float, head_dim: int) -> npt.NDArray[np.float64]:
    """What Llama 3's scaling divides each of the ``head_dim / 2`` rotary frequencies by."""
    low, high, context = (float(scaling[key]) for key in ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings"))
    wavelengths = 2 * np.pi * theta ** (np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    smooth = np.clip((context / wavelengths - low) / (high - low), 0.0, 1.0)
    divisors: npt.NDArray[np.float64] = 1 / ((1 - smooth) / float(scaling["factor"]) + smooth)
    return divisors


def interleaved(weight: npt.NDArray[np.float32], heads: int) -> npt.NDArray[np.float32]:
    """A q or k projection whose rotary halves alternate, as GGUF's llama wants them; Hugging Face has one half after the other."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def _hugging_face_name(name: str) -> str:
    if match := re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name):
        layer, part, kind = match.groups()
        if part in LAYER_TENSORS:
            return f"model.layers.{layer}.{LAYER_TENSORS[part]}.{kind}"
    return TENSORS.get(name, name)
