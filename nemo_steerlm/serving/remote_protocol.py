"""OpenAI's ``/v1/completions`` as a remote server speaks it: what is asked of it, and what its answers mean."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping
from typing import Any

import httpx
import msgspec

from nemo_steerlm.client.launch import POLL_SECONDS
from nemo_steerlm.core.errors import ConfigError, DataError, SteerLMError, UnavailableError, shown
from nemo_steerlm.inference.engine import GenerationRequest, TokenLogprob
from nemo_steerlm.serving.model import QueueFullError
from nemo_steerlm.serving.schemas import MOST, MOST_TOKENS

logger = logging.getLogger(__name__)

NAMED_BY_ID = "token_id:"
"""What a token is called whose id is wanted: ``token_id:17``."""


class RemoteError(SteerLMError):
    """The remote server failed, broke off or cannot be reached."""

    code = "upstream"


def awaited(url: str, client: httpx.Client, patience: float) -> tuple[str, int | None]:
    """What ``_announced`` returns as soon as the server answers. Raises UnavailableError after ``patience`` seconds."""
    deadline, told = time.monotonic() + patience, False
    while True:
        try:
            return _announced(url, client)
        except UnavailableError as error:
            if time.monotonic() >= deadline:
                raise
            if not told:
                logger.warning("waits up to %.0f s for the remote server: %s", patience, error)
                told = True
            time.sleep(POLL_SECONDS)


def _announced(url: str, client: httpx.Client) -> tuple[str, int | None]:
    """The model's name and length. Raises UnavailableError, ConfigError."""
    try:
        response = client.get(f"{url}/v1/models", timeout=30.0)
    except httpx.HTTPError as error:
        raise UnavailableError(f"--upstream {url}: {str(error) or type(error).__name__}") from error
    if response.status_code in (401, 403):
        raise ConfigError(f"--upstream {url} refuses this client; put its key in STEERLM_UPSTREAM_KEY")
    if response.status_code >= 500:
        raise UnavailableError(f"--upstream {url} answers HTTP {response.status_code}")
    try:
        model = response.raise_for_status().json()["data"][0]
        return str(model["id"]), model.get("max_model_len")
    except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
        raise ConfigError(f"--upstream {url}: GET /v1/models gives no list of models") from error


def sampling_fields(request: GenerationRequest) -> dict[str, Any]:
    """The fields of a completion request. Capped, because ``PUT /generate`` has no upper bounds and infinity is no JSON."""
    sampling = request.sampling
    return {
        "temperature": 0 if sampling.takes_best else min(sampling.temperature, MOST),
        "top_k": min(sampling.top_k, MOST_TOKENS),
        "top_p": sampling.top_p,
        "repetition_penalty": min(sampling.repetition_penalty, MOST),
        "frequency_penalty": sampling.frequency_penalty,
        "presence_penalty": sampling.presence_penalty,
        "logit_bias": {str(token): bias for token, bias in sampling.bias} or None,
        "allowed_token_ids": list(sampling.allowed) or None,
        "seed": None if sampling.seed is None else sampling.seed % 2**63,
        "min_tokens": request.min_tokens,
        "stop_token_ids": sorted(request.stop_ids),
        # If end of text is to stop the answer, it is among stop_ids.
        "ignore_eos": True,
        "skip_special_tokens": False,
        "logprobs": request.logprobs or 0,
    }


def logprobs_of(choice: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The ``logprobs`` object, its lists equally long."""
    entry = choice.get("logprobs") or {}
    tokens = entry.get("tokens") or []
    none = [None] * len(tokens)
    return {"tokens": tokens, "token_logprobs": entry.get("token_logprobs") or none, "top_logprobs": entry.get("top_logprobs") or none}


def token_id(name: str) -> int:
    """The id of ``token_id:17``. Raises RemoteError for another name."""
    if not name.startswith(NAMED_BY_ID):
        raise RemoteError(f"the upstream names a token {shown(name)} instead of token_id:N")
    return int(name[len(NAMED_BY_ID) :])


def token_logprob(logprob: float | None, top: Mapping[str, float] | None, count: int | None) -> TokenLogprob:
    """Of a token, and of the ``count`` most probable ones; the remote server leaves out that of a prompt's first token."""
    rivals = sorted(((token_id(name), value) for name, value in (top or {}).items()), key=lambda pair: -pair[1])
    return TokenLogprob(-9999.0 if logprob is None else logprob, rivals[: count or 0])


@contextlib.contextmanager
def as_remote_error(url: str) -> Iterator[None]:
    """Turn errors of the transport and of the answer's shape into RemoteError."""
    try:
        yield
    except httpx.HTTPError as error:
        raise RemoteError(f"{url}: {str(error) or type(error).__name__}") from error
    except (ValueError, LookupError, TypeError, msgspec.DecodeError) as error:
        raise RemoteError(f"{url}: not an answer of /v1/completions ({error})") from error


def raise_for_status(status: int, body: bytes) -> None:
    """Raise QueueFullError, DataError or RemoteError as an answer that is no 200 asks for."""
    if status == 200:
        return
    try:
        message = message_of(msgspec.json.decode(body))
    except (msgspec.DecodeError, UnicodeDecodeError):
        message = body[:200].decode("utf-8", "replace")
    if status == 429:
        raise QueueFullError(f"the upstream is full: {message}")
    if status == 400:
        raise DataError(f"the upstream refuses this: {message}")
    raise RemoteError(f"HTTP {status} of the upstream: {message}")


def message_of(answer: Any) -> str:
    """The sentence in an error, whatever its shape."""
    error = answer.get("error", answer) if isinstance(answer, dict) else answer
    return str(error.get("message", error) if isinstance(error, dict) else error)
