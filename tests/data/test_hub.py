"""References to the hub, against a small hub on this machine: what is fetched, what is kept, and what each refusal says."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from nemo_steerlm.core.attributes import preset
from nemo_steerlm.core.model_info import ModelInfo
from nemo_steerlm.pipeline.manifest import load
from tests.data.shapes import spreadsheet
from tests.inputs import STORIES

SHA = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "config.json": b"{}",
    "tokenizer.model": b"t",
    "model.safetensors": b"w",
    "consolidated.safetensors": b"W",
    "pytorch_model.bin": b"p",
}
GATED = {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to model own/gated is restricted"}


class Hub(BaseHTTPRequestHandler):
    """own/ratings has a data set. Models: own/public, own/old (pickles only), own/gated; own/private, as on the real hub,
    is 401 without a token and 404 with one."""

    asked: list[str] = []
    sent: dict[str, bytes] = {}
    rated: dict[str, bytes] = {}

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_POST(self) -> None:
        """own/new takes what it is sent, from whoever has a token that may write."""
        content = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers["authorization"] != "Bearer hf_write":
            return self._send(403, {}, b"{}", body=True)
        if self.path.endswith("/preload/main") or self.path.endswith("/preupload/main"):
            files = [{**file, "uploadMode": "regular", "shouldIgnore": False} for file in json.loads(content)["files"]]
            return self._send(200, {}, json.dumps({"files": files}).encode(), body=True)
        if self.path.endswith("/commit/main"):
            for line in map(json.loads, content.splitlines()):
                if line["key"] == "file":
                    self.sent[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        at = f"http://{self.headers['Host']}/own/new"
        answer = {
            "url": at,
            "commitUrl": f"{at}/commit/{SHA}",
            "commitOid": SHA,
            "errors": [],
            "warnings": [],
        }
        return self._send(200, {}, json.dumps(answer).encode(), body=True)

    def _answer(self, *, body: bool) -> None:
        parts = self.path.strip("/").split("/")
        if parts[0] == "api":
            kind, repository, revision = parts[1], "/".join(parts[2:4]), parts[5] if len(parts) > 5 else "main"
            if kind != "models" or repository not in ("own/public", "own/old", "own/gated"):
                hidden = repository == "own/private" and "authorization" not in self.headers
                return self._send(401 if hidden else 404, {} if hidden else {"X-Error-Code": "RepoNotFound"}, b"", body)
            if revision not in ("main", SHA):
                return self._send(404, {"X-Error-Code": "RevisionNotFound"}, b"", body)
            names = [name for name in FILES if repository != "own/old" or "safetensors" not in name]
            answer = {"id": repository, "modelId": repository, "sha": SHA, "siblings": [{"rfilename": name} for name in names]}
            return self._send(200, {}, json.dumps(answer).encode(), body)
        name = parts[-1]
        if "gated" in parts:
            return self._send(403, GATED, b"", body)
        if "missing" in parts:
            return self._send(404, {"X-Error-Code": "RepoNotFound"}, b"", body)
        self.asked.append(name)
        return self._send(200, {"X-Repo-Commit": SHA, "ETag": f'"{name}"'}, (self.rated | FILES)[name], body)

    def _send(self, status: int, headers: dict[str, str], content: bytes, body: bool) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


PROGRAM = """
import sys
from nemo_steerlm.core.errors import SteerLMError
from nemo_steerlm.data.packages import local_path
for reference in sys.argv[1:]:
    try:
        path = local_path(reference, kind="model")
        print("ok", *(sorted(file.name for file in path.iterdir()) if path.is_dir() else [path.name]))
    except SteerLMError as error:
        print(error.exit_code, error)
"""


def steerlm(endpoint: str, home: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    ours = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1", "HF_HUB_DISABLE_TELEMETRY": "1", **variables}
    command = [sys.executable, "-m", "nemo_steerlm.cli.main", *arguments]
    return subprocess.run(command, env={**kept, **ours}, capture_output=True, text=True, timeout=120, check=False)


def fetch(endpoint: str, home: Path, *references: str, **variables: str) -> list[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    ours = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1", "HF_HUB_DISABLE_TELEMETRY": "1", **variables}
    command = [sys.executable, "-c", PROGRAM, *references]
    done = subprocess.run(command, env={**kept, **ours}, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()


def test_a_model_is_fetched_once_without_what_nobody_reads(hub: str, tmp_path: Path) -> None:
    needed = ["config.json", "model.safetensors", "tokenizer.model"]
    whole, pinned, old, file = fetch(
        hub, tmp_path, "hf:own/public", f"hf:own/public@{SHA}", "hf:own/old", "hf:own/public/model.safetensors"
    )
    assert whole == pinned == f"ok {' '.join(needed)}"
    assert old == "ok config.json pytorch_model.bin tokenizer.model"
    assert file == "ok model.safetensors"
    assert "consolidated.safetensors" not in Hub.asked
    # Another process, the hub gone: what was fetched is there, what was not is not.
    kept, never = fetch("http://127.0.0.1:9", tmp_path, "hf:own/public", "hf:own/never")
    assert kept == whole
    assert never == "69 hf:own/never: the Hugging Face hub cannot be reached, and no copy was kept"


def test_each_refusal_says_what_to_do(hub: str, tmp_path: Path) -> None:
    said = fetch(hub, tmp_path, "hf:own/gated", "hf:own/missing", "hf:own/private", "hf:own/public@v9", "hf:public", "hf:own/public@")
    assert said == [
        "78 hf:own/gated: this model is gated; accept the terms of own/gated on the hub, then set HF_TOKEN to a token of that account",
        "2 hf:own/missing: the Hugging Face hub has no such model, or HF_TOKEN may not see it",
        "78 hf:own/private: no public model has this name; if it is private, set HF_TOKEN to a token that may read it",
        "2 hf:own/public@v9: the model has no revision v9",
        "2 'hf:public': write hf:OWNER/NAME[@REVISION]",
        "2 'hf:own/public@': write hf:OWNER/NAME[@REVISION]",
    ]
    (with_token,) = fetch(hub, tmp_path, "hf:own/private", HF_TOKEN="hf_x")
    assert with_token == "2 hf:own/private: the Hugging Face hub has no such model, or HF_TOKEN may not see it"


def test_init_looks_at_a_data_set_of_the_hub(hub: str, tmp_path: Path) -> None:
    spreadsheet(tmp_path / "ratings.csv")
    Hub.rated["ratings.csv"] = (tmp_path / "ratings.csv").read_bytes()
    reference, written = "hf:own/ratings/ratings.csv", tmp_path / "ratings.yaml"
    done = steerlm(hub, tmp_path / "home", "init", reference, "--yes", "--base", str(STORIES), "--output", str(written))
    assert done.returncode == 0, done.stderr
    assert f"{reference} is read as data.ratedText" in done.stdout
    assert load(written).spec.data.references() == (reference,)
    run = steerlm(hub, tmp_path / "home", "run", str(written), "--until", "prepare", "--workdir", str(tmp_path / "work"))
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "work/prepare/value_train.jsonl").stat().st_size > 0


def test_convert_takes_a_plain_hub_id(hub: str, tmp_path: Path) -> None:
    """What the hub has under it is checked as any other folder is."""
    found = steerlm(hub, tmp_path, "convert", "own/public", str(tmp_path / "m.nemo"))
    assert found.returncode == 78
    assert "config.json: model_type is None; known families" in found.stderr
    missing = steerlm(hub, tmp_path, "convert", "own/missing", str(tmp_path / "m.nemo"))
    assert missing.returncode == 2
    assert "own/missing: no such file or folder; hf:own/missing: the Hugging Face hub has no such model" in missing.stderr


def test_an_export_is_pushed_and_a_dry_run_says_what_would_go(hub: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    (folder / "adapter").mkdir(parents=True)
    ModelInfo(kind="steer", attributes=preset("helpsteer")).save(folder)
    files = {"README.md": b"card", "config.json": b"{}", "model.safetensors": b"weights", "adapter/adapter_config.json": b"{}"}
    for name, content in {**files, ".left.tmp": b"x"}.items():
        (folder / name).write_bytes(content)
    files["steerlm.json"] = (folder / "steerlm.json").read_bytes()
    total = f"5 files, {sum(map(len, files.values())):,} bytes"

    def push(*flags: str, **variables: str) -> tuple[int, str]:
        done = steerlm(hub, tmp_path, "export", str(folder), "--push", "own/new", *flags, **variables)
        return done.returncode, (done.stderr if done.returncode else done.stdout).strip().splitlines()[-1]

    assert push("--dry-run") == (0, f"would send {total} to own/new")
    assert not Hub.sent
    assert push() == (78, "steerlm: --push own/new: no token; set HF_TOKEN to one that may write to own/new")
    assert push(HF_TOKEN="hf_read") == (78, "steerlm: --push own/new: HF_TOKEN may not write there (HTTP 403)")
    assert push(HF_TOKEN="hf_write") == (0, f"sent {total} to {hub}/own/new")
    assert Hub.sent == files
