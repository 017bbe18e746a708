"""The processes that serve one model together: rank 0 answers requests and sends orders, the other ranks follow.

torchrun starts them; without torchrun, the first process starts the others with its own command line and the environment variables that
torchrun would set. Imports nothing heavy before it has to start them.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import MutableMapping
from typing import Any, NoReturn

from nemo_steerlm.core.environment import STARTED_BY_RANK_0
from nemo_steerlm.core.errors import ConfigError, UnavailableError

logger = logging.getLogger(__name__)

_END_SECONDS = 20
"""Seconds that the other processes get to end before they are killed."""


def rank_of(environment: MutableMapping[str, str], *, devices: int, nodes: int) -> int:
    """This process's number among ``devices * nodes``.

    Raises:
        ConfigError: If a launcher started another number of processes.
    """
    started = environment.get("WORLD_SIZE")
    if started and int(started) != devices * nodes:
        raise ConfigError(
            f"the launcher started {started} processes, but trainer.devices={devices} * trainer.num_nodes={nodes} are configured"
        )
    if "RANK" in environment:
        return int(environment["RANK"])
    return int(environment.get("NODE_RANK", "0")) * devices + int(environment.get("LOCAL_RANK", "0"))


def require_devices(devices: int, nodes: int, tensor: int, pipeline: int) -> None:
    """Check that there are as many devices as ranks.

    Raises:
        ConfigError: If ``devices * nodes`` is not ``tensor * pipeline``.
    """
    if devices * nodes != tensor * pipeline:
        raise ConfigError(
            "devices * num_nodes should equal tensor_model_parallel_size * pipeline_model_parallel_size: "
            f"trainer.devices={devices} * trainer.num_nodes={nodes} is not {tensor} * {pipeline}"
        )


class Ranks:
    """The other processes of this node, if this process starts them."""

    def __init__(self, *, devices: int, nodes: int) -> None:
        self.rank = rank_of(os.environ, devices=devices, nodes=nodes)
        self._children: list[subprocess.Popen[bytes]] = []
        self._closing = False
        self._rendezvous: Any = None
        """Where the processes find each other, from before they start: nobody else can take its port meanwhile."""
        if STARTED_BY_RANK_0 in os.environ:
            threading.Thread(target=_end_with_stdin, name="first-process", daemon=True).start()
        elif devices * nodes > 1 and "LOCAL_RANK" not in os.environ:
            self._start(devices, nodes)
        if self.rank:
            # Rank 0 drains before it tells the others to stop, but a launcher and Ctrl-C signal all ranks at once.
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_IGN)

    def _start(self, devices: int, nodes: int) -> None:
        if nodes > 1 and not {"MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
            raise ConfigError(f"trainer.num_nodes={nodes}: set MASTER_ADDR, MASTER_PORT and NODE_RANK on every node, or use torchrun")
        address, port = os.environ.get("MASTER_ADDR", "127.0.0.1"), os.environ.get("MASTER_PORT")
        if not port:
            from torch.distributed import TCPStore

            # This process's own rendezvous will be the same server: that is what multi_tenant says.
            self._rendezvous = TCPStore(address, 0, devices, is_master=True, wait_for_workers=False, multi_tenant=True)
            port = str(self._rendezvous.port)
        place = {
            "MASTER_ADDR": address,
            "MASTER_PORT": port,
            "NODE_RANK": os.environ.get("NODE_RANK", "0"),
            "WORLD_SIZE": str(devices * nodes),
            "LOCAL_WORLD_SIZE": str(devices),
        }
        for local in range(1, devices):
            environment = os.environ | place | {"LOCAL_RANK": str(local), "RANK": str(self.rank + local), STARTED_BY_RANK_0: "1"}
            # Their standard output would mix with the messages that this process prints for its parent.
            child = subprocess.Popen(sys.orig_argv, env=environment, stdin=subprocess.PIPE, stdout=sys.stderr)
            self._children.append(child)
            threading.Thread(target=self._watch, args=(child, self.rank + local), name=f"rank-{local}", daemon=True).start()
        os.environ.update(place, LOCAL_RANK="0", RANK=str(self.rank))

    def _watch(self, child: subprocess.Popen[bytes], rank: int) -> None:
        code = child.wait()
        if not self._closing:
            self.fail(f"rank {rank} ended with {code}")

    def fail(self, reason: str) -> NoReturn:
        """End this process and those that it started, at once: no rank can go on without the others."""
        self._closing = True
        logger.error("%s: this server goes down", reason)
        self._kill()
        logging.shutdown()
        os._exit(UnavailableError.exit_code)

    def close(self) -> None:
        """Wait for the other processes, which have been told to end."""
        self._closing = True
        deadline = time.monotonic() + _END_SECONDS
        for local, child in enumerate(self._children, 1):
            try:
                child.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                logger.warning("rank %d does not end and is killed", self.rank + local)
        self._kill()

    def _kill(self) -> None:
        for child in self._children:
            child.kill()


def _end_with_stdin() -> None:
    while os.read(0, 1):
        pass
    os._exit(UnavailableError.exit_code)
