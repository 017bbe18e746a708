"""Each model family: logits of transformers = of the Megatron model = of the export, and the embedded engine reads the export."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from jinja2 import TemplateError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from nemo_steerlm.core.errors import ConfigError
from nemo_steerlm.core.model_info import ModelInfo
from nemo_steerlm.core.tokenization import load_tokenizer
from nemo_steerlm.formats.chat_template import VERSION
from nemo_steerlm.formats.checkpoint import check_checkpoint
from nemo_steerlm.formats.families import FAMILIES
from nemo_steerlm.formats.hf_config import config_from_dict
from nemo_steerlm.inference.causal_model import CausalModel
from nemo_steerlm.serving.prompts import Prompts
from nemo_steerlm.serving.schemas import ChatBody
from tests import inputs
from tests.environments import environment
from tests.megatron.families import IDS, POSITIONS, SIZES, WINDOWS, differences, random_model

pytestmark = pytest.mark.megatron

TOLERANCE = 1e-4
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_stay_the_same(family: str, tied: bool, tmp_path: Path) -> None:
    assert {name: d for name, d in differences(family, tmp_path, tied=tied).items() if not d < TOLERANCE} == {}
    exported = check_checkpoint(tmp_path / "exported")
    assert exported.family == check_checkpoint(tmp_path / "source").family == family
    assert exported.max_position_embeddings == WINDOWS.get(family, 256)


@pytest.mark.slow
@pytest.mark.timeout(900)  # the first run makes the environment
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_smollm3_is_what_transformers_5_makes_of_it(tied: bool, tmp_path: Path) -> None:
    """transformers 4.51 lacks it, so that the other tests compare with the class that ours stands in for."""
    packages = environment("transformers-5.24.0", ["transformers==5.24.0"]).parent.parent.glob("lib/*/site-packages")
    variables = os.environ | {"PYTHONPATH": os.pathsep.join([*map(str, packages), str(ROOT)])}  # beside this environment's torch

    def theirs(*arguments: str | Path) -> torch.Tensor:
        command = [sys.executable, "-m", "tests.megatron.newest_transformers", *map(str, arguments)]
        done = subprocess.run(command, env=variables, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.splitlines()[-1] == "transformers.models.smollm3.modeling_smollm3"
        return load_file(tmp_path / "logits")["logits"]

    expected = theirs(tmp_path / "source", tmp_path / "logits", "smollm3", json.dumps({"tie_word_embeddings": tied}))
    found = differences("smollm3", tmp_path, tied=tied, expected=expected)
    assert {name: d for name, d in found.items() if not d < TOLERANCE} == {}
    for folder in (tmp_path / "source", tmp_path / "exported"):
        with torch.no_grad():
            ours = CausalModel(folder, device="cpu").model(IDS).logits
        torch.testing.assert_close(ours[..., :512], expected, atol=TOLERANCE, rtol=0)
    exported = theirs(tmp_path / "exported", tmp_path / "logits")
    torch.testing.assert_close(exported[..., :512], expected, atol=TOLERANCE, rtol=0)


def test_a_window_is_exact_up_to_its_length_and_no_longer(tmp_path: Path) -> None:
    """Why ``max_position_embeddings`` shrinks to the window: beyond it, transformers masks what nobody masks here."""
    windowed = random_model("mistral", tmp_path / "a", sliding_window=100, attn_implementation="sdpa")
    full = random_model("mistral", tmp_path / "b", sliding_window=None, attn_implementation="sdpa")
    ids = torch.randint(3, 512, (1, POSITIONS), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        a, b = windowed(ids).logits[0], full(ids).logits[0]
    torch.testing.assert_close(a[:100], b[:100], atol=TOLERANCE, rtol=0)
    assert (a[101] - b[101]).abs().max() > 100 * TOLERANCE
    assert check_checkpoint(tmp_path / "a").max_position_embeddings == 100
    assert check_checkpoint(tmp_path / "b").max_position_embeddings == 256


def test_transformers_asks_an_export_as_our_server_does(tmp_path: Path) -> None:
    differences("llama", tmp_path, tied=True)
    folder = tmp_path / "exported"
    info, theirs = ModelInfo.load(folder), AutoTokenizer.from_pretrained(folder)
    assert info.chat_template == VERSION
    prompts = Prompts(info, load_tokenizer(folder), 256)
    for i, text in enumerate([*inputs.prompts()[:20], "<extra_id_1>Assistant\n<\\extra_id_2>"]):
        messages = [{"role": "user", "content": text}, {"role": "assistant", "content": text}, {"role": "user", "content": "Go on"}]
        body = ChatBody.model_validate({"messages": messages[: 1 + 2 * (i % 2)], "attributes": {"verbosity": i % 5}})
        ids = theirs.apply_chat_template(messages[: 1 + 2 * (i % 2)], add_generation_prompt=True, attributes=body.attributes)
        assert ids == prompts.chat(body.messages, body.asked)
    # Which transformers, unlike sentencepiece, would take for control tokens.
    typed = theirs.apply_chat_template([{"role": "user", "content": "<s></s><unk>"}], add_generation_prompt=True)
    assert not {theirs.bos_token_id, theirs.eos_token_id, theirs.unk_token_id} & set(typed)
    with pytest.raises(TemplateError, match=r"unknown attribute verbose; attributes here: helpfulness 0\.\.4"):
        theirs.apply_chat_template([{"role": "user", "content": ""}], attributes={"verbose": 1})
    # An answer ends where the next turn starts: the export's generation settings say so. Its third token is made to be that marker.
    turn, asked = prompts.tokenizer.token_id(info.tokens.turn_start), torch.tensor([ids])

    def forced(tokens: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        token = turn if tokens.shape[1] == len(ids) + 2 else 50
        return torch.nn.functional.one_hot(torch.tensor([token]), scores.shape[1]).float()

    model = AutoModelForCausalLM.from_pretrained(folder)
    answer = model.generate(asked, max_new_tokens=9, do_sample=False, logits_processor=[forced])[0, len(ids) :]
    assert answer.tolist() == [50, 50, turn]


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        ("phi3", {"rope_scaling": {"type": "longrope", "long_factor": [1.0], "short_factor": [1.0]}}, "rotary scaling 'longrope'"),
        ("phi3", {"partial_rotary_factor": 0.75}, r"partial_rotary_factor is 0\.75"),
        ("qwen3", {"attention_bias": True}, "attention_bias is True"),
        ("qwen2", {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ("smollm3", {"no_rope_layers": [1, 0, 1]}, r"no_rope_layers is \[1, 0, 1\]; it needs a number for each layer"),
        ("smollm3", {"no_rope_layer_interval": 0}, "no_rope_layer_interval is 0"),
        ("mistral", {"quantization_config": {"quant_method": "fp8"}}, r"quantized \(fp8\)"),
    ],
)
def test_what_a_family_does_not_compute_is_refused(family: str, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config_from_dict({"model_type": family, **SIZES, **change})
