"""UltraFeedback (arXiv:2310.01377) as a source: as its authors publish it, and binarized."""

from __future__ import annotations

from typing import Any, ClassVar, cast

from nemo_steerlm.core.conversation import ASSISTANT, USER
from nemo_steerlm.core.errors import DataError, Where, shown
from nemo_steerlm.data.records import Record
from nemo_steerlm.data.sources.messages import ROLES
from nemo_steerlm.data.sources.rows import Example, RowSource, field, share, turns_of

ASPECTS = ("helpfulness", "honesty", "truthfulness", "instruction_following")
"""What GPT-4 rated from 1 to 5."""
QUALITY = "quality"
"""The mean of the aspects (``fine-grained_score``, 1 to 5), or of a binarized answer its score (1 to 10)."""


class UltraFeedbackSource(RowSource):
    """UltraFeedback's answers with their four ratings, or its binarized form: the chosen and the rejected answer with their scores."""

    rated: ClassVar = {"": (*ASPECTS, QUALITY)}

    def examples(self, row: Record, where: Where) -> list[Example]:
        """A conversation for each answer."""
        if "score_chosen" in row:
            return [self._binarized(row, which, where) for which in ("chosen", "rejected")]
        question = field(row, "instruction", str, where)
        answers = field(row, "completions", list, where)
        return [self._answer(question, answer, where.at(f"completions[{i}]")) for i, answer in enumerate(answers)]

    def _binarized(self, row: Record, which: str, where: Where) -> Example:
        turns = turns_of(row, which, ("role", "content"), ROLES, where)
        score = row.get(f"score_{which}")
        return Example(turns, {} if score is None else {QUALITY: share(score, (1, 10), where.at(f"score_{which}"))})

    def _answer(self, question: str, answer: Any, where: Where) -> Example:
        if not isinstance(answer, dict):
            raise DataError("not an object", where=where, instead="write an object with response and annotations")
        annotations = _object(answer, "annotations", where)
        aspects = {name: _object(annotations, name, where.at("annotations")) for name in ASPECTS}
        found = {name: aspect.get("Rating") for name, aspect in aspects.items()} | {QUALITY: answer.get("fine-grained_score")}
        ratings = {name: share(value, (1, 5), where.at(name)) for name, value in found.items() if value not in (None, "N/A")}
        return Example([(USER, question), (ASSISTANT, field(answer, "response", str, where))], ratings)


def _object(holder: Record, key: str, where: Where) -> Record:
    """The object under ``key``; an empty one where it is missing or null. Raises DataError for anything else."""
    value = holder.get(key)
    if not isinstance(value, dict | None):
        raise DataError(f"{key} is {shown(value)}", where=where.at(key), instead="write an object")
    return cast("Record", value or {})
