"""Where the page's readings come from: a value model in this process, or a server that has one."""

from __future__ import annotations

from typing import Any, Protocol

import anyio
import httpx
import msgspec

from nemo_steerlm.core.errors import DataError, UnavailableError
from nemo_steerlm.serving.attributes import Scoring
from nemo_steerlm.serving.schemas import AttributesBody
from nemo_steerlm.serving.service import Service, TimedOutError


class Reader(Protocol):
    """Answers what ``POST /v1/attributes`` answers."""

    async def read(self, body: AttributesBody) -> dict[str, Any]:
        """The answer to ``body``. Raises SteerLMError where there is none."""


class LocalReader:
    """The value model of a service in this process."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._scoring = Scoring(service)

    async def read(self, body: AttributesBody) -> dict[str, Any]:
        """See Reader."""
        requests = await self._scoring.requests(body)
        seconds = self._service.settings.request_timeout
        try:
            with anyio.fail_after(seconds):
                return await self._scoring.answer(requests)
        except TimeoutError as error:
            raise TimedOutError(f"no answer within {seconds:g} s") from error


class RemoteReader:
    """A value model behind ``url``."""

    def __init__(self, url: str, *, api_key: str | None = None, timeout: float = 60.0) -> None:
        """``timeout`` in seconds."""
        self._url = url.rstrip("/")
        self._timeout = timeout
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}

    async def read(self, body: AttributesBody) -> dict[str, Any]:
        """See Reader."""
        try:
            async with httpx.AsyncClient(timeout=self._timeout, headers=self._headers) as client:
                response = await client.post(f"{self._url}/v1/attributes", json=body.model_dump(exclude_none=True))
        except httpx.HTTPError as error:
            raise UnavailableError(f"the value server {self._url} does not answer ({type(error).__name__})") from error
        try:
            answer = msgspec.json.decode(response.content)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise UnavailableError(f"{self._url}/v1/attributes answered HTTP {response.status_code} and no JSON") from error
        if response.status_code != 200:
            told = answer.get("error", {}) if isinstance(answer, dict) else {}
            message = told.get("message") if isinstance(told, dict) else None
            raise DataError(f"the value server answered HTTP {response.status_code}: {message or 'no reason given'}")
        return dict(answer)
