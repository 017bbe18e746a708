"""``kubectl steerlm``: plan, status, logs, retry, suspend, resume and open.

A thin layer over kubectl itself, so its contexts, logins and rights apply.
"""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import typer

from nemo_steerlm.core.errors import SteerLMError, UsageError
from nemo_steerlm.core.exits import run_and_exit
from nemo_steerlm.pipeline.cluster_status import PipelineStatus
from steerlm_operator import names

application = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
_NAMESPACE = typer.Option(None, "--namespace", "-n", help="The pipeline's namespace.  [default: the context's]")
_CONTEXT = typer.Option(None, "--context", help="The kubeconfig context.  [default: the current one]")
_PIPELINE = typer.Argument(help="Name of the pipeline.")


class _KubectlError(SteerLMError):
    code = "kubectl"


def _kubectl(arguments: Sequence[str], namespace: str | None, context: str | None) -> list[str]:
    """A kubectl command line. The place to set another binary is the environment variable KUBECTL."""
    command = [os.environ.get("KUBECTL", "kubectl")]
    command += ["--context", context] if context else []
    command += ["--namespace", namespace] if namespace else []
    return [*command, *arguments]


def _run(arguments: Sequence[str], namespace: str | None, context: str | None) -> str:
    """What kubectl prints. Raises an error with what kubectl said."""
    try:
        done = subprocess.run(_kubectl(arguments, namespace, context), check=False, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise UsageError("kubectl is not in PATH") from error
    if done.returncode:
        raise _KubectlError(done.stderr.strip() or f"kubectl ended with exit code {done.returncode}")
    return done.stdout


def _pipeline(name: str, namespace: str | None, context: str | None) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(_run(["get", "steerlmpipelines.steerlm.dev", name, "--output", "json"], namespace, context))
    return found


def _patch(name: str, spec: dict[str, Any], namespace: str | None, context: str | None) -> None:
    patch = json.dumps({"spec": spec})
    _run(["patch", "steerlmpipelines.steerlm.dev", name, "--type", "merge", "--patch", patch], namespace, context)


@application.command()
def plan(
    file: str = typer.Argument(help="The pipeline file."),
    namespace: str | None = _NAMESPACE,
    context: str | None = _CONTEXT,
) -> None:
    """Say what applying the file would change, as the API server sees it; admission and CEL rules included."""
    done = subprocess.run(_kubectl(["diff", "--filename", file], namespace, context), check=False)
    if done.returncode > 1:  # 1 means that there is a difference
        raise _KubectlError("the API server did not take the file; the reason is above")


@application.command()
def status(name: str = _PIPELINE, namespace: str | None = _NAMESPACE, context: str | None = _CONTEXT) -> None:
    """Show the stages, what they wait for, and the conditions."""
    resource = _pipeline(name, namespace, context)
    found = PipelineStatus.model_validate(resource.get("status") or {})
    print(f"{name}: {found.phase}{f', {found.progress}' if found.progress else ''}")
    for stage in found.stages:
        attempts = f"attempt {stage.attempt}" + (f", {stage.counted_failures} failed" if stage.counted_failures else "")
        said = ": ".join(part for part in (stage.reason, stage.message) if part) or stage.progress or ""
        print(f"  {stage.name:20} {stage.phase:10} {attempts if stage.attempt else '':22} {said}".rstrip())
    for condition in found.conditions:
        print(f"  {condition.type:20} {condition.status:10} {condition.reason}: {condition.message}")
    for role, url in (found.endpoints or {}).items():
        print(f"  {role:20} {url}")


@application.command()
def logs(
    name: str = _PIPELINE,
    stage: str | None = typer.Option(None, help="Which stage.  [default: the present one]"),
    follow: bool = typer.Option(False, "--follow", "-f", help="Go on printing."),
    servers: bool = typer.Option(False, "--servers", help="Of the inference servers instead."),
    namespace: str | None = _NAMESPACE,
    context: str | None = _CONTEXT,
) -> None:
    """Print what a stage's pods say, each line with its pod."""
    found = PipelineStatus.model_validate(_pipeline(name, namespace, context).get("status") or {})
    chosen = stage or found.current_stage or (found.stages[-1].name if found.stages else None)
    entry = next((entry for entry in found.stages if entry.name == chosen), None)
    if entry is None or not entry.attempt:
        raise UsageError(
            f"stage {chosen or '?'} of {name} has not started; stages: {', '.join(e.name for e in found.stages) or 'none yet'}"
        )
    labels = {names.PIPELINE: name, names.STAGE: entry.name, names.ATTEMPT: str(entry.attempt)}
    labels[names.COMPONENT] = names.SERVER if servers else names.WORK
    selector = ",".join(f"{key}={value}" for key, value in labels.items())
    arguments = ["logs", "--selector", selector, "--prefix", "--tail", "-1", "--max-log-requests", "64"] + (["--follow"] if follow else [])
    sys.exit(subprocess.run(_kubectl(arguments, namespace, context), check=False).returncode)


@application.command()
def retry(
    name: str = _PIPELINE,
    from_stage: str | None = typer.Option(None, "--from", help="Do this stage and all after it again.  [default: the one that failed]"),
    namespace: str | None = _NAMESPACE,
    context: str | None = _CONTEXT,
) -> None:
    """Try a failed pipeline again, or do stages again that are done."""
    token = datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%dT%H%M%S.%f")
    _patch(name, {"restart": {"token": token, "fromStage": from_stage}}, namespace, context)
    print(f"{name}: again from {from_stage or 'where it failed'} (token {token})")


@application.command()
def suspend(name: str = _PIPELINE, namespace: str | None = _NAMESPACE, context: str | None = _CONTEXT) -> None:
    """Stop all pods; finished stages are kept."""
    _patch(name, {"suspend": True}, namespace, context)
    print(f"{name}: suspended")


@application.command()
def resume(name: str = _PIPELINE, namespace: str | None = _NAMESPACE, context: str | None = _CONTEXT) -> None:
    """Go on."""
    _patch(name, {"suspend": False}, namespace, context)
    print(f"{name}: resumed")


@application.command(name="open")
def open_(
    name: str = _PIPELINE,
    port: int = typer.Option(8000, min=0, max=65535, help="Local port; 0 takes a free one."),
    namespace: str | None = _NAMESPACE,
    context: str | None = _CONTEXT,
) -> None:
    """Forward the finished model's server, and its page where spec.serve.page is true, to this machine until Ctrl-C."""
    resource = _pipeline(name, namespace, context)
    found = PipelineStatus.model_validate(resource.get("status") or {})
    if "serve" not in (found.endpoints or {}):
        raise UsageError(f"{name} serves nothing: it is {found.phase}, and spec.serve.enabled is {resource['spec']['serve']['enabled']}")
    arguments = ["port-forward", f"deployment/{names.serve(name)}", f"{port or ''}:8000"]
    sys.exit(subprocess.run(_kubectl(arguments, namespace, context), check=False).returncode)


def main() -> None:
    """Entry point of ``kubectl-steerlm``."""
    run_and_exit(application, "kubectl steerlm")


if __name__ == "__main__":
    main()
