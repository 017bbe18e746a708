"""Tokens to text as they come: whole characters only, unescaped, cut at stop strings that may span tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nemo_steerlm.core.template import Template
from nemo_steerlm.core.tokenization import TextTokenizer

_CONTEXT = 6
"""Tokens decoded again before each new one: sentencepiece drops the space before the first token."""


class Detokenizer:
    """Decodes token by token, waiting for the rest of a character that is split over tokens."""

    def __init__(self, tokenizer: TextTokenizer, context: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._ids = list(context[-_CONTEXT:])
        self._start = 0
        self._read = len(self._ids)

    def push(self, token: int) -> str:
        """The text that ``token`` completes."""
        self._ids.append(token)
        return self._text(final=False)

    def flush(self) -> str:
        """The rest of the text, incomplete characters as U+FFFD."""
        return self._text(final=True)

    def _text(self, *, final: bool) -> str:
        before = self._tokenizer.decode(self._ids[self._start : self._read])
        now = self._tokenizer.decode(self._ids[self._start :])
        if not final and (len(now) <= len(before) or now.endswith("�")):
            return ""
        self._start, self._read = max(self._read - _CONTEXT, 0), len(self._ids)
        return now[len(before) :]


class StopStrings:
    """Passes text on until one of ``stops`` appears, even if it spans several tokens."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(s for s in stops if s)
        self._longest = max(map(len, self._stops), default=0)
        self._held = ""
        self.found = False

    def push(self, text: str) -> str:
        """The text that can be passed on; nothing once a stop string was found."""
        if self.found or not self._stops:
            return "" if self.found else text
        self._held += text
        places = [at for at in (self._held.find(s) for s in self._stops) if at >= 0]
        if places:
            self.found = True
            return self._held[: min(places)]
        keep = _longest(self._held, self._could_start, self._longest)
        passed, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return passed

    def flush(self) -> str:
        """Text that was held back and is no stop string."""
        held, self._held = self._held, ""
        return "" if self.found else held

    def _could_start(self, text: str) -> bool:
        return any(s.startswith(text) for s in self._stops)


class Unescape:
    """Undoes the template's escaping in a stream."""

    def __init__(self, template: Template) -> None:
        self._escape = template.escape
        self._words = tuple(w for w in (*template.tokens.markers, *template.special) if len(w) > 1)
        self._held = ""

    def push(self, text: str) -> str:
        """The text that can be passed on: everything before a possible start of an escape."""
        self._held += text
        keep = _longest(self._held, self._could_start)
        passed, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return self._escape.undo(passed)

    def flush(self) -> str:
        """The rest."""
        held, self._held = self._held, ""
        return self._escape.undo(held)

    def _could_start(self, text: str) -> bool:
        bare = text[0] + text[1:].lstrip("\\")
        return bare == "\\" or any(word.startswith(bare) for word in self._words)


def _longest(text: str, test: Callable[[str], bool], limit: int = 256) -> int:
    """Length of the longest suffix of ``text`` that passes ``test``."""
    for start in range(max(len(text) - limit, 0), len(text)):
        if test(text[start:]):
            return len(text) - start
    return 0


class AnswerText:
    """All of the above for one answer: detokenize, stop at control strings, drop the end of the turn, unescape, stop at stop strings."""

    def __init__(
        self,
        tokenizer: TextTokenizer,
        context: Sequence[int],
        *,
        stops: Sequence[str] = (),
        template: Template | None = None,
        control_stops: Sequence[str] = (),
    ) -> None:
        """Set up the stages.

        Args:
            tokenizer: Decodes the tokens.
            context: The prompt's token ids.
            stops: Strings that end the answer, from the request.
            template: Given if the answer is a turn's text (chat); None for a raw completion.
            control_stops: Control strings of the template that are no single token.
        """
        self._detokenizer = Detokenizer(tokenizer, context)
        self._control = StopStrings(control_stops)
        self._unescape = Unescape(template) if template else None
        self._end = template.tokens.end_of_turn if template else ""
        self._held_end = ""
        self._stops = StopStrings(stops)

    def stopped(self) -> bool:
        """Whether a stop string was found."""
        return self._control.found or self._stops.found

    def push(self, token: int) -> str:
        """Text that is certain after ``token``."""
        return self._pass(self._control.push(self._detokenizer.push(token)))

    def flush(self, *, ended: bool) -> str:
        """The rest of the text. ``ended``: a control token ended the turn, so a final end-of-turn string is the template's."""
        text = self._pass(self._control.push(self._detokenizer.flush()) + self._control.flush())
        held, self._held_end = self._held_end, ""
        if held != self._end or not (ended or self._control.found):
            text += self._clean(held)
        if self._unescape:
            text += self._stops.push(self._unescape.flush())
        return text + self._stops.flush()

    def _pass(self, text: str) -> str:
        if self._end:
            text = self._held_end + text
            keep = _longest(text, self._end.startswith, len(self._end))
            text, self._held_end = text[: len(text) - keep], text[len(text) - keep :]
        return self._clean(text)

    def _clean(self, text: str) -> str:
        return self._stops.push(self._unescape.push(text) if self._unescape else text)
