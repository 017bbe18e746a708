"""OASST trees to training and validation records, as NeMo's sft/preprocessing.py writes them, in memory that stays flat."""

from __future__ import annotations

import array
import contextlib
import itertools
import random
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import msgspec

from nemo_steerlm.core.conversation import ASSISTANT, MODES, SYSTEM_PROMPT, USER, Mode
from nemo_steerlm.core.errors import DataError, UsageError, Where, shown
from nemo_steerlm.core.files import atomic_write, json_line, open_binary
from nemo_steerlm.core.template import ChatTokens
from nemo_steerlm.data.oasst import parse_tree
from nemo_steerlm.data.parallel import batches, ordered_map
from nemo_steerlm.data.records import parse_line
from nemo_steerlm.data.rejects import OnError, Rejects


class Preprocessed(NamedTuple):
    """What ``preprocess`` did."""

    train: int
    """Records in ``<prefix>_train.jsonl``."""
    validation: int
    """Records in ``<prefix>_val.jsonl``."""
    trees: int
    rejected: dict[str, int]
    """Trees that were set aside, by reason."""
    languages: list[str]
    """Every ``lang`` value that a turn has, sorted."""


class _Tree(NamedTuple):
    """Where a tree stands in the (unpacked) input."""

    number: int
    offset: int


class _Outcome(NamedTuple):
    """What became of one tree: its lines, or its error with the raw line."""

    lines: Iterable[str]
    """Made while they are written where one process does all the work: a tree of deep branches has many times its own size."""
    languages: set[str]
    error: DataError | None
    raw: bytes


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """How trees become records. Raises UsageError for what cannot be meant; upstream writes whatever it is given."""

    mask_role: str = USER
    """The role that is not learned."""
    mode: str = "TEXT_TO_VALUE"
    split_ratio: float = 0.95
    """Share of trees that train; the rest validates."""
    seed: int = 10
    system: str = SYSTEM_PROMPT
    limit: int | None = None
    """Read only the first so many trees."""
    tokens: ChatTokens = ChatTokens()
    """Control strings that nobody may have typed."""

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise UsageError(f"--type {shown(self.mode)}: write {' or '.join(MODES)}")
        if self.mask_role not in (USER, ASSISTANT):
            raise UsageError(f"--mask_role {shown(self.mask_role)}: the roles of OASST are {USER} and {ASSISTANT}")
        if not 0 <= self.split_ratio <= 1:
            raise UsageError(f"--split_ratio {self.split_ratio}: use a number from 0 to 1")
        if self.limit is not None and self.limit < 1:
            raise UsageError(f"--limit {self.limit}: use at least 1")


def preprocess(
    input_file: str | Path, output_file_prefix: str | Path, rules: Rules | None = None, *, jobs: int = 1, on_error: OnError = "fail"
) -> Preprocessed:
    """Write ``<prefix>_train.jsonl`` and ``<prefix>_val.jsonl``: upstream's records in upstream's order.

    Trees are shuffled under ``seed`` and the first ``int(n * split_ratio)`` train, so both types of a file split alike. A tree that is
    set aside keeps its place in the shuffle: repairing it moves no other. With more than one job a process holds the records of 16
    trees at a time.

    Raises DataError for bad input; then neither output is written.
    """
    rules = rules or Rules()
    prefix = str(output_file_prefix)
    how = _How(str(input_file), rules, lazy=jobs == 1)
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(_seekable(input_file, Path(prefix).parent))
        order, train_trees = _shuffled(file, str(input_file), rules)
        rejects = stack.enter_context(Rejects(prefix, on_error))
        # Entered last to first: both outputs take their names together, after everything has gone well.
        validation = stack.enter_context(atomic_write(f"{prefix}_val.jsonl"))
        train = stack.enter_context(atomic_write(f"{prefix}_train.jsonl"))
        counts = [0, 0]
        languages: set[str] = set()
        for i, outcome in enumerate(_outcomes(file, order, how, jobs)):
            if outcome.error:
                rejects.add(outcome.error, outcome.raw)
            is_validation = i >= train_trees
            output = validation if is_validation else train
            for line in outcome.lines:
                output.write(line)
                counts[is_validation] += 1
            languages |= outcome.languages
        return Preprocessed(counts[0], counts[1], i + 1, dict(rejects.counts), sorted(languages))


@contextlib.contextmanager
def _seekable(path: str | Path, folder: Path) -> Iterator[IO[bytes]]:
    """``path`` open for reading anywhere: a packed one is unpacked into an unnamed file in ``folder``."""
    try:
        file = open_binary(path)
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", where=Where(file=str(path))) from error
    with file:
        if Path(path).suffix != ".gz":
            yield file
            return
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".unpacked.") as unpacked:
            try:
                shutil.copyfileobj(file, unpacked, 1 << 20)
            except (EOFError, OSError) as error:
                raise DataError(f"broken gzip: {error}", where=Where(file=str(path))) from error
            unpacked.flush()
            yield cast("IO[bytes]", unpacked)


def _shuffled(file: IO[bytes], name: str, rules: Rules) -> tuple[Iterator[_Tree], int]:
    """Every tree's place in shuffled order, and how many of them train."""
    numbers, offsets = array.array("Q"), array.array("Q")
    file.seek(0)
    offset = 0
    for number, raw in enumerate(file, 1):
        if raw.strip():
            numbers.append(number)
            offsets.append(offset)
            if len(numbers) == rules.limit:
                break
        offset += len(raw)
    if not numbers:
        raise DataError("empty file", where=Where(file=name), instead="write one tree a line")
    order = array.array("Q", range(len(numbers)))
    # Shuffling depends on the length alone, so this is the order upstream gives its list of trees.
    random.Random(rules.seed).shuffle(order)
    return (_Tree(numbers[i], offsets[i]) for i in order), int(len(order) * rules.split_ratio)


class _How(NamedTuple):
    """What every tree of a run has in common."""

    name: str
    """The input's name in messages; the file that is read may be its unpacked copy."""
    rules: Rules
    lazy: bool


def _outcomes(file: IO[bytes], order: Iterator[_Tree], how: _How, jobs: int) -> Iterator[_Outcome]:
    results = ordered_map(_work, batches(order, 16), jobs=jobs, prepare=_prepare, settings=(file.name, how))
    return itertools.chain.from_iterable(results)


_worker: dict[str, Any] = {}
"""What this process works on, set once by ``_prepare``."""


def _prepare(path: str, how: _How) -> None:
    _worker.update(path=path, how=how)


def _work(group: list[_Tree]) -> list[_Outcome]:
    with Path(_worker["path"]).open("rb") as file:
        return [_outcome(file, place, _worker["how"]) for place in group]


def _outcome(file: IO[bytes], place: _Tree, how: _How) -> _Outcome:
    file.seek(place.offset)
    raw = file.readline()
    where = Where(file=how.name, line=place.number)
    rules = how.rules
    try:
        tree = parse_tree(parse_line(raw, where), where, mask=rules.mask_role, tokens=rules.tokens)
    except DataError as error:
        return _Outcome([], set(), error, raw)
    lines = map(json_line, tree.records(mask=rules.mask_role, mode=cast(Mode, rules.mode), system=rules.system))
    return _Outcome(lines if how.lazy else list(lines), tree.languages, None, b"")
