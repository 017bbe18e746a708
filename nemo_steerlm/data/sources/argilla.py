"""Records exported from Argilla as a source.

Shapes: Argilla 2's ``records.to_json()`` (nested) and ``to_datasets()`` (flat, ``QUESTION.responses``; argilla/records/_io/_generic.py),
and Argilla 1's ``FeedbackDataset.format_as("datasets")``, where a question's column holds its responses.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from nemo_steerlm.core.conversation import ASSISTANT, USER
from nemo_steerlm.core.errors import DataError, Where
from nemo_steerlm.data.records import Record
from nemo_steerlm.data.sources.messages import ROLES
from nemo_steerlm.data.sources.rows import SYSTEM, Example, MappedSource, field, optional_text, share, turns_of

FieldName = Annotated[str, Field(min_length=1, max_length=128)]
SUBMITTED = "submitted"
"""The status of a response that counts; drafts and discarded ones do not."""


class ArgillaSource(MappedSource):
    """An export from Argilla: fields with the prompt and the answer, and questions that people answered with ratings.

    The ``key`` of a rating is the question's name. Several people's ratings of one answer count as their mean.
    """

    prompt_field: FieldName = "prompt"
    """The field with the question: a text, or a chat."""
    answer_field: FieldName = "response"
    """The field with the answer that was rated."""
    system_field: FieldName | None = None
    """The field with the system prompt."""
    suggestions: bool = False
    """Take a model's suggestion where nobody rated."""

    def examples(self, row: Record, where: Where) -> list[Example]:
        """One conversation."""
        fields: Record = row["fields"] if isinstance(row.get("fields"), dict) else row
        if isinstance(fields.get(self.prompt_field), list):
            turns = turns_of(fields, self.prompt_field, ("role", "content"), ROLES, where)
        else:
            turns = [(USER, field(fields, self.prompt_field, str, where))]
        system = optional_text(fields, self.system_field, where) if self.system_field else ""
        turns = [*([(SYSTEM, system)] if system else []), *turns, (ASSISTANT, field(fields, self.answer_field, str, where))]
        return [Example(turns, self.rated_shares(row, where))]

    def rated_shares(self, row: Record, where: Where) -> dict[str, float]:
        """The mean of what people said to each question."""
        found = {}
        for name, rating in self.ratings.items():
            values = _responses(row, rating.key, where) or (_suggestion(row, rating.key) if self.suggestions else [])
            if values:
                found[name] = statistics.fmean(share(value, rating.range, where.at(rating.key)) for value in values)
        return found


def _responses(row: Record, question: str, where: Where) -> list[Any]:
    """The values of the submitted responses to ``question``, in any of the three shapes. Raises DataError for another."""
    if f"{question}.responses" in row:
        values, statuses = (row.get(f"{question}.responses{part}") for part in ("", ".status"))
        values = [] if values is None else values
        statuses = statuses or [SUBMITTED] * len(values) if isinstance(values, list) else None
        if not isinstance(statuses, list) or len(statuses) != len(values):
            instead = "write a list of responses, and one of as many statuses"
            raise DataError("no responses of Argilla", where=where.at(f"{question}.responses"), instead=instead)
        return [value for value, status in zip(values, statuses, strict=False) if status in (SUBMITTED, None) and value is not None]
    nested = row.get("responses")
    given = nested.get(question) if isinstance(nested, Mapping) else row.get(question)
    if isinstance(given, Mapping) and len({len(values) if isinstance(values, list) else -1 for values in given.values()} - {-1}) == 1:
        # A list of objects as Arrow keeps it: an object of lists.
        lists = {key: values for key, values in given.items() if isinstance(values, list)}
        given = [dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True)]
    if given is None:
        return []
    if not isinstance(given, list) or not all(isinstance(one, Mapping) and "value" in one for one in given):
        raise DataError("no responses of Argilla", where=where.at(question), instead="name a rating question under key")
    return [one["value"] for one in given if one.get("status", SUBMITTED) in (SUBMITTED, None) and one["value"] is not None]


def _suggestion(row: Record, question: str) -> list[Any]:
    nested = row.get("suggestions")
    found = nested.get(question) if isinstance(nested, Mapping) else row.get(f"{question}.suggestion", row.get(f"{question}-suggestion"))
    value = found.get("value") if isinstance(found, Mapping) else found
    return [] if value is None else [value]
