"""Ask a served SteerLM model under chosen attributes: step 10 of the tutorial, and chats with a history.

A server of this project gets ``POST /v1/chat/completions`` with ``attributes`` and builds the prompt itself. A server that announces no
model (upstream's) gets the rendered prompt by ``PUT /generate``.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any

import httpx
import msgspec

from nemo_steerlm.client.announcement import Announcement
from nemo_steerlm.client.http import async_client, client_key, sync_client
from nemo_steerlm.client.retry import Fault, RetryPolicy, classify_status, error_message
from nemo_steerlm.client.servers import ServerPool
from nemo_steerlm.core.attributes import AttributeSchema, preset
from nemo_steerlm.core.conversation import ASSISTANT, SYSTEM_PROMPT, USER, Conversation, Turn
from nemo_steerlm.core.errors import ConfigError, DataError, SteerLMError, TryAgainError, UnavailableError, UsageError, shown
from nemo_steerlm.core.labels import Label
from nemo_steerlm.core.template import Template, text_of

Attributes = Mapping[str, int | str]
"""Attribute names to values, and ``lang`` to a language."""

DEFAULT_SERVER = "http://localhost:1427"
"""The tutorial's port for the SteerLM model."""
MAX_TOKENS = 512


def get_answer(
    question: str,
    attributes: Attributes | None = None,
    server: str = DEFAULT_SERVER,
    *,
    max_tokens: int = MAX_TOKENS,
    system: str | None = None,
    patience: float = 30.0,
) -> str:
    """The model's answer to ``question``, written under ``attributes``; those not named are at the server's defaults. Greedy.

    Raises:
        UsageError: For attributes the model does not have.
        UnavailableError: If no server answers within ``patience`` seconds.
    """
    with Chat(server, attributes or {}, max_tokens=max_tokens, system=system, patience=patience) as chat:
        return "".join(chat.say(question))


class Chat:
    """A conversation with a server. A context manager."""

    def __init__(
        self,
        server: str,
        attributes: Attributes,
        *,
        max_tokens: int = MAX_TOKENS,
        temperature: float = 0.0,
        system: str | None = None,
        best_of: int = 1,
        strength: float = 1.0,
        patience: float = 30.0,
    ) -> None:
        """Wait for the server and look at its model.

        Raises:
            UnavailableError: If no server answers within ``patience`` seconds.
            ConfigError: If it serves a value model.
            UsageError: If the model does not have the attributes.
        """
        self.server = server.rstrip("/")
        self.max_tokens = max_tokens
        self.temperature = temperature
        """0: the most probable token each time."""
        self.system = system
        self.best_of = best_of
        """Answers that the server writes, to give the one that reads most like the attributes. They come whole, not in pieces."""
        self.strength = strength
        """How strongly answers follow the attributes (``guidance_scale``); 1: as trained."""
        self.details: dict[str, Any] = {}
        """What the server said of the last answer: how it reads, and how often its label was taught."""
        self.messages: list[dict[str, str]] = []
        announced = asyncio.run(_announcement(self.server, patience))
        self.info = announced.info
        self._reads = announced.reads
        if self.info and self.info.kind != "steer":
            raise ConfigError(f"{server} has a {self.info.kind} model, which reads attributes; answers need a steer model")
        self.schema: AttributeSchema = self.info.attributes if self.info else preset("oasst")
        self.attributes = Label()
        """What is asked for; attributes that it leaves out are at the server's defaults."""
        self.set(attributes)
        self._client = sync_client(server, timeout=httpx.Timeout(600.0, connect=10.0), key=client_key())

    def __enter__(self) -> Chat:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._client.close()

    def set(self, attributes: Attributes) -> None:
        """Change attributes from the next answer on.

        Raises:
            UsageError: For a name or value that the model does not have.
        """
        try:
            self.attributes = self.schema.label(attributes).over(self.attributes)
        except DataError as error:
            ranges = ", ".join(f"{a.name} {a.low}..{a.high}" for a in self.schema.attributes)
            raise UsageError(f"{error.reason}; this model has {ranges}") from error

    def reset(self) -> None:
        """Drop the conversation so far."""
        self.messages.clear()

    def say(self, text: str) -> Iterator[str]:
        """The answer to ``text``, in pieces as they come. It joins the history once it is whole.

        Raises:
            TryAgainError: If the answer breaks off.
            UnavailableError: If the server is gone.
            UsageError: If it refuses.
        """
        messages = [*self.messages, {"role": "user", "content": text}]
        answer, self.details = "", {}
        for piece in self._ask(messages) if self.info else self._generate(messages):
            answer += piece
            yield piece
        self.messages = [*messages, {"role": "assistant", "content": answer}]

    def _ask(self, messages: list[dict[str, str]]) -> Iterator[str]:
        system = [{"role": "system", "content": self.system}] if self.system is not None else []
        body = {
            "messages": [*system, *messages],
            "attributes": self.attributes.to_mapping(),
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            **({"read": True} if self._reads else {}),
            **({"guidance_scale": self.strength} if self.strength != 1 else {}),
        }
        if self.best_of > 1:
            yield self._best({**body, "best_of": self.best_of})
            return
        try:
            with self._client.stream("POST", f"{self.server}/v1/chat/completions", json={**body, "stream": True}) as response:
                self._require_success(response)
                for choice in _choices(response.iter_lines()):
                    self.details = choice.get("steerlm", self.details)
                    yield choice["delta"].get("content") or ""
        except httpx.HTTPError as error:
            raise _unreachable(self.server, error) from error
        except (LookupError, TypeError, AttributeError) as error:
            raise TryAgainError(f"not an event of a chat: {type(error).__name__} {error}") from error

    def _best(self, body: dict[str, Any]) -> str:
        try:
            response = self._client.post(f"{self.server}/v1/chat/completions", json=body)
        except httpx.HTTPError as error:
            raise _unreachable(self.server, error) from error
        self._require_success(response)
        try:
            choice = msgspec.json.decode(response.content)["choices"][0]
            self.details = choice.get("steerlm", {})
            return str(choice["message"]["content"])
        except (msgspec.DecodeError, UnicodeDecodeError, LookupError, TypeError, AttributeError) as error:
            raise TryAgainError(f"{self.server} gave no answer of a chat: {shown(response.text[:80])}") from error

    def _generate(self, messages: list[dict[str, str]]) -> Iterator[str]:
        prompt = self._prompt(messages)
        template = Template()
        # What upstream's step 10 sends; its end strings "quality:…" are left out: they cut answers that speak of quality.
        body = {
            "sentences": [prompt],
            "tokens_to_generate": self.max_tokens,
            "temperature": self.temperature or 1.0,
            "add_BOS": False,
            "top_k": 0 if self.temperature else 1,
            "top_p": 1.0,
            "greedy": not self.temperature,
            "all_probs": False,
            "repetition_penalty": 1.0,
            "min_tokens_to_generate": 1,
            "end_strings": ["<|endoftext|>", template.tokens.turn_start],
        }
        try:
            response = self._client.put(f"{self.server}/generate", json=body)
        except httpx.HTTPError as error:
            raise _unreachable(self.server, error) from error
        self._require_success(response)
        try:
            sentence = msgspec.json.decode(response.content, type=_Generated).sentences[0]
        except (msgspec.DecodeError, UnicodeDecodeError, IndexError) as error:
            raise TryAgainError(f"{self.server} gave no answer of /generate: {shown(response.text[:80])}") from error
        answer = _completion(sentence, prompt)
        for end in (template.tokens.turn_start, "<|endoftext|>"):
            answer = answer.split(end)[0]
        yield template.escape.undo(answer).strip()

    def _prompt(self, messages: list[dict[str, str]]) -> str:
        wanted = self.attributes.over(Label(values=self.schema.defaults()))
        label = self.schema.encode(wanted.values, wanted.language)
        roles = {"user": USER, "assistant": ASSISTANT}
        turns = tuple(
            Turn(speaker=roles[m["role"]], text=m["content"], label=label if m["role"] == "assistant" else None) for m in messages
        )
        conversation = Conversation(turns=turns, system=SYSTEM_PROMPT if self.system is None else self.system)
        return text_of(Template(layout="nemo-annotate").reply_prompt(conversation, ASSISTANT, label))

    def _require_success(self, response: httpx.Response) -> None:
        fault = classify_status(response.status_code)
        if fault is None:
            return
        response.read()
        text = f"{self.server}: HTTP {response.status_code}: {error_message(response)}"
        if fault is Fault.REQUEST:
            raise UsageError(text)
        raise UnavailableError(text) if fault is Fault.SERVER else TryAgainError(text)


class _Generated(msgspec.Struct):
    sentences: list[str]


async def _announcement(server: str, patience: float) -> Announcement:
    policy = RetryPolicy(patience=patience, timeout=min(30.0, max(patience, 1.0)))
    async with (
        async_client([server], timeout=httpx.Timeout(policy.timeout), key=client_key()) as client,
        ServerPool([server], client, policy, kind="steer") as pool,
    ):
        return await pool.announcement()


def _completion(sentence: str, prompt: str) -> str:
    """``sentence`` without ``prompt``. If a tokenizer changed the prompt, the prompt's last line marks its end."""
    if sentence.startswith(prompt):
        return sentence[len(prompt) :]
    last_line = prompt.rstrip("\n").rsplit("\n", 1)[-1]
    label = Template().tokens.label_start
    return sentence.rpartition(last_line.removeprefix(label))[2]


def _choices(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    """The choices of server-sent events. Raises TryAgainError if they end without ``[DONE]``."""
    for line in lines:
        if not line.startswith("data:"):
            continue
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            return
        try:
            event: dict[str, Any] = json.loads(data)
            if "error" in event:
                raise TryAgainError(f"the answer broke off: {event['error'].get('message', event['error'])}")
            choices = list(event.get("choices", []))
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise TryAgainError(f"not an event of a chat: {shown(data)}") from error
        yield from choices
    raise TryAgainError("the answer broke off")


def _unreachable(server: str, error: httpx.HTTPError) -> SteerLMError:
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return UnavailableError(f"{server} cannot be reached: {error}")
    return TryAgainError(f"{server}: the answer broke off: {type(error).__name__} {error}".rstrip())
