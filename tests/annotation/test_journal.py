from __future__ import annotations

import random
import subprocess
import sys
from fcntl import flock
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_steerlm.annotation.journal import Entry, Journal, JournalHeader, record_digest
from nemo_steerlm.client.labelling import TurnLabel
from nemo_steerlm.core.errors import ConfigError, DataError, TryAgainError, Where

HEADER = JournalHeader(model="m", turns="all", languages=False, shard="0/1")


def entry(at: int) -> Entry:
    return Entry(at=at, digest=f"d{at}", labels=(TurnLabel(index=1, label=f"quality:{at % 5}", confidence={"quality": 0.5}),))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("journal") / "j"
    with Journal(path, HEADER) as journal:
        for at in (3, 0, 7, 1):
            journal.append(entry(at))
    return path.read_bytes()


def test_cut_at_any_byte_it_loses_at_most_the_torn_line(tmp_path: Path, whole: bytes) -> None:
    path = tmp_path / "j"
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        kept = max(0, whole[:size].count(b"\n") - 1)
        with Journal(path, HEADER) as journal:
            assert list(journal.positions) == [3, 0, 7, 1][:kept]
            assert all(journal.get(at) == entry(at) for at in journal.positions)
            journal.append(entry(9))
        with Journal(path, HEADER) as journal:
            assert list(journal.positions) == [*[3, 0, 7, 1][:kept], 9]
        path.unlink()


@pytest.mark.parametrize("content", [b"notes of mine", b"0000000g", b"00000000-"])
def test_somebody_elses_file_is_refused_and_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "j"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="is not a journal"):
        Journal(path, HEADER)
    assert path.read_bytes() == content


@settings(max_examples=150)
@given(seed=st.integers(0, 2**32))
def test_damage_loses_labels_but_never_changes_them(seed: int, whole: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    chance = random.Random(seed)
    damaged = bytearray(whole)
    at = chance.randrange(whole.index(b"\n") + 1, len(whole))
    damaged[at : at + chance.randrange(1, 40)] = bytes(chance.randrange(256) for _ in range(chance.randrange(40)))
    path = tmp_path_factory.mktemp("damaged") / "j"
    path.write_bytes(damaged)
    with Journal(path, HEADER) as journal:
        assert all(journal.get(position) == entry(position) for position in journal.positions)
        left = sorted(journal.positions)
    # What was dropped is gone from the file as well.
    with Journal(path, HEADER) as journal:
        assert sorted(journal.positions) == left
    assert path.read_bytes().count(b"\n") == len(left) + 1


def test_double_and_damaged_lines_are_compacted_away(tmp_path: Path, whole: bytes) -> None:
    path = tmp_path / "j"
    body = whole[whole.index(b"\n") + 1 :]
    path.write_bytes(whole + body * 3)
    with Journal(path, HEADER) as journal:
        assert len(journal) == 4
        journal.append(entry(8))
        assert journal.get(8) == entry(8)
    assert path.read_bytes().count(b"\n") == 6
    assert [p.name for p in tmp_path.iterdir()] == ["j"]


def test_another_model_or_input_is_refused_until_a_restart_is_asked_for(tmp_path: Path, whole: bytes) -> None:
    path = tmp_path / "j"
    path.write_bytes(whole)
    other = JournalHeader(model="other", turns="all", languages=False, shard="0/1")
    with pytest.raises(ConfigError, match="labels for model 'm', this run has 'other'; give --restart"):
        Journal(path, other)
    with Journal(path, HEADER) as journal:
        assert journal.check(3, "d3", Where())
        assert not journal.check(2, "d2", Where())
        with pytest.raises(DataError, match="in:4: the record differs"):
            journal.check(3, "changed", Where(file="in", line=4))
    with Journal(path, other, restart=True) as journal:
        assert len(journal) == 0


def test_only_one_process_writes(tmp_path: Path, whole: bytes) -> None:
    path = tmp_path / "j"
    path.write_bytes(whole)
    with Journal(path, HEADER), pytest.raises(TryAgainError, match="in use"):
        Journal(path, HEADER)
    Journal(path, HEADER).__exit__(None, None, None)


def test_a_compacted_journal_is_still_locked(tmp_path: Path, whole: bytes) -> None:
    path = tmp_path / "j"
    path.write_bytes(whole + whole[whole.index(b"\n") + 1 :])
    with Journal(path, HEADER) as journal:
        assert path.stat().st_size == len(whole), "it was compacted"
        with pytest.raises(TryAgainError, match="in use"):
            Journal(path, HEADER)
        journal.append(entry(9))
    assert len(path.read_bytes()) > len(whole), "what is written goes into the new file"


@pytest.mark.parametrize("left", ["nothing", "another journal"])
def test_a_journal_that_goes_while_its_lock_is_taken_is_not_written_to(
    tmp_path: Path, whole: bytes, left: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its holder ends between the opening and the locking of a second process: the lock is on a file that no path leads to."""
    path, other = tmp_path / "j", tmp_path / "other"
    path.write_bytes(whole)
    other.write_bytes(whole)
    calls = []

    def lock(file, operation) -> None:
        if not calls:
            path.unlink() if left == "nothing" else other.replace(path)
        calls.append(operation)
        flock(file, operation)

    monkeypatch.setattr("nemo_steerlm.annotation.journal.fcntl.flock", lock)
    with Journal(path, HEADER) as journal:
        assert len(calls) == 2
        assert len(journal) == (0 if left == "nothing" else 4)
        journal.append(entry(9))
    with Journal(path, HEADER) as journal:
        assert journal.get(9) == entry(9)


def test_a_digest_is_the_lines_without_its_end() -> None:
    line = b'{"a": 1}'
    assert record_digest(line) == record_digest(line + b"\n") == record_digest(line + b"\r\n") == "ec4644dfa7b63e651a5463fb"
    assert record_digest(line) != record_digest(b'{"a":1}')


FULL_DISK = """
import resource, sys
from pathlib import Path
from nemo_steerlm.annotation.journal import Journal
from tests.annotation.test_journal import HEADER, entry
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
with Journal(Path(sys.argv[1]), HEADER) as journal:
    for at in range(1000):
        journal.append(entry(at))
"""


@pytest.mark.parametrize("size", [700, 701, 733])
@pytest.mark.slow
def test_a_full_disk_ends_the_run_and_leaves_whole_lines(tmp_path: Path, size: int) -> None:
    path = tmp_path / "j"
    command = [sys.executable, "-c", FULL_DISK, path, str(size)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False)
    assert "TryAgainError" in done.stderr
    assert "cannot be written" in done.stderr
    text = path.read_bytes()
    assert text.endswith(b"\n")
    with Journal(path, HEADER) as journal:
        assert sorted(journal.positions) == list(range(text.count(b"\n") - 1))
        assert len(journal) > 1


def test_labels_of_other_attributes_are_not_gone_on_from(tmp_path: Path) -> None:
    path = tmp_path / "j"
    named = JournalHeader(model="m", turns="all", languages=False, shard="0/1", attributes=("quality", "humor"))
    Journal(path, HEADER).__exit__(None, None, None)
    with Journal(path, named):
        pass  # begun before the attributes were written down
    with Journal(path, named, restart=True) as journal:
        journal.append(entry(0))
    with Journal(path, named) as journal:
        assert len(journal) == 1
    other = JournalHeader(model="m", turns="all", languages=False, shard="0/1", attributes=("quality",))
    with pytest.raises(ConfigError, match=r"has labels for attributes .*humor.*, this run has .*quality"):
        Journal(path, other)
