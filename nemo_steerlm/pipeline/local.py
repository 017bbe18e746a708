"""The local executor: the stages in order as processes of this machine, with the servers each needs."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from nemo_steerlm.client.launch import ALL_POSITIONS, LaunchedServer, serve_command
from nemo_steerlm.core import environment
from nemo_steerlm.core.errors import PERMANENT_EXIT_CODES, SteerLMError, UsageError
from nemo_steerlm.core.processes import ChildProcess, Message
from nemo_steerlm.pipeline import manifest as manifests
from nemo_steerlm.pipeline.artifacts import WorkDirectory
from nemo_steerlm.pipeline.currency import StageState, examine
from nemo_steerlm.pipeline.manifest import SteerLMPipeline
from nemo_steerlm.pipeline.run_context import files_folder
from nemo_steerlm.pipeline.stages import CHECKPOINT, MODEL_FOLDER, ServerNeed, Stage, find, stages

STEERLM = (sys.executable, "-m", "nemo_steerlm.cli.main")
SERVER_GRACE_SECONDS = 20.0


class StageFailedError(SteerLMError):
    """A stage's process failed; carries its exit code on."""

    code = "stage-failed"

    def __init__(self, stage: str, exit_code: int, log: Path, tail: str) -> None:
        permanent = " (running it again will not help)" if exit_code in PERMANENT_EXIT_CODES else ""
        super().__init__(f"stage {stage} failed with exit code {exit_code}{permanent}; its log is {log}\n{_indented(tail)}")
        self.exit_code = exit_code


def _indented(text: str) -> str:
    return "\n".join(f"  | {line}" for line in text.splitlines())


class Listener:
    """What the executor tells whoever shows it. The base class shows nothing."""

    def started(self, stage: Stage) -> None:
        """A stage's process starts."""

    def message(self, stage: Stage, message: Message) -> None:
        """The stage said something: progress, most often."""

    def finished(self, stage: Stage, seconds: float, *, cached: bool) -> None:
        """The stage ended well, or had been done before."""


def stage_states(manifest: Path, workdir: Path) -> list[StageState]:
    """The state of each stage, without running anything. Raises UsageError for a wrong manifest."""
    pipeline = manifests.load(manifest)
    work = WorkDirectory(workdir)
    states: list[StageState] = []
    for stage in stages(pipeline):
        stale = [state.stage.name for state in states if state.state != "done"]
        try:
            states.append(examine(pipeline, stage, work, files_folder(manifest), stale=stale))
        except UsageError as error:  # a pipeline for a cluster is planned where its files are not
            success = work.success(stage.name)
            states.append(StageState(stage=stage, state="outdated" if success else "waiting", reason=str(error), success=success))
    return states


def run_pipeline(
    manifest: Path, workdir: Path, *, from_stage: str | None = None, until_stage: str | None = None, listener: Listener | None = None
) -> None:
    """Run the stages that are not done, in order.

    ``from_stage`` and all after it run again even if they are done; ``until_stage`` is the last to run. Raises UsageError for a wrong
    manifest, StageFailedError with the stage's exit code, UnavailableError when a server does not start.
    """
    pipeline = manifests.load(manifest)
    graph = stages(pipeline)
    names = [stage.name for stage in graph]
    work = WorkDirectory(workdir)
    again = set(names[names.index(find(graph, from_stage).name) :]) if from_stage else set()
    last = names.index(find(graph, until_stage).name) if until_stage else len(names)
    for stage in graph[: last + 1]:
        if stage.parallel.nodes > 1:
            raise UsageError(f"stage {stage.name} wants {stage.parallel.nodes} nodes; one machine is one node: set parallel.nodes to 1")
        for need in stage.servers:
            check_engine(need)
    with work.lock("run", wait=False):
        for stage in graph[: last + 1]:
            if stage.name in again:
                work.forget(stage.name)
            _run_one(pipeline, stage, work, manifest, listener or Listener())


def _run_one(pipeline: SteerLMPipeline, stage: Stage, work: WorkDirectory, manifest: Path, listener: Listener) -> None:
    examined = examine(pipeline, stage, work, files_folder(manifest))
    if examined.state == "done":
        listener.finished(stage, examined.seconds, cached=True)
        return
    listener.started(stage)
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        addresses = stack.enter_context(servers(stage, work))
        command = [*STEERLM, *stage.command(str(manifest), str(work.path))]
        command += [part for address in addresses for part in ("--server", address)]
        log = work.log(stage.name)
        log.unlink(missing_ok=True)
        child = stack.enter_context(ChildProcess(command, log=log, on_message=lambda message: listener.message(stage, message)))
        code = child.wait()
        if code:
            raise StageFailedError(stage.name, code, log, child.tail())
    listener.finished(stage, time.monotonic() - began, cached=False)


def check_engine(need: ServerNeed) -> None:
    """Raise UsageError where this machine lacks what the engine of a stage's servers needs: before a training, not after it."""
    field = "annotate.servers.engine"
    vllm = os.environ.get(environment.VLLM, "vllm")
    if need.engine.vllm and shutil.which(vllm) is None:
        raise UsageError(
            f"{field}.vllm: no program {vllm}: install vLLM into an environment of its own and name its program or its Python "
            f"in {environment.VLLM}, or leave the field out"
        )
    if need.engine.external and need.engine.external.token and not os.environ.get(environment.UPSTREAM_KEY):
        raise UsageError(f"{field}.external.token: a Secret of a cluster, which is not here: set {environment.UPSTREAM_KEY} to the token")


def engine_options(need: ServerNeed, folder: Path) -> tuple[Path, list[str]]:
    """What ``steerlm serve`` is to serve of a training's folder, and the options for the engine that the manifest names."""
    exported, engine = folder / MODEL_FOLDER, need.engine
    if engine.vllm:
        spread = ["--tensor-parallel-size", str(need.devices)] if need.devices > 1 else []
        return exported, ["--engine", "vllm", "--vllm-options", shlex.join([*spread, *engine.vllm.args])]
    if engine.megatron:
        return folder / CHECKPOINT, engine.megatron.options(need.devices)
    if engine.external:
        return exported, engine.external.options(need.startup_timeout_seconds)
    return exported, []


@contextlib.contextmanager
def servers(stage: Stage, work: WorkDirectory) -> Iterator[list[str]]:
    """Start the servers a stage needs, side by side on free ports, and stop them at the end whatever happens.

    Yields their ``ROLE=URL`` once all of them answer. Raises UnavailableError if one does not.
    """
    with contextlib.ExitStack() as stack:
        started: list[tuple[ServerNeed, LaunchedServer]] = []
        for need in stage.servers:
            model, options = engine_options(need, work.folder(need.stage))
            # Those of one role work at the same time and share the cores; each taking all of them slows all of them down.
            threads = ("--threads", str(max(1, (os.cpu_count() or 1) // need.replicas))) if need.replicas > 1 else ()
            for number in range(need.replicas):
                log = work.log(f"{stage.name}.server-{need.role}-{number}")
                server = LaunchedServer(
                    serve_command(model, *ALL_POSITIONS, *threads, *options),
                    name=f"server of {need.stage} (log: {log})",
                    log=log,
                    grace=SERVER_GRACE_SECONDS,
                )
                started.append((need, stack.enter_context(server)))
        yield [f"{need.role}={server.await_url(need.startup_timeout_seconds)}" for need, server in started]


@contextlib.contextmanager
def stop_on_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end the block like Ctrl-C does, with exit code 128 + signal."""

    def stop(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    before: dict[int, Callable[..., object] | int | None] = {s: signal.signal(s, stop) for s in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def default_workdir(manifest: Path) -> Path:
    """``runs/NAME`` under the current folder."""
    return Path(os.getcwd()) / "runs" / manifests.load(manifest).metadata.name
