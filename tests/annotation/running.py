"""Real labelling servers for tests, in threads or in processes, and the files they label."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nemo_steerlm.annotation.annotate import Options
from nemo_steerlm.client.retry import RetryPolicy
from nemo_steerlm.core.attributes import preset
from tests.annotation.labelling_server import Handler, Server, label_of, model_info

QUICK = RetryPolicy(attempts=6, timeout=5, patience=20, wait_initial=0.002, wait_max=0.05)
"""The same rules with shorter waits."""


def options(**fields: Any) -> Options:
    return Options(**({"policy": QUICK} | fields))


@contextlib.contextmanager
def served(handler: type[Handler], **fields: Any) -> Iterator[str]:
    """A server in a thread. Yields its URL."""
    kind = type("Served", (handler,), {"info": model_info(), "scores": True} | fields)
    server = Server(("127.0.0.1", 0), kind)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextlib.contextmanager
def served_by_process(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server process, killed at the end. Yields it and its URL."""
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.annotation.labelling_server", *arguments], stdout=subprocess.PIPE, text=True, cwd=root
    )
    try:
        assert process.stdout is not None
        yield process, json.loads(process.stdout.readline())["url"]
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def client_command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "nemo_steerlm.cli.main", "annotate", *map(str, arguments)]


CLIENT_ENV = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def write_conversations(path: Path, count: int, turns: int = 2) -> Path:
    with path.open("w", encoding="utf-8") as file:
        for i in range(count):
            speakers = [("Assistant", "answer") if t % 2 else ("User", "question") for t in range(turns)]
            said = [
                {"value": f"{word} {i}.{t} \u00e9\u4e2d", "from": who, "label": "helpfulness:3"} for t, (who, word) in enumerate(speakers)
            ]
            record = {"conversations": said, "tree_id": f"t{i}", "system": "Be kind.\n\n", "mask": "User", "type": "TEXT_TO_VALUE"}
            record["extra"] = [1, None]
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
    return path


def expected(source: Path, *, schema: str = "helpsteer", fingerprint: str | None = None, every: bool = False) -> str:
    """What labelling ``source`` has to give, by the rule and without any client code."""
    lines = []
    for line in source.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        for turn in record["conversations"]:
            if every or turn["from"] != record["mask"]:
                human = turn["label"]
                turn["label"] = label_of(turn["value"], preset(schema))
                turn["gt_label"] = human
                turn["label_source"] = fingerprint or model_info().fingerprint
        lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    return "".join(lines)
