"""A shard: one part of a record file that several processes work on, each on its own machine if need be."""

from __future__ import annotations

from pathlib import Path

import msgspec

from nemo_steerlm.core.errors import UsageError, shown


class Shard(msgspec.Struct, frozen=True, kw_only=True):
    """Every ``count``-th record of a file, from record number ``index`` on, both counted from 0."""

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise UsageError(f"shard {self}: count from 0, so that the last of {self.count} is {self.count - 1}/{self.count}")

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read ``INDEX/COUNT``, as ``3/16``.

        Raises:
            UsageError: If ``text`` has another shape, or the index is not below the count.
        """
        index, slash, count = text.partition("/")
        if not (slash and index.isdecimal() and count.isdecimal()):
            raise UsageError(f"--shard {shown(text)}: write INDEX/COUNT, of 16 shards 0/16 to 15/16")
        return cls(index=int(index), count=int(count))

    def __contains__(self, position: int) -> bool:
        return position % self.count == self.index

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def path(self, output: Path) -> Path:
        """Where the shard's part of ``output`` is written: ``output`` itself if there is only one shard."""
        return output if self.count == 1 else output.with_name(f"{output.name}.shard-{self.index}-of-{self.count}")
