"""The environment variables of this package, and the contract between a stage's process and the operator that started it in a pod.

Whoever sets a variable and whoever reads it import its name from here: command line, servers, clients, stages and the operator.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

API_KEY = "STEERLM_API_KEY"
"""The bearer token that a server asks for, and that its clients bring."""
READER_API_KEY = "STEERLM_READER_API_KEY"
"""The token of the server that reads attributes for the page."""
UPSTREAM_KEY = "STEERLM_UPSTREAM_KEY"
"""The token of the server whose model this server offers."""
MAX_MODEL_LEN = "STEERLM_MAX_MODEL_LEN"
"""Tokens of prompt and answer together that a server takes; ``base``: all that its model has positions for."""
VLLM = "STEERLM_VLLM"
"""The vLLM program, or the Python of its environment."""
STARTED_BY_RANK_0 = "STEERLM_STARTED_BY_RANK_0"
"""Set in the processes that the first process of a served model started: their standard input ends when that one does."""
OPERATOR_CONFIG = "STEERLM_OPERATOR_CONFIG"
"""The operator's configuration file."""
OPERATOR_LEASE = "STEERLM_OPERATOR_LEASE"
"""``NAMESPACE/NAME`` of the Lease whose holder is the one of several operators that acts; without it this one acts."""
OPERATOR_URL = "STEERLM_OPERATOR_URL"
"""``helm test``: where the operator's health pages are."""
OPERATOR_RULES = "STEERLM_OPERATOR_RULES"
"""``helm test``: the rules of the operator's role, as JSON."""
LOG_FORMAT = "STEERLM_LOG_FORMAT"
"""``json`` makes each line of the operator's log JSON."""

FILES = "STEERLM_FILES"
"""The folder where a manifest's relative references start. In a pod the manifest is a mounted ConfigMap, its files are on the claim."""
SALT = "STEERLM_SALT"
"""Mixed into the input hash, so that a finished stage is done again once."""
TERMINATION_LOG = "STEERLM_TERMINATION_LOG"
"""A file that gets the stage's result as one line, for an operator that cannot read the work directory."""
INPUTS_FINISHED = "STEERLM_INPUTS_FINISHED"
"""``1``: whoever starts the stage knows that the stages before it have finished. A ``_SUCCESS.json`` that is absent is then one that this
machine does not see yet, as on a network file system that caches attributes, and the stage is tried again."""

WORK_TMP = "STEERLM_WORK_TMP"
"""``1``: a stage's temporary files go to the work directory. A pod's ``/tmp`` is its node's disk, and a pod that fills it is evicted."""

GRACE = "STEERLM_GRACE_SECONDS"
"""Seconds between SIGTERM and SIGKILL, of the pod or of whoever else stops this process."""

HUGGING_FACE_TOKEN = "HF_TOKEN"  # noqa: S105 - a variable's name
WANDB_KEY = "WANDB_API_KEY"

NODE_RANK = "PET_NODE_RANK"
"""This machine's number among those that train together. ``PET_*`` are torchrun's own names for its options."""
NODES = "PET_NNODES"
PROCESSES_PER_NODE = "PET_NPROC_PER_NODE"
RENDEZVOUS_BACKEND = "PET_RDZV_BACKEND"
MASTER_ADDRESS = "PET_MASTER_ADDR"
MASTER_PORT = "PET_MASTER_PORT"

ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
"""Where a process that fails writes why, as JSON. torchrun names one for each rank, and reads those of the ranks that failed."""

TERMINATION_MESSAGE_LIMIT = 4096
"""Bytes of a pod's termination message (Kubernetes)."""


def result_line(*, cached: bool, input_hash: str, metrics: Mapping[str, Any]) -> str:
    """A finished stage's termination message: one line of ASCII within the limit; the last metrics are left out where not all fit."""
    kept = dict(metrics)
    while True:
        text = json.dumps({"cached": cached, "inputHash": input_hash, "metrics": kept})
        if len(text) <= TERMINATION_MESSAGE_LIMIT or not kept:
            return text
        kept.popitem()


def parse_result_line(text: str) -> dict[str, Any]:
    """What ``result_line`` wrote: ``{"cached": bool, "inputHash": str, "metrics": {...}}``; {} if the text is anything else."""
    try:
        result = json.loads(text)
    except ValueError:
        return {}
    return result if isinstance(result, dict) and isinstance(result.get("inputHash"), str) else {}
