"""What the value model reads in answers that this server wrote: read-back, and the best of several.

The best is the answer under which the value model gives the *whole* asked label the largest probability: scoring the steered attribute
alone lets the others drift. Of n answers the KL divergence to the model is at most ``log n - (n - 1) / n`` (arXiv:2401.01879).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from starlette.concurrency import run_in_threadpool

from nemo_steerlm.core.conversation import Conversation, Turn
from nemo_steerlm.core.errors import DataError, SteerLMError, Where
from nemo_steerlm.core.labels import Label
from nemo_steerlm.serving.attributes import Scoring
from nemo_steerlm.serving.schemas import AttributesBody, ChatBody
from nemo_steerlm.serving.service import Service


class AnswerReader:
    """The value model at hand: in this process, or another server."""

    def __init__(self, service: Service) -> None:
        self._remote = service.remote_reader
        self._scoring = Scoring(service.reader) if service.reader else None

    @property
    def available(self) -> bool:
        """Whether there is one."""
        return self._scoring is not None or self._remote is not None

    async def read(self, conversations: Sequence[Conversation], labels: Sequence[Mapping[str, Any] | None]) -> list[dict[str, Any]]:
        """Read the last turn of each conversation.

        Args:
            conversations: Each ends with an assistant's turn.
            labels: What to evaluate of each last turn's label; None: nothing.

        Returns:
            For each the last of ``turns`` of ``POST /v1/attributes``.

        Raises:
            SteerLMError: What that endpoint says if it does not answer.
        """
        learned = [sum(turn.speaker != c.mask for turn in c.turns) for c in conversations]
        body: dict[str, Any] = {"conversations": [c.to_prompt_record() for c in conversations]}
        if any(label is not None for label in labels):
            body["labels"] = [[*([None] * (count - 1)), label] for count, label in zip(learned, labels, strict=True)]
        if self._scoring is not None:
            answer = await self._scoring.answer(await self._scoring.requests(AttributesBody.model_validate(body)))
        else:
            assert self._remote is not None
            answer = await self._remote.read(await run_in_threadpool(msgspec.json.encode, body))
        return [result["turns"][-1] for result in answer["results"]]


class AnswerReading:
    """How the answers of one chat request read, and which of them is given."""

    def __init__(self, service: Service, reader: AnswerReader, body: ChatBody) -> None:
        """Raises DataError for ``best_of`` where no value model is at hand, nothing is asked for, or the answer is streamed."""
        self._service, self._reader, self._body = service, reader, body
        label = service.prompts.asked(body.asked)
        self._asked: Label | None = None if label is None else service.prompts.info.attributes.parse(label)
        self._named = label is not None and bool(body.asked)
        self.candidates = body.best_of or 1
        self._details: dict[int, dict[str, Any]] = {}
        if self.candidates > 1:
            self._require_choice()
        wanted = (self._named and not body.stream) if body.read is None else body.read
        self.reads = reader.available and (wanted or self.candidates > 1)

    def _require_choice(self) -> None:
        where = Where(field="best_of")
        if not self._reader.available:
            raise DataError("no value model reads the answers here", where=where, instead="start the server with --reader, or leave it out")
        if self._asked is None:
            raise DataError("nothing is asked for, so no answer is better", where=where, instead="name attributes")
        if self._body.stream:
            raise DataError("the best answer is known at the end", where=where, instead="leave stream out")
        if (self._body.n or 1) > 1:
            raise DataError("gives one answer", where=where, instead="leave n out")

    async def choose(self, texts: Sequence[str]) -> list[int]:
        """Read the answers. Returns the positions of those to give: all, or the best. A failed reading of a single one is told with it."""
        everything = list(range(len(texts)))
        if not self.reads:
            return everything
        asked = self._service.prompts.conversation(self._body.messages, None)
        speaker = self._service.prompts.info.assistant
        whole = [msgspec.structs.replace(asked, turns=(*asked.turns, Turn(speaker=speaker, text=text))) for text in texts]
        if self.candidates == 1:
            try:
                found = await self._reader.read(whole, [None] * len(whole))
            except SteerLMError as error:
                self._details = {i: {"read": None, "not_read": str(error)} for i in everything}
            else:
                self._details = {i: {"read": _read(turn)} for i, turn in enumerate(found)}
            return everything
        assert self._asked is not None
        label = self._asked.to_mapping()
        # What is read freely, and what the asked label's probability is.
        both = await self._reader.read([*whole, *whole], [*([None] * len(whole)), *([label] * len(whole))])
        read, evaluated = both[: len(whole)], both[len(whole) :]
        candidates = [
            {"text": text, "read": _read(own), "logprob": other["evaluated"]["logprob"]}
            for text, own, other in zip(texts, read, evaluated, strict=True)
        ]
        best = max(everything, key=lambda i: candidates[i]["logprob"])
        self._details = {best: {"read": candidates[best]["read"], "candidates": candidates, "chosen": best}}
        return [best]

    def details(self, answer: int) -> dict[str, Any]:
        """The ``steerlm`` field of an answer, by its position: how it reads, the candidates, and how often its label was taught."""
        return {**self._details.get(answer, {}), **self._support()}

    def _support(self) -> dict[str, Any]:
        taught = self._service.taught
        if taught is None or self._asked is None or not self._named:
            return {}
        count = taught.count(self._asked.values)
        if count:
            return {"support": count}
        rarely = "rarely or never" if taught.support.left_out else "never"
        nearest = taught.nearest(self._asked.values)
        return {"support": 0, "warning": f"this combination of attributes was {rarely} taught", "nearest_taught": nearest}


def _read(turn: Mapping[str, Any]) -> dict[str, Any]:
    """What of a read turn is told: its attributes, and the language."""
    return {name: turn[name] for name in ("label", "attributes", "lang") if name in turn}
