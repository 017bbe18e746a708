"""Nodes that train together wait for each other before torchrun starts, for as long as it takes.

torchrun's own rendezvous gives up after a quarter of an hour, which a node that first has to pull an image of 20 GB needs alone. Here each
node tells the first one that it is there, and all go on once all are.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import time
from collections.abc import Callable

from nemo_steerlm.core import environment

GREETING = b"steerlm node "
GO = b"go\n"
ANSWER_SECONDS = 60.0
"""A node that hears nothing from the first one for so long asks again: a node that vanished closes no connection."""
PAUSE_SECONDS = 1.0


def gather(nodes: int, rank: int, address: str, port: int, *, say: Callable[[int], None] = lambda _: None) -> None:
    """Return once all ``nodes`` have called this.

    Args:
        nodes: How many there are.
        rank: This one's number, from 0.
        address: Host name of the first one; it need not resolve yet.
        port: Its port, free again when this returns.
        say: Told on the first node how many are there.
    """
    if rank == 0:
        _wait_for_all(nodes, port, say)
    else:
        while not _is_told_to_go(rank, address, port):
            time.sleep(PAUSE_SECONDS)


def gather_from_environment(nodes: int, rank: int, say: Callable[[int], None]) -> None:
    """``gather`` where the environment names a first node, as in the pods of a training."""
    address = os.environ.get(environment.MASTER_ADDRESS)
    if nodes > 1 and address:
        gather(nodes, rank, address, int(os.environ[environment.MASTER_PORT]), say=say)


def _wait_for_all(nodes: int, port: int, say: Callable[[int], None]) -> None:
    here: dict[int, socket.socket] = {}
    with contextlib.ExitStack() as stack, selectors.DefaultSelector() as selector:
        listener = stack.enter_context(_listen(port, nodes))
        selector.register(listener, selectors.EVENT_READ)
        while len(here) < nodes - 1:
            for key, _ in selector.select(ANSWER_SECONDS / 2):
                if key.fileobj is listener:
                    connection, _peer = listener.accept()
                    connection.settimeout(ANSWER_SECONDS)
                    stack.callback(connection.close)
                    selector.register(connection, selectors.EVENT_READ)
                    continue
                connection = key.fileobj  # type: ignore[assignment]  # what was registered above
                rank = _greeted(connection, nodes)
                if rank is None:  # gone, or somebody else's
                    selector.unregister(connection)
                    connection.close()
                    for gone in [number for number, known in here.items() if known is connection]:
                        del here[gone]
                else:
                    here[rank] = connection
                say(len(here) + 1)
            for connection in here.values():
                with contextlib.suppress(OSError):
                    connection.send(b".")  # so that a node can tell waiting from silence
        for connection in here.values():
            with contextlib.suppress(OSError):
                connection.sendall(GO)
                # The other end closes first, so that this port is free at once.
                connection.settimeout(ANSWER_SECONDS)
                while connection.recv(64):
                    pass


def _listen(port: int, backlog: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        with contextlib.suppress(OSError):  # a kernel that knows IPv6 and has it turned off
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=backlog)
    return socket.create_server(("", port), backlog=backlog)


def _greeted(connection: socket.socket, nodes: int) -> int | None:
    """The rank that a connection says it is of; None where it is over, or says something else."""
    try:
        said = connection.recv(64)
    except OSError:
        return None
    number = said.removeprefix(GREETING).strip()
    if not said.startswith(GREETING) or not number.isdigit() or not 0 < int(number) < nodes:
        return None
    return int(number)


def _is_told_to_go(rank: int, address: str, port: int) -> bool:
    try:
        with socket.create_connection((address, port), timeout=ANSWER_SECONDS) as connection:
            connection.sendall(GREETING + f"{rank}\n".encode())
            heard = b""
            while not heard.endswith(GO):
                if not (part := connection.recv(64)):
                    return False
                heard = (heard + part)[-len(GO) :]
            return True
    except OSError:  # its name is not known yet, it does not run yet, it was replaced
        return False
