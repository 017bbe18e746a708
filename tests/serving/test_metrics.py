"""What is counted by the time that somebody has an answer."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from nemo_steerlm.serving.app import create_app
from nemo_steerlm.serving.service import Service, Settings
from tests.serving.in_process import http_scope, local


@pytest.mark.parametrize(("path", "stream"), [("/v1/completions", False), ("/v1/completions", True), ("/v1/nowhere", False)])
def test_a_request_is_in_metrics_and_log_before_its_answer_ends(steer_folder, package_log, path, stream):
    service = Service(local(steer_folder), Settings())
    known = path.replace("/v1/nowhere", "other")
    message = {"type": "http.request", "body": json.dumps({"prompt": "a", "max_tokens": 3, "stream": stream}).encode()}
    told: list[str] = []

    async def receive() -> dict[str, Any]:
        nonlocal message
        if not message:
            await asyncio.Event().wait()
        found, message = message, {}
        return found

    async def send(event: dict[str, Any]) -> None:
        if event["type"] == "http.response.body":
            told.append(service.metrics.text().decode())
            assert len([line for line in package_log if f'"path": "{known}"' in line]) == (not event.get("more_body"))

    asyncio.run(create_app(service)(http_scope("POST", path), receive, send))
    service.close()
    count = f'steerlm_request_seconds_count{{path="{known}"'
    assert [count in text for text in told] == [False] * (len(told) - 1) + [True]
    assert len(told) > 1 or not stream
    assert stream or "steerlm_running 0.0" in told[-1]
