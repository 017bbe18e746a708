"""NeMo's own ``attribute_annotate.py``, unmodified, labels through our server what our annotator labels.

No package has the script: ``STEERLM_NEMO`` names a checkout of NeMo. What it imports beside NeMo has an environment of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from nemo_steerlm.annotation.annotate import annotate
from nemo_steerlm.core.attributes import preset
from nemo_steerlm.core.model_info import ModelInfo
from nemo_steerlm.core.tokenization import load_tokenizer
from tests.annotation.running import CLIENT_ENV, options, write_conversations
from tests.environments import environment
from tests.inputs import STORIES
from tests.serving.servers import running
from tests.serving.tiny_models import model_folder, teach_labels

pytestmark = [
    pytest.mark.skipif("STEERLM_NEMO" not in os.environ, reason="STEERLM_NEMO names no checkout of NeMo"),
    pytest.mark.timeout(1800),
]
SCRIPT = "scripts/nlp_language_modeling/sft/attribute_annotate.py"
RUN = "import runpy, sys; sys.path.append(sys.argv[1]); sys.argv = sys.argv[2:]; runpy.run_path(sys.argv[0], run_name='__main__')"


@pytest.fixture(scope="module")
def oasst_model(tmp_path_factory) -> Path:
    """A value model of the twelve attributes, and of the languages that the script can read: it asks for one token."""
    schema = preset("oasst")
    tokenizer = load_tokenizer(model_folder(STORIES, tmp_path_factory.mktemp("all"), kind="value"))
    length = len(tokenizer.encode("lang:"))
    short = tuple(name for name in schema.languages if len(tokenizer.encode(f"lang:{name}")) == length + 1)
    assert len(short) > 1
    folder = model_folder(STORIES, tmp_path_factory.mktemp("oasst"), kind="value", schema=msgspec.structs.replace(schema, languages=short))
    # The script's own prompts: what it asks differs from what NeMo trains on by the newline after the system prompt.
    msgspec.structs.replace(ModelInfo.load(folder), layout="nemo-annotate").save(folder)
    teach_labels(folder, 100, every_turn=True)
    return folder


@pytest.mark.parametrize("batch", [1, 3])
def test_nemos_own_script_labels_as_our_annotator_does(oasst_model, tmp_path, batch):
    source, theirs, ours = (tmp_path / name for name in ("in.jsonl", "theirs.jsonl", "ours.jsonl"))
    write_conversations(source, 4)  # the tiny model has room for the labels of two turns
    packages = environment("nemo-annotate-1", ["fire==0.7.0", "langchain==0.0.300"]).parents[1] / "lib"
    with running(oasst_model, "--no-page") as server:
        port = server.url.rpartition(":")[2]
        flags = [f"--input_file_name={source}", f"--output_file_name={theirs}", "--host=127.0.0.1", f"--port_num={port}"]
        script = Path(os.environ["STEERLM_NEMO"]) / SCRIPT
        command = [sys.executable, "-c", RUN, next(packages.glob("python*/site-packages")), script, *flags, f"--batch_size={batch}"]
        done = subprocess.run(command, capture_output=True, text=True, env=CLIENT_ENV, check=False)
        assert done.returncode == 0, done.stderr[-4000:]
        assert annotate(source, ours, [server.url], options(turns="all")).complete
    labels = [
        {record["conversations"][0]["value"]: [turn["label"] for turn in record["conversations"]] for record in records(file)}
        for file in (theirs, ours)
    ]
    assert labels[0] == labels[1], done.stdout
    assert len(labels[0]) == 4


def records(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
