"""Started by torchrun: rank 1 fails as the argument says, rank 0 waits until it is stopped."""

from __future__ import annotations

import os
import signal
import sys

from nemo_steerlm.core.errors import ConfigError, DataError, TryAgainError, UnavailableError, UsageError, Where
from nemo_steerlm.core.exits import run_and_exit

ERRORS = {
    "2": UsageError("unknown key"),
    "65": DataError("no label", where=Where(file="train.jsonl", line=3)),
    "69": UnavailableError("no server"),
    "75": TryAgainError("come back"),
    "78": ConfigError("precision=16"),
    "1": ValueError("a bug"),
}


def main() -> None:
    """Fail, or wait."""
    how = sys.argv[1]
    if os.environ["RANK"] == "0":
        signal.pause()
    if how == "137":
        os.kill(os.getpid(), signal.SIGKILL)
    raise ERRORS[how]


if __name__ == "__main__":
    run_and_exit(main, "train")
