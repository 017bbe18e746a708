"""Alpaca's instructions as a source."""

from __future__ import annotations

from nemo_steerlm.core.conversation import ASSISTANT, USER
from nemo_steerlm.core.errors import DataError, Where, shown
from nemo_steerlm.data.records import Record
from nemo_steerlm.data.sources.rows import SYSTEM, Example, MappedSource, field, optional_text


class AlpacaSource(MappedSource):
    """Alpaca's ``instruction``, ``input`` and ``output``, with ratings beside them; ``system`` and ``history`` may be there."""

    def examples(self, row: Record, where: Where) -> list[Example]:
        """One conversation: the pairs of ``history``, then the instruction with its input below it.

        Raises:
            DataError: If a pair of ``history`` is no pair of texts.
        """
        system = optional_text(row, "system", where)
        turns = [(SYSTEM, system)] if system else []
        for i, pair in enumerate(field(row, "history", list, where) if row.get("history") else []):
            if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
                raise DataError(f"pair is {shown(pair)}", where=where.at(f"history[{i}]"), instead="write [question, answer]")
            turns += [(USER, pair[0]), (ASSISTANT, pair[1])]
        question = field(row, "instruction", str, where)
        if more := optional_text(row, "input", where):
            question += f"\n{more}"
        return [Example([*turns, (USER, question), (ASSISTANT, field(row, "output", str, where))], self.rated_shares(row, where))]
