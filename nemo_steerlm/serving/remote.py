"""A remote model: its weights are on another server, vLLM or any that speaks OpenAI's ``/v1/completions`` with token ids as vLLM does.

This process has the template, the tokenizer and the schema: it turns attributes into the prompt and sends prompts as token ids. Tokens
come back as ``token_id:N`` in ``logprobs`` (``return_tokens_as_token_ids``); stop strings and unescaping are applied here, as for a
local engine. Scoring requests one token per field with ``logprob_token_ids``, the log-probabilities of exactly the allowed values; the
remote server's prefix cache saves it from reading the conversation again. A server that ignores ``logprob_token_ids`` is asked to echo
the prompt with each value instead.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import msgspec

from nemo_steerlm.client.http import async_client, sync_client
from nemo_steerlm.core.errors import ConfigError, DataError, UsageError, shown
from nemo_steerlm.core.model_info import ModelInfo
from nemo_steerlm.core.template import text_of
from nemo_steerlm.core.tokenization import load_tokenizer
from nemo_steerlm.inference.engine import Choice, GenerationRequest, NextToken, ScoredTurn, ScoreRequest, TokenLogprob
from nemo_steerlm.inference.label_plan import LabelPlan, Slot, compile_label
from nemo_steerlm.serving.metrics import Metrics
from nemo_steerlm.serving.model import Delta, Generation, QueueFullError
from nemo_steerlm.serving.remote_protocol import (
    NAMED_BY_ID,
    RemoteError,
    as_remote_error,
    awaited,
    logprobs_of,
    message_of,
    raise_for_status,
    sampling_fields,
    token_id,
    token_logprob,
)
from nemo_steerlm.serving.tasks import cancel_and_wait


class RemoteModel:
    """See ``Model``."""

    def __init__(
        self,
        folder: Path,
        url: str,
        *,
        api_key: str | None = None,
        max_rows: int = 256,
        max_waiting: int = 1024,
        max_model_len: int | None = None,
        patience: float = 0.0,
    ) -> None:
        """Connect to the remote server and find out what it can do.

        Args:
            folder: The exported model; its weights are not read.
            url: ``http://HOST:PORT`` of the remote server, with or without ``/v1``.
            api_key: The remote server's bearer token.
            max_rows: Requests sent at once.
            max_waiting: Requests that may wait before new ones are refused.
            max_model_len: Tokens of prompt and answer together; see ``ModelInfo.served_length``.
            patience: Seconds until the remote server must answer; it may still be loading.

        Raises:
            UsageError: If ``url`` is no address, or the server takes fewer tokens.
            UnavailableError: If nothing answers there in time.
            ConfigError: If the server refuses the key, or does not answer with token ids.
        """
        self.info = ModelInfo.load(folder)
        self.tokenizer = load_tokenizer(folder)
        self.metrics = Metrics()
        self.guides = False  # no server of OpenAI's protocol combines the scores of two prompts
        self.url = url.rstrip("/").removesuffix("/v1")
        self._plan: LabelPlan | None = compile_label(self.info, self.tokenizer) if self.info.kind == "value" else None
        self._template = self.info.template(self.tokenizer)
        self._max_waiting = max_waiting
        self._places = asyncio.Semaphore(max_rows)
        self._waiting = self._running = 0
        if not url.startswith(("http://", "https://")):
            raise UsageError(f"--upstream {shown(url)}: write http://HOST:PORT")
        self._client = async_client([self.url], timeout=httpx.Timeout(None, connect=10.0), key=api_key, base_url=self.url)
        with sync_client(self.url, timeout=httpx.Timeout(300.0, connect=30.0), key=api_key) as client:
            self._name, announced = awaited(self.url, client, patience)
            self._selects = self._check(client)
        own = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("max_position_embeddings")
        lengths = [length for length in (announced, own) if length]
        if not lengths:
            raise ConfigError(f"{self.url} does not say how long a prompt may be, and neither does {folder / 'config.json'}")
        self.max_length: int = self.info.served_length(min(lengths), max_model_len)

    def _check(self, client: httpx.Client) -> bool:
        """Whether the remote server gives log-probabilities of chosen tokens. Raises ConfigError if it gives no token ids."""
        wanted = [0, self.tokenizer.vocab_size - 1]
        body = self._body([wanted[0]], 1) | {"logprobs": 0, "logprob_token_ids": wanted}
        with as_remote_error(self.url):
            response = client.post(f"{self.url}/v1/completions", json=body)
            raise_for_status(response.status_code, response.content)
        entry = logprobs_of(response.json()["choices"][0])
        if not entry["tokens"] or not entry["tokens"][0].startswith(NAMED_BY_ID):
            raise ConfigError(
                f"{self.url} does not answer with token ids (return_tokens_as_token_ids); vLLM and steerlm serve do: use one of them"
            )
        return set(wanted) <= {token_id(name) for name in entry["top_logprobs"][0] or {}}

    def require_room(self, more: int) -> None:
        """See Model.

        Raises:
            QueueFullError: If ``more`` cannot wait.
        """
        if self._waiting and self._waiting + more > self._max_waiting:
            raise QueueFullError(f"{self._waiting} requests wait already")

    def close(self) -> None:
        """See Model. Requests under way end with the event loop."""

    @contextlib.asynccontextmanager
    async def _place(self, together: int) -> AsyncIterator[None]:
        """Hold one of the ``max_rows`` places for requests in flight."""
        if self._waiting >= max(self._max_waiting, together):
            raise QueueFullError(f"{self._waiting} requests wait already")
        self._count(waiting=1)
        try:
            await self._places.acquire()
        finally:
            self._count(waiting=-1)
        self._count(running=1)
        try:
            yield
        finally:
            self._places.release()
            self._count(running=-1)

    def _count(self, waiting: int = 0, running: int = 0) -> None:
        self._waiting += waiting
        self._running += running
        self.metrics.waiting.set(self._waiting)
        self.metrics.running.set(self._running)

    def _body(self, prompt: Sequence[int], max_tokens: int) -> dict[str, Any]:
        return {"model": self._name, "prompt": list(prompt), "max_tokens": max_tokens, "return_tokens_as_token_ids": True}

    async def stream(self, generation: Generation, together: int = 1) -> AsyncIterator[Delta]:
        """See Model.

        Raises:
            DataError: If all tokens' probabilities are asked for.
            QueueFullError: If the row cannot wait.
        """
        request, arrived = generation.request, time.monotonic()
        if request.full_logprobs:
            raise DataError("all_probs is not offered in front of another server", instead="ask for logprobs")
        async with self._place(together):
            prompt = await self._prompt_logprobs(request) if request.prompt_logprobs else None
            self.metrics.prompt_tokens.inc(len(request.prompt))
            async for token in self._tokens(generation):
                if not generation.generated:
                    self.metrics.first_token.observe(time.monotonic() - arrived)
                self.metrics.generated_tokens.inc()
                delta = generation.advance(NextToken(*token, prompt))
                prompt = None
                yield delta
                if delta.finish:
                    return
            # The remote server stopped early, as it does when its context is full.
            text = generation.text.flush(ended=False)
            yield Delta(text, None, "stop" if generation.text.stopped() else "length")

    async def _tokens(self, generation: Generation) -> AsyncIterator[tuple[int, TokenLogprob]]:
        """Tokens as they come. Raises RemoteError if the stream ends before the answer does."""
        body = self._body(generation.request.prompt, generation.max_tokens) | sampling_fields(generation.request) | {"stream": True}
        with as_remote_error(self.url):
            async with self._client.stream("POST", "/v1/completions", json=body) as response:
                if response.status_code != 200:
                    raise_for_status(response.status_code, await response.aread())
                async for line in response.aiter_lines():
                    if not line.startswith("data: ") or line == "data: [DONE]":
                        continue
                    event = msgspec.json.decode(line[6:])
                    if "error" in event:
                        raise RemoteError(f"{self.url}: {message_of(event)}")
                    for choice in event["choices"]:
                        entry = logprobs_of(choice)
                        for name, logprob, top in zip(entry["tokens"], entry["token_logprobs"], entry["top_logprobs"], strict=True):
                            yield token_id(name), token_logprob(logprob, top, generation.request.logprobs)
                        if choice["finish_reason"]:
                            return
        raise RemoteError(f"{self.url} ended an answer before it was complete")

    async def _prompt_logprobs(self, request: GenerationRequest) -> list[TokenLogprob]:
        """In a request of its own: vLLM does not stream them."""
        body = self._body(request.prompt, 1) | {"echo": True, "logprobs": request.logprobs or 0, "temperature": 0}
        entry = logprobs_of((await self._post(body))["choices"][0])
        pairs = zip(entry["token_logprobs"], entry["top_logprobs"], strict=True)
        return [token_logprob(logprob, top, request.logprobs) for logprob, top in pairs][1 : len(request.prompt)]

    async def _post(self, body: Mapping[str, Any]) -> dict[str, Any]:
        with as_remote_error(self.url):
            response = await self._client.post("/v1/completions", json=body)
            raise_for_status(response.status_code, response.content)
            answer: dict[str, Any] = msgspec.json.decode(response.content)
        return answer

    async def score(self, requests: Sequence[tuple[ScoreRequest, int]]) -> list[list[ScoredTurn]]:
        """See Model."""
        tasks = [asyncio.create_task(self._score(request, len(requests))) for request, _ in requests]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            await cancel_and_wait(tasks)

    async def _score(self, request: ScoreRequest, together: int) -> list[ScoredTurn]:
        """Turn by turn, field by field: each chosen value is part of the prompt for the next."""
        plan = self._plan
        if plan is None:
            raise RuntimeError("a steer model writes under labels; it does not read them")
        async with self._place(together):
            conversation, results = request.conversation, []
            for index, given in zip(request.turns, request.given or (None,) * len(request.turns), strict=True):
                ids = self.tokenizer.encode(text_of(self._template.label_prompt(conversation, index)))
                choices: dict[str, Choice] = {}
                values: list[str] = []
                for slot in plan.slots:
                    ids += slot.forced
                    choice = choices[slot.name] = await self._choose(ids, slot)
                    values.append((given or {}).get(slot.name) or choice.value)
                    ids += slot.values[values[-1]]
                label = plan.label(values)
                results.append(ScoredTurn(index=index, label=label, choices=choices))
                turns = list(conversation.turns)
                turns[index] = msgspec.structs.replace(turns[index], label=label)
                conversation = msgspec.structs.replace(conversation, turns=tuple(turns))
            self.metrics.scored_turns.inc(len(results))
            return results

    async def _choose(self, ids: Sequence[int], slot: Slot) -> Choice:
        tree = slot.tree
        places = [([*ids, *tree.path(n)], list(node.children)) for n, node in enumerate(tree.nodes)]
        ask = self._selected if self._selects else self._echoed
        return slot.choose(await asyncio.gather(*(ask(prompt, tokens) for prompt, tokens in places)))

    async def _selected(self, prompt: Sequence[int], tokens: Sequence[int]) -> list[float]:
        """Log-probabilities of ``tokens`` after ``prompt``."""
        body = self._body(prompt, 1) | {"temperature": 0, "logprobs": 0, "logprob_token_ids": tokens, "allowed_token_ids": tokens}
        top = logprobs_of((await self._post(body))["choices"][0])["top_logprobs"][0]
        logprobs = {token_id(name): logprob for name, logprob in top.items()}
        if missing := [token for token in tokens if token not in logprobs]:
            raise RemoteError(f"{self.url} gave no log-probability of token {missing[0]}")
        return [logprobs[token] for token in tokens]

    async def _echoed(self, prompt: Sequence[int], tokens: Sequence[int]) -> list[float]:
        """The same from a server that gives only log-probabilities of prompts: one prompt per token."""
        body = self._body([], 1) | {"prompt": [[*prompt, token] for token in tokens], "echo": True, "logprobs": 0, "temperature": 0}
        choices = sorted((await self._post(body))["choices"], key=lambda choice: choice["index"])
        return [float(logprobs_of(choice)["token_logprobs"][len(prompt)]) for choice in choices]
