"""ShareGPT's conversations as a source."""

from __future__ import annotations

from nemo_steerlm.core.conversation import ASSISTANT, USER
from nemo_steerlm.core.errors import Where
from nemo_steerlm.data.records import Record
from nemo_steerlm.data.sources.rows import SYSTEM, Example, MappedSource, optional_text, turns_of

ROLES = {
    "human": USER,
    "user": USER,
    "prompter": USER,
    "gpt": ASSISTANT,
    "assistant": ASSISTANT,
    "chatgpt": ASSISTANT,
    "model": ASSISTANT,
    "system": SYSTEM,
}


class ShareGptSource(MappedSource):
    """ShareGPT's ``conversations`` (``from`` human or gpt, and ``value``), with ratings beside them. Turns of tools are refused."""

    def examples(self, row: Record, where: Where) -> list[Example]:
        """One conversation; a system prompt may be its first turn or stand beside it."""
        turns = turns_of(row, "conversations", ("from", "value"), ROLES, where)
        system = optional_text(row, "system", where)
        return [Example([(SYSTEM, system), *turns] if system else turns, self.rated_shares(row, where))]
