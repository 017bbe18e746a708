"""What distilabel's pipelines write as a source: an instruction, one generation or several, and ratings beside them."""

from __future__ import annotations

from typing import Any

from nemo_steerlm.core.conversation import ASSISTANT, USER
from nemo_steerlm.core.errors import DataError, Where, shown
from nemo_steerlm.data.records import Record
from nemo_steerlm.data.sources.messages import ROLES
from nemo_steerlm.data.sources.rows import SYSTEM, Example, MappedSource, field, optional_text, share, turns_of

_CHATS = ("messages", "conversation")
"""Keys that hold a chat in place of ``instruction``."""


class DistilabelSource(MappedSource):
    """distilabel's ``instruction`` and ``generations`` with a list of ratings for them (``ratings``, ``scores``), or one ``generation``.

    The ``key`` of a rating names such a list, or a single rating; what a judge left out is null.
    """

    def examples(self, row: Record, where: Where) -> list[Example]:
        """A conversation for each generation that is there.

        Raises:
            DataError: If a generation is no text, or a list of ratings has another length than the generations.
        """
        question = self._question(row, where)
        several = "generations" in row
        answers = field(row, "generations", list, where) if several else [field(row, "generation", str, where)]
        found = []
        for i, answer in enumerate(answers):
            if answer is None:  # the model that was asked gave none
                continue
            if not isinstance(answer, str):
                raise DataError(f"generation is {shown(answer)}", where=where.at(f"generations[{i}]"), instead="write a string")
            found.append(Example([*question, (ASSISTANT, answer)], self._shares(row, i, len(answers), where)))
        return found

    def _question(self, row: Record, where: Where) -> list[tuple[str, str]]:
        system = optional_text(row, "system_prompt", where)
        turns = [(SYSTEM, system)] if system else []
        chat = next((key for key in _CHATS if row.get(key) is not None), None)
        if row.get("instruction") is None and chat:
            return turns + turns_of(row, chat, ("role", "content"), ROLES, where)
        return [*turns, (USER, field(row, "instruction", str, where))]

    def _shares(self, row: Record, i: int, count: int, where: Where) -> dict[str, float]:
        found = {}
        for name, rating in self.ratings.items():
            value: Any = row.get(rating.key)
            at = where.at(rating.key)
            if isinstance(value, list):
                if len(value) != count:
                    raise DataError(f"{len(value)} ratings of {count} generations", where=at, instead="write one for each, or null")
                value, at = value[i], at.at(f"[{i}]")
            if value is not None:
                found[name] = share(value, rating.range, at)
        return found
