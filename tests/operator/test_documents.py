"""What the runbook says of conditions is what the code has."""

from __future__ import annotations

import ast
import re
import typing
from pathlib import Path

from steerlm_operator import cluster

from nemo_steerlm.pipeline import cluster_status as statuses

ROOT = Path(__file__).parents[2]
WORD = re.compile(r"[A-Z][a-z]+(?:[A-Z][a-z]+)*(?:DNS)?")
EVENTS = {
    "NothingToRestart",
    "SpecChanged",
    "ServingCorrected",
    "Restarted",
    "Started",
    "StageStarted",
    "StageCacheHit",
    "StageSucceeded",
    "StageFailed",
    "Normal",
    "Warning",
}
KUBERNETES = {
    "Background", "RollingUpdate", "ClaimTemplate", "CrashLoopBackOff", "CreateContainerConfigError", "ReadWriteMany", "DisruptionTarget",
    "ErrImageNeverPull", "ErrImagePull", "FailedIndexes",
    "ImageInspectError", "ImagePullBackOff", "InvalidImageName", "Lost", "MaxFailedIndexesExceeded", "PodScheduled",
    "ProgressDeadlineExceeded", "RegistryUnavailable", "ReplicaFailure", "SchedulingGated", "Volcano", "True", "False", "Jobs",
    "JobSets", "BackoffLimitExceeded", "ValidatingAdmissionPolicy", "Coscheduling", "None",
}  # fmt: skip


def reasons_in_code():
    known = EVENTS | KUBERNETES | set(cluster.PLURALS)
    for kind in (statuses.Phase, statuses.StagePhase, statuses.ConditionType, statuses.Step):
        known |= set(typing.get_args(kind))
    known |= {"Waiting", "Lagging"}  # states of a reading
    found = set()
    for module in ("reconcile", "progress", "readings", "server_readings", "retries", "serving", "storage"):
        tree = ast.parse((ROOT / f"k8s/steerlm_operator/{module}.py").read_text(encoding="utf-8"))
        words = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str))
        found |= {word for word in words if WORD.fullmatch(word)}
    return found - known


def reasons_in_table():
    text = (ROOT / "docs/kubernetes/runbook.md").read_text(encoding="utf-8")
    table = text.partition("## Every condition and reason")[2].partition("\n## ")[0]
    cells = [line.split("|")[2] for line in table.splitlines() if line.startswith("| ") and "reason |" not in line]
    found = {word for cell in cells for word in re.findall(r"[A-Z]\w+", cell)}
    return found - set(typing.get_args(statuses.ConditionType)) - set(typing.get_args(statuses.Phase))


def test_the_table_of_reasons_is_the_code_s():
    assert reasons_in_table() == reasons_in_code()
