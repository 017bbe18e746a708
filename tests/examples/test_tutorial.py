"""The commands of examples/README.md, in order, as the shell runs them: real trees, a tiny Llama, other sizes."""

from __future__ import annotations

import gzip
import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.inputs import OASST, STORIES

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "examples" / "README.md"

SMALLER = {
    "=4096": "=512",
    "global_batch_size=128": "global_batch_size=4",
    "max_steps=1000": "max_steps=2",
    "nproc_per_node=4": "nproc_per_node=2",
    "trainer.devices=4": "trainer.devices=2",
    "port=1424": "port={first}",
    "port_num=1424": "port_num={first}",
    "port=1427": "port={second}",
    "localhost:1427": "localhost:{second}",
}
"""What the page says, and what is run in its place. Everything else is run as it stands."""

pytestmark = [
    pytest.mark.megatron,
    pytest.mark.distributed,
    pytest.mark.timeout(1800),
]


def free_ports(count):
    sockets = [socket.create_server(("localhost", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def blocks():
    """Step number to the commands of its section."""
    sections = re.split(r"^### (\d+)\. .*$", PAGE.read_text("utf-8"), flags=re.MULTILINE)
    found = {
        int(number): re.findall(r"^```bash\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
        for number, text in zip(sections[1::2], sections[2::2], strict=True)
    }
    return {number: "".join(commands) for number, commands in found.items() if commands}


def script():
    """The page as one shell script that ends at the first command that fails."""
    first, second = free_ports(2)
    text = "".join(f"echo '### {number}'\n{commands}" for number, commands in blocks().items())
    for said, run in SMALLER.items():
        assert re.search(rf"{re.escape(said)}\b", text), f"{said} is no longer on the page"
        text = re.sub(rf"(?<!_){re.escape(said)}\b", run.format(first=first, second=second), text)
    return "set -euo pipefail\n" + text


def lines(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def shortened(message):
    return {**message, "text": message["text"][:60], "replies": [shortened(reply) for reply in message["replies"]]}


@pytest.fixture(scope="module")
def tutorial(tmp_path_factory):
    """The folder in which the whole page was run, and what it printed by step."""
    folder = tmp_path_factory.mktemp("tutorial")
    (folder / "examples").symlink_to(ROOT / "examples")
    (folder / "Llama2-7B-fp16").symlink_to(STORIES)
    # The model reads 512 tokens, and spells most words in several: whole messages would leave next to no conversation.
    trees = "".join(json.dumps({**tree, "prompt": shortened(tree["prompt"])}) + "\n" for tree in lines(OASST))
    (folder / "2023-04-12_oasst_all.trees.jsonl.gz").write_bytes(gzip.compress(trees.encode()))
    (folder / "tutorial.sh").write_text(script(), "utf-8")
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    with (folder / "output").open("w") as output:
        run = subprocess.Popen(["bash", "tutorial.sh"], cwd=folder, env=env, stdout=output, stderr=output, start_new_session=True)
        try:
            code = run.wait()
        finally:
            # A script that failed leaves its server behind.
            with_everything(run.pid)
    printed = (folder / "output").read_text("utf-8")
    assert code == 0, printed[-8000:]
    steps = re.split(r"^### (\d+)\n", printed, flags=re.MULTILINE)
    return folder, dict(zip(map(int, steps[1::2]), steps[2::2], strict=True))


def with_everything(group):
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return


def test_every_step_after_the_installation_was_run(tutorial):
    assert list(tutorial[1]) == list(range(2, 11))


def test_each_conversation_that_a_server_can_read_is_labelled_by_the_value_model(tutorial):
    data = tutorial[0] / "data"
    for part in ("train", "val"):
        asked, labelled = lines(data / f"subset_data_v2t_{part}_clean.jsonl"), lines(data / f"subset_data_v2t_{part}_value_output.jsonl")
        assert asked
        assert [r["tree_id"] for r in labelled] == [r["tree_id"] for r in asked]
        turns = [turn for record in labelled for turn in record["conversations"]]
        assert all(turn["label_source"] for turn in turns)
        assert not list(data.glob("*.rejected.jsonl"))
        assert lines(data / f"subset_data_v2t_{part}_value_output_clean.jsonl") == labelled


def test_both_trainings_leave_a_model_that_says_what_it_is(tutorial):
    for name in ("value_model", "steerlm_model"):
        assert (tutorial[0] / "results" / name / "checkpoints" / f"{name}.nemo").is_file()


def test_the_steerlm_model_answers(tutorial):
    answer = [line for line in tutorial[1][10].splitlines() if line.strip() and not line.startswith("{")]
    assert answer, tutorial[1][10]
