"""Shards of an input are labelled apart and merged."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from nemo_steerlm.annotation import shards
from nemo_steerlm.annotation.annotate import annotate
from nemo_steerlm.core.errors import DataError, UsageError
from nemo_steerlm.data.shard import Shard
from tests.annotation.labelling_server import Handler, Poisoned, model_info
from tests.annotation.running import CLIENT_ENV, client_command, expected, options, served, text


def test_shards_merge_to_what_one_run_gives(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    with served(Handler) as url:
        for index in (2, 0, 1):
            annotate(source, output, [url], options(shard=Shard(index=index, count=3)))
            if index == 0:
                with pytest.raises(UsageError, match=r"out\.jsonl\.shard-1-of-3 is missing"):
                    shards.merge(source, output, 3)
    summary = shards.merge(source, output, 3)
    assert text(output) == expected(source)
    assert (summary.total, summary.labelled, summary.model) == (40, 40, model_info().fingerprint)
    output.unlink()
    part = tmp_path / "out.jsonl.shard-1-of-3"
    part.write_text("".join(text(part).splitlines(keepends=True)[1:]), encoding="utf-8")
    with pytest.raises(DataError, match=r"in\.jsonl:2: the next record of .*shard-1-of-3 is another"):
        shards.merge(source, output, 3)
    assert not output.exists()


def test_the_command_labels_in_shards_and_merges_them(source: Path, tmp_path: Path) -> None:
    output, asked = tmp_path / "out.jsonl", ("--confidence", "--min-confidence", "0.5")
    with served(Handler, info=model_info(schema="oasst")) as url:
        for shard in ("0/2", "1/2"):
            done = subprocess.run(client_command(source, output, "--server", url, "--shard", shard, *asked), env=CLIENT_ENV, check=False)
            assert done.returncode == 0
    figures = ("--summary", tmp_path / "s.json", "--confusion", tmp_path / "c.svg")
    done = subprocess.run(
        client_command(source, output, "--merge", "2", *figures), capture_output=True, text=True, env=CLIENT_ENV, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert f"40 of 40 records labelled in {output}" in done.stdout
    summary = json.loads(text(tmp_path / "s.json"))
    assert set(summary["agreement"]["helpfulness"]) == {"turns", "accuracy", "mae", "spearman", "low", "confusion"}
    assert "helpfulness" in done.stdout
    assert "<svg" in text(tmp_path / "c.svg")
    assert json.loads(text(output).splitlines()[0])["conversations"][1]["confidence"]["quality"] == 0.6
    wrong = subprocess.run(client_command(source, output, "--shard", "2/2", "--server", "x"), capture_output=True, text=True, check=False)
    assert (wrong.returncode, "count from 0" in wrong.stderr) == (2, True)


def test_rejects_of_shards_are_merged_too(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    with served(Poisoned, status=400) as url:
        for index in (0, 1):
            annotate(source, output, [url], options(shard=Shard(index=index, count=2)))
    summary = shards.merge(source, output, 2)
    assert (summary.labelled, summary.failed) == (38, 2)
    assert [json.loads(line)["line"] for line in text(Path(f"{output}.rejected.jsonl")).splitlines()] == [4, 18]
