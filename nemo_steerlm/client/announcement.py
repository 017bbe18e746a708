"""What a server announces at ``GET /v1/models``, and what is assumed of one without that endpoint (upstream's)."""

from __future__ import annotations

from typing import Any

import httpx
import msgspec

from nemo_steerlm.client.retry import Fault, RequestFailed, RetryPolicy, classify_status, send
from nemo_steerlm.core.errors import ConfigError, SteerLMError
from nemo_steerlm.core.model_info import ModelInfo
from nemo_steerlm.core.objectives import ModelKind


class Announcement(msgspec.Struct, frozen=True, kw_only=True):
    """A served model. ``info`` is None if the server announces no model of this project."""

    info: ModelInfo | None = None
    scores: bool = False
    """Whether it has ``POST /v1/attributes``."""
    reads: bool = False
    """Whether its server says how its answers read."""

    @property
    def fingerprint(self) -> str:
        """The model's fingerprint, empty if it is not announced."""
        return self.info.fingerprint if self.info else ""

    @property
    def name(self) -> str:
        """How messages name the model."""
        return f"model {self.fingerprint or 'without fingerprint'}" if self.info else "a model that it does not announce"


async def read_announcement(url: str, client: httpx.AsyncClient, policy: RetryPolicy, kind: ModelKind = "value") -> Announcement:
    """Ask ``url`` what it serves; of several models the first of ``kind`` counts, or the first where there is none.

    Raises:
        RequestFailed: If it does not answer (yet).
        ConfigError: If it refuses this client's key.
    """
    try:
        body = await send(client, client.build_request("GET", f"{url}/v1/models"), policy.timeout)
    except RequestFailed as failure:
        await _require_generate(url, client, failure)
        return Announcement()
    try:
        models = msgspec.json.decode(body)["data"]
        described_models = [(model.get("metadata") or {}).get("steerlm") for model in models]
        at = next((i for i, one in enumerate(described_models) if one and one.get("kind") == kind), 0)
        metadata: dict[str, Any] = models[at].get("metadata") or {}
        described = described_models[at]
    except (msgspec.DecodeError, UnicodeDecodeError, LookupError, TypeError, AttributeError) as error:
        raise RequestFailed(Fault.SERVER, "GET /v1/models: not a list of models") from error
    if described is None:
        return Announcement()
    try:
        info = ModelInfo.from_dict(described, f"{url}/v1/models")
    except SteerLMError as error:
        raise RequestFailed(Fault.SERVER, str(error)) from error
    return Announcement(
        info=info,
        scores=bool(metadata.get("scores", models[at].get("scores", False))),
        reads=bool(models[at].get("reads", False)),
    )


async def _require_generate(url: str, client: httpx.AsyncClient, failure: RequestFailed) -> None:
    if "HTTP 401" in failure.reason or "HTTP 403" in failure.reason:
        raise ConfigError(f"{url} refuses this client ({failure.reason}); put its key in STEERLM_API_KEY") from failure
    if not failure.reason.startswith(("HTTP 404", "HTTP 405")):
        raise failure
    # Upstream's server lacks /v1/models, but so does a proxy without a backend: only the former has /generate.
    try:
        response = await client.options(f"{url}/generate")
    except httpx.HTTPError as error:
        raise failure from error
    # 501 is what Python's own http.server says to a method that it does not know.
    if response.status_code not in (405, 501) and classify_status(response.status_code) is not None:
        raise failure
