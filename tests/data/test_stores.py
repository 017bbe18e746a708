"""Files out of object stores and web servers: what is fetched, when again, and what each refusal says."""

from __future__ import annotations

import json
import os
import re
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_steerlm.core.errors import ConfigError, SteerLMError, UnavailableError, UsageError
from nemo_steerlm.core.references import PATTERN, SCHEMES
from nemo_steerlm.data.stores import fetch_from_store
from tests.environments import environment

ROOT = Path(__file__).parents[2]


class Web(BaseHTTPRequestHandler):
    """/records.jsonl has ``content``; /secret wants a password."""

    content = b"first"
    asked: list[str] = []

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        known = {"/records.jsonl": 200, "/secret": 403}
        self.send_response(known.get(self.path, 404))
        self.send_header("Content-Length", str(len(self.content)))
        self.send_header("ETag", f'"{self.content.decode()}"')
        self.end_headers()
        if body:
            self.wfile.write(self.content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def web() -> Iterator[str]:
    pytest.importorskip("aiohttp")
    with ThreadingHTTPServer(("127.0.0.1", 0), Web) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        Web.asked, Web.content = [], b"first"
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_web_servers_file_is_fetched_once_for_each_of_its_contents(web: str, tmp_path: Path) -> None:
    found = [fetch_from_store(f"{web}/records.jsonl", cache=tmp_path) for _ in range(2)]
    assert found[0] == found[1]
    assert (found[0].name, found[0].read_bytes()) == ("records.jsonl", b"first")
    fetched = len(Web.asked)
    assert fetch_from_store(f"{web}/records.jsonl", cache=tmp_path) == found[0]
    assert len(Web.asked) == fetched
    Web.content = b"other"  # as long as the first
    assert fetch_from_store(f"{web}/records.jsonl", cache=tmp_path).read_bytes() == b"other"
    assert found[0].read_bytes() == b"first"  # which a stage may be reading


@pytest.mark.parametrize(
    ("path", "kind", "said"),
    [("/nothing", UsageError, "no such object"), ("/secret", ConfigError, "credentials may not read it")],
)
def test_each_refusal_has_its_own_sentence(web: str, path: str, kind: type[SteerLMError], said: str, tmp_path: Path) -> None:
    with pytest.raises(kind, match=said):
        fetch_from_store(f"{web}{path}", cache=tmp_path)
    assert not list(tmp_path.rglob("*"))


def test_a_server_that_nobody_reaches_is_worth_another_try(tmp_path: Path) -> None:
    pytest.importorskip("aiohttp")
    with pytest.raises(UnavailableError, match="did not give it"):
        fetch_from_store("http://127.0.0.1:1/records.jsonl", cache=tmp_path)


def test_a_folder_is_all_that_its_name_begins(tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    for name, content in {"config.json": b"{}", "deep/model.bin": b"w"}.items():
        memory.pipe(f"/bucket/model/{name}", content)
    memory.pipe("/bucket/model-of-another/config.json", b"[]")
    folder = fetch_from_store("memory://bucket/model", cache=tmp_path)
    assert {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} == {"config.json", "deep/model.bin"}
    memory.pipe("/bucket/model/../../outside", b"evil")
    with pytest.raises(UsageError, match="outside of its folder"):
        fetch_from_store("memory://bucket/model", cache=tmp_path)


@given(st.text(alphabet="a:/s3htp.\n", max_size=12) | st.sampled_from(["s3://b/k", "gs://b", "https://h/f", "pypi:a==1/b", "hf:o/n"]))
def test_the_pattern_takes_known_schemes_and_whatever_is_no_address(text: str) -> None:
    known = text.startswith(tuple(f"{scheme}://" for scheme in SCHEMES)) and len(text) > text.index("://") + 3
    assert bool(re.fullmatch(PATTERN[1:-1], text)) == ("\n" not in text and (known or "://" not in text))


@pytest.mark.timeout(900)  # the first run makes the environments
@pytest.mark.parametrize("s3fs", ["s3fs>=2026", "s3fs==2024.12.0"], ids=["newest", "beside NeMo"])
def test_a_real_s3_servers_objects(s3fs: str, tmp_path: Path) -> None:
    """Moto's server as a process of its own, and our code beside the newest s3fs, and beside the one that NeMo's fsspec allows."""
    name = "object-stores-" + re.sub("[=>]+", "-", s3fs).removesuffix(".0")
    python = environment(name, [s3fs, "moto[s3,server]>=5", "msgspec"])
    command = [str(python), str(Path(__file__).with_name("reading_s3.py")), str(tmp_path)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout) == {
        "file": "one\n",
        "changed": "two\n",
        "folder": ["config.json", "model.safetensors"],
        "no object": "UsageError: s3://bucket/nothing: no such object or folder",
        "no bucket": "UsageError: s3://nobody/records.jsonl: no such object or folder",
        "no server": "UnavailableError",
    }
