"""What a server's engine adds to its pod: options, secrets, and for vLLM a container of its own."""

from __future__ import annotations

from collections.abc import Mapping

from nemo_steerlm.core import environment
from nemo_steerlm.core import vllm as vllm_server
from nemo_steerlm.pipeline.cluster_spec import AmountSpec
from nemo_steerlm.pipeline.cluster_types import SecretKeySpec
from nemo_steerlm.pipeline.stages import ServerNeed
from steerlm_operator.models import Object, Pipeline
from steerlm_operator.resources import pods

PROBE_SECONDS = 5
VLLM_PORT = 8_001
FRONT = AmountSpec(cpu="500m", memory="2Gi")
"""For a server whose weights are in the container beside it."""


def options(need: ServerNeed) -> list[str]:
    """Options of ``steerlm serve``."""
    engine = need.engine
    if engine.megatron:
        return engine.megatron.options(need.devices)
    if engine.vllm:
        return ["--engine", "openai", "--upstream", f"http://127.0.0.1:{VLLM_PORT}"]
    return engine.external.options(need.startup_timeout_seconds) if engine.external else []


def secrets(need: ServerNeed, token: SecretKeySpec | None) -> dict[str, SecretKeySpec]:
    """Further secrets of the server, by variable. vLLM asks for the same token as the server before it."""
    asked = token if need.engine.vllm else need.engine.external.token if need.engine.external else None
    return {environment.UPSTREAM_KEY: asked} if asked else {}


def image(pipeline: Pipeline, need: ServerNeed) -> str | None:
    """The image with the engine."""
    if need.engine.vllm:
        return pipeline.images.vllm
    return pipeline.images.train if need.engine.megatron else pipeline.images.serve


def vllm(pipeline: Pipeline, need: ServerNeed, folder: str, labels: Mapping[str, str], token: SecretKeySpec | None) -> Object:
    """VLLM's container. The kubelet starts the server once this one answers, and ends it after it.

    It listens on all addresses, as its probes come from outside of the pod; policies admit nobody to its port, and it asks for the token.
    """
    spread = ["--tensor-parallel-size", str(need.devices)]
    more = need.engine.vllm.args if need.engine.vllm else ()
    process = pods.Process(
        program="vllm",
        # What the server relies on comes last, which wins.
        args=["serve", folder, *spread, *more, *vllm_server.OPTIONS, "--host", "0.0.0.0", "--port", str(VLLM_PORT)],  # noqa: S104
        # Its libraries want a name for the user, whom its image may not know.
        env={**vllm_server.ENVIRONMENT, "USER": "steerlm"},
        secrets={vllm_server.API_KEY: token} if token else {},
        image=pipeline.images.vllm or "",
        amount=pipeline.amount("servers"),
        devices=need.devices,
        labels=labels,
        role="serve",
        read_only=True,
    )
    return {
        **pods.container(pipeline, process, "vllm"),
        "restartPolicy": "Always",
        "startupProbe": probe("/health", VLLM_PORT, failures=starting(need)),
        "readinessProbe": probe("/health", VLLM_PORT, failures=2),
        "livenessProbe": probe("/health", VLLM_PORT, failures=6),
    }


def starting(need: ServerNeed) -> int:
    """Probes until a server has taken too long to start."""
    return -(-need.startup_timeout_seconds // PROBE_SECONDS)


def probe(path: str, port: str | int, *, failures: int) -> Object:
    """Asks for a page."""
    return {
        "httpGet": {"path": path, "port": port},
        "periodSeconds": PROBE_SECONDS,
        "timeoutSeconds": 5,
        "failureThreshold": failures,
    }
