r"""The rule that keeps people's text from turning into control tokens.

A string that the template or the tokenizer treats as special gets a backslash after its first character, and text that looks like that
already gets one more: ``<extra_id_1>`` is written ``<\extra_id_1>``, and ``<\extra_id_1>`` ``<\\extra_id_1>``. A special control
character (``\x11``) is written as its Unicode picture (``␑``) behind twice as many backslashes as stood there, a picture behind twice as
many and one.

A tokenizer may normalise text before it looks for tokens: under sentencepiece's ``nmt_nfkc`` a fullwidth ``＜extra_id_1＞`` is the control
token. So what counts is what the text normalises to. Where that has something special in it, the characters that normalise to a part of
it are first written as what they normalise to, which the model sees no difference in.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable

from nemo_steerlm.core.errors import DataError, shown

Normalizer = Callable[[str], str]
"""What a tokenizer does to text before it looks for tokens."""

_BETWEEN = "ʘ"
"""Stands between characters that are normalised apart from each other: a letter that has no case, no parts and no accents."""


class Escape:
    """``apply`` and its reverse, for one set of special strings. The time that either takes grows as the text does."""

    def __init__(self, special: Iterable[str], normalize: Normalizer | None = None) -> None:
        special = dict.fromkeys(special)
        self._normalize = normalize
        self._pictures = {s: chr(0x2400 + ord(s)) for s in special if len(s) == 1 and ord(s) < 0x20}
        self._characters = {picture: character for character, picture in self._pictures.items()}
        words = [s for s in special if len(s) > 1 and self._pictures.keys().isdisjoint(s)]
        self._letters = set("".join(words))
        signs = "".join(map(re.escape, (*self._characters, *self._pictures)))
        # A run of backslashes is looked at from its start only: from each of its characters it would take the square of its length.
        sign = [rf"(?:(?<!\\)\\*)?(?P<sign>[{signs}])"] if signs else []
        pattern = "|".join(_bodies(words) + sign)
        self._pattern = re.compile(pattern) if pattern else None
        self._plain = re.compile(_any_of([*words, *self._pictures])) if pattern else None

    def apply(self, text: str) -> str:
        """``text`` with nothing special left in it, nor in what the tokenizer makes of it.

        Raises DataError for text that only normalises to something special as a whole, which no known normaliser does.
        """
        written = self._written(text)
        if self._normal(written) is None:
            return written
        written = self._written(self._spelled_out(text))
        if (found := self._normal(written)) is not None:
            raise DataError(f"text that the tokenizer turns into its control token {shown(found)}", instead="write it in other characters")
        return written

    def undo(self, text: str) -> str:
        """What ``apply`` was given, or what the tokenizer makes of it where that had something special in it."""
        return self._pattern.sub(self._unquote, text) if self._pattern else text

    def first_in(self, text: str) -> str | None:
        """The first special string in ``text``, if any."""
        found = self._plain.search(text) if self._plain else None
        return found.group() if found else None

    def _written(self, text: str) -> str:
        return self._pattern.sub(self._quote, text) if self._pattern else text

    def _normal(self, text: str) -> str | None:
        """The first special string in what the tokenizer makes of ``text``."""
        return self.first_in(self._normalize(text)) if self._normalize and self._plain else None

    def _spelled_out(self, text: str) -> str:
        kept = {"\\", _BETWEEN, *self._characters, *self._pictures}
        characters = sorted(set(text) - kept)
        forms = zip(characters, self._forms(characters), strict=True)
        special = self._letters | self._pictures.keys()
        return text.translate({ord(c): form for c, form in forms if form != c and (not form or not special.isdisjoint(form))})

    def _forms(self, characters: Collection[str]) -> list[str]:
        """What each character normalises to by itself."""
        normalize = self._normalize or str
        together = normalize(_BETWEEN.join(["", *characters, ""])).split(_BETWEEN)[1:-1]
        if len(together) == len(characters):
            return together
        apart = (normalize(f"{_BETWEEN}{c}{_BETWEEN}").split(_BETWEEN) for c in characters)
        return [parts[1] if len(parts) == 3 else c for c, parts in zip(characters, apart, strict=True)]

    def _quote(self, match: re.Match[str]) -> str:
        found, sign = match.group(), match.groupdict().get("sign")
        if sign is None:
            return found[0] + "\\" + found[1:]
        slashes = len(found) - 1
        if sign in self._pictures:
            return "\\" * (2 * slashes) + self._pictures[sign]
        return "\\" * (2 * slashes + 1) + sign

    def _unquote(self, match: re.Match[str]) -> str:
        found, sign = match.group(), match.groupdict().get("sign")
        if sign is None:
            return found[0] + found[1:].removeprefix("\\")
        slashes = len(found) - 1
        if sign in self._pictures:
            return found
        return "\\" * (slashes // 2) + (sign if slashes % 2 else self._characters[sign])


def _bodies(words: Iterable[str]) -> list[str]:
    """A pattern for each first character: it, any number of backslashes, and what follows it in one of ``words``."""
    rests: dict[str, list[str]] = {}
    odd = []
    for word in words:
        if word[0] == "\\" or word[1] == "\\":
            # Backslashes of its own, which the run must leave to it. Where it begins with one, so does the run.
            start = r"(?<!\\)\\" if word[0] == "\\" else re.escape(word[0])
            odd.append(rf"{start}\\*{re.escape(word[1:])}")
        else:
            rests.setdefault(word[0], []).append(word[1:])
    # The lookahead takes the whole run once, and the reference to it gives nothing back.
    return odd + [rf"{re.escape(first)}(?=(\\*))\{number}{_any_of(rests[first])}" for number, first in enumerate(rests, start=1)]


def _any_of(words: Iterable[str]) -> str:
    """A pattern for the longest of ``words`` that stands at a place: what several begin with is compared once."""
    groups: dict[str, list[str]] = {}
    for word in words:
        groups.setdefault(word[:1], []).append(word)
    end = groups.pop("", None)
    parts = []
    for group in groups.values():
        first, last = min(group), max(group)
        start = first[: next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))]
        parts.append(re.escape(start) + _any_of([word[len(start) :] for word in group] if len(group) > 1 else []))
    return f"(?:{'|'.join(parts)}){'?' if end else ''}" if parts else ""
