"""OASST trees to training and validation records, as NeMo's sft/preprocessing.py writes them, in memory that stays flat."""

from __future__ import annotations

import array
import collections
import contextlib
import itertools
import random
import shutil
import tempfile
from collections.abc import Generator, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import msgspec

from nemo_steerlm.core.attributes import AttributeSchema
from nemo_steerlm.core.conversation import ASSISTANT, SYSTEM_PROMPT, USER, Conversation
from nemo_steerlm.core.errors import DataError, UsageError, Where, shown
from nemo_steerlm.core.files import atomic_write, json_line
from nemo_steerlm.core.objectives import OBJECTIVES
from nemo_steerlm.core.template import ChatTokens
from nemo_steerlm.core.text_files import READ_ERRORS, open_text, packing, unreadable
from nemo_steerlm.data.oasst import UPSTREAM, Rated, parse_tree
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
    left_out: dict[str, int]
    """Messages that ended their branch, by reason."""
    languages: list[str]
    """Every ``lang`` value that a turn has, sorted."""
    rated: int
    """Messages that have a rating of at least one attribute."""


class _Place(NamedTuple):
    """Where a tree stands in the (unpacked) input."""

    number: int
    offset: int


class _Outcome(NamedTuple):
    """What became of one tree: its conversations, or its error with the raw line."""

    conversations: Iterable[Conversation]
    """Made one by one where one process does all the work: a tree of deep branches has many times its own size."""
    lines: Iterable[str]
    """The same as they are written, made in the process that made them."""
    languages: set[str] = set()
    left_out: collections.Counter[str] = collections.Counter()
    rated: int = 0
    error: DataError | None = None
    raw: bytes = b""


class SplitTree(NamedTuple):
    """The conversations of one tree, and which split it belongs to."""

    validates: bool
    conversations: Iterable[Conversation]
    left_out: Mapping[str, int]


class PreprocessingRules(msgspec.Struct, frozen=True, kw_only=True):
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
    schema: AttributeSchema | None = None
    """What labels are encoded with; upstream's twelve and any language where None."""
    skip_deleted: bool = False
    """Whether a deleted message ends its branch though it has its text: upstream keeps it."""

    def __post_init__(self) -> None:
        if self.mode not in OBJECTIVES:
            raise UsageError(f"--type {shown(self.mode)}: write {' or '.join(OBJECTIVES)}")
        if self.mask_role not in (USER, ASSISTANT):
            raise UsageError(f"--mask_role {shown(self.mask_role)}: the roles of OASST are {USER} and {ASSISTANT}")
        if not 0 <= self.split_ratio <= 1:
            raise UsageError(f"--split_ratio {self.split_ratio}: use a number from 0 to 1")
        if self.limit is not None and self.limit < 1:
            raise UsageError(f"--limit {self.limit}: use at least 1")

    @property
    def rated(self) -> Rated:
        """How messages are read."""
        return Rated(self.schema or UPSTREAM, any_language=self.schema is None, tokens=self.tokens, skip_deleted=self.skip_deleted)


def preprocess(
    input_file: str | Path,
    output_file_prefix: str | Path,
    rules: PreprocessingRules | None = None,
    *,
    jobs: int = 1,
    on_error: OnError = "fail",
) -> Preprocessed:
    """Write ``<prefix>_train.jsonl`` and ``<prefix>_val.jsonl``: upstream's records in upstream's order.

    Trees are shuffled under ``seed`` and the first ``int(n * split_ratio)`` train, so both types of a file split alike. A tree that is
    set aside keeps its place in the shuffle: repairing it moves no other. With more than one job a process holds the records of 16
    trees at a time.

    Raises DataError for bad input, and where no record came out; then neither output is written.
    """
    rules = rules or PreprocessingRules()
    prefix = str(output_file_prefix)
    with contextlib.ExitStack() as stack:
        rejects = stack.enter_context(Rejects(prefix, on_error))
        # Entered last to first: both outputs take their names together, after everything has gone well.
        validation = stack.enter_context(atomic_write(f"{prefix}_val.jsonl"))
        train = stack.enter_context(atomic_write(f"{prefix}_train.jsonl"))
        counts = [0, 0]
        trees = rated = 0
        languages: set[str] = set()
        left_out: collections.Counter[str] = collections.Counter()
        outcomes = stack.enter_context(contextlib.closing(_split(input_file, rules, Path(prefix).parent, jobs)))
        for trees, (validates, outcome) in enumerate(outcomes, 1):  # noqa: B007 - it counts them
            if outcome.error:
                rejects.add(outcome.error, outcome.raw)
            for line in outcome.lines:
                (validation if validates else train).write(line)
                counts[validates] += 1
            languages |= outcome.languages
            left_out += outcome.left_out
            rated += outcome.rated
        if not any(counts):
            rejects.save()
            raise nothing_left(input_file, trees, rejects, left_out)
        return Preprocessed(counts[0], counts[1], trees, dict(rejects.counts), dict(left_out), sorted(languages), rated)


def nothing_left(source: str | Path, trees: int, rejects: Rejects, left_out: Mapping[str, int]) -> DataError:
    """Why trees gave no conversation."""
    reasons = {**rejects.counts, **left_out}
    why = f": {max(reasons, key=lambda reason: reasons[reason])}" if reasons else ": no prompt has a reply"
    instead = f"see {rejects.path}" if rejects.count else "nothing can be learned from prompts alone"
    return DataError(f"no conversation in {trees} trees{why}", where=Where(file=str(source)), instead=instead)


def read_trees(input_file: str | Path, rules: PreprocessingRules, rejects: Rejects, folder: Path) -> Iterator[SplitTree]:
    """The trees of a file in ``preprocess``'s order, in one process. A packed file is unpacked into ``folder``; bad trees are rejected.

    Raises DataError for bad input, and where no conversation came out.
    """
    found = False
    left_out: collections.Counter[str] = collections.Counter()
    trees = 0
    with contextlib.closing(_split(input_file, rules, folder, jobs=1)) as outcomes:
        for trees, (validates, outcome) in enumerate(outcomes, 1):  # noqa: B007 - it counts them
            if outcome.error:
                rejects.add(outcome.error, outcome.raw)
                continue
            left_out += outcome.left_out
            conversations = iter(outcome.conversations)
            first = next(conversations, None)
            found |= first is not None
            yield SplitTree(validates, () if first is None else itertools.chain([first], conversations), outcome.left_out)
    if not found:
        raise nothing_left(input_file, trees, rejects, left_out)


def _split(input_file: str | Path, rules: PreprocessingRules, folder: Path, jobs: int) -> Generator[tuple[bool, _Outcome], None, None]:
    with _seekable(input_file, folder) as file:
        order, train_trees = _shuffled(file, str(input_file), rules)
        how = _How(str(input_file), rules, lazy=jobs == 1)
        results = ordered_map(_work, batches(order, 16), jobs=jobs, prepare=_prepare, settings=(file.name, how))
        for i, outcome in enumerate(itertools.chain.from_iterable(results)):
            yield i >= train_trees, outcome


@contextlib.contextmanager
def _seekable(path: str | Path, folder: Path) -> Iterator[IO[bytes]]:
    """``path`` open for reading anywhere: a packed one is unpacked into an unnamed file in ``folder``."""
    with open_text(path) as file:
        if packing(path) is None:
            yield file
            return
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".unpacked.") as unpacked:
            try:
                shutil.copyfileobj(file, unpacked, 1 << 20)
            except READ_ERRORS as error:
                raise unreadable(error, path) from error
            unpacked.flush()
            yield cast("IO[bytes]", unpacked)


def _shuffled(file: IO[bytes], name: str, rules: PreprocessingRules) -> tuple[Iterator[_Place], int]:
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
    return (_Place(numbers[i], offsets[i]) for i in order), int(len(order) * rules.split_ratio)


class _How(NamedTuple):
    """What every tree of a run has in common."""

    name: str
    """The input's name in messages; the file that is read may be its unpacked copy."""
    rules: PreprocessingRules
    lazy: bool


_worker: dict[str, Any] = {}
"""What this process works on, set once by ``_prepare``."""


def _prepare(path: str, how: _How) -> None:
    _worker.update(path=path, how=how)


def _work(group: list[_Place]) -> list[_Outcome]:
    with Path(_worker["path"]).open("rb") as file:
        return [_outcome(file, place, _worker["how"]) for place in group]


def _outcome(file: IO[bytes], place: _Place, how: _How) -> _Outcome:
    file.seek(place.offset)
    raw = file.readline()
    where = Where(file=how.name, line=place.number)
    rules = how.rules
    try:
        tree = parse_tree(parse_line(raw, where), where, mask=rules.mask_role, rated=rules.rated)
    except DataError as error:
        return _Outcome((), (), error=error, raw=raw)
    conversations = tree.conversations(mask=rules.mask_role, mode=rules.mode, system=rules.system)
    lines = (json_line(conversation.to_record()) for conversation in conversations)
    if how.lazy:
        return _Outcome(conversations, lines, tree.languages, tree.left_out, tree.rated)
    return _Outcome((), list(lines), tree.languages, tree.left_out, tree.rated)
