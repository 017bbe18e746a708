"""Tokenized records in files that every process of a machine maps into its memory: written once, by whoever comes first.

A folder is named after all that its content follows from: the records' digest, the tokenizer, the template and the length. It appears by
rename when it is whole. Processes that start together wait for the first of them, on a lock that ends with its process.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import msgspec
import numpy as np
import numpy.typing as npt

from nemo_steerlm.core.errors import DataError, Where
from nemo_steerlm.core.files import atomic_write, file_digest
from nemo_steerlm.core.template import ChatTokens, Template
from nemo_steerlm.core.tokenization import TextTokenizer
from nemo_steerlm.data.parallel import batches, ordered_map
from nemo_steerlm.data.records import parse_line, raw_lines
from nemo_steerlm.training.dataset import ChatDataset, DatasetInfo, Tokenized, tokenize

logger = logging.getLogger(__name__)

FORMAT = 2
"""Raised by hand when the files change."""
ARRAYS: dict[str, Any] = {
    "ids": np.int32,
    "learned": np.bool_,
    "starts": np.int64,
    "counts": np.int32,
    "values": np.int32,
    "value_starts": np.int64,
}
INFO = "info.json"
LINES_AT_ONCE = 256
WORTH_PROCESSES = 8 << 20
"""Bytes of records from which on it is done by all cores: starting a process costs as much as some thousand records."""
SAY_EVERY = 10.0
"""Seconds between two lines about how far it is."""


def dataset(file: str | Path, template: Template, tokenizer: TextTokenizer, max_seq_length: int, cache: Path | None = None) -> ChatDataset:
    """Read, render and tokenize a JSONL file, or map what was made of it into ``cache`` before. Without one nothing is kept.

    Records longer than ``max_seq_length`` are cut; those of which nothing learned is left are left out; both are counted and said.

    Raises DataError naming the line that is malformed, that teaches another thing than the lines before it, or that has nothing to
    learn; and the first line where none has within ``max_seq_length`` tokens.
    """
    if cache is None:
        with tempfile.TemporaryDirectory(prefix="steerlm-tokens-") as folder:
            _write(Path(folder), str(file), template, tokenizer, max_seq_length)
            return _read(Path(folder), str(file), file_digest(file), mapped=False)
    cache.mkdir(parents=True, exist_ok=True)
    with _locked(cache / ".lock"):
        digest = _digest(Path(file), cache)
        folder = cache / _key(Path(file), digest, template, tokenizer, max_seq_length)
        if not folder.is_dir():
            partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=cache))
            try:
                _write(partial, str(file), template, tokenizer, max_seq_length)
                partial.rename(folder)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    return _read(folder, str(file), digest, mapped=True)


def _key(file: Path, digest: str, template: Template, tokenizer: TextTokenizer, max_seq_length: int) -> str:
    parts = (FORMAT, digest, tokenizer.digest, template.tokens, template.layout, template.special, max_seq_length)
    return f"{file.name}-{hashlib.sha256(msgspec.json.encode(parts)).hexdigest()[:16]}"


def _digest(file: Path, cache: Path) -> str:
    """Of ``file``, looked up by size and time of change: every process of every machine would read it whole at every start."""
    notes, stat = cache / "digests.json", file.stat()
    known: dict[str, Any] = {}
    with contextlib.suppress(OSError, msgspec.DecodeError):
        known = msgspec.json.decode(notes.read_bytes(), type=dict[str, Any])
    mark = [stat.st_size, stat.st_mtime_ns]
    entry = known.get(str(file.absolute()))
    if entry is not None and entry[:2] == mark:
        return str(entry[2])
    digest = file_digest(file)
    with atomic_write(notes) as out:
        out.write(msgspec.json.encode({**known, str(file.absolute()): [*mark, digest]}).decode())
    return digest


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        with contextlib.suppress(OSError):  # a file system without locks: everybody writes, and the last to finish changes nothing
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _read(folder: Path, file: str, digest: str, *, mapped: bool) -> ChatDataset:
    def array(name: str, kind: Any) -> npt.NDArray[Any]:
        path = folder / f"{name}.bin"
        return np.memmap(path, kind, "r") if mapped and path.stat().st_size else np.fromfile(path, kind)

    arrays = {name: array(name, kind) for name, kind in ARRAYS.items()}
    info = msgspec.json.decode((folder / INFO).read_bytes(), type=DatasetInfo)
    if info.cut or info.left_out:
        logger.info(
            "%s: of %d records %d are cut to max_seq_length=%d, and %d left out, of which nothing learned is within it",
            file,
            len(arrays["starts"]) - 1 + info.left_out,
            info.cut,
            info.max_seq_length,
            info.left_out,
        )
    values = arrays.pop("values").reshape(-1, 3)
    return ChatDataset(file=file, digest=digest, info=info, values=values, **arrays)


def _write(folder: Path, file: str, template: Template, tokenizer: TextTokenizer, max_seq_length: int) -> None:
    size = os.stat(file).st_size if os.path.exists(file) else 0
    jobs = len(os.sched_getaffinity(0)) if size >= WORTH_PROCESSES and hasattr(os, "sched_getaffinity") else 1
    settings = (file, template.tokens, template.layout, tokenizer, max_seq_length)
    lines = batches(_counted(file, size), LINES_AT_ONCE)
    with contextlib.ExitStack() as files:
        writer = _Writer({name: files.enter_context((folder / f"{name}.bin").open("wb")) for name in ARRAYS}, file, max_seq_length)
        for done, error in ordered_map(_tokenize_lines, lines, jobs=jobs, prepare=_prepare, settings=settings):
            for record in done:
                writer.add(record)
            if error is not None:
                raise error
        writer.finish()
    (folder / INFO).write_bytes(msgspec.json.encode(writer.info))


def _counted(file: str, size: int) -> Iterator[tuple[int, bytes]]:
    """The lines of ``file``, with a word on how far it is."""
    read, said = 0, time.monotonic()
    for number, raw in raw_lines(file):
        read += len(raw)
        if time.monotonic() - said > SAY_EVERY:
            said = time.monotonic()
            share = f", {min(99, 100 * read // size)} %" if size and not file.endswith(".gz") else ""
            logger.info("%s: %d records are tokenized%s", file, number, share)
        yield number, raw


_SETTINGS: dict[str, Any] = {}
"""Of this process; ``_prepare`` fills it."""


def _prepare(file: str, tokens: ChatTokens, layout: Any, tokenizer: TextTokenizer, max_seq_length: int) -> None:
    _SETTINGS.update(file=file, template=Template.of(tokenizer, tokens, layout), tokenizer=tokenizer, max_seq_length=max_seq_length)


def _tokenize_lines(lines: list[tuple[int, bytes]]) -> tuple[list[Tokenized], DataError | None]:
    """Records up to the first that is wrong, and what is wrong with it: an error of an earlier line is to be said first."""
    done: list[Tokenized] = []
    file, template, tokenizer, length = (_SETTINGS[key] for key in ("file", "template", "tokenizer", "max_seq_length"))
    for number, raw in lines:
        where = Where(file=file, line=number)
        try:
            done.append(tokenize(parse_line(raw, where), where, template, tokenizer, length))
        except DataError as error:
            return done, error
    return done, None


class _Writer:
    """Appends records to the arrays' files; memory stays flat but for what all records say together."""

    def __init__(self, files: dict[str, IO[bytes]], file: str, max_seq_length: int) -> None:
        self._files, self._file = files, file
        self.info = DatasetInfo(max_seq_length=max_seq_length)
        self._tokens = self._values = self._records = 0
        self._first_left_out: DataError | None = None
        self._put("starts", [0])
        self._put("value_starts", [0])

    def _put(self, name: str, rows: Iterable[Any]) -> None:
        self._files[name].write(np.asarray(rows, dtype=ARRAYS[name]).tobytes())

    def add(self, record: Tokenized) -> None:
        """Append a record. Raises DataError where it teaches another thing than those before it."""
        info = self.info
        if not self._records and not info.left_out:
            info.mode = record.mode
        elif record.mode != info.mode:
            raise DataError(
                f"type {record.mode} in a file that starts with type {info.mode}",
                where=Where(file=self._file, line=record.line).at("type"),
                instead="one file teaches one thing",
            )
        if record.nothing_left is not None:
            self._first_left_out = self._first_left_out or record.nothing_left
            info.left_out += 1
            return
        self._records += 1
        info.cut += record.cut
        learned = int(record.learned[1:].sum())
        info.longest, info.most_learned = max(info.longest, len(record.ids) - 1), max(info.most_learned, learned)
        info.systems[record.system] = info.systems.get(record.system, 0) + 1
        info.languages.update(record.languages)
        for speaker, has_label in record.speakers:
            counts = info.speakers.setdefault(speaker, [0, 0])
            counts[0] += 1
            counts[1] += has_label
        for name, value in record.labels:
            info.labels.setdefault(name, set()).add(value)
        self._add_values(record)
        self._tokens += len(record.ids)
        self._values += len(record.values)
        self._put("ids", record.ids)
        self._put("learned", record.learned)
        self._put("starts", [self._tokens])
        self._put("counts", [learned])
        self._put("value_starts", [self._values])

    def _add_values(self, record: Tokenized) -> None:
        info, rows = self.info, []
        for position, attribute, value in record.values:
            if attribute not in info.spelled:
                info.attributes.append(attribute)
            token = int(record.ids[position])
            info.spelled.setdefault(attribute, {}).setdefault(token, set()).add(value)
            rows.append((position, info.attributes.index(attribute), value))
        self._put("values", rows)

    def finish(self) -> None:
        """Raises DataError where no record is left."""
        if not self._records and self._first_left_out is not None:
            raise self._first_left_out
