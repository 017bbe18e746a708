"""An exported model folder as one GGUF file for llama.cpp and what is built on it: weights, tokenizer and chat template.

The tokenizer gives our ids. Two traps: llama.cpp puts the space of a sentencepiece model before every text that follows a special token,
where sentencepiece puts it before the whole prompt only. So the file turns it off and the template begins with a space instead. And no
BOS is written where our prompts have none.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from nemo_steerlm.core.errors import ConfigError, UsageError
from nemo_steerlm.core.model_info import ModelInfo
from nemo_steerlm.core.tokenization import load_tokenizer
from nemo_steerlm.formats.chat_template import chat_template
from nemo_steerlm.formats.checkpoint import check_checkpoint
from nemo_steerlm.formats.checkpoint_files import safetensors_tensors
from nemo_steerlm.formats.families import FAMILIES
from nemo_steerlm.formats.families.base import ModelConfig
from nemo_steerlm.formats.gguf_files import LAYER_TENSORS, TENSORS, interleaved, llama3_divisors

_INTERLEAVED = ("llama", "smollm3")
"""Architectures whose rotary halves alternate in GGUF."""
Kind = Literal["F32", "F16", "Q8_0"]
KINDS: tuple[Kind, ...] = get_args(Kind)

# `tokenizer.ggml.pre` of byte-level vocabularies, by what splits text before the merges: llama.cpp knows each by name.
_DIGITS = '{"type":"Digits","individual_digits":true}'
_LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SPLITS = {_LLAMA3: "llama-bpe", _LLAMA3.replace("{1,3}", ""): "qwen2"}


def write_gguf(folder: Path, out: Path, kind: Kind = "F16") -> str:
    """Write the exported model ``folder`` to ``out``; vectors stay in F32, as llama.cpp wants them.

    Returns what every prompt for that file begins with, in place of the tokenizer.

    Raises:
        UsageError: If ``folder`` is no exported model.
        ConfigError: If GGUF has no name for its architecture or its tokenizer.
    """
    import gguf

    config, info, tokenizer = check_checkpoint(folder), ModelInfo.load(folder), load_tokenizer(folder)
    family = FAMILIES[config.family]
    if family.gguf is None:
        raise ConfigError(f"{folder}: a {config.family} model cannot be written as GGUF")
    if config.unrotated and config.unrotated != tuple(range(3, config.num_hidden_layers, 4)):
        raise ConfigError(f"{folder}: llama.cpp leaves every fourth layer of a {config.family} model unrotated, this one has others")
    partial = out.with_name(f".{out.name}.partial")
    partial.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(partial, family.gguf)
    try:
        _add_config(writer, config)
        start = _add_tokenizer(writer, folder)
        writer.add_name(folder.resolve().name)
        writer.add_chat_template((f"{{{{- '{start}' -}}}}" if start else "") + chat_template(info, tokenizer))
        turn = tokenizer.token_id(info.tokens.turn_start)
        if turn is not None:
            writer.add_eot_token_id(turn)  # an answer ends where the next turn starts
        writer.add_file_type({"F32": 0, "F16": 1, "Q8_0": 7}[kind])
        for name, tensor in _tensors(folder, config, interleave=family.gguf in _INTERLEAVED):
            data, stored = _encoded(tensor, kind)
            writer.add_tensor(name, data, raw_dtype=stored)
        if config.rope_scaling and config.rope_scaling["rope_type"] == "llama3":
            divisors = llama3_divisors(config.rope_scaling, config.rope_theta, config.head_dim)
            writer.add_tensor("rope_freqs.weight", divisors.astype(np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
    return start


def _add_config(writer: Any, config: ModelConfig) -> None:
    import gguf

    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_vocab_size(config.vocab_size)
    if config.rope_scaling and config.rope_scaling["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(config.rope_scaling["factor"])


def _tensors(folder: Path, config: ModelConfig, *, interleave: bool) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
    """Every weight under GGUF's name."""
    names = {theirs: ours for ours, theirs in TENSORS.items()}
    parts = {theirs: ours for ours, theirs in LAYER_TENSORS.items()}
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    wanted = FAMILIES[config.family].tensors(config)
    for name, tensor in safetensors_tensors(folder):
        if name not in wanted:
            continue
        if name in names:
            yield names[name], tensor
            continue
        _, _, layer, part = name.split(".", 3)
        part, _, suffix = part.rpartition(".")
        projection = part.rpartition(".")[2]
        turned = interleaved(tensor, heads[projection]) if interleave and projection in heads else tensor
        yield f"blk.{layer}.{parts[part]}.{suffix}", turned


def _encoded(tensor: npt.NDArray[np.float32], kind: Kind) -> tuple[npt.NDArray[Any], Any]:
    import gguf

    if tensor.ndim == 1 or kind == "F32":
        return tensor, None
    if kind == "Q8_0" and tensor.shape[-1] % 32 == 0:
        return gguf.quantize(tensor, gguf.GGMLQuantizationType.Q8_0), gguf.GGMLQuantizationType.Q8_0
    return tensor.astype(np.float16), None


def _add_tokenizer(writer: Any, folder: Path) -> str:
    """Write the vocabulary. Returns what ``write_gguf`` returns."""
    if (folder / "tokenizer.model").is_file():
        return _add_sentencepiece(writer, folder)
    _add_byte_level(writer, folder)
    return ""


def _add_sentencepiece(writer: Any, folder: Path) -> str:
    from sentencepiece import sentencepiece_model_pb2 as schema

    model = schema.ModelProto.FromString((folder / "tokenizer.model").read_bytes())
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    if trainer.model_type != trainer.BPE or normalizer.precompiled_charsmap or normalizer.remove_extra_whitespaces:
        raise ConfigError(f"{folder}: llama.cpp has no tokenizer like this sentencepiece model (only BPE that takes text as it is)")
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    # Types are numbered alike. Typed text never becomes a control piece of sentencepiece, but one of llama.cpp, which goes by their names
    # (and takes </s> for one whatever its type): so they get others, which no text has in it.
    hidden = [piece.type in (piece.CONTROL, piece.UNKNOWN) for piece in model.pieces]
    writer.add_token_list([f"<|control_{i}|>" if hides else p.piece for i, (p, hides) in enumerate(zip(model.pieces, hidden, strict=True))])
    writer.add_token_scores([piece.score for piece in model.pieces])
    writer.add_token_types([p.UNUSED if hides else p.type for p, hides in zip(model.pieces, hidden, strict=True)])
    for add, token in ((writer.add_bos_token_id, trainer.bos_id), (writer.add_eos_token_id, trainer.eos_id)):
        if token >= 0:
            add(token)
    writer.add_unk_token_id(trainer.unk_id)
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)
    return " " if normalizer.add_dummy_prefix else ""


def _add_byte_level(writer: Any, folder: Path) -> None:
    path = folder / "tokenizer.json"
    try:
        stored = json.loads(path.read_bytes())
        settings = json.loads((folder / "tokenizer_config.json").read_bytes())
    except (OSError, ValueError) as error:
        raise UsageError(f"{folder}: no readable tokenizer ({error})") from error
    vocabulary, merges = stored["model"].get("vocab"), stored["model"].get("merges")
    if stored["model"].get("type") != "BPE" or merges is None:
        raise ConfigError(f"{path}: only byte-level BPE can be written as GGUF, this is {stored['model'].get('type')}")
    ids = {i: token for token, i in vocabulary.items()}
    types = dict.fromkeys(ids, 1)
    control, user_defined, unused = 3, 4, 5
    for token in stored["added_tokens"]:
        ids[token["id"]] = token["content"]
        types[token["id"]] = control if token["special"] else user_defined
    size = max(ids) + 1
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_pre(stored, path))
    writer.add_token_list([ids.get(i, f"[PAD{i}]") for i in range(size)])
    writer.add_token_types([types.get(i, unused) for i in range(size)])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    named = {token: i for i, token in ids.items()}
    for key, add in (("bos_token", writer.add_bos_token_id), ("eos_token", writer.add_eos_token_id)):
        token = settings.get(key)
        token = token["content"] if isinstance(token, dict) else token
        if token in named:
            add(named[token])
    writer.add_add_bos_token(False)


def _pre(stored: dict[str, Any], path: Path) -> str:
    """The name that llama.cpp has for how this tokenizer splits text. Raises ConfigError where it has none."""
    found = stored.get("pre_tokenizer") or {}
    steps = found.get("pretokenizers", [found])
    byte_level = steps[-1].get("type") == "ByteLevel" and not steps[-1].get("add_prefix_space")
    normal = (stored.get("normalizer") or {}).get("type")
    if byte_level and len(steps) == 1 and steps[0].get("use_regex", True) and normal is None:
        return "gpt-2"
    if byte_level and len(steps) == 2 and normal in (None, "NFC"):
        if json.dumps(steps[0], separators=(",", ":")) == _DIGITS:
            return "smollm"
        if name := _SPLITS.get((steps[0].get("pattern") or {}).get("Regex", "")):
            return name
    raise ConfigError(f"{path}: llama.cpp has no name for how this tokenizer splits text")
