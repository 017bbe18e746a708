"""OpenAssistant message trees as a source."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar

from pydantic import Field

from nemo_steerlm.core.spec import Reference
from nemo_steerlm.data.oasst import RATED
from nemo_steerlm.data.preprocessing import PreprocessingRules, read_trees
from nemo_steerlm.data.sources.source import Placed, Seed, Source, SourceContext, SplitRatio


class OasstSource(Source):
    """OpenAssistant message trees, read and split as the tutorial's preprocessing.py does."""

    rated: ClassVar = {"": RATED}

    path: Reference
    """A ``*.trees.jsonl`` file, packed or not, or ``hf:OWNER/NAME/FILE`` for one on the Hugging Face hub."""
    limit: Annotated[int, Field(ge=2, le=100_000_000)] | None = None
    """Read only the first so many trees (the tutorial's ``head -n 5000``); all by default."""
    split_ratio: SplitRatio = 0.95
    """Share of trees used for training; the rest validates."""
    seed: Seed = 10
    """Seed of the split."""
    skip_deleted: bool = False
    """Leave out messages that are marked deleted and what follows them; upstream keeps them where they have their text."""

    def references(self) -> tuple[str, ...]:
        """The trees."""
        return (self.path,)

    def read(self, reading: SourceContext) -> Iterator[Placed]:
        """Every path from the root of a tree to a leaf, trees in the order of upstream's shuffle."""
        rules = PreprocessingRules(
            split_ratio=self.split_ratio,
            seed=self.seed,
            limit=self.limit,
            system=reading.system_prompt,
            tokens=reading.tokens,
            schema=reading.schema,
            skip_deleted=self.skip_deleted,
        )
        for tree in read_trees(reading.resolve(self.path), rules, reading.rejects, reading.folder):
            reading.left_out.update(tree.left_out)
            for conversation in tree.conversations:
                yield Placed("val" if tree.validates else "train", conversation)
