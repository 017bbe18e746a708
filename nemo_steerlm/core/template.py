"""The one prompt template: training, cleaning, annotation and serving all render through this module.

A conversation becomes a list of spans; a span is text with its role and whether loss is taken on it. No other module knows a
control token or a newline rule. Upstream: NeMo v2.4.1 ``gpt_sft_chat_dataset.py`` (``_add_speaker_and_signal``, ``_mask_targets``).

Layout, with S, T, L the three markers, E end_of_turn and N end_of_name::

    header             S "System" N system E          # layout "nemo-sft": what upstream trains on
    header             S "System" N system            # layout "nemo-annotate": what upstream's annotator sends
    turn, plain        T from N text E
    turn, V2T          T from N [L label N] text E     # bracket only where the turn has a label
    turn, T2V          T from N text E [L label N]
    tail               T                               # iff the last speaker is not the masked role

``nemo-sft`` is used everywhere unless a checkpoint says it was trained with the other.

Learned (loss mask 1): in turns of every role but the masked one, ``text E`` (V2T and plain) or ``label N`` (T2V), and the marker T of
the masked turn that follows, which is where generation has to stop. The first turn is never learned in V2T and plain. A T2V turn
without a label teaches nothing; upstream would train on its text.
"""

from __future__ import annotations

import codecs
import enum
import functools
import re
from collections.abc import Iterable
from typing import Literal, Protocol

import msgspec

from nemo_steerlm.core.conversation import Conversation, Mode, Turn
from nemo_steerlm.core.errors import ConfigError, DataError, UsageError, Where, shown
from nemo_steerlm.core.escape import Escape, Normalizer
from nemo_steerlm.core.objectives import Objective, objective

Layout = Literal["nemo-sft", "nemo-annotate"]


class ChatTokens(msgspec.Struct, frozen=True, kw_only=True):
    """The control strings. Field names are those of ``model.data.chat_prompt_tokens`` upstream."""

    system_turn_start: str = "<extra_id_0>"
    turn_start: str = "<extra_id_1>"
    label_start: str = "<extra_id_2>"
    end_of_turn: str = "\n"
    end_of_name: str = "\n"

    def __post_init__(self) -> None:
        if not all(self.markers) or not self.end_of_turn or not self.end_of_name:
            raise ConfigError("chat tokens must not be empty")
        if len(set(self.markers)) < 3:
            raise ConfigError(f"chat tokens must differ from each other, found {self.markers}")

    @property
    def markers(self) -> tuple[str, str, str]:
        """The three strings that give a prompt its structure."""
        return (self.system_turn_start, self.turn_start, self.label_start)

    @classmethod
    def from_shell(cls, **tokens: str) -> ChatTokens:
        r"""Tokens as they reach a program from a command line: ``\x11`` is an escape, and so is ``x11``.

        The tutorial writes ``turn_start=\\x11`` unquoted, the shell drops the backslash, and upstream trained on the text ``x11``.
        Nobody means that text, so it is read as the escape. Raises ConfigError for a broken escape, UsageError for an unknown name.
        """
        unknown = set(tokens) - set(cls.__struct_fields__)
        if unknown:
            raise UsageError(f"unknown chat token {shown(unknown.pop())}: known: {', '.join(cls.__struct_fields__)}")
        return cls(**{name: _unescape_shell(text) for name, text in tokens.items()})


def _unescape_shell(text: str) -> str:
    if re.fullmatch(r"x[0-9A-Fa-f]{2}", text):
        text = "\\" + text
    if "\\" not in text:
        return text
    try:
        return codecs.decode(text.encode("latin-1", "backslashreplace"), "unicode_escape")
    except UnicodeDecodeError as error:
        raise ConfigError(f"chat token {shown(text)} is not a valid escape: {error.reason}") from error


class Role(enum.Enum):
    """What a span is."""

    MARKER = "marker"
    NAME = "name"
    SYSTEM = "system"
    TEXT = "text"
    LABEL = "label"
    END = "end"


class Span(msgspec.Struct, frozen=True):
    """A piece of a prompt. ``learned`` is True where loss is taken on it."""

    text: str
    role: Role
    learned: bool = False


class Vocabulary(Protocol):
    """What a template needs to know of a tokenizer."""

    @property
    def special(self) -> tuple[str, ...]:
        """Strings that encode to one special token when they occur in text."""

    @property
    def normalizer(self) -> Normalizer | None:
        """What it does to text before it looks for tokens; None where it takes text as it is."""


class Template(msgspec.Struct, frozen=True, kw_only=True):
    """How conversations are written for one model: its control strings, its layout, and what else its tokenizer holds special."""

    tokens: ChatTokens = ChatTokens()
    layout: Layout = "nemo-sft"
    special: tuple[str, ...] = ()
    """The tokenizer's own special strings (``</s>``, ``<|im_end|>``), which people may type as well."""
    normalizer: Normalizer | None = None
    """What the tokenizer does to text before it looks for tokens."""

    @classmethod
    def of(cls, vocabulary: Vocabulary, tokens: ChatTokens | None = None, layout: Layout = "nemo-sft") -> Template:
        """The template for prompts that this tokenizer encodes."""
        return cls(tokens=tokens or ChatTokens(), layout=layout, special=vocabulary.special, normalizer=vocabulary.normalizer)

    @property
    def escape(self) -> Escape:
        """The escaping rule for people's text under this template."""
        return _escape((*self.tokens.markers, *self.special), self.normalizer)

    def render(self, conversation: Conversation, mode: Mode | None = None) -> list[Span]:
        """The whole conversation as spans, for training. ``mode`` defaults to the conversation's own."""
        aim = objective(mode or conversation.mode)
        spans = self._header(conversation)
        learned_before = False
        for i, turn in enumerate(conversation.turns):
            masked = turn.speaker == conversation.mask
            learn_text = aim.learns_text and not masked and i > 0
            learn_label = aim.learns_label and not masked and turn.label is not None
            spans += self._turn(turn, aim, learn_text=learn_text, learn_label=learn_label, stop=masked and learned_before)
            learned_before = learn_text or learn_label
        if conversation.turns[-1].speaker != conversation.mask:
            spans.append(Span(self.tokens.turn_start, Role.MARKER, learned_before))
        return spans

    def reply_prompt(self, conversation: Conversation, speaker: str, label: str | None) -> list[Span]:
        """Everything up to where ``speaker``'s next text starts, under ``label`` (V2T). Generation stops at ``turn_start``."""
        spans = self._header(conversation)
        for turn in conversation.turns:
            spans += self._turn(turn, _WRITE)
        return spans + self._turn(Turn(speaker=speaker, text="", label=label), _WRITE)[:-2]

    def label_prompt(self, conversation: Conversation, turn: int) -> list[Span]:
        """Everything up to where the label of turn number ``turn`` starts (T2V), the marker ``label_start`` included."""
        spans = self._header(conversation)
        for earlier in conversation.turns[:turn]:
            spans += self._turn(earlier, _READ)
        scored = conversation.turns[turn]
        unlabelled = Turn(speaker=scored.speaker, text=scored.text)
        return [*spans, *self._turn(unlabelled, _READ), Span(self.tokens.label_start, Role.MARKER)]

    def _header(self, conversation: Conversation) -> list[Span]:
        spans = [
            Span(self.tokens.system_turn_start, Role.MARKER),
            Span("System", Role.NAME),
            Span(self.tokens.end_of_name, Role.END),
            Span(self.escape.apply(conversation.system), Role.SYSTEM),
        ]
        return spans if self.layout == "nemo-annotate" else [*spans, Span(self.tokens.end_of_turn, Role.END)]

    def _turn(self, turn: Turn, aim: Objective, *, learn_text: bool = False, learn_label: bool = False, stop: bool = False) -> list[Span]:
        tokens, quote = self.tokens, self.escape.apply
        head = [Span(tokens.turn_start, Role.MARKER, stop), Span(quote(turn.speaker), Role.NAME), Span(tokens.end_of_name, Role.END)]
        text = [Span(quote(turn.text), Role.TEXT, learn_text), Span(tokens.end_of_turn, Role.END, learn_text)]
        label: list[Span] = []
        if aim.label != "absent" and turn.label is not None:
            label = [
                Span(tokens.label_start, Role.MARKER),
                Span(quote(turn.label), Role.LABEL, learn_label),
                Span(tokens.end_of_name, Role.END, learn_label),
            ]
        return [*head, *label, *text] if aim.label == "before" else [*head, *text, *label]


_READ, _WRITE = objective("TEXT_TO_VALUE"), objective("VALUE_TO_TEXT")


@functools.lru_cache(maxsize=64)
def _escape(special: tuple[str, ...], normalizer: Normalizer | None = None) -> Escape:
    return Escape(special, normalizer)


def text_of(spans: Iterable[Span]) -> str:
    """The prompt as one string."""
    return "".join(span.text for span in spans)


def learned_intervals(spans: Iterable[Span]) -> list[tuple[int, int]]:
    """Where loss is taken, as ``[start, end)`` character positions of ``text_of(spans)``, touching spans merged."""
    intervals: list[tuple[int, int]] = []
    position = 0
    for span in spans:
        end = position + len(span.text)
        if span.learned and end > position:
            if intervals and intervals[-1][1] == position:
                intervals[-1] = (intervals[-1][0], end)
            else:
                intervals.append((position, end))
        position = end
    return intervals


def first_marker(text: str, tokens: ChatTokens) -> str | None:
    """The first of ``tokens``' markers that somebody typed in ``text``, if any."""
    return _escape(tokens.markers).first_in(text)


def check_typed_text(conversation: Conversation, tokens: ChatTokens, where: Where | None = None) -> None:
    """Raise DataError where somebody's text contains a control string.

    Rendering escapes such text, so it can do no harm; in a data set it is a sign of a record that was rendered before.
    """
    where = where or Where()
    texts = [("system", conversation.system)]
    for i, turn in enumerate(conversation.turns):
        texts += [(f"conversations[{i}].from", turn.speaker), (f"conversations[{i}].value", turn.text)]
        if turn.label is not None:
            texts.append((f"conversations[{i}].label", turn.label))
    for field, text in texts:
        if (found := first_marker(text, tokens)) is not None:
            raise DataError(
                f"control token {shown(found)} in the text", where=where.at(field), instead="remove it, or choose other chat tokens"
            )
