"""Starting a command of this package from a stage: its output goes on to the stage's own, its exit code becomes the stage's."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from nemo_steerlm.core.environment import ERROR_FILE
from nemo_steerlm.core.errors import SteerLMError
from nemo_steerlm.core.exits import recorded_error
from nemo_steerlm.core.processes import ChildProcess, Message, report
from nemo_steerlm.pipeline.run_context import Run, part_name


class ChildFailedError(SteerLMError):
    """A process that a stage started failed; the stage ends with its exit code, and its sentence comes last, where an operator looks."""

    code = "child-failed"

    def __init__(self, what: str, child: ChildProcess, exit_code: int, sentence: str | None) -> None:
        lines = [f"{what} failed with exit code {exit_code}", *child.tail().splitlines()]
        if sentence and not lines[-1].endswith(sentence.splitlines()[-1]):
            lines.append(sentence)
        super().__init__("\n".join(lines))
        self.exit_code = exit_code


def call(what: str, run: Run, arguments: Sequence[str], env: Mapping[str, str] | None = None) -> None:
    """Run ``python -m ARGUMENTS`` to its end, its progress handed on as this stage's. Raises ChildFailedError with its exit code."""

    def hand_on(message: Message) -> None:
        fields = {name: value for name, value in message.items() if name not in ("steerlm", "stage")}
        report(message["steerlm"], stage=run.stage.name, **fields)

    log = run.work.log(f"{part_name(run.stage.name)}.{what}")
    log.unlink(missing_ok=True)
    error_file = log.with_suffix(".error.json")
    error_file.unlink(missing_ok=True)
    env = {**(env or {}), ERROR_FILE: str(error_file)}
    lock = () if run.lock is None else (run.lock,)
    with ChildProcess([sys.executable, "-m", *arguments], log=log, on_message=hand_on, env=env, pass_fds=lock) as child:
        code = child.wait()
        if code:
            raise ChildFailedError(what, child, code, recorded_error(error_file))
