"""Trains under the layouts that it is told, one line of JSON each, and answers with the exit codes: the other end of test_layouts.py.

NeMo is imported once and the processes are forked from there, so that a layout costs its training and not its imports. What a launcher
tells its processes is in their environment, as torchrun has it.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from nemo_steerlm.megatron import compat
from nemo_steerlm.training.train import main


def forked(size: int, work: Callable[[], None]) -> list[int]:
    """Run ``work`` in ``size`` processes that find each other; their exit codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(size):
        child = os.fork()
        if child == 0:
            die_with_parent()
            places = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
            os.environ |= {name: str(value) for name, value in places.items()}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "layouts"}
            work()
            sys.exit()  # not os._exit: the server behind a checkpoint's queue ends with the interpreter
        children.append(child)
    codes = []
    while children:
        child, status = os.wait()
        children.remove(child)
        codes.append(os.waitstatus_to_exitcode(status))
        if codes[-1]:  # the others would wait for it
            for waiting in children:
                os.kill(waiting, signal.SIGKILL)
    return codes


def train(arguments: list[str], draws: str | None) -> None:
    """``draws`` is a folder where each process writes what states of the random number generator its dropout began with."""
    if draws is None:
        main(arguments)
        return
    states: dict[str, list[str]] = {}
    for module, name in ((torch.nn.functional, "dropout"), (layers, "scaled_dot_product_attention")):
        watch(module, name, states.setdefault(name, []))
    main(arguments)
    Path(draws).mkdir(exist_ok=True)
    Path(draws, f"{os.environ['RANK']}.json").write_text(json.dumps(states))


def watch(module: Any, name: str, states: list[str]) -> None:
    """Append the generator's state to ``states`` whenever ``module.name`` is to drop something."""
    function = getattr(module, name)

    def watched(*args: Any, **named: Any) -> torch.Tensor:
        if named.get("training", named.get("dropout_p", *args[2:3])):
            states.append(hashlib.sha256(torch.get_rng_state().numpy().tobytes()).hexdigest())
        result: torch.Tensor = function(*args, **named)
        return result

    setattr(module, name, watched)


def die_with_parent() -> None:
    """Whatever ends it."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


if __name__ == "__main__":
    die_with_parent()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what trainings print is no answer
    with compat.importing_nemo():
        import nemo_steerlm.training.loop  # noqa: F401 - before the fork
        from nemo_steerlm.megatron import layers
    for line in sys.stdin:
        asked = json.loads(line)
        codes = forked(asked["size"], lambda asked=asked: train(asked["arguments"], asked["draws"]))
        answers.write(json.dumps(codes) + "\n")
        answers.flush()
