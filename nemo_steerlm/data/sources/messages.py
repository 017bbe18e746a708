"""Conversations as OpenAI's API writes them, as a source."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from nemo_steerlm.core.conversation import ASSISTANT, USER
from nemo_steerlm.core.errors import Where
from nemo_steerlm.data.records import Record
from nemo_steerlm.data.sources.rows import SYSTEM, Example, MappedSource, turns_of

ROLES = {"user": USER, "assistant": ASSISTANT, "system": SYSTEM, "developer": SYSTEM}


class MessagesSource(MappedSource):
    """Conversations as OpenAI's ``messages`` (``role`` and ``content``), with ratings beside them. Turns of tools are refused."""

    messages: Annotated[str, Field(min_length=1, max_length=128)] = "messages"
    """The key of the list."""

    def examples(self, row: Record, where: Where) -> list[Example]:
        """One conversation."""
        return [Example(turns_of(row, self.messages, ("role", "content"), ROLES, where), self.rated_shares(row, where))]
