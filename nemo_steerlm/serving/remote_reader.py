"""A remote value model, which reads for the steer model of this server. Its token never leaves this process."""

from __future__ import annotations

from typing import Any

import httpx
import msgspec

from nemo_steerlm.client.http import async_client
from nemo_steerlm.core.errors import DataError, UsageError, shown
from nemo_steerlm.serving.model import QueueFullError
from nemo_steerlm.serving.remote_protocol import RemoteError


class RemoteReader:
    """Forwards ``POST /v1/attributes`` to another server."""

    def __init__(self, url: str, *, api_key: str | None = None) -> None:
        """Take the server's address and bearer token.

        Raises:
            UsageError: If ``url`` is no address.
        """
        try:
            httpx.URL(url)
        except httpx.InvalidURL as error:
            raise UsageError(f"--reader {shown(url)}: {error}; write http://HOST:PORT") from error
        self._url = url.rstrip("/").removesuffix("/v1")
        self._key = api_key

    async def read(self, body: bytes) -> dict[str, Any]:
        """Forward a request. There is no time limit but the caller's.

        Args:
            body: The request's body, as it came.

        Returns:
            The other server's answer.

        Raises:
            DataError: If the other server refuses the conversation.
            QueueFullError: If it is busy.
            RemoteError: If it does not answer, or not with a JSON object.
        """
        timeout = httpx.Timeout(None, connect=10.0)
        try:
            # One client per request: readings are few, and the other server may have closed an idle connection.
            async with async_client([self._url], timeout=timeout, key=self._key) as client:
                headers = {"Content-Type": "application/json"}
                response = await client.post(f"{self._url}/v1/attributes", content=body, headers=headers)
        except httpx.HTTPError as error:
            raise RemoteError(f"the value server {self._url} does not answer ({type(error).__name__})") from error
        try:
            answer = msgspec.json.decode(response.content, type=dict[str, Any])
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise RemoteError(f"{self._url}/v1/attributes answered HTTP {response.status_code} and no JSON object") from error
        if response.status_code == 200:
            return answer
        error_body = answer.get("error")
        reason = (error_body.get("message") if isinstance(error_body, dict) else None) or "no reason given"
        message = f"the value server answered HTTP {response.status_code}: {reason}"
        raise {400: DataError, 429: QueueFullError}.get(response.status_code, RemoteError)(message)
