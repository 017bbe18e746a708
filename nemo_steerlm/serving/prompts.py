"""Requests to token ids, within the model's length. Text that people typed goes through the template, which escapes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from nemo_steerlm.core.conversation import Conversation, Turn
from nemo_steerlm.core.encoding import prompt_ids
from nemo_steerlm.core.errors import DataError, Where
from nemo_steerlm.core.label_support import LabelSupport
from nemo_steerlm.core.labels import LANGUAGE_KEY, Label
from nemo_steerlm.core.model_info import ModelInfo
from nemo_steerlm.core.template import Template
from nemo_steerlm.core.tokenization import TextTokenizer
from nemo_steerlm.serving.errors import ContextLengthError
from nemo_steerlm.serving.schemas import ChatMessage

AskedAttributes = Mapping[str, object] | Literal["none"]
"""Attributes that a request names, or that it asks for no label."""
_CHARACTERS_PER_TOKEN = 32
"""Text that has more of them than the model takes tokens is refused unread: tokenizing it would hold up everybody else."""


class Prompts:
    """Builds one model's prompts."""

    def __init__(self, info: ModelInfo, tokenizer: TextTokenizer, max_length: int, defaults: Label | None = None) -> None:
        """Prepare the template; ``defaults`` are the server's own and override the schema's.

        Raises:
            DataError: If the defaults are not in the schema.
        """
        self.info = info
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.template: Template = info.template(tokenizer)
        self._own = defaults or Label()
        self.defaults = self._own.over(Label(values=info.attributes.defaults()))
        """What a request that names no attributes gets."""
        marker = tokenizer.token_id(info.tokens.turn_start)
        self._anchor = [marker] if marker is not None else [0]
        self.label({})

    @property
    def default_attributes(self) -> dict[str, int | str]:
        """``defaults`` as the API writes them."""
        return self.defaults.to_mapping()

    def control_stops(self) -> tuple[frozenset[int], tuple[str, ...]]:
        """Where an answer ends: ids of the control tokens and end of text, and the control strings that have no id."""
        ids = {self.tokenizer.eos_id}
        strings = []
        for marker in self.info.tokens.markers:
            found = self.tokenizer.token_id(marker)
            ids.add(found) if found is not None else strings.append(marker)
        return frozenset(i for i in ids if i >= 0), tuple(strings)

    def stop_ids(self, more: Sequence[int] | None, *, eos: bool = True) -> frozenset[int]:
        """``control_stops``'s ids and ``more``; those that no token has can never be generated and are left out.

        Without ``eos`` an answer goes on after end of text, unless ``more`` has it.
        """
        own = self.control_stops()[0]
        return (own if eos else own - {self.tokenizer.eos_id}) | {i for i in more or () if 0 <= i < self.tokenizer.vocab_size}

    def existing(self, ids: Sequence[int], field: str) -> Sequence[int]:
        """``ids``.

        Raises:
            DataError: If one is outside the vocabulary; it names ``field``.
        """
        for token in ids:
            if not 0 <= token < self.tokenizer.vocab_size:
                instead = f"ids go from 0 to {self.tokenizer.vocab_size - 1}"
                raise DataError(f"token id {token} does not exist", where=Where(field=field), instead=instead)
        return ids

    def label(self, attributes: Mapping[str, object]) -> str:
        """The label string for ``attributes`` over the defaults.

        A model that was taught labels with attributes left out is told those that are named and the server's own, if any is named.

        Raises:
            DataError: If a name or value is not in the schema; the message lists the schema.
        """
        schema = self.info.attributes
        try:
            named = schema.label(attributes)
            partial = bool(named.values) and isinstance(self.info.support, LabelSupport) and self.info.support.partial
            wanted = named.over(self._own if partial else self.defaults)
            return schema.encode(wanted.values, wanted.language)
        except DataError as error:
            raise DataError(str(error), where=Where(field="attributes"), instead=f"attributes here: {self._ranges()}") from error

    def _ranges(self) -> str:
        parts = [f"{a.name} {a.low}..{a.high}" for a in self.info.attributes.attributes]
        languages = self.info.attributes.languages
        return ", ".join([*parts, f"{LANGUAGE_KEY} {'|'.join(languages)}"] if languages else parts)

    def conversation(self, messages: Sequence[ChatMessage], label: str | None) -> Conversation:
        """Chat messages as a conversation; assistants' turns get their own attributes' label, or ``label``.

        Raises:
            DataError: If no message is a turn, or one has attributes that the model does not.
        """
        names = {"user": self.info.user, "assistant": self.info.assistant}
        system = [m.text for m in messages if m.role not in names]
        turns = []
        for message in messages:
            if message.role in names:
                own = self.label(message.attributes) if message.attributes is not None else label
                turns.append(Turn(speaker=names[message.role], text=message.text, label=own if message.role == "assistant" else None))
        if not turns:
            raise DataError("messages have no turn", instead="add a message with role user")
        return Conversation(turns=tuple(turns), system="\n\n".join(system) if system else self.info.system, mask=self.info.user)

    def asked(self, attributes: AskedAttributes) -> str | None:
        """The label string that an answer is written under; None: none."""
        return None if isinstance(attributes, str) else self.label(attributes)

    def chat(self, messages: Sequence[ChatMessage], attributes: AskedAttributes) -> list[int]:
        """Token ids up to where the assistant's next text starts. Raises DataError, ContextLengthError."""
        label = self.asked(attributes)
        return self._reply(messages, label, label)

    def reference(self, messages: Sequence[ChatMessage], attributes: AskedAttributes, against: AskedAttributes | None) -> list[int]:
        """What guidance leads away from: the prompt of ``chat`` with another label, or with none in the whole conversation.

        Args:
            messages: The conversation.
            attributes: What the answer is asked for under; earlier answers keep it.
            against: The other label; None: no label where the model was taught without, else the defaults.

        Returns:
            Token ids.

        Raises:
            DataError: If an attribute is not in the schema; it names ``guidance_attributes``.
        """
        unlabelled = isinstance(self.info.support, LabelSupport) and self.info.support.unlabelled > 0
        against = against if against is not None else "none" if unlabelled else {}
        if isinstance(against, str):
            return self._reply([m.model_copy(update={"attributes": None}) for m in messages], None, None)
        try:
            label = self.label(against)
        except DataError as error:
            raise DataError(error.reason, where=Where(field="guidance_attributes"), instead=error.instead) from error
        return self._reply(messages, label, self.asked(attributes))

    def _reply(self, messages: Sequence[ChatMessage], label: str | None, before: str | None) -> list[int]:
        """The prompt of an answer under ``label`` after earlier ones under ``before``."""
        self.require_short(sum(len(message.text) for message in messages), "messages")
        spans = self.template.reply_prompt(self.conversation(messages, before), self.info.assistant, label)
        return prompt_ids(spans, self.tokenizer)

    def raw(self, prompt: str | Sequence[int]) -> list[int]:
        """Token ids of a raw prompt: control strings in it are control tokens.

        Raises:
            DataError: If the prompt is empty or has an id outside the vocabulary.
            ContextLengthError: If it has too many characters.
        """
        self.require_short(len(prompt), "prompt")
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        if not ids:
            raise DataError("the prompt is empty")
        self.existing(ids, "prompt")
        return ids

    def require_short(self, characters: int, field: str) -> None:
        """Raise ContextLengthError for text that cannot fit, however it is tokenized."""
        most = _CHARACTERS_PER_TOKEN * self.max_length
        if characters > most:
            instead = f"this model takes {self.max_length} tokens, and no text of more than {most} characters is read"
            raise ContextLengthError(f"the prompt is too long: {characters} characters", where=Where(field=field), instead=instead)

    def token_text(self, token: int) -> str:
        """One token as text, the space before a word included (a decoder drops it at the start)."""
        anchor = self._anchor
        return self.tokenizer.decode([*anchor, token])[len(self.tokenizer.decode(anchor)) :]

    def room(self, prompt: Sequence[int], wanted: int | None) -> int:
        """Tokens to generate: ``wanted``, or as many as fit.

        Raises:
            ContextLengthError: If not even one token fits.
        """
        left = self.max_length - len(prompt)
        if left < 0 or (left == 0 and wanted != 0):
            reason = f"the prompt is too long: {len(prompt)} tokens"
            raise ContextLengthError(reason, instead=f"this model takes {self.max_length - 1} and one to generate")
        return left if wanted is None else min(wanted, left)
