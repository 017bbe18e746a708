"""The Grafana dashboard: one row a question, from the operator's own metrics."""

from __future__ import annotations

from typing import Any

RATE = "$__rate_interval"
PANELS = [
    ("Pipelines", "What stands where", "short", [("sum by (phase) (steerlm_pipelines)", "{{phase}}")]),
    ("Stage attempts", "How many start", "short", [(f"sum by (stage) (increase(steerlm_stage_attempts_total[{RATE}]))", "{{stage}}")]),
    (
        "Stage ends",
        "How they end; Retrying and Failed are the ones to look at",
        "short",
        [(f"sum by (stage, result) (increase(steerlm_stage_results_total[{RATE}]))", "{{stage}} {{result}}")],
    ),
    (
        "Stage duration",
        "Of attempts that ended well",
        "s",
        [(f"histogram_quantile(0.5, sum by (stage, le) (rate(steerlm_stage_duration_seconds_bucket[{RATE}])))", "{{stage}} median")],
    ),
    ("Stages found done", "Work that was not repeated", "short", [("sum by (stage) (steerlm_cache_hits_total)", "{{stage}}")]),
    ("Loss", "Last step of each training that runs", "short", [("steerlm_stage_loss", "{{namespace}}/{{pipeline}} {{stage}}")]),
    (
        "Tokens a second",
        "All devices of a training together",
        "short",
        [("steerlm_stage_tokens_per_second", "{{namespace}}/{{pipeline}} {{stage}}")],
    ),
    ("Devices held", "GPUs that pods hold", "short", [("sum by (namespace) (steerlm_devices_held)", "{{namespace}}")]),
    ("Device hours", "What each pipeline has taken", "short", [("steerlm_device_hours", "{{namespace}}/{{pipeline}}")]),
    ("Annotation servers", "That answer", "short", [("steerlm_annotation_servers_ready", "{{namespace}}/{{pipeline}}")]),
    (
        "Looks at pipelines",
        "Duration of one",
        "s",
        [
            (f"histogram_quantile({q}, sum by (le) (rate(steerlm_reconcile_duration_seconds_bucket[{RATE}])))", f"p{q * 100:.0f}")
            for q in (0.5, 0.99)
        ],
    ),
    ("Errors", "Looks that ended in one", "short", [(f"sum by (reason) (increase(steerlm_reconcile_errors_total[{RATE}]))", "{{reason}}")]),
    (
        "Requests",
        "To the API server",
        "reqps",
        [(f"sum by (method, status) (rate(steerlm_api_requests_total[{RATE}]))", "{{method}} {{status}}")],
    ),
    (
        "Writes of a status",
        "409 is a conflict, tried again",
        "reqps",
        [(f"sum by (result) (rate(steerlm_status_writes_total[{RATE}]))", "{{result}}")],
    ),
    ("Queue", "Pipelines waiting to be looked at", "short", [("steerlm_queue_length", "waiting")]),
    (
        "Last look",
        "Seconds ago; growing means that reconciling has stopped",
        "s",
        [("time() - steerlm_last_reconcile_timestamp_seconds", "ago")],
    ),
]


def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana reads it."""
    return {
        "uid": "steerlm-operator",
        "title": "SteerLM operator",
        "tags": ["steerlm"],
        "schemaVersion": 39,
        "editable": False,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {"list": [{"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Data source"}]},
        "panels": [_panel(number, *panel) for number, panel in enumerate(PANELS)],
    }


def _panel(number: int, title: str, description: str, unit: str, queries: list[tuple[str, str]]) -> dict[str, Any]:
    source = {"type": "prometheus", "uid": "${datasource}"}
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": title,
        "description": description,
        "datasource": source,
        "gridPos": {"x": 12 * (number % 2), "y": 8 * (number // 2), "w": 12, "h": 8},
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + index), "datasource": source, "expr": expression, "legendFormat": legend}
            for index, (expression, legend) in enumerate(queries)
        ],
    }
