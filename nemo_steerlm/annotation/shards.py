"""Merge the outputs of a file that was labelled in shards, in input order."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from pathlib import Path

from nemo_steerlm.annotation.results import ResultWriter, Summary
from nemo_steerlm.core.conversation import Conversation
from nemo_steerlm.core.errors import DataError, UsageError, Where
from nemo_steerlm.data.records import parse_conversation, raw_lines, read_conversations, read_lines
from nemo_steerlm.data.shard import Shard


class _Part:
    """One shard's output and rejects, read side by side with the input."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            raise UsageError(f"{path} is missing: that shard has not finished")
        self.path = path
        rejects = Path(f"{path}.rejected.jsonl")
        self.rejected = {line.record["line"]: line.record for line in read_lines(rejects)} if rejects.exists() else {}
        self.conversations: Iterator[Conversation] = read_conversations(path) if path.stat().st_size else iter(())

    def take(self, original: Conversation, where: Where) -> Conversation:
        """The next conversation.

        Raises:
            DataError: If it is not ``original`` with labels.
        """
        labelled = next(self.conversations, None)
        if labelled is None or _texts(labelled) != _texts(original):
            raise DataError(f"the next record of {self.path} is another", where=where, instead="label that shard again from this input")
        return labelled


def _texts(conversation: Conversation) -> list[str]:
    return [conversation.system, *(turn.text for turn in conversation.turns)]


def merge(input_file: str | Path, output_file: str | Path, count: int) -> Summary:
    """Write ``output_file`` from the outputs of shards ``0/count`` to ``count-1/count`` of ``input_file``; they are left where they are.

    Raises:
        UsageError: If a shard is missing.
        DataError: If one does not belong to this input.
    """
    began, source, output = time.monotonic(), Path(input_file), Path(output_file)
    parts = [_Part(Shard(index=index, count=count).path(output)) for index in range(count)]
    models: set[str] = set()
    total = 0
    with ResultWriter(output) as writer:
        for (line, raw), part in zip(raw_lines(source), itertools.cycle(parts), strict=False):
            where = Where(file=str(source), line=line)
            total += 1
            if (why := part.rejected.pop(line, None)) is not None:
                error = DataError(why["reason"], where=Where(file=str(source), line=line, field=why["field"]), instead=why["instead"])
                writer.reject(error, raw, unsure=why["reason"].endswith("below --min-confidence"))
                continue
            conversation = part.take(parse_conversation(raw, where), where)
            models.update(turn.label_source for turn in conversation.turns if turn.label_source is not None)
            writer.write(conversation)
        for part in parts:
            if part.rejected or next(part.conversations, None) is not None:
                raise DataError(f"more records than {source} has", where=Where(file=str(part.path)), instead="label that shard again")
        if len(models) > 1:
            raise DataError(f"shards were labelled by different models: {', '.join(sorted(models))}", where=Where(file=str(output)))
    return writer.summary(model="".join(models), total=total, resumed=0, seconds=time.monotonic() - began)
