"""The two protocols that label conversations: ``POST /v1/attributes`` (one request) and upstream's ``PUT /generate`` (one per value)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import httpx
import msgspec

from nemo_steerlm.client.retry import Fault, RequestFailed, RetryPolicy, send
from nemo_steerlm.client.servers import Server
from nemo_steerlm.core.attributes import AttributeSchema
from nemo_steerlm.core.conversation import Conversation
from nemo_steerlm.core.errors import DataError, shown
from nemo_steerlm.core.labels import LANGUAGE_KEY, Label, join, split
from nemo_steerlm.core.model_info import ModelInfo
from nemo_steerlm.core.template import Template, text_of

TurnSelection = Literal["unmasked", "all"]
"""Which turns are labelled: those that are not masked, or all (as upstream, masked turns included)."""


def taught_turns(info: ModelInfo) -> TurnSelection | None:
    """The turns that a model expects to have labels: all if the user's had some when it was trained. None where nobody wrote it down."""
    if info.labelled is msgspec.UNSET:
        return None
    return "all" if info.user in info.labelled else "unmasked"


UPSTREAM_SAMPLING = {
    "tokens_to_generate": 1,
    "temperature": 0.1,
    "add_BOS": False,
    "top_k": 1,
    "top_p": 1.0,
    "greedy": True,
    "all_probs": False,
    "repetition_penalty": 1.0,
    "min_tokens_to_generate": 1,
}
"""The sampling options that upstream's attribute_annotate.py sends."""


class TurnLabel(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """A turn's predicted label."""

    index: int
    label: str
    confidence: dict[str, float] | None = None
    """Probability of each chosen value; None if the server gives none."""


class LabelFormat(msgspec.Struct, frozen=True, kw_only=True):
    """What the labels of a run have in common: the possible values, and how upstream's protocol writes a prompt."""

    schema: AttributeSchema
    template: Template
    turns: TurnSelection = "unmasked"
    fingerprint: str = ""
    confidence: bool = False
    """Whether labels need probabilities."""


class Labelling:
    """The labels of one conversation so far. They survive failed requests and a change of server."""

    def __init__(self, conversation: Conversation, form: LabelFormat) -> None:
        self.form = form
        self.targets = tuple(i for i, turn in enumerate(conversation.turns) if form.turns == "all" or turn.speaker != conversation.mask)
        self.conversation = _without_labels(conversation, self.targets)
        self.labels: dict[int, TurnLabel] = {}
        self._values: dict[str, int] = {}

    @property
    def done(self) -> bool:
        """Whether every turn to label has its label."""
        return len(self.labels) == len(self.targets)

    def set_labels(self, labels: Sequence[TurnLabel]) -> None:
        """Take all labels at once.

        Raises:
            RequestFailed: If they are not those of exactly the turns to label.
        """
        if tuple(label.index for label in labels) != self.targets:
            raise RequestFailed(Fault.ATTEMPT, f"labels of turns {[label.index for label in labels]} instead of {list(self.targets)}")
        self.labels = {label.index: label for label in labels}

    def prompt(self) -> str:
        """The prompt for the next missing value: earlier turns with their labels, then the values so far."""
        turn = self.targets[len(self.labels)]
        start = text_of(self.form.template.label_prompt(self._labelled(), turn))
        return start + self._label_with("")

    def take(self, sentence: str, prompt: str) -> None:
        """Read the next value from upstream's answer, prompt and completion.

        Raises:
            RequestFailed: If the answer has no valid value there.
        """
        field = self._field()
        # Some tokenizers drop control tokens or white space when decoding, so the prompt may come back changed.
        at = len(prompt) if sentence.startswith(prompt) else sentence.rfind(f"{field}:") + len(field) + 1
        if at < len(field) + 1:
            raise RequestFailed(Fault.ATTEMPT, f"answer has no {field}: {shown(sentence[-60:])}")
        text = sentence[at:].split(",", maxsplit=1)[0].split("\n", maxsplit=1)[0].strip()
        try:
            label = self.form.schema.parse(self._label_with(text))
        except DataError as error:
            raise RequestFailed(Fault.ATTEMPT, f"wrong value {shown(text)} of {field}") from error
        self._values = label.values
        last = field == LANGUAGE_KEY if self.form.schema.languages else len(self._values) == len(self.form.schema.names)
        if last:
            self._finish_turn(label)

    def _finish_turn(self, label: Label) -> None:
        turn = self.targets[len(self.labels)]
        self.labels[turn] = TurnLabel(index=turn, label=self.form.schema.encode(label.values, label.language))
        self._values = {}

    def _field(self) -> str:
        names = self.form.schema.names
        return names[len(self._values)] if len(self._values) < len(names) else LANGUAGE_KEY

    def _label_with(self, text: str) -> str:
        """The label so far, with ``text`` as the next field's value."""
        return join([*self._values.items(), (self._field(), text)])

    def _labelled(self) -> Conversation:
        turns = list(self.conversation.turns)
        for index, read in self.labels.items():
            turns[index] = msgspec.structs.replace(turns[index], label=read.label)
        return msgspec.structs.replace(self.conversation, turns=tuple(turns))


def _without_labels(conversation: Conversation, targets: Sequence[int]) -> Conversation:
    # The human label of a turn to label must reach neither prompt nor server.
    turns = list(conversation.turns)
    for index in targets:
        turns[index] = msgspec.structs.replace(turns[index], label=None)
    return msgspec.structs.replace(conversation, turns=tuple(turns))


async def advance(work: Sequence[Labelling], server: Server, client: httpx.AsyncClient, policy: RetryPolicy) -> None:
    """Send one request that gets labels or values for ``work``, in the better of the protocols that ``server`` has.

    Raises:
        RequestFailed: If the request fails or its answer is invalid.
    """
    pending = [item for item in work if not item.done]
    if server.announcement and server.announcement.scores:
        await _score(pending, server, client, policy)
    elif pending[0].form.confidence:
        raise RequestFailed(Fault.SERVER, "has no /v1/attributes, so it gives no probabilities")
    else:
        await _generate(pending, server, client, policy)


class _Attribute(msgspec.Struct):
    value: int
    probabilities: dict[str, float] = {}


class _Language(msgspec.Struct):
    value: str
    probabilities: dict[str, float] = {}


class _Turn(msgspec.Struct):
    index: int
    label: str
    attributes: dict[str, _Attribute] = {}
    lang: _Language | None = None


class _Result(msgspec.Struct):
    turns: list[_Turn]


class _Scores(msgspec.Struct):
    results: list[_Result]
    model: str = ""


async def _score(work: Sequence[Labelling], server: Server, client: httpx.AsyncClient, policy: RetryPolicy) -> None:
    form = work[0].form
    body = {"conversations": [item.conversation.to_prompt_record() for item in work], "turns": form.turns}
    raw = await send(client, client.build_request("POST", f"{server.url}/v1/attributes", json=body), policy.timeout)
    try:
        scores = msgspec.json.decode(raw, type=_Scores)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RequestFailed(Fault.ATTEMPT, f"not an answer of /v1/attributes: {error}") from error
    if form.fingerprint and scores.model != form.fingerprint:
        raise RequestFailed(Fault.SERVER, f"answered by model {shown(scores.model)}, not {shown(form.fingerprint)}")
    if len(scores.results) != len(work):
        raise RequestFailed(Fault.ATTEMPT, f"{len(scores.results)} results for {len(work)} conversations")
    labels = [[_turn_label(turn, form.schema) for turn in result.turns] for result in scores.results]
    for item, turn_labels in zip(work, labels, strict=True):
        item.set_labels(turn_labels)


def _turn_label(turn: _Turn, schema: AttributeSchema) -> TurnLabel:
    values = {name: attribute.value for name, attribute in turn.attributes.items()}
    language = turn.lang.value if turn.lang and schema.languages else None
    try:
        label = schema.encode(values, language)
    except DataError as error:
        raise RequestFailed(Fault.ATTEMPT, f"wrong value: {error}") from error
    # A schema without languages may be the model's with its languages left out: then what the server says of them is left out too.
    written = {field.name: field.text for field in split(turn.label) if schema.languages or field.name != LANGUAGE_KEY}
    complete = set(values) == set(schema.names) and bool(schema.languages) == bool(language)
    if not complete or written != {field.name: field.text for field in split(label)}:
        raise RequestFailed(Fault.ATTEMPT, f"label {shown(turn.label)} and values do not agree")
    confidence = {name: attribute.probabilities.get(str(attribute.value), -1.0) for name, attribute in turn.attributes.items()}
    if turn.lang and language:
        confidence[LANGUAGE_KEY] = turn.lang.probabilities.get(language, -1.0)
    known = all(0.0 <= p <= 1.0 + 1e-6 for p in confidence.values())
    return TurnLabel(index=turn.index, label=label, confidence={n: round(p, 6) for n, p in confidence.items()} if known else None)


class _Generated(msgspec.Struct):
    sentences: list[str]


async def _generate(work: Sequence[Labelling], server: Server, client: httpx.AsyncClient, policy: RetryPolicy) -> None:
    tokens = work[0].form.template.tokens
    prompts = [item.prompt() for item in work]
    body = {"sentences": prompts, **UPSTREAM_SAMPLING, "end_strings": [tokens.turn_start, "<|endoftext|>"]}
    raw = await send(client, client.build_request("PUT", f"{server.url}/generate", json=body), policy.timeout)
    try:
        sentences = msgspec.json.decode(raw, type=_Generated).sentences
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RequestFailed(Fault.ATTEMPT, f"not an answer of /generate: {shown(raw[:60])}") from error
    if len(sentences) != len(prompts):
        raise RequestFailed(Fault.ATTEMPT, f"{len(sentences)} sentences for {len(prompts)} prompts")
    # Values before a wrong one are kept: the next try asks for those that are still missing.
    for item, prompt, sentence in zip(work, prompts, sentences, strict=True):
        item.take(sentence, prompt)
