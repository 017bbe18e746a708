"""torchrun that ends as the first rank that failed did: ``python -m nemo_steerlm.training.launch`` with torchrun's own arguments.

torchrun exits 1 whatever a rank's exit code was, and the last line it prints is a rule. Whoever has to know whether trying again may help,
and what to tell people, needs the rank's code and sentence.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from nemo_steerlm.core.errors import EXIT_TERMINATED, SteerLMError
from nemo_steerlm.core.exits import run_and_exit

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

EXCEPTION = 1
"""How a rank ends that an exception of a library's ended: often because it lost another rank."""
STOPPED = (EXIT_TERMINATED, -signal.SIGTERM)
"""How the ranks end that torchrun stops because one failed."""


class RankFailedError(SteerLMError):
    """A rank failed; the launcher ends with its exit code."""

    code = "rank-failed"

    def __init__(self, rank: int, sentence: str, exit_code: int) -> None:
        super().__init__(f"rank {rank}: {sentence}")
        self.exit_code = exit_code


def main(arguments: Sequence[str] | None = None) -> None:
    """Start the ranks and wait for them. Raises RankFailedError if one fails; ends with 128 + signal if one ends the launcher."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    try:
        run(parse_args(sys.argv[1:] if arguments is None else list(arguments)))
    except ChildFailedError as error:
        raise first_failure(error.failures) from error
    except SignalException as error:
        raise SystemExit(128 + error.sigval) from error


def first_failure(failures: Mapping[int, ProcessFailure]) -> RankFailedError:
    """The failure that the others follow from: one that says what is wrong before one that does not, then the earliest.

    Args:
        failures: By global rank what torchrun knows of each rank that ended by itself.
    """
    rank, failure = min(failures.items(), key=lambda item: (_distance(item[1].exitcode), item[1].timestamp, item[0]))
    message = failure.message
    sentence = str(message.get("message")) if isinstance(message, dict) else str(message)
    code = failure.exitcode
    return RankFailedError(rank, sentence, 128 - code if code < 0 else code)


def _distance(exit_code: int) -> int:
    """How far a rank with this exit code is likely to be from the cause."""
    return 2 if exit_code in STOPPED else int(exit_code == EXCEPTION)


if __name__ == "__main__":
    run_and_exit(main, "launch")
