"""NVIDIA's Nemotron post-training samples as a source: conversations that nobody rated, for the value model to label.

Shapes: ``nvidia/Nemotron-Post-Training-Dataset-v1`` and ``-v2`` (``messages``), and ``nvidia/Llama-Nemotron-Post-Training-Dataset``
(``input`` and ``output``).
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from nemo_steerlm.core.conversation import ASSISTANT, USER
from nemo_steerlm.core.errors import DataError, Where
from nemo_steerlm.data.records import Record
from nemo_steerlm.data.sources.messages import ROLES
from nemo_steerlm.data.sources.rows import SYSTEM, Example, RowSource, field, optional_text, turns_of

Category = Annotated[str, Field(min_length=1, max_length=64)]
_HEADER = "<|start_header_id|>"
"""Begins a turn in Llama 3's chat template, in which the first release wrote its inputs."""


class NemotronSource(RowSource):
    """Nemotron post-training samples. They have no ratings, so they stand beside a source that has some."""

    rated: ClassVar = {"": ()}

    categories: Annotated[tuple[Category, ...], Field(max_length=64)] = ()
    """Read only these, such as ``chat``; all by default."""
    reasoning: Literal["off", "any"] = "off"
    """Leave out samples whose answer reasons before it answers (``reasoning`` is on), or read any."""

    def leaves_out(self, row: Record) -> str | None:
        """Samples of other categories, and those that reason."""
        if self.categories and row.get("category") not in self.categories:
            return "another category"
        return "reasoning is on" if self.reasoning == "off" and row.get("reasoning") == "on" else None

    def examples(self, row: Record, where: Where) -> list[Example]:
        """One conversation without ratings.

        Raises:
            DataError: If the input is a rendered prompt, as in the first release.
        """
        if "messages" in row:
            return [Example(turns_of(row, "messages", ("role", "content"), ROLES, where), {})]
        system = optional_text(row, "system_prompt", where)
        turns = [(SYSTEM, system)] if system else []
        if isinstance(row.get("input"), str):
            if _HEADER in row["input"]:
                raise DataError("input is a rendered prompt", where=where.at("input"), instead="use version 1.1, which has turns")
            turns.append((USER, row["input"]))
        else:
            turns += turns_of(row, "input", ("role", "content"), ROLES, where)
        return [Example([*turns, (ASSISTANT, field(row, "output", str, where))], {})]
