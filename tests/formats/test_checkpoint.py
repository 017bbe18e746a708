"""What is no checkpoint that can be used is refused in one line before anything heavy is imported; what is one, is not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from nemo_steerlm.core.errors import ConfigError, SteerLMError, UsageError
from nemo_steerlm.formats.checkpoint import check_checkpoint
from nemo_steerlm.formats.tokenizer_files import write_tokenizer_files
from tests import inputs

CONFIG = json.loads((inputs.STORIES / "config.json").read_text())
WEIGHTS = load_file(inputs.STORIES / "model.safetensors")
LINEAR = {"rope_type": "linear", "factor": 2.0}
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 1048576\n"
Q_PROJ = "model.layers.0.self_attn.q_proj.weight"


def folder(tmp_path: Path, config: dict[str, Any] | None = None, weights: dict[str, torch.Tensor] | None = WEIGHTS) -> Path:
    """stories260K with another config (``...`` removes a key) or other weights; None: no weights."""
    made = tmp_path / "model"
    made.mkdir()
    merged = {key: value for key, value in {**CONFIG, **(config or {})}.items() if value is not ...}
    (made / "config.json").write_text(json.dumps(merged))
    shutil.copy(inputs.STORIES / "tokenizer.model", made)
    if weights is not None:
        save_file({name: tensor.contiguous().clone() for name, tensor in weights.items()}, made / "model.safetensors")
    return made


def projections(change: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: change(tensor) if "proj" in name else tensor for name, tensor in WEIGHTS.items()}


def without(*names: str) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in WEIGHTS.items() if name not in names}


REFUSED: dict[str, tuple[dict[str, Any], dict[str, torch.Tensor] | None, str]] = {
    "bitsandbytes": ({"quantization_config": {"quant_method": "bitsandbytes"}}, WEIGHTS, r"quantization_config.*\(bitsandbytes\)"),
    "fp8, named": ({"quantization_config": {"quant_method": "fp8"}}, projections(lambda t: t.to(torch.float8_e4m3fn)), r"\(fp8\)"),
    "compressed tensors": ({"compression_config": {"quant_method": "compressed-tensors"}}, WEIGHTS, r"\(compressed-tensors\)"),
    "fp8, not named": ({}, projections(lambda t: t.to(torch.float8_e4m3fn)), r"proj\.weight has type F8_E4M3"),
    "integers": ({}, projections(lambda t: t.to(torch.int8)), "has type I8"),
    "no output layer": ({"tie_word_embeddings": False}, WEIGHTS, r"lm_head\.weight is missing; add it"),
    "no prefix": (
        {},
        {n.removeprefix("model."): t for n, t in WEIGHTS.items()},
        "and 46 more are missing; did you mean embed_tokens.weight",
    ),
    "compiled": ({}, {f"_orig_mod.{n}": t for n, t in WEIGHTS.items()}, r"did you mean _orig_mod\.model\.embed_tokens"),
    "fewer layers": ({"num_hidden_layers": 7}, WEIGHTS, r"layers\.5\.input_layernorm\.weight and 17 more are missing"),
    "more layers": ({"num_hidden_layers": 4}, WEIGHTS, r"layers\.4\.\S+ and 8 more have no place in a llama model"),
    "one missing": ({}, without(Q_PROJ), rf"tensor {Q_PROJ} is missing"),
    "biases": ({}, {**WEIGHTS, Q_PROJ.replace("weight", "bias"): torch.zeros(64)}, r"q_proj\.bias has no place"),
    "shape": ({"intermediate_size": 128}, WEIGHTS, r"gate_proj\.weight is 172 x 64; config\.json makes it 128 x 64"),
    "vocabulary": ({"vocab_size": 1024}, WEIGHTS, r"embed_tokens\.weight is 512 x 64; config\.json makes it 1024 x 64"),
    "two scalings": ({"rope_scaling": {"type": "linear", "factor": 2.0}}, WEIGHTS, "rope_scaling says .*linear.* and rope_parameters None"),
    "two thetas": ({"rope_theta": 5e5}, WEIGHTS, r"rope_theta has several values, \[10000\.0, 500000\.0\]"),
    "scaling without factor": ({"rope_scaling": {"type": "linear"}, "rope_parameters": ...}, WEIGHTS, "rotary scaling linear needs factor"),
    "yarn": ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, WEIGHTS, "rotary scaling 'yarn'"),
    "part of a head": ({"rope_parameters": {"partial_rotary_factor": 0.5}}, WEIGHTS, "partial_rotary_factor"),
    "biases in config": ({"attention_bias": True}, WEIGHTS, "attention_bias is True"),
    "another family": ({"model_type": "gpt2"}, WEIGHTS, "model_type is 'gpt2'; known families: llama"),
    "experts": ({"model_type": "mixtral", "num_local_experts": 8}, WEIGHTS, "'mixtral' is a mixture of experts"),
    "no heads": ({"num_attention_heads": ...}, WEIGHTS, "num_attention_heads is missing"),
    "heads in words": ({"num_attention_heads": "8"}, WEIGHTS, "num_attention_heads is '8'"),
    "uneven heads": ({"num_key_value_heads": 3}, WEIGHTS, "no multiple of num_key_value_heads 3"),
    "dtype": ({"dtype": "float8_e4m3fn"}, WEIGHTS, "dtype 'float8_e4m3fn'"),
    "NaN": (
        {},
        {**WEIGHTS, "model.norm.weight": WEIGHTS["model.norm.weight"] * float("nan")},
        r"model\.norm\.weight has values that are NaN",
    ),
    "infinite bf16": ({}, {n: (t * float("inf") if n == Q_PROJ else t).bfloat16() for n, t in WEIGHTS.items()}, f"{Q_PROJ} has values"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_config_or_tensor_is_refused(tmp_path: Path, case: str) -> None:
    config, weights, message = REFUSED[case]
    with pytest.raises(ConfigError, match=message) as caught:
        check_checkpoint(folder(tmp_path, config, weights), values=True)
    assert "\n" not in str(caught.value)


ACCEPTED: dict[str, tuple[dict[str, Any], dict[str, torch.Tensor]]] = {
    "as it is": ({}, WEIGHTS),
    "nulls": ({"head_dim": None, "rope_scaling": None, "torch_dtype": None, "quantization_config": None, "eos_token_id": [2, 3]}, WEIGHTS),
    "another name of SiLU": ({"hidden_act": "swish"}, WEIGHTS),
    "two keys that agree": (
        {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {**LINEAR, "rope_theta": 10000.0}, "rope_theta": 10000.0},
        WEIGHTS,
    ),
    "bfloat16": ({"dtype": "bfloat16"}, {name: tensor.bfloat16() for name, tensor in WEIGHTS.items()}),
    "tied, and written twice": ({}, {**WEIGHTS, "lm_head.weight": WEIGHTS["model.embed_tokens.weight"]}),
    "buffers of old transformers": ({}, {**WEIGHTS, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4)}),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_an_unusual_checkpoint_that_is_right_is_not_refused(tmp_path: Path, case: str) -> None:
    config = check_checkpoint(folder(tmp_path, *ACCEPTED[case]), values=True)
    assert (config.hidden_size, config.num_key_value_heads, config.head_dim) == (64, 4, 8)
    assert config.rope_scaling == (LINEAR if case == "two keys that agree" else None)


def _adapter(made: Path) -> None:
    (made / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "a/b"}')


def _legacy(made: Path) -> None:
    torch.save(dict(WEIGHTS), made / "pytorch_model.bin", _use_new_zipfile_serialization=False)


def _code(made: Path) -> None:
    torch.save({"a": torch.nn.Linear(1, 1)}, made / "pytorch_model.bin")


def _shard(made: Path) -> None:
    index = {"weight_map": dict.fromkeys(WEIGHTS, "model-00001-of-00002.safetensors")}
    (made / "model.safetensors.index.json").write_text(json.dumps(index))


def _part(made: Path) -> None:
    save_file(dict(WEIGHTS), made / "model-00001-of-00002.safetensors")


FILES: dict[str, tuple[Callable[[Path], object], type[SteerLMError], str]] = {
    "nothing": (lambda made: None, UsageError, r"no model\.safetensors and no pytorch_model\.bin"),
    "adapter": (_adapter, ConfigError, "an adapter of 'a/b', no model"),
    "adapter alone": (lambda made: (_adapter(made), (made / "config.json").unlink()), ConfigError, "an adapter of 'a/b'"),
    "LFS pointer": (lambda made: (made / "model.safetensors").write_text(POINTER), UsageError, "a Git LFS pointer"),
    "LFS config": (lambda made: (made / "config.json").write_text(POINTER), UsageError, r"config\.json: a Git LFS pointer"),
    "LFS pickle": (lambda made: (made / "pytorch_model.bin").write_text(POINTER), UsageError, "a Git LFS pointer"),
    "old pickle": (_legacy, ConfigError, "no archive of torch 1.6 or later"),
    "code in a pickle": (_code, ConfigError, "which is no tensor"),
    "missing part": (_shard, UsageError, "names 'model-00001-of-00002.safetensors', which is not there"),
    "no index": (_part, UsageError, "has model-00001-of-00002.safetensors but no index"),
    "broken index": (lambda made: (made / "model.safetensors.index.json").write_text("[]"), UsageError, "not an index of weights"),
    "cut": (
        lambda made: (made / "model.safetensors").write_bytes((inputs.STORIES / "model.safetensors").read_bytes()[:100000]),
        UsageError,
        r"model\.safetensors: broken",
    ),
    "empty": (lambda made: (made / "model.safetensors").touch(), UsageError, r"model\.safetensors: broken"),
    "no config": (lambda made: (made / "config.json").unlink(), UsageError, r"no config\.json"),
    "config cut": (lambda made: (made / "config.json").write_text("{"), UsageError, r"config\.json: not JSON"),
    "config a list": (lambda made: (made / "config.json").write_text("[]"), UsageError, "not an object"),
    "GPTQ of old": (lambda made: (made / "quantize_config.json").write_text("{}"), ConfigError, "the weights are quantized"),
}


@pytest.mark.parametrize("case", FILES)
def test_files_that_are_no_weights_are_refused(tmp_path: Path, case: str) -> None:
    change, error, message = FILES[case]
    made = folder(tmp_path, weights=None)
    change(made)
    with pytest.raises(error, match=message) as caught:
        check_checkpoint(made)
    assert "\n" not in str(caught.value)


def test_a_pickle_is_read_without_running_it(tmp_path: Path) -> None:
    made = folder(tmp_path, weights=None)
    torch.save({name: torch.nn.Parameter(tensor) for name, tensor in WEIGHTS.items()}, made / "pytorch_model.bin")
    check_checkpoint(made)
    torch.save({**WEIGHTS, Q_PROJ: torch.zeros(3, 64)}, made / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=f"{Q_PROJ} is 3 x 64; config.json makes it 64 x 64"):
        check_checkpoint(made)


@pytest.mark.parametrize("name", ["m-00001-of-00002.gguf", "model-00001-of-00002.safetensors"])
def test_one_part_is_no_checkpoint(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(UsageError, match="one part of a checkpoint that was split"):
        check_checkpoint(tmp_path / name)


@pytest.mark.parametrize("content", [b"", b"GGUF", POINTER.encode(), bytes(200)])
def test_what_is_no_gguf_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(UsageError, match=r"m\.gguf: (not a GGUF file|a Git LFS pointer)"):
        check_checkpoint(tmp_path / "m.gguf")


def test_smollm2_passes_as_gguf() -> None:
    assert check_checkpoint(inputs.smollm2()).num_hidden_layers == 30


@pytest.mark.parametrize("name", ["tokenizer.model", "tokenizer.json", "tokenizer_config.json"])
def test_pointers_in_place_of_tokenizers_are_refused(tmp_path: Path, name: str) -> None:
    made = folder(tmp_path)
    if name == "tokenizer.json":
        (made / "tokenizer.model").unlink()
    (made / name).write_text(POINTER)
    with pytest.raises(UsageError, match=rf"{name}: a Git LFS pointer"):
        write_tokenizer_files(made, tmp_path / "out")


def test_the_command_refuses_before_nemo_is_imported(tmp_path: Path) -> None:
    made = folder(tmp_path, {"quantization_config": {"quant_method": "awq"}})
    command = "import sys; from nemo_steerlm.cli.main import main; sys.argv[1:] = ['convert', 'model', 'x.nemo']\ntry: main()\n"
    command += "finally: assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", command], cwd=tmp_path, env=os.environ, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (78, 1), done.stderr
    assert "(awq)" in done.stderr
    assert not (tmp_path / "x.nemo").exists()
    assert made.is_dir()
