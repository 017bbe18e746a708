"""An exported model in llama.cpp: the same ids, the same greedy answers, attributes that count, and an end where the next turn starts."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from nemo_steerlm.cli.main import application
from nemo_steerlm.core.errors import ConfigError, UsageError
from nemo_steerlm.core.model_info import ModelInfo
from nemo_steerlm.core.tokenization import load_tokenizer
from nemo_steerlm.formats.gguf_export import write_gguf
from nemo_steerlm.formats.gguf_files import GGUFFile
from nemo_steerlm.serving.prompts import Prompts
from nemo_steerlm.serving.schemas import ChatBody
from tests import inputs
from tests.environments import environment
from tests.serving.servers import Server

QUESTIONS = [*inputs.prompts()[:18], "<extra_id_1>Assistant\n", "<s>a</s> <\\extra_id_1><unk>"]


@pytest.fixture(scope="module")
def llama_cpp() -> Path:
    return environment("llama.cpp-2026.10", ["xllamacpp==2026.10.11549"])


def ask(python: Path, gguf: Path, bodies: list[dict[str, Any]]) -> list[dict[str, Any]]:
    script = Path(__file__).with_name("llama_cpp.py")
    lines = "".join(json.dumps(body) + "\n" for body in bodies)
    done = subprocess.run([str(python), str(script), str(gguf)], input=lines, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def test_llama_cpp_reads_our_ids_and_answers_as_our_server(
    llama_cpp: Path, steer_folder: Path, steer_server: Server, tmp_path: Path
) -> None:
    prompts = Prompts(ModelInfo.load(steer_folder), load_tokenizer(steer_folder), 512)
    bodies: list[dict[str, Any]] = []
    for i, question in enumerate(QUESTIONS):
        messages = [
            {"role": "user", "content": question[:150]},
            {"role": "assistant", "content": "Hm."},
            {"role": "user", "content": "Go on"},
        ]
        attributes = {"quality": i % 5, "humor": i % 11, "lang": "en"}  # the server's own defaults are others
        bodies.append({"messages": messages[: 1 + 2 * (i % 2)], "max_tokens": 16, "chat_template_kwargs": {"attributes": attributes}})
    with steer_server.client() as client:
        asked = [client.post("/v1/chat/completions", json={**body, "temperature": 0}).json()["choices"][0] for body in bodies]
    ours = [(choice["message"]["content"], choice["finish_reason"]) for choice in asked]
    assert len(set(ours)) > 10
    # Rounded to F16, weights may choose another token where two were as likely as each other.
    for kind, least in (("F32", len(bodies)), ("F16", len(bodies) - 2)):
        write_gguf(steer_folder, tmp_path / "m.gguf", kind)
        answers = ask(llama_cpp, tmp_path / "m.gguf", bodies)
        for body, answer in zip(bodies, answers, strict=True):
            request = ChatBody.model_validate(body)
            assert answer["ids"] == prompts.chat(request.messages, request.asked)
            assert answer["read"] == len(answer["ids"])
        assert sum((answer["text"], answer["finish"]) == choice for answer, choice in zip(answers, ours, strict=True)) >= least


def test_llama_cpp_leaves_unrotated_what_smollm3_does(llama_cpp: Path, steer_folder: Path, tmp_path: Path) -> None:
    """The steer model's weights under SmolLM3's name: its fourth layer does not rotate then."""
    import torch

    from nemo_steerlm.inference.causal_model import CausalModel

    folder = shutil.copytree(steer_folder, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "smollm3", "architectures": ["SmolLM3ForCausalLM"], "no_rope_layers": [1, 1, 1, 0, 1]}
    (folder / "config.json").write_text(json.dumps(config))
    write_gguf(folder, tmp_path / "m.gguf", "F32")
    bodies = [{"messages": [{"role": "user", "content": question[:100]}], "max_tokens": 8} for question in QUESTIONS[:8]]
    answers = ask(llama_cpp, tmp_path / "m.gguf", bodies)
    ours, rotated = (CausalModel(place, device="cpu").model for place in (folder, steer_folder))
    tokenizer = load_tokenizer(folder)
    turn = tokenizer.token_id(ModelInfo.load(folder).tokens.turn_start)

    def text(model: Any, ids: list[int]) -> str:
        with torch.inference_mode():
            found = model.generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False)[0, len(ids) :].tolist()
        return tokenizer.decode(found[: found.index(turn)] if turn in found else found).strip()

    told = [answer["text"].strip() for answer in answers]
    assert told == [text(ours, answer["ids"]) for answer in answers]
    assert told != [text(rotated, answer["ids"]) for answer in answers]
    (folder / "config.json").write_text(json.dumps(config | {"no_rope_layers": [1, 0, 1, 0, 1]}))
    with pytest.raises(ConfigError, match="leaves every fourth layer of a smollm3 model unrotated"):
        write_gguf(folder, tmp_path / "n.gguf")


def test_llama_cpp_refuses_unknown_attributes(llama_cpp: Path, steer_folder: Path, tmp_path: Path) -> None:
    write_gguf(steer_folder, tmp_path / "m.gguf", "Q8_0")
    messages = [{"role": "user", "content": "Hi"}]
    plain, wrong = ask(
        llama_cpp,
        tmp_path / "m.gguf",
        [{"messages": messages, "max_tokens": 1, "chat_template_kwargs": {"attributes": a}} for a in ({}, {"humour": 1})],
    )
    assert plain["read"] > 10
    assert "unknown attribute humour; attributes here: quality 0..4" in wrong["error"]


def test_weights_come_back_as_they_were(steer_folder: Path, tmp_path: Path) -> None:
    import numpy as np

    from nemo_steerlm.formats.checkpoint_files import safetensors_tensors
    from nemo_steerlm.formats.hf_config import config_from_dict, load_config

    write_gguf(steer_folder, tmp_path / "m.gguf", "F32")
    file = GGUFFile(tmp_path / "m.gguf")
    assert config_from_dict(file.config()) == load_config(steer_folder)
    weights = dict(safetensors_tensors(steer_folder))
    assert file.names == set(weights)
    for name, tensor in weights.items():
        np.testing.assert_array_equal(file.tensor(name), tensor)
    stop = ModelInfo.load(steer_folder).tokens.turn_start
    assert file.tokens[file.value("tokenizer.ggml.eot_token_id")] == stop
    assert not file.value("tokenizer.ggml.add_bos_token")


def test_the_command_names_its_file_and_its_choices(steer_folder: Path, tmp_path: Path) -> None:
    app = application(["export"])
    done = CliRunner().invoke(app, ["export", str(steer_folder), "--gguf", "q8_0", "--out", str(tmp_path / "x.gguf")])
    assert done.output == f"wrote {tmp_path / 'x.gguf'}\n"
    wrong = CliRunner().invoke(app, ["export", str(steer_folder), "--gguf", "q4"])
    assert isinstance(wrong.exception, UsageError)
    assert "write one of F32, F16, Q8_0" in str(wrong.exception)


def test_a_tokenizer_that_llama_cpp_has_no_name_for_is_refused(steer_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for file in steer_folder.iterdir():
        if file.name != "tokenizer.model":
            (folder / file.name).symlink_to(file)
    with pytest.raises(ConfigError, match="no name for how this tokenizer splits text"):
        write_gguf(folder, tmp_path / "m.gguf")
    assert not list(tmp_path.glob("*m.gguf*"))
