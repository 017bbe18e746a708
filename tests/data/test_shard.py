from __future__ import annotations

from pathlib import Path

import pytest

from nemo_steerlm.core.errors import UsageError
from nemo_steerlm.data.shard import Shard


def test_every_record_is_in_one_shard() -> None:
    shards = [Shard(index=index, count=3) for index in range(3)]
    assert [[p for p in range(8) if p in shard] for shard in shards] == [[0, 3, 6], [1, 4, 7], [2, 5]]
    assert [str(shard.path(Path("a/out.jsonl"))) for shard in (Shard(), shards[1])] == ["a/out.jsonl", "a/out.jsonl.shard-1-of-3"]


def test_a_shard_is_read_from_what_it_prints() -> None:
    assert Shard.parse("3/16") == Shard(index=3, count=16)
    assert str(Shard.parse("3/16")) == "3/16"


@pytest.mark.parametrize("text", ["", "3", "3/", "/3", "a/3", "-1/3", "\u00b2/3", "1/2/3"])
def test_another_shape_is_a_sentence(text: str) -> None:
    with pytest.raises(UsageError, match="write INDEX/COUNT"):
        Shard.parse(text)


@pytest.mark.parametrize("text", ["3/3", "4/3", "0/0"])
def test_counting_from_one_is_a_sentence(text: str) -> None:
    with pytest.raises(UsageError, match="count from 0"):
        Shard.parse(text)
