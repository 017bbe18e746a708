"""A server that clients attack, overload, leave or hold up: it answers the others. Over real sockets."""

from __future__ import annotations

import contextlib
import json
import resource
import select
import signal
import socket
from pathlib import Path

import httpx
import pytest

from tests.serving.servers import WAIT, connected, running, until
from tests.serving.test_server import LONG, metrics


def post(path: str, body: object, *, length: int | None = None) -> bytes:
    content = json.dumps(body).encode()
    length = len(content) if length is None else length
    head = f"POST {path} HTTP/1.1\r\nHost: here\r\nConnection: close\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {length}\r\n\r\n".encode() + content


def answered(connection: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of what comes until the server closes."""
    said = b""
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65536):
            said += part
    head, _, body = said.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    return int(first.split()[1]), dict(line.lower().split(": ", 1) for line in lines), body


def entries(log) -> list[dict]:
    return [json.loads(line) for line in log.read_text().splitlines()]


def test_a_head_or_a_body_that_does_not_come_ends_the_request(steer_folder, tmp_path):
    log = tmp_path / "log"
    with running(steer_folder, "--no-page", "--read-timeout", "0.5", log=log) as server:
        for sent in (b"", b"GET /health/li", b"POST /v1/completions HTTP/1.1\r\nHost: here\r\n"):
            with connected(server, sent) as connection:
                status, headers, body = answered(connection)
                assert (status, headers["connection"], json.loads(body)["error"]["code"]) == (408, "close", "timeout")
        for path, method in (("/v1/completions", b"POST"), ("/generate", b"PUT")):
            with connected(server, post(path, {"prompt": "a"}, length=100).replace(b"POST", method, 1)) as connection:
                assert connection.recv(65536).startswith(b"HTTP/1.1 408")
            with connected(server, post(path, {"prompt": "a"}, length=100).replace(b"POST", method, 1)):
                pass  # and gone
        with server.client() as client:
            until(lambda: sum(value for name, value in metrics(client).items() if "seconds_count" in name and 'status="499"' in name) == 2)
            assert 'status="500"' not in client.get("/metrics").text
    assert not [entry for entry in entries(log) if "traceback" in entry]


def test_connections_are_bounded_and_those_that_ask_nothing_make_room(steer_folder, tmp_path):
    log = tmp_path / "log"
    with running(steer_folder, "--no-page", "--max-connections", "8", log=log) as server, contextlib.ExitStack() as idle:
        held = [idle.enter_context(connected(server, b"GET /health/live HTTP/1.1\r\n")) for _ in range(60)]
        for _ in range(3):
            assert httpx.get(f"{server.url}/health/live", timeout=WAIT).status_code == 200
        with contextlib.suppress(ConnectionResetError):  # closed with the half request unread
            assert held[0].recv(1) == b"" or pytest.fail("the oldest is still open")
        assert httpx.post(f"{server.url}/v1/completions", json={"prompt": "a", "max_tokens": 1}, timeout=WAIT).status_code == 200
    assert len(entries(log)) < 30


def test_a_full_file_table_is_a_bound_that_the_log_says_once(steer_folder, tmp_path):
    log = tmp_path / "log"
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.ExitStack() as stack:
        resource.setrlimit(resource.RLIMIT_NOFILE, (140, hard))
        try:
            server = stack.enter_context(running(steer_folder, "--no-page", log=log))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        held = [stack.enter_context(connected(server, b"GET /health/live HTTP/1.1\r\n")) for _ in range(200)]
        assert httpx.get(f"{server.url}/health/live", timeout=WAIT).status_code == 200
        assert unanswered(held) < 140, "the oldest made room"
    assert not [entry for entry in entries(log) if "traceback" in entry]
    said = [entry["message"] for entry in entries(log) if entry.get("logger") == "nemo_steerlm.serving.server"]
    assert said[0] == "at most 12 connections at once: this process may have 140 open files (ulimit -n)"
    assert all("no file is left" in message for message in said[1:])
    assert len(said) <= 2
    assert len(entries(log)) < 30


def test_rows_that_nobody_waits_for_leave_the_queue(steer_folder):
    options = ("--no-page", "--max-rows", "1", "--max-waiting", "4")
    with (
        running(steer_folder, *options) as server,
        running(steer_folder, "--no-page", "--engine", "openai", "--upstream", server.url) as front,
    ):
        for asked in (server, front):
            with server.client() as client, contextlib.ExitStack() as clients:
                for stream in (False, True, False, True, False):
                    body = LONG | {"max_tokens": 480, "min_tokens": 480, "stream": stream}
                    clients.enter_context(connected(asked, post("/v1/completions", body)))
                until(lambda: metrics(client)["steerlm_waiting"] >= 3)
                clients.close()
                until(lambda: metrics(client)["steerlm_waiting"] == 0)
                assert client.post("/v1/completions", json={"prompt": "a", "max_tokens": 1}).status_code == 200


def test_who_is_not_answered_by_the_deadline_is_told_so(steer_folder, tmp_path):
    log = tmp_path / "log"
    slow = LONG | {"n": 64, "max_tokens": 500, "min_tokens": 500}
    with running(steer_folder, "--no-page", "--drain-seconds", "0.2", log=log) as server, contextlib.ExitStack() as stack:
        whole = stack.enter_context(connected(server, post("/v1/completions", slow)))
        nemo = {"sentences": ["a"] * 64, "tokens_to_generate": 500, "min_tokens_to_generate": 500}
        put = stack.enter_context(connected(server, post("/generate", nemo).replace(b"POST", b"PUT", 1)))
        stream = stack.enter_context(connected(server, post("/v1/completions", slow | {"stream": True})))
        half = stack.enter_context(connected(server, post("/v1/completions", slow, length=10_000)))
        assert stream.recv(10).startswith(b"HTTP/1.1")
        with server.client() as client:
            until(lambda: metrics(client)["steerlm_running"] > 0)
        server.process.send_signal(signal.SIGTERM)
        for connection in (whole, put, half):
            status, headers, body = answered(connection)
            assert (status, headers["retry-after"], json.loads(body)["error"]["code"]) == (503, "5", "draining")
        told = b""
        while part := stream.recv(65536):
            told += part
        assert b'"code":"draining"' in told
        assert server.process.wait(WAIT) == 0
    assert not [entry for entry in entries(log) if "traceback" in entry]


def test_the_log_has_times_and_the_ids_that_answers_carry(steer_folder, tmp_path):
    log = tmp_path / "log"
    with running(steer_folder, "--no-page", log=log) as server, server.client() as client:
        own = client.get("/v1/models").headers["x-request-id"]
        given = client.get("/v1/models", headers={"X-Request-Id": "mine-1"}).headers["x-request-id"]
        odd = client.get("/nowhere", headers={"X-Request-Id": 'a"b' * 100}).headers["x-request-id"]
    assert given == "mine-1"
    assert '"' not in odd
    logged = [entry for entry in entries(log) if entry["event"] == "request"]
    assert [entry["request_id"] for entry in logged] == [own, "mine-1", odd]
    assert all(entry["time"].startswith("20") and entry["time"].endswith("+00:00") for entry in entries(log))


def test_what_generate_gives_is_bounded(steer_server):
    with steer_server.client() as client:
        body = {"sentences": ["Once"], "tokens_to_generate": 2}
        for more, says in (
            ({"end_strings": ["x"] * 17}, "end_strings may have 16 strings"),
            ({"end_strings": ["x" * 257]}, "of 256 characters"),
            ({"all_probs": True, "sentences": ["Once"] * 64, "tokens_to_generate": 500}, "probabilities; 2000000 are the most"),
            ({"sentences": ["x" * 100_000]}, "the prompt is too long: 100000 characters"),
        ):
            refused = client.put("/generate", json=body | more)
            assert (refused.status_code, says in refused.json()) == (400, True), refused.text


PUT = (b"POST", b"PUT", 1)
ATTACKS = {
    "long text": post("/v1/chat/completions", {"messages": [{"role": "user", "content": "lo ng" * 1_500_000}]}),
    "backslashes": post("/v1/chat/completions", {"messages": [{"role": "user", "content": "\\" * 16_000}]}),
    "many messages": post("/v1/chat/completions", {"messages": [{}] * 500_000}),
    "many prompts": post("/v1/completions", {"prompt": [[1]] * 500_000}),
    "many ids": post("/v1/completions", {"prompt": [1] * 2_000_000}),
    "many records": post("/v1/attributes", {"conversations": [{"conversations": []}] * 200_000}),
    "end strings": post("/generate", {"sentences": ["a"], "end_strings": ["x"] * 300_000}).replace(*PUT),
    "probabilities": post("/generate", {"sentences": ["a " * 150] * 128, "all_probs": True, "tokens_to_generate": 400}).replace(*PUT),
}
"""Each is refused, the large ones after more work than a probe is."""
LARGE = {kind for kind, sent in ATTACKS.items() if len(sent) > 1 << 20}
STANDING = (
    b"GET /health/live HTTP/1.1\r\nHost:",
    post("/v1/completions", {"prompt": "a"}, length=1000),
    post("/v1/completions", LONG | {"n": 2, "stream": True}),
)
TOGETHER = 6


@pytest.fixture(scope="module")
def attacked(steer_folder):
    """A server, its one answer to a good question, and connections that hold on to it meanwhile."""
    with running(steer_folder, "--no-page", "--read-timeout", "3600") as server, server.client() as client:
        answer = good_answer(client)
        with contextlib.ExitStack() as held:
            for sent in STANDING * 4:
                held.enter_context(connected(server, sent))
            yield server, answer


def good_answer(client: httpx.Client) -> str:
    body = {"prompt": "The little dog", "max_tokens": 5, "temperature": 0}
    return client.post("/v1/completions", json=body).raise_for_status().json()["choices"][0]["text"]


def read_by_the_server(connections: list[socket.socket]) -> bool:
    """Whether the kernel holds nothing that was sent on them any more."""
    ports = {connection.getsockname()[1] for connection in connections}
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        local, remote, _, queues = line.split()[1:5]
        if {int(end.partition(":")[2], 16) for end in (local, remote)} & ports and queues != "00000000:00000000":
            return False
    return True


def unanswered(connections: list[socket.socket]) -> int:
    return len(connections) - len(select.select(connections, [], [], 0)[0])


@pytest.mark.parametrize("kind", ATTACKS)
def test_attacks_hold_up_neither_probe_nor_a_client_that_behaves(attacked, kind):
    """The last byte of several attacks goes out at once; two probes, one after another, are answered before most large attacks are."""
    server, answer = attacked
    sent = ATTACKS[kind]
    with server.client() as probe, contextlib.ExitStack() as stack:
        assert probe.get("/health/live").status_code == 200  # it is connected
        attacks = [stack.enter_context(connected(server, sent[:-1])) for _ in range(TOGETHER)]
        until(lambda: read_by_the_server(attacks))
        for attack in attacks:
            attack.sendall(sent[-1:])
        for _ in range(2):
            assert probe.get("/health/live").status_code == 200
        assert kind not in LARGE or unanswered(attacks) > TOGETHER / 2
        assert good_answer(probe) == answer
        assert {answered(attack)[0] for attack in attacks} == {400}
