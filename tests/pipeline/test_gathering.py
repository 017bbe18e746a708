"""Nodes that train together, as threads: they go on once all are there, in whatever order they come and whoever else knocks."""

import socket
import threading

import pytest

from nemo_steerlm.core.environment import MASTER_ADDRESS, MASTER_PORT
from nemo_steerlm.pipeline.steps import gathering

DEADLINE = 30


@pytest.fixture
def port(monkeypatch):
    monkeypatch.setattr(gathering, "PAUSE_SECONDS", 0.02)
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def start(nodes, rank, port, said=None):
    done = threading.Event()

    def run():
        gathering.gather(nodes, rank, "localhost", port, say=(said.append if said is not None else lambda _: None))
        done.set()

    threading.Thread(target=run, daemon=True).start()
    return done


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_nobody_goes_before_all_are_there(port, order):
    said = []
    first, second, third = order
    waiting = [start(3, first, port, said), start(3, second, port, said)]
    assert not any(done.wait(0.1) for done in waiting)
    waiting.append(start(3, third, port, said))
    assert all(done.wait(DEADLINE) for done in waiting)
    assert said[-1] == 3
    with socket.create_server(("127.0.0.1", port)):  # free again, for torchrun's own
        pass


def test_a_stranger_and_a_node_that_goes_away_again_are_not_counted(port):
    said = []
    first = start(2, 0, port, said)
    while True:
        try:
            stranger = socket.create_connection(("localhost", port), timeout=DEADLINE)
            break
        except ConnectionRefusedError:
            continue
    with stranger:
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert stranger.recv(1) == b""
    assert not first.is_set()
    with socket.create_connection(("localhost", port), timeout=DEADLINE) as liar:
        liar.sendall(b"steerlm node 2\n")
        assert liar.recv(1) == b""
    assert not first.is_set()
    assert start(2, 1, port).wait(DEADLINE)
    assert first.wait(DEADLINE)


def test_a_training_of_one_node_waits_for_nobody(monkeypatch, port):
    monkeypatch.setenv(MASTER_ADDRESS, "localhost")
    monkeypatch.setenv(MASTER_PORT, str(port))
    gathering.gather_from_environment(1, 0, lambda _: None)
    monkeypatch.delenv(MASTER_ADDRESS)
    gathering.gather_from_environment(2, 1, lambda _: None)
