"""A server that this process starts: its address once it answers, and what became of it if it never does."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import httpx
import pytest

from nemo_steerlm.client.launch import LaunchedServer
from nemo_steerlm.core.errors import UnavailableError

HEALTHY = """
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
class Handler(BaseHTTPRequestHandler):
    asked = 0
    def do_GET(self):
        Handler.asked += 1
        self.send_response(200 if self.path == "/health" and Handler.asked > 1 else 503)
        self.end_headers()
HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def python(code: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", code, *arguments]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def test_a_server_that_says_its_address_is_stopped_with_the_block(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("of an earlier run\n", encoding="utf-8")
    code = 'import signal; print(\'{"steerlm": "serving", "url": "http://127.0.0.1:1"}\', flush=True); signal.pause()'
    with LaunchedServer(python(code), name="it", log=tmp_path / "log") as server:
        assert server.await_url(30) == "http://127.0.0.1:1"
        assert server.process.running
    assert not server.process.running
    assert "earlier" not in (tmp_path / "log").read_text(encoding="utf-8")


def test_any_other_server_is_asked_for_its_health_until_it_is_well(tmp_path: Path) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with LaunchedServer(python(HEALTHY, str(port)), name="it", log=tmp_path / "log", url=url) as server:
        assert server.await_url() == url
        assert httpx.get(f"{url}/health").status_code == 200
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/health")


@pytest.mark.parametrize("url", [None, "http://127.0.0.1:9"])
def test_a_server_that_ends_is_an_error_with_its_last_words(tmp_path: Path, url: str | None) -> None:
    code = "print('no such model'); raise SystemExit(65)"
    with (
        LaunchedServer(python(code), name="the server of x", log=tmp_path / "log", url=url) as server,
        pytest.raises(UnavailableError, match=r"^the server of x ended with exit code 65\n  \| no such model$"),
    ):
        server.await_url(30)


@pytest.mark.parametrize("url", [None, "http://127.0.0.1:9"])
def test_a_server_that_is_too_slow_is_an_error_and_is_stopped(tmp_path: Path, url: str | None) -> None:
    with (
        LaunchedServer(python("import signal; signal.pause()"), name="it", log=tmp_path / "log", url=url) as server,
        pytest.raises(UnavailableError, match=r"^it did not answer in time"),
    ):
        server.await_url(0.05)
    assert not server.process.running
