"""``Ready`` and ``Stalled``, which tools look at that know nothing of pipelines (kstatus in Flux and Helm, Argo CD). Pure.

``Ready`` is True once the pipeline is complete and what is to be served answers. ``Stalled`` is there, and True, while nothing will change
before a person does something; a cluster that is full, a queue and a quota are waited for.
"""

from __future__ import annotations

from nemo_steerlm.pipeline.cluster_status import Condition
from steerlm_operator.draft import Draft, find_condition, holds

NEEDS_A_PERSON = frozenset(
    {
        "InvalidSpec",
        "JobSetNotInstalled", "KueueNotInstalled", "GangSchedulerNotInstalled",
        "ClaimNotFound", "ClaimLost", "ClaimUnbound",
        "SecretNotFound", "ContainerConfigError", "ImageNotAvailable",
        "AdmissionRefused", "NameConflict", "InvalidObject", "Forbidden", "KindNotInstalled",
        "OutOfMemory", "ServersCrash", "BadConfiguration", "BadData", "WrongManifest",
    }
)  # fmt: skip
"""Reasons of ``Progressing=False`` and ``Serving=False`` that do not pass by themselves."""


def conclude(draft: Draft) -> None:
    """Set both from what the other conditions say."""
    status = draft.status
    progressing, failed, serving = (find_condition(status, kind) for kind in ("Progressing", "Failed", "Serving"))
    serve = draft.pipeline.manifest.spec.serve
    cause: Condition | None
    if failed and failed.status == "True":
        cause, ready, stalled = failed, False, True
    elif holds(status, "Complete"):
        ready = not (serve.enabled and (serve.replicas or serve.autoscaled)) or holds(status, "Serving")
        cause = serving if serving and not ready else progressing
        stalled = not ready and cause is not None and cause.reason in NEEDS_A_PERSON
    else:
        cause, ready = progressing, False
        stalled = cause is not None and cause.status == "False" and cause.reason in NEEDS_A_PERSON
    reason, message = (cause.reason, cause.message) if cause else ("Starting", "")
    draft.condition("Ready", ready, reason, message)
    if stalled:
        draft.condition("Stalled", True, reason, message)
    else:
        draft.drop_condition("Stalled")
