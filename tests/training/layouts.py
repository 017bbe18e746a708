"""Trains the same thing under several layouts, one after another, each in as many processes as it says: for test_layouts.py.

NeMo is imported once and the processes are forked from there, so that a layout costs its training and not its imports. What a launcher
tells its processes is in their environment, as torchrun has it.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import sys
from typing import Any

from nemo_steerlm.megatron import compat
from nemo_steerlm.training.train import main


def run(common: list[str], out: str, layouts: dict[str, list[str]]) -> None:
    from megatron.core import parallel_state

    for name, extra in layouts.items():
        parallel_state.destroy_model_parallel()
        devices = f"trainer.devices={os.environ['WORLD_SIZE']}"
        main([*common, devices, f"exp_manager.explicit_log_dir={out}/{name}", f"steerlm.metrics_file={out}/{name}.json", *extra])


def forked(size: int, work: Any) -> list[int]:
    """Run ``work`` in ``size`` processes that find each other; their exit codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(size):
        child = os.fork()
        if child == 0:
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # die with the parent, whatever ends it
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


if __name__ == "__main__":
    common, out, groups = sys.argv[1:]
    with compat.importing_nemo():
        import nemo_steerlm.training.loop  # noqa: F401 - before the fork
    for size, layouts in json.loads(groups).items():
        codes = forked(int(size), lambda layouts=layouts: run(json.loads(common), out, layouts))
        if any(codes):
            sys.exit(f"{size} processes ended with {codes}")
