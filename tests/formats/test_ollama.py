"""Modelfiles, read and rendered by Ollama's own packages: every one asks what our server asks under its label."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from nemo_steerlm.cli.main import application
from nemo_steerlm.core.attributes import Attribute, AttributeSchema
from nemo_steerlm.core.errors import ConfigError, UsageError
from nemo_steerlm.core.label_support import LabelSupport
from nemo_steerlm.core.model_info import ModelInfo
from nemo_steerlm.core.template import text_of
from nemo_steerlm.core.tokenization import load_tokenizer
from nemo_steerlm.formats.ollama import go_template, labels, write_modelfiles
from nemo_steerlm.serving.prompts import Prompts
from nemo_steerlm.serving.schemas import ChatBody

CONVERSATIONS: list[list[dict[str, str]]] = [
    [{"role": "user", "content": "Hi"}],
    [{"role": "system", "content": 'Say "yes" {{ .Prompt }}'}, {"role": "user", "content": " two\nlines \\ and 🙂 "}],
    [
        {"role": "user", "content": "One"},
        {"role": "assistant", "content": "Two."},
        {"role": "user", "content": '"""{{ end }}'},
    ],
]


@pytest.fixture(scope="module")
def renders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program of Ollama's parser and templates."""
    go, source = shutil.which("go"), Path(__file__).with_name("ollama")
    if go is None:
        pytest.skip("Ollama's packages want Go, which is not installed")
    fetched = subprocess.run([go, "mod", "download"], cwd=source, capture_output=True, text=True, check=False)
    if fetched.returncode:
        pytest.skip(f"Ollama's packages cannot be had: {fetched.stderr.strip()[-200:]}")
    program = tmp_path_factory.mktemp("go") / "renders"
    build, flags = [go, "build", "-o", str(program), "."], {"GOFLAGS": "-mod=readonly -buildvcs=false"}
    built = subprocess.run(build, cwd=source, env=os.environ | flags, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return program


def rendered(program: Path, modelfile: Path, conversations: list[list[dict[str, str]]]) -> list[dict[str, Any]]:
    lines = "".join(json.dumps(messages) + "\n" for messages in conversations)
    done = subprocess.run([str(program), str(modelfile)], input=lines, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_ollama_asks_what_our_server_asks(renders: Path, steer_folder: Path, tmp_path: Path) -> None:
    info, tokenizer = ModelInfo.load(steer_folder), load_tokenizer(steer_folder)
    prompts = Prompts(info, tokenizer, 512)
    for path in write_modelfiles(steer_folder, tmp_path / "m.gguf", start=" "):
        label = labels(info)[path.name.split(".")[1]]
        for messages, answer in zip(CONVERSATIONS, rendered(renders, path, CONVERSATIONS), strict=True):
            request = ChatBody.model_validate({"messages": messages})
            conversation = prompts.conversation(request.messages, label)
            assert answer["prompt"] == " " + text_of(prompts.template.reply_prompt(conversation, info.assistant, label))
            assert answer["stops"] == list(info.tokens.markers)


def test_each_attribute_has_a_modelfile_for_both_of_its_ends(steer_folder: Path, tmp_path: Path) -> None:
    schema = ModelInfo.load(steer_folder).attributes
    done = CliRunner().invoke(
        application(["export"]), ["export", str(steer_folder), "--gguf", "F16", "--out", str(tmp_path / "m.gguf"), "--ollama"]
    )
    assert done.exit_code == 0, done.output
    written = {path.name: path.read_text() for path in tmp_path.glob("*.Modelfile")}
    ends = [f"{end}-{a.name}" for a in schema.attributes for end, level in (("most", a.high), ("least", a.low)) if level != a.default]
    assert sorted(written) == sorted(f"m.{name}.Modelfile" for name in ["defaults", *ends])
    assert len(set(written.values())) == len(written)
    for name, text in written.items():
        assert f"ollama create NAME -f {tmp_path / name}\n" in done.output
        assert "\nFROM ./m.gguf\n" in text
        assert '\nPARAMETER num_ctx 512\nPARAMETER stop "<extra_id_0>"\nPARAMETER stop "<extra_id_1>"\n' in text


TEMPLATE = r"""
{{ " <extra_id_0>System\n" }}{{ if .System }}{{ .System }}{{ else }}{{ "Say \"yes\"" }}{{ end }}{{ "\n" }}
{{ range .Messages }}{{ if eq .Role "user" }}{{ "<extra_id_1>User\n" }}{{ .Content }}{{ "\n" }}
{{ else if eq .Role "assistant" }}{{ "<extra_id_1>Assistant\n<extra_id_2>quality:4\n" }}{{ .Content }}{{ "\n" }}{{ end }}{{ end }}
{{ "<extra_id_1>Assistant\n<extra_id_2>quality:4\n" }}
""".replace("\n", "")
"""As the test above had Ollama render it, where Go is installed."""


def test_the_template_is_the_one_that_was_rendered(steer_folder: Path) -> None:
    schema = AttributeSchema(attributes=(Attribute(name="quality"),))
    info, vocabulary = ModelInfo(kind="steer", attributes=schema, system='Say "yes"'), load_tokenizer(steer_folder)
    assert go_template(info, vocabulary, "quality:4", start=" ") == TEMPLATE
    annotates = msgspec.structs.replace(info, layout="nemo-annotate")
    assert go_template(annotates, vocabulary, "quality:4", start=" ") == TEMPLATE.replace(
        '{{ end }}{{ "\\n" }}{{ range', "{{ end }}{{ range"
    )


def test_a_model_that_was_taught_parts_of_labels_is_told_one_attribute() -> None:
    schema = AttributeSchema(attributes=(Attribute(name="quality", default=4), Attribute(name="humor", default=1)))
    whole = ModelInfo(kind="steer", attributes=schema)
    parts = msgspec.structs.replace(whole, support=LabelSupport.count(schema, ["humor:1"], partial=True))
    for info, quality, humor in ((whole, "quality:4,", ",humor:1"), (parts, "", "")):
        assert labels(info) == {
            "defaults": "quality:4,humor:1",
            "least-quality": f"quality:0{humor}",
            "most-humor": f"{quality}humor:4",
            "least-humor": f"{quality}humor:0",
        }


def test_what_has_no_modelfile_is_refused(steer_folder: Path, tmp_path: Path) -> None:
    alone = CliRunner().invoke(application(["export"]), ["export", str(steer_folder), "--push", "a/b", "--ollama"])
    assert isinstance(alone.exception, UsageError)
    assert "--ollama goes with --gguf" in str(alone.exception)
    folder = tmp_path / "value"
    shutil.copytree(steer_folder, folder)
    msgspec.structs.replace(ModelInfo.load(folder), kind="value").save(folder)
    with pytest.raises(ConfigError, match="a value model reads attributes"):
        write_modelfiles(folder, tmp_path / "m.gguf", start="")
