"""Label a file of conversations through inference servers: each record exactly once, whatever is killed on the way.

The input is read as a stream, each label is appended to a journal (``OUTPUT.journal``), and the output is written whole, in input order, at
the end. A stopped run continues from its journal. Upstream: attribute_annotate.py.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import httpx
import msgspec

from nemo_steerlm.annotation.journal import Entry, Journal, JournalHeader, record_digest
from nemo_steerlm.annotation.progress import Progress
from nemo_steerlm.annotation.results import ResultWriter, Summary, disk_errors, labelled, require_confidence
from nemo_steerlm.client.announcement import Announcement
from nemo_steerlm.client.http import async_client, client_key
from nemo_steerlm.client.labelling import LabelFormat, Labelling, TurnSelection, advance, taught_turns
from nemo_steerlm.client.retry import RequestFailed, RetryPolicy
from nemo_steerlm.client.servers import ServerPool
from nemo_steerlm.client.signals import run_until_signal
from nemo_steerlm.client.workers import run_workers
from nemo_steerlm.core.attributes import preset
from nemo_steerlm.core.conversation import Conversation
from nemo_steerlm.core.errors import ConfigError, DataError, UsageError, Where
from nemo_steerlm.core.files import remove_leftovers
from nemo_steerlm.core.template import Template
from nemo_steerlm.data.records import parse_conversation, raw_lines
from nemo_steerlm.data.rejects import OnError
from nemo_steerlm.data.shard import Shard


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How a file is labelled."""

    turns: TurnSelection | None = None
    """None: all if the model was taught labels of the user's turns too, else those that are not masked."""
    turns_unknown: TurnSelection = "unmasked"
    """What None stands for with a model that does not say which turns had labels."""
    languages: bool = True
    """Whether the language is labelled too, if the schema has languages (upstream: process_lang)."""
    batch_size: int = 1
    """Conversations per request."""
    max_in_flight: int = 32
    """Upper limit of concurrent requests per server; below it the number adapts to the server."""
    shard: Shard = Shard()
    on_error: OnError = "fail"
    """Whether a broken input record ends the run before any request, or joins the rejects."""
    confidence: bool = False
    """Write the probability of each value beside the label."""
    min_confidence: float = 0.0
    """Records with a value less probable than this join the rejects."""
    restart: bool = False
    """Discard the labels of an earlier run."""
    attributes: str = "oasst"
    """Attribute preset of servers that announce none."""
    label_source: str = "unknown"
    """The ``label_source`` of servers that announce no model."""
    policy: RetryPolicy = RetryPolicy()

    def __post_init__(self) -> None:
        if not 1 <= self.batch_size <= 128:
            raise UsageError(f"batch size {self.batch_size}: use 1 to 128, which is the most that upstream's server takes")
        if self.max_in_flight < 1:
            raise UsageError(f"{self.max_in_flight} requests in flight: use at least 1")
        if not 0.0 <= self.min_confidence <= 1.0:
            raise UsageError(f"minimum confidence {self.min_confidence}: use a probability from 0 to 1")


class Item(NamedTuple):
    """One input record."""

    position: int
    line: int
    raw: bytes


def annotate(
    input_file: str | Path,
    output_file: str | Path,
    servers: Sequence[str],
    options: Options | None = None,
    *,
    progress: Progress | None = None,
) -> Summary:
    """Label ``input_file`` into ``output_file`` through ``servers``. What cannot be labelled is in ``OUTPUT.rejected.jsonl``.

    The caller must look at ``Summary.complete``: a run with rejects returns as well.

    Raises:
        DataError: If a record is broken, or changed since an earlier run.
        ConfigError: If servers have different models, or the journal belongs to another model.
        UnavailableError: If no server answers for ``policy.patience`` seconds.
        TryAgainError: If the disk is full.
        KeyboardInterrupt: After SIGINT. The journal stays whole.
        SystemExit: With code 143 after SIGTERM. The journal stays whole.
    """
    run = _Run(Path(input_file), Path(output_file), options or Options(), progress or (lambda _done, _total: None))
    return run.run(servers)


class _Run:
    """One call of ``annotate``."""

    def __init__(self, source: Path, output: Path, options: Options, progress: Progress) -> None:
        self.source, self.options, self.progress = source, options, progress
        self.output = options.shard.path(output)
        self.began = time.monotonic()
        self.total = 0
        """Records of this shard, broken ones included."""
        self.broken: dict[int, DataError] = {}
        self.failed: dict[int, str] = {}

    def run(self, urls: Sequence[str]) -> Summary:
        self._survey()
        with disk_errors(self.output):
            self.output.parent.mkdir(parents=True, exist_ok=True)
        form, resumed = run_until_signal(self._collect(urls))
        with Journal(self._journal_path(), self._header(form)) as journal:
            summary = self._write(journal, form, resumed)
            if summary.complete:
                journal.remove()
            return summary

    async def _collect(self, urls: Sequence[str]) -> tuple[LabelFormat, int]:
        """Fill the journal. Returns the labels' format, and how many records an earlier run had labelled."""
        policy = self.options.policy
        timeout = httpx.Timeout(policy.timeout, connect=policy.connect_timeout)
        async with (
            async_client(urls, timeout=timeout, key=client_key(), keepalive=self.options.max_in_flight * len(urls)) as client,
            ServerPool(urls, client, policy, max_in_flight=self.options.max_in_flight) as pool,
        ):
            form = self._label_format(await pool.announcement())
            with Journal(self._journal_path(), self._header(form), restart=self.options.restart) as journal:
                self._check_unchanged(journal)
                resumed = len(journal)
                await self._label(journal, pool, form)
                return form, resumed

    def _journal_path(self) -> Path:
        return self.output.with_name(f"{self.output.name}.journal")

    def _items(self) -> Iterator[Item]:
        for position, (line, raw) in enumerate(raw_lines(self.source)):
            if position in self.options.shard:
                yield Item(position, line, raw)

    def _where(self, item: Item) -> Where:
        return Where(file=str(self.source), line=item.line)

    def _conversation(self, item: Item) -> Conversation:
        where = self._where(item)
        return parse_conversation(item.raw, where)

    def _survey(self) -> None:
        """Count the records and find the broken ones, before any server is asked."""
        for item in self._items():
            self.total += 1
            try:
                self._conversation(item)
            except DataError as error:
                if self.options.on_error == "fail":
                    raise
                self.broken[item.position] = error

    def _label_format(self, announced: Announcement) -> LabelFormat:
        info, options = announced.info, self.options
        if info and info.kind != "value":
            raise ConfigError(f"the servers have a {info.kind} model, which writes under attributes; labelling needs a value model")
        wants_confidence = options.confidence or options.min_confidence > 0
        if wants_confidence and not announced.scores:
            raise ConfigError("the servers have no POST /v1/attributes, so they give no probabilities: leave confidence out")
        schema = info.attributes if info else preset(options.attributes)
        return LabelFormat(
            schema=schema if options.languages else msgspec.structs.replace(schema, languages=()),
            # A server that announces nothing is upstream's, and so is its prompt.
            template=info.template() if info else Template(layout="nemo-annotate"),
            turns=options.turns or (info and taught_turns(info)) or options.turns_unknown,
            fingerprint=announced.fingerprint,
            confidence=wants_confidence,
        )

    def _source(self, form: LabelFormat) -> str:
        return form.fingerprint or self.options.label_source

    def _header(self, form: LabelFormat) -> JournalHeader:
        return JournalHeader(
            model=self._source(form),
            turns=form.turns,
            languages=bool(form.schema.languages),
            attributes=form.schema.names,
            shard=str(self.options.shard),
        )

    def _check_unchanged(self, journal: Journal) -> None:
        if not len(journal):
            return
        last = -1
        for item in self._items():
            journal.check(item.position, record_digest(item.raw), self._where(item))
            last = item.position
        if max(journal.positions) > last:
            raise DataError(
                f"fewer records than {journal.path} has labels for",
                where=Where(file=str(self.source)),
                instead="bring the old input back, or give --restart to label anew",
            )

    async def _label(self, journal: Journal, pool: ServerPool, form: LabelFormat) -> None:
        """Bring every record into the journal or among the failed."""
        pending = (i for i in self._items() if i.position not in journal and i.position not in self.broken)
        batches = iter(lambda: list(itertools.islice(pending, self.options.batch_size)), [])
        self._report(journal)

        async def label(batch: Sequence[Item]) -> None:
            await self._label_batch(batch, journal, pool, form)
            self._report(journal)

        await run_workers(batches, label, count=min(self.options.max_in_flight * len(pool.servers), self.total))

    async def _label_batch(self, batch: Sequence[Item], journal: Journal, pool: ServerPool, form: LabelFormat) -> None:
        work = [Labelling(self._conversation(item), form) for item in batch]
        try:
            await self._finish(work, pool)
        except RequestFailed as failure:
            if len(batch) == 1:
                self.failed[batch[0].position] = failure.reason
                return
            # One bad record must not fail its neighbours: each is labelled by itself.
            for item in batch:
                await self._label_batch([item], journal, pool, form)
            return
        for item, labelling in zip(batch, work, strict=True):
            labels = tuple(labelling.labels[i] for i in labelling.targets)
            journal.append(Entry(at=item.position, digest=record_digest(item.raw), labels=labels))

    async def _finish(self, work: Sequence[Labelling], pool: ServerPool) -> None:
        while any(not labelling.done for labelling in work):
            await pool.call(lambda server: advance(work, server, pool.client, pool.policy))

    def _report(self, journal: Journal) -> None:
        self.progress(len(journal) + len(self.failed) + len(self.broken), self.total)

    def _write(self, journal: Journal, form: LabelFormat, resumed: int) -> Summary:
        source = self._source(form)
        writer = ResultWriter(self.output)
        # This process holds the journal's lock, so the process that left these files is dead.
        for path in (writer.output, writer.rejects.path):
            remove_leftovers(path)
        with writer:
            for item in self._items():
                where = self._where(item)
                entry = journal.get(item.position)
                if entry is None:
                    why = self.failed.get(item.position, "the input changed while it was labelled")
                    reason = self.broken.get(item.position) or DataError(why, where=where)
                    writer.reject(reason, item.raw)
                    continue
                try:
                    require_confidence(entry.labels, self.options.min_confidence, where)
                except DataError as error:
                    writer.reject(error, item.raw, unsure=True)
                    continue
                writer.write(labelled(self._conversation(item), entry.labels, source, confidence=self.options.confidence))
        seconds = time.monotonic() - self.began
        return writer.summary(model=source, total=self.total, resumed=resumed, seconds=seconds, schema=form.schema)
