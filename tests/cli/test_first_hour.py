"""From a file of ratings to a steered answer by what the README and the pages of *Start* and *How-to* say to type, and nothing else.

A real (tiny) Llama goes the whole way from a spreadsheet, in fewer steps than are written; files of other shapes go through what depends
on the shape: what is guessed, what is validated, and the records that every later stage reads.
"""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import socket
import subprocess
import sys

import pytest

from tests.data import shapes
from tests.docs.commands import ELSEWHERE, ROOT, RUNNERS, commands
from tests.inputs import STORIES
from tests.serving.servers import running

NOTEBOOK = ROOT / "examples" / "notebook.ipynb"
STEERLM = (sys.executable, "-m", "nemo_steerlm.cli.main")
FILES = {
    "chats.jsonl": shapes.chats,
    "ultrafeedback.jsonl": shapes.comparisons,
    "argilla.json": shapes.argilla,
    "sharegpt.parquet": shapes.shared_chats,
}
PAGES = RUNNERS["tests/cli/test_first_hour.py"]
OURS = {
    "ratings.csv --yes --force": f"ratings.csv --yes --force --base {STORIES}",
    "Question --rating helpful --rating funny": "Prompt --rating Helpfulness --rating 'is it funny?'",
    "helpful=5 --set funny=1": "helpfulness=5 --set is_it_funny=1 --max-tokens 8",
    "positivity=4 --set verbosity=1": "helpfulness=5 --set is_it_funny=1 --max-tokens 8",
    '{"positivity": 4, "verbosity": 1}': '{"helpfulness": 5, "is_it_funny": 1}, "max_tokens": 8',
    "--pipeline-parallel 2": "--tensor-parallel 2",
    "runs/quickstart": "runs/ratings",
    "pipeline.yaml": "ratings.yaml",
}
"""What the pages say, and what is said here in its place."""
SMALLER = {
    r"maxSteps: \d+": "maxSteps: 2",
    r"validateEvery: \d+": "validateEvery: 2",
    r"warmupSteps: \d+": "warmupSteps: 1",
    "samplesPerLevel: 16": "samplesPerLevel: 1",
    "jointRequests: 16": "jointRequests: 2",
    r"maxTokens: \d+": "maxTokens: 8",
}
"""What is written for a model that has something to learn, and what is run."""


def run(folder, line, said=""):
    typed = f"{shlex.join(STEERLM)} {line[8:]}" if line.startswith("steerlm ") else line
    done = subprocess.run(["bash", "-c", typed], cwd=folder, input=said, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{line}: {done.stderr[-4000:]}"
    return done.stdout


@pytest.mark.parametrize("name", FILES)
def test_what_init_writes_is_valid_and_gives_records_of_every_level(name, tmp_path):
    FILES[name](tmp_path / name)
    stem = name.partition(".")[0]
    run(tmp_path, f"steerlm init {name} --yes --base {STORIES}")
    assert " conversations can be read\n  model.base: llama" in run(tmp_path, f"steerlm validate {stem}.yaml")
    run(tmp_path, f"steerlm run {stem}.yaml --until prepare")
    prepared = tmp_path / "runs" / stem / "prepare"
    records = [json.loads(line) for file in prepared.glob("value_*.jsonl") for line in file.open()]
    labels = {turn["label"] for record in records for turn in record["conversations"] if turn.get("label")}
    assert len(records) >= 40
    assert len({re.match(r"[a-z_]+:(\d)", label).group(1) for label in labels}) >= 4
    assert (prepared / "annotate_train.jsonl").stat().st_size > 0


def smaller(path):
    written = path.read_text()
    for pattern, little in SMALLER.items():
        written, count = re.subn(pattern, little, written)
        assert count, f"{pattern} is no longer written"
    path.write_text(written)


def notebook(port):
    """The notebook's code as a program that runs its commands as Jupyter does, about the pipeline that ran."""
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert not any(cell.get("outputs") for cell in cells)
    lines = "".join("".join(cell["source"]) + "\n" for cell in cells if cell["cell_type"] == "code").splitlines()
    shell = "import shlex, subprocess, sys\n\ndef shell(line):\n    subprocess.run(shlex.split(line), check=True)\n\n"
    code = shell + "\n".join(f"shell(f{line[1:]!r})" if line.startswith("!") else line for line in lines)
    ours = {
        "examples/pipelines/quickstart.yaml": "ratings.yaml",
        "runs/quickstart": "runs/ratings",
        "shell(f'steerlm": f"shell(f'{shlex.join(STEERLM)}",
        '["steerlm", ': f"[*{STEERLM}, ",
        "8427": str(port),
    }
    for said, here in ours.items():
        assert said in code, f"{said} is no longer in the notebook"
        code = code.replace(said, here)
    return code


@pytest.mark.megatron
@pytest.mark.timeout(1800)
@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_a_file_of_each_shape_becomes_a_model_that_answers(name, tmp_path):
    """The spreadsheet does so below."""
    FILES[name](tmp_path / name)
    stem = name.partition(".")[0]
    run(tmp_path, f"steerlm init {name} --yes --base {STORIES}")
    smaller(tmp_path / f"{stem}.yaml")
    said = run(tmp_path, f"steerlm run {stem}.yaml")
    assert "control error" in said
    offered = re.search(r"^talk to it: .*(chat .*)$", said, re.MULTILINE).group(1)
    assert run(tmp_path, f"steerlm {offered} --max-tokens 8", said="Tell me of cats.\n").strip()


@pytest.mark.megatron
@pytest.mark.timeout(1800)
@pytest.mark.slow
def test_the_pages_lead_from_a_spreadsheet_to_a_model_that_answers(tmp_path):
    shapes.spreadsheet(tmp_path / "ratings.csv")
    printed = {}
    for page in PAGES:
        with contextlib.ExitStack() as servers:
            places = dict(OURS)
            for line in commands(page):
                if line in ELSEWHERE:
                    continue
                ours = line
                for said, here in places.items():
                    ours = ours.replace(said, here)
                if served := re.fullmatch(r"steerlm serve (\S+)(.*) --port (\d+)", ours):
                    server = servers.enter_context(running(tmp_path / served.group(1), *shlex.split(served.group(2)), "--port", "0"))
                    places |= {f"http://{host}:{served.group(3)}": server.url for host in ("localhost", "127.0.0.1")}
                    continue
                printed[line] = run(tmp_path, ours, said="Tell me of cats.\n")
                if " init " in line:
                    smaller(tmp_path / "ratings.yaml")
                elif " run ratings.yaml" in line:
                    labelled = (tmp_path / "runs/ratings/annotate/train.jsonl").read_text().splitlines(keepends=True)
                    (tmp_path / "records.jsonl").write_text("".join(labelled[:3]))
    result = printed["steerlm run ratings.yaml"]
    assert "control error" in result
    assert re.search(rf"^talk to it: .* chat {tmp_path}/runs/ratings --set \w+=5$", result, re.MULTILINE), result
    assert printed["steerlm chat runs/ratings --set helpful=5 --set funny=1"].strip()
    assert len((tmp_path / "labelled.jsonl").read_text().splitlines()) == 3
    [answer] = [json.loads(said) for line, said in printed.items() if line.startswith("curl ") and "/v1/chat/completions" in line]
    assert answer["choices"][0]["message"]["content"]
    [read] = [json.loads(said) for line, said in printed.items() if line.startswith("curl ") and "/v1/attributes" in line]
    assert "is_it_funny" in json.dumps(read)
    assert "vllm" in printed["steerlm serve runs/quickstart --engine vllm --print-command"]
    again = printed["steerlm run pipeline.yaml --from evaluate"]
    assert ("train-steer: already done" in again, "evaluate: done" in again) == (True, True), again
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    done = subprocess.run([sys.executable, "-c", notebook(port)], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("already done") == 5
    # Both ends of both attributes from the samples, then all five levels of the first from a server.
    assert len(re.findall(r"^(?:helpfulness|is_it_funny) [1-5]: ", done.stdout, re.MULTILINE)) == 4 + 5
