"""Names and labels of everything the operator makes. Deterministic: the same decision twice names the same object."""

from __future__ import annotations

import hashlib

DOMAIN = "steerlm.dev"
PIPELINE = f"{DOMAIN}/pipeline"
"""Label: the pipeline's name. Every watch selects on it."""
PIPELINE_UID = f"{DOMAIN}/pipeline-uid"
"""Label: the pipeline's uid. Objects of a deleted pipeline of the same name carry another one."""
STAGE = f"{DOMAIN}/stage"
ATTEMPT = f"{DOMAIN}/attempt"
COMPONENT = f"{DOMAIN}/component"
"""Label: what a pod is for, see below."""
ROLE = f"{DOMAIN}/role"
"""Label: which model a server serves, ``value`` or ``steer``."""
APPLIED = f"{DOMAIN}/applied"
"""Annotation: hash of the object as it was last applied."""

RUNS = f"{DOMAIN}/runs"
"""Annotation: hash of what a Deployment's pods run. Where that is the same, another version of the operator restarts none of them."""

WORK = "work"
"""Component: a stage's own pods."""
SERVER = "server"
"""Component: an inference server that lives as long as a stage."""
SERVE = "serve"
"""Component: the server that stays."""

FIELD_MANAGER = "steerlm-operator"
JOB_NAME = "batch.kubernetes.io/job-name"
"""Label the Job controller puts on pods."""
COMPLETION_INDEX = "batch.kubernetes.io/job-completion-index"
QUEUE_NAME = "kueue.x-k8s.io/queue-name"

HOST_NAME_LIMIT = 63
JOBSET_JOB = "node"
"""Name of the one replicated Job in a JobSet."""
POD_SUFFIX = len("-xxxxx")


def child(pipeline: str, *parts: str, room: int = 0) -> str:
    """``PIPELINE-PART-…`` that leaves ``room`` characters of a host name; a name too long is cut, and a hash keeps it unique."""
    name = "-".join((pipeline, *parts))
    limit = HOST_NAME_LIMIT - room
    if len(name) <= limit:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    tail = "-".join(("", digest, *parts))
    if len(tail) < limit:
        return f"{pipeline[: limit - len(tail)]}{tail}"
    return f"{name[: limit - 9]}-{digest}"


def attempt(pipeline: str, stage: str, number: int, *, pods: int = 1, merge: bool = False, jobset: bool = False) -> str:
    """A stage's Job (or JobSet): ``PIPELINE-STAGE[-merge]-ATTEMPT``. Its pods' host names append an index below ``pods``."""
    room = len(f"-{pods - 1}") + (len(f"-{JOBSET_JOB}-0") + POD_SUFFIX if jobset else 0)
    parts = (stage, "merge", str(number)) if merge else (stage, str(number))
    return child(pipeline, *parts, room=room)


def server(pipeline: str, stage: str, role: str, number: int) -> str:
    """A stage's inference servers of one role, Deployment and Service alike."""
    return child(pipeline, stage, role, str(number))


def serve(pipeline: str) -> str:
    """The server that stays, Deployment and Service alike."""
    return child(pipeline, "serve")


def claim(pipeline: str) -> str:
    """The claim made from a template."""
    return child(pipeline, "data")
