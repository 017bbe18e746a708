"""The alerts of the PrometheusRule: what somebody is woken for, or looks at in the morning, from the operator's own metrics."""

from __future__ import annotations

from typing import Any

RUNBOOK = "docs/kubernetes/runbook.md"
"""Where each alert is a heading."""


def rules() -> dict[str, Any]:
    """The spec of a PrometheusRule."""
    return {"groups": [{"name": "steerlm-operator", "rules": [_rule(*alert) for alert in ALERTS]}]}


ALERTS = [
    (
        "SteerLMOperatorAbsent",
        "absent(steerlm_last_reconcile_timestamp_seconds)",
        "10m",
        "critical",
        "No operator reports metrics: nothing starts, ends or is retried.",
    ),
    (
        "SteerLMReconcileStopped",
        "max(steerlm_last_reconcile_timestamp_seconds) > 0 and time() - max(steerlm_last_reconcile_timestamp_seconds) > 900",
        "5m",
        "critical",
        "No pipeline has been looked at for a quarter of an hour.",
    ),
    (
        "SteerLMReconcileErrors",
        "sum by (reason) (rate(steerlm_reconcile_errors_total[10m])) > 0.1",
        "15m",
        "warning",
        "Looks at pipelines end in {{ $labels.reason }}.",
    ),
    (
        "SteerLMPipelineFailed",
        'sum by (namespace, stage) (increase(steerlm_stage_results_total{result="Failed"}[15m])) > 0',
        "0m",
        "warning",
        "A pipeline in {{ $labels.namespace }} failed in {{ $labels.stage }}.",
    ),
    (
        "SteerLMStageRetriesOften",
        'sum by (namespace, stage) (increase(steerlm_stage_results_total{result="Retrying"}[1h])) > 5',
        "0m",
        "warning",
        "{{ $labels.stage }} in {{ $labels.namespace }} was tried again {{ $value }} times within an hour.",
    ),
    ("SteerLMQueueLong", "steerlm_queue_length > 100", "15m", "warning", "{{ $value }} pipelines wait to be looked at."),
]


def _rule(name: str, expression: str, lasting: str, severity: str, summary: str) -> dict[str, Any]:
    return {
        "alert": name,
        "expr": expression,
        "for": lasting,
        "labels": {"severity": severity},
        "annotations": {"summary": summary, "runbook": f"{RUNBOOK}#{name.lower()}"},
    }
