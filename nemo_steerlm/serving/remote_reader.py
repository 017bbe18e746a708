"""A value model behind another server, which reads for the steer model that this one serves. Its token stays here."""

from __future__ import annotations

from typing import Any

import httpx
import msgspec

from nemo_steerlm.core.errors import DataError, UsageError, shown
from nemo_steerlm.serving.model import QueueFullError
from nemo_steerlm.serving.upstream import UpstreamError


class RemoteReader:
    """Asks ``url`` what ``POST /v1/attributes`` is asked here."""

    def __init__(self, url: str, *, api_key: str | None = None) -> None:
        """Raises UsageError where ``url`` is none."""
        try:
            httpx.URL(url)
        except httpx.InvalidURL as error:
            raise UsageError(f"--reader {shown(url)}: {error}; write http://HOST:PORT") from error
        self._url = url.rstrip("/").removesuffix("/v1")
        self._headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {api_key}"} if api_key else {})

    async def read(self, body: bytes) -> dict[str, Any]:
        """The other server's answer to a body as it came; how long it may take is the caller's to say.

        Raises DataError where it refuses the conversation, QueueFullError where it is busy, UpstreamError where it does not answer.
        """
        try:
            # One client a request: readings are few, and a connection that the other server has closed meanwhile costs an answer.
            async with httpx.AsyncClient(timeout=httpx.Timeout(None, connect=10.0), headers=self._headers) as client:
                response = await client.post(f"{self._url}/v1/attributes", content=body)
        except httpx.HTTPError as error:
            raise UpstreamError(f"the value server {self._url} does not answer ({type(error).__name__})") from error
        try:
            answer = msgspec.json.decode(response.content, type=dict[str, Any])
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise UpstreamError(f"{self._url}/v1/attributes answered HTTP {response.status_code} and no JSON object") from error
        if response.status_code == 200:
            return answer
        told = answer.get("error")
        reason = (told.get("message") if isinstance(told, dict) else None) or "no reason given"
        message = f"the value server answered HTTP {response.status_code}: {reason}"
        raise {400: DataError, 429: QueueFullError}.get(response.status_code, UpstreamError)(message)
