"""Who is answered: tokens, addresses, and requests whose end is ambiguous. Over real sockets."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import httpx
import pytest

from tests.conftest import EXAMPLE
from tests.serving.servers import WAIT, running

TOKEN = "a-token-of-24-characters"


@pytest.fixture(scope="module")
def guarded(steer_folder):
    """A server by NeMo's flags, its token from the environment with the newline that files end with."""
    flags = (f"gpt_model_file={steer_folder}", "server=True", "port=0", "host=127.0.0.1", "trainer.accelerator=cpu")
    with running(steer_folder, command=(str(EXAMPLE), *flags), environment={"STEERLM_API_KEY": f"{TOKEN}\n"}) as server:
        yield server


def asked(server, authorization: str | None) -> httpx.Response:
    return httpx.get(f"{server.url}/v1/models", headers={} if authorization is None else {"Authorization": authorization}, timeout=WAIT)


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "bEaReR"])
def test_the_token_opens_in_any_case_of_its_scheme(guarded, scheme):
    assert asked(guarded, f"{scheme} {TOKEN}").status_code == 200
    assert asked(guarded, f"{scheme}   {TOKEN}").status_code == 200


@pytest.mark.parametrize(
    "authorization",
    [
        None, "", "Bearer", "Bearer wrong", f"Bearer {TOKEN}x", f"Bearer {TOKEN} {TOKEN}", f"Bearer {TOKEN[:-1]}",
        f"Bearer {TOKEN[1:]}", f"Bearer {TOKEN.upper()}", f"Bearer {TOKEN[:-1]}x", f"Basic {TOKEN}", f"Bearer{TOKEN}", TOKEN,
    ],
)  # fmt: skip
def test_anything_but_the_token_is_a_401(guarded, authorization):
    refused = asked(guarded, authorization)
    assert refused.status_code == 401
    assert refused.headers["www-authenticate"] == "Bearer"
    assert refused.json()["error"]["code"] == "unauthorized"


def listening(steer_folder, *options: str, command: tuple[str, ...] = ("-m", "nemo_steerlm.cli.main", "serve"), **variables: str):
    environment = {name: value for name, value in os.environ.items() if name != "STEERLM_API_KEY"} | variables
    arguments = [sys.executable, *command, *([str(steer_folder)] if command[0] == "-m" else []), *options]
    return subprocess.run(arguments, capture_output=True, text=True, env=environment, timeout=WAIT, check=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_other_machines_are_not_let_in_without_a_token(steer_folder, host):
    ended = listening(steer_folder, "--host", host, "--no-page", STEERLM_API_KEY=" ")
    assert ended.returncode == 2
    assert f"listening on {host} without a token" in ended.stderr
    assert "--insecure" in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1
    assert not ended.stdout


def test_nor_by_nemos_flags(steer_folder):
    flags = (f"gpt_model_file={steer_folder}", "server=True", "port=0", "host=0.0.0.0", "trainer.accelerator=cpu")
    ended = listening(steer_folder, *flags, command=(str(EXAMPLE),))
    assert (ended.returncode, "insecure=True" in ended.stderr) == (2, True)


def test_who_means_it_says_so_and_the_log_repeats_it(steer_folder, tmp_path, monkeypatch):
    monkeypatch.delenv("STEERLM_API_KEY", raising=False)
    log = tmp_path / "log"
    with running(steer_folder, "--host", "0.0.0.0", "--insecure", "--no-page", log=log) as server:
        assert httpx.get(server.url.replace("0.0.0.0", "127.0.0.1") + "/v1/models", timeout=WAIT).status_code == 200
    said = [json.loads(line) for line in log.read_text().splitlines()]
    assert any(entry.get("level") == "warning" and "insecure" in entry["message"] for entry in said)


def exchange(server, request: bytes) -> bytes:
    """All that the server sends until it closes the connection."""
    address = httpx.URL(server.url)
    with socket.create_connection((address.host, address.port), timeout=WAIT) as connection:
        connection.sendall(request)
        answer = b""
        while part := connection.recv(65536):
            answer += part
    return answer


CHUNKED = b"Transfer-Encoding: chunked\r\n"
FRAMINGS = {
    "length first": b"Content-Length: 4\r\n" + CHUNKED,
    "encoding first": CHUNKED + b"Content-Length: 4\r\n",
    "other case": b"CONTENT-LENGTH: 4\r\ntransfer-encoding: Chunked\r\n",
    "whole body's length": b"Content-Length: 5\r\n" + CHUNKED,
}


@pytest.mark.parametrize("path", ["/v1/completions", "/health/live", "/page/", "/nowhere"])
@pytest.mark.parametrize("framing", FRAMINGS)
def test_a_request_of_two_lengths_is_refused_and_what_follows_it_is_no_request(steer_server, path, framing):
    request = b"POST " + path.encode() + b" HTTP/1.1\r\nHost: here\r\n" + FRAMINGS[framing] + b"\r\n0\r\n\r\n"
    answer = exchange(steer_server, request + b"GET /v1/models HTTP/1.1\r\nHost: here\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1 ") == 1
    assert b"connection: close" in answer.lower()


def test_chunks_are_refused_to_http_1_0(steer_server):
    request = b"POST /v1/completions HTTP/1.0\r\nHost: here\r\n" + CHUNKED + b"\r\n0\r\n\r\n"
    assert exchange(steer_server, request).split(b" ", 2)[1] == b"400"


def test_chunks_alone_are_a_body(steer_server):
    body = b'{"prompt": "Once", "max_tokens": 1}'
    head = b"POST /v1/completions HTTP/1.1\r\nHost: here\r\nConnection: close\r\nContent-Type: application/json\r\n" + CHUNKED
    answer = exchange(steer_server, head + b"\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(body), body))
    assert answer.startswith(b"HTTP/1.1 200 ")
