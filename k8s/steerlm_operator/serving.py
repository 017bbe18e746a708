"""The server of the finished model: kept as it should be, restarted only for what it runs. Pure."""

from __future__ import annotations

from nemo_steerlm.pipeline.cluster_status import ServingStatus
from nemo_steerlm.pipeline.registry import EVALUATE
from steerlm_operator import names, server_readings, storage
from steerlm_operator.draft import Draft, annotation
from steerlm_operator.models import Object, Pipeline
from steerlm_operator.resources import servers, surroundings


def serve(draft: Draft) -> None:
    """Have the server, and say how it is."""
    pipeline = draft.pipeline
    if pipeline.suspend:
        draft.condition("Serving", False, "Suspended", "spec.suspend is true")
        draft.status.serving = None
        return
    policies = [p for p in surroundings.network_policies(pipeline) if p["metadata"]["labels"][names.COMPONENT] == names.SERVE]
    *others, deployment = servers.build_serve(pipeline, model_stage(draft))
    draft.want(*policies, *others, deployment)
    name = names.serve(pipeline.name)
    seen = draft.own("Deployment", name)
    if seen:
        _keep(draft, seen, deployment)
    else:
        draft.status.serving = None
    draft.status.endpoints = {"serve": servers.url(pipeline, name)}
    reading = server_readings.read_servers(seen or {}, draft.pods(component=names.SERVE), draft.now)
    refusal = draft.observed.refusals.get(("Deployment", name)) or draft.observed.refusals.get(("Service", name))
    if refusal:
        draft.condition("Serving", False, refusal.reason, refusal.message)
        draft.look_again(storage.wait(refusal))
    elif seen and seen.get("spec", {}).get("replicas") == 0:
        draft.condition("Serving", False, "ScaledToZero", "serve.replicas is 0")
    else:
        draft.condition("Serving", reading.ready > 0, reading.reason, reading.message)


def model_stage(draft: Draft) -> str:
    """The stage in whose folder the model is: evaluate, if it says which is the best; the last training where version 0.1.0 evaluated.

    Evaluate's folder has the best model as it was exported; the checkpoint, which Megatron runs, is that training's own.
    """
    evaluated = next((entry for entry in draft.status.stages if entry.name == EVALUATE), None)
    best = (evaluated.metrics or {}).get("best") if evaluated else None
    if best:
        return best if draft.pipeline.manifest.spec.serve.engine.megatron else EVALUATE
    return _last_training(draft.pipeline)


def planned_stage(pipeline: Pipeline) -> str:
    """The same before anything has run."""
    return _last_training(pipeline) if pipeline.manifest.spec.serve.engine.megatron else EVALUATE


def _last_training(pipeline: Pipeline) -> str:
    return next(stage.name for stage in reversed(pipeline.graph) if stage.training and stage.training.role == "steer")


def _keep(draft: Draft, seen: Object, wanted: Object) -> None:
    """Put right what somebody made of a Deployment since it was applied: its generation tells that its spec has changed.

    Not where an autoscaler changes it all the time.
    """
    if draft.pipeline.manifest.spec.serve.autoscaled:
        draft.status.serving = None
        return
    mark, generation = annotation(seen, names.APPLIED), int(seen["metadata"].get("generation") or 0)
    known = draft.status.serving
    if known is None or known.applied != mark:
        draft.status.serving = ServingStatus(applied=mark, generation=generation, corrections=known.corrections if known else 0)
    elif known.generation != generation:
        draft.correct(wanted)
        known.corrections += 1
        draft.event("ServingCorrected", f"Deployment {wanted['metadata']['name']} was changed by somebody else; it is as it was again")
