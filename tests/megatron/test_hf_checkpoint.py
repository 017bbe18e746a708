"""Logits stay the same from Hugging Face to Megatron to ``.nemo`` and back, with transformers as the reference."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from nemo_steerlm.core.attributes import preset
from nemo_steerlm.core.errors import ConfigError, UsageError
from nemo_steerlm.core.files import default_mode
from nemo_steerlm.core.model_info import ModelInfo
from nemo_steerlm.core.template import ChatTokens
from nemo_steerlm.core.tokenization import load_tokenizer
from tests import inputs

pytestmark = pytest.mark.megatron

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights: untied embeddings, byte-level BPE, Llama 3's rotary scaling, heads that are not hidden_size / heads wide, shards."""
    folder = tmp_path_factory.mktemp("untied")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(inputs.prompts(), trainers.BpeTrainer(vocab_size=500, special_tokens=["</s>"], initial_alphabet=alphabet))
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512,  # more rows than tokens, as some checkpoints have
        hidden_size=48,
        intermediate_size=100,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=12,
        rms_norm_eps=3e-5,
        max_position_embeddings=256,
        rope_theta=5000.0,
        rope_scaling={
            "rope_type": "llama3",
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
        tie_word_embeddings=False,
        initializer_range=0.3,
    )
    LlamaForCausalLM(config).save_pretrained(folder, max_shard_size="100KB")
    return folder


def _reference(source: Path, ids: torch.Tensor) -> torch.Tensor:
    where = {"gguf_file": source.name} if source.is_file() else {}
    model = AutoModelForCausalLM.from_pretrained(source.parent if source.is_file() else source, torch_dtype=torch.float32, **where).eval()
    with torch.no_grad():
        logits: torch.Tensor = model(ids).logits
    return logits


def _round_trip(source: Path, folder: Path) -> None:
    from nemo_steerlm.megatron.convert import convert_hf_to_nemo, convert_nemo_to_hf
    from nemo_steerlm.megatron.nemo_files import restore_nemo

    convert_hf_to_nemo(source, folder / "m.nemo", tokens=ChatTokens())
    model = restore_nemo(folder / "m.nemo").eval()
    known = model.tokenizer.vocab_size - 3
    assert model.padded_vocab_size % 128 == 0
    ids = torch.randint(3, known, (2, 70), generator=torch.Generator().manual_seed(1))
    expected = _reference(source, ids)[..., :known]
    with torch.no_grad():
        megatron = model.model(input_ids=ids, position_ids=torch.arange(70).expand(2, -1), attention_mask=None)
    torch.testing.assert_close(megatron[..., :known], expected, atol=TOLERANCE, rtol=0)
    # The model can tell added tokens apart, also before it is trained.
    added = megatron[..., known : known + 3].flatten(0, 1)
    assert torch.pdist(added.T).min() > 0.1 * added.norm()
    convert_nemo_to_hf(folder / "m.nemo", folder / "hf")
    tokenizer = load_tokenizer(folder / "hf")
    exported = _reference(folder / "hf", ids)
    assert exported.shape[-1] == tokenizer.vocab_size == known + 3
    torch.testing.assert_close(exported, megatron[..., : known + 3], atol=TOLERANCE, rtol=0)
    assert [tokenizer.token_id(marker) for marker in ChatTokens().markers] == [known, known + 1, known + 2]


def test_sentencepiece_and_tied_embeddings(tmp_path: Path) -> None:
    _round_trip(inputs.STORIES, tmp_path)
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    # transformers 4.51 reads the first of each pair, 5 the second.
    assert (config["rope_theta"], config["rope_parameters"]) == (10000.0, {"rope_theta": 10000.0, "rope_type": "default"})
    assert config["torch_dtype"] == config["dtype"] == "float32"


def test_byte_level_untied_scaled_and_sharded(untied: Path, tmp_path: Path) -> None:
    assert (untied / "model.safetensors.index.json").is_file()
    _round_trip(untied, tmp_path)
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["rope_scaling"]["factor"] == 4.0
    assert "lm_head.weight" in load_file(tmp_path / "hf" / "model.safetensors")


@pytest.mark.slow
def test_smollm2_from_gguf(tmp_path: Path) -> None:
    _round_trip(inputs.smollm2(), tmp_path)


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four of the five layers of stories260K, so that two pipeline stages share them evenly."""
    folder = tmp_path_factory.mktemp("tied")
    config = json.loads((inputs.STORIES / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 4}))
    (folder / "tokenizer.model").write_bytes((inputs.STORIES / "tokenizer.model").read_bytes())
    weights = load_file(inputs.STORIES / "model.safetensors")
    save_file({name: tensor for name, tensor in weights.items() if ".layers.4." not in name}, folder / "model.safetensors")
    return folder


@pytest.mark.distributed
@pytest.mark.slow
def test_two_ranks_take_their_shards_and_give_them_back(tied: Path, untied: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", "-m", "tests.megatron.load_and_export"]
    done = subprocess.run(
        [*command, str(tmp_path), str(tied), str(untied)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for layout, source in itertools.product(("TP=2", "PP=2"), (tied, untied)):
        stored = {name: tensor for file in source.glob("*.safetensors") for name, tensor in load_file(file).items()}
        folder = tmp_path / layout / source.name
        known = load_tokenizer(folder).vocab_size - 3
        exported = load_file(folder / "model.safetensors")
        assert set(exported) == set(stored)
        for name, tensor in exported.items():
            rows = slice(known) if name in ("model.embed_tokens.weight", "lm_head.weight") else slice(None)
            torch.testing.assert_close(tensor[rows], stored[name][rows], atol=0, rtol=0)


@pytest.fixture(scope="module")
def small_nemo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from nemo_steerlm.megatron.convert import convert_hf_to_nemo

    path = tmp_path_factory.mktemp("nemo") / "stories.nemo"
    convert_hf_to_nemo(inputs.STORIES, path, precision="bf16")
    return path


def test_precision_is_stored_and_tokens_are_optional(small_nemo: Path) -> None:
    from nemo_steerlm.megatron.nemo_files import nemo_config, restore_nemo

    assert nemo_config(small_nemo).precision == "bf16"
    assert restore_nemo(small_nemo).tokenizer.vocab_size == 512


def test_fingerprint_names_weights_and_description(small_nemo: Path, tmp_path: Path) -> None:
    from nemo_steerlm.megatron.hf_export import export_hf
    from nemo_steerlm.megatron.nemo_files import restore_nemo

    info = ModelInfo(kind="value", attributes=preset("oasst"), tokens=ChatTokens(turn_start="<s>"))
    model = restore_nemo(small_nemo)
    first = export_hf(model, tmp_path / "a", info)
    assert first == ModelInfo.load(tmp_path / "a")
    assert first.fingerprint.startswith("sha256:")
    assert export_hf(model, tmp_path / "a", first) == first
    other = ModelInfo(kind="value", attributes=preset("helpsteer"), tokens=info.tokens)
    assert export_hf(model, tmp_path / "b", other).fingerprint != first.fingerprint
    with torch.no_grad():
        model.model.decoder.final_layernorm.weight[0] += 1
    assert export_hf(model, tmp_path / "c", info).fingerprint != first.fingerprint
    # An answer ends at the end of text or where the next turn starts.
    assert json.loads((tmp_path / "a" / "generation_config.json").read_text())["eos_token_id"] == [2, 1]


def test_an_export_that_fails_leaves_the_old_folder(small_nemo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nemo_steerlm.megatron import hf_export
    from nemo_steerlm.megatron.nemo_files import restore_nemo

    model = restore_nemo(small_nemo)
    hf_export.export_hf(model, tmp_path / "hf")
    before = {file.name: file.read_bytes() for file in (tmp_path / "hf").iterdir()}
    monkeypatch.setattr(hf_export, "export_tokenizer_files", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        hf_export.export_hf(model, tmp_path / "hf")
    assert {file.name: file.read_bytes() for file in (tmp_path / "hf").iterdir()} == before


@pytest.mark.parametrize("umask", [0o022, 0o027])
def test_large_weights_are_sharded(tmp_path: Path, umask: int, request: pytest.FixtureRequest) -> None:
    from nemo_steerlm.megatron.weights import open_weights, write_weights

    before = os.umask(umask)
    request.addfinalizer(lambda: os.umask(before))
    tensors = [(f"w{i}", torch.full((100,), float(i))) for i in range(5)]
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    assert write_weights(tmp_path / "whole", iter(tensors)) == write_weights(tmp_path / "parts", iter(tensors), shard_bytes=900)
    assert len(list((tmp_path / "parts").glob("model-*-of-00003.safetensors"))) == 3
    # Another user's server can read them, where the umask lets it.
    assert {file.stat().st_mode & 0o777 for file in tmp_path.rglob("*.*")} == {default_mode()} == {0o666 & ~umask}
    parts = open_weights(tmp_path / "parts")
    for name, tensor in tensors:
        assert torch.equal(parts.tensor(name), tensor)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt2"}, "model_type is 'gpt2'"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rotary scaling 'yarn'"),
    ],
)
def test_what_is_no_llama_is_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    from nemo_steerlm.megatron.hf_import import model_config_from_hf

    config = json.loads((inputs.STORIES / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(ConfigError, match=message):
        model_config_from_hf(tmp_path)


def test_other_sizes_are_refused_by_name(small_nemo: Path, untied: Path) -> None:
    from nemo_steerlm.megatron.hf_import import load_hf_weights
    from nemo_steerlm.megatron.nemo_files import restore_nemo

    with pytest.raises(ConfigError, match="hidden_size is 48, the model's is 64"):
        load_hf_weights(restore_nemo(small_nemo), untied)


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    from nemo_steerlm.megatron.hf_import import model_config_from_hf

    with pytest.raises(UsageError, match=r"no config\.json"):
        model_config_from_hf(tmp_path)
