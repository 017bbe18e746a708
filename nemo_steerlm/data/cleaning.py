"""Drop records that teach nothing within the length, as NeMo's sft/data_clean.py does, and say why each one was dropped.

Upstream keeps a conversation that is too long: a training cuts it. A server that is to label it refuses it, so it can be shortened here.
"""

from __future__ import annotations

import bisect
import collections
import contextlib
import hashlib
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from nemo_steerlm.core.attributes import AttributeSchema
from nemo_steerlm.core.conversation import Conversation, Mode
from nemo_steerlm.core.encoding import encode_spans, require_learned
from nemo_steerlm.core.errors import DataError, UsageError, Where
from nemo_steerlm.core.files import atomic_write, json_line
from nemo_steerlm.core.template import ChatTokens, Layout, Template, text_of
from nemo_steerlm.core.tokenization import HuggingFaceTokenizer, SentencePieceTokenizer, TextTokenizer
from nemo_steerlm.data.parallel import batches, ordered_map
from nemo_steerlm.data.records import check_conversation, parse_conversation, raw_lines
from nemo_steerlm.data.rejects import OnError, Rejects


class TokenizerChoice(NamedTuple):
    """A tokenizer as upstream's flags name it."""

    library: str = "huggingface"
    model_name: str = "EleutherAI/gpt-neox-20b"
    """Hugging Face: a folder, a ``tokenizer.json``, or a name on the hub."""
    model_file: str | None = None
    """Sentencepiece: the ``.model`` file."""

    def load(self, tokens: ChatTokens) -> TextTokenizer:
        """The tokenizer. ``tokens``' markers are added to a Hugging Face one, as upstream does.

        Raises:
            UsageError: If the flags do not name a tokenizer of the library.
        """
        if self.library == "sentencepiece":
            if not self.model_file:
                raise UsageError("--library sentencepiece needs --model_file")
            return SentencePieceTokenizer(self.model_file)
        if self.library == "huggingface":
            return HuggingFaceTokenizer.load(self.model_name, add=tokens.markers)
        raise UsageError(f"--library {self.library!r}: write huggingface or sentencepiece")


class CleaningRules(NamedTuple):
    """What a record has to be to stay."""

    seq_len: int = 4096
    """Something must be learned within this many tokens."""
    tokens: ChatTokens = ChatTokens()
    layout: Layout = "nemo-sft"
    schema: AttributeSchema | None = None
    """Labels must fit it; not looked at where None."""
    shorten: AttributeSchema | None = None
    """Cut each conversation after the last turn that still fits ``seq_len`` when every turn has a label of this schema."""
    mode: Mode | None = None
    """What every record becomes, whatever its type was; as it is where None."""
    hide_human: Literal["none", "masked", "all"] = "none"
    """Whose labels by people move to ``gt_label``, where no prompt shows them: those of the masked role, or of all. Nobody labels
    these turns when the model is asked, so it must not learn to expect their labels (NeMo-Aligner writes ``label: null``)."""


class Cleaned(NamedTuple):
    """What ``clean`` did."""

    kept: int
    removed: dict[str, int]
    """Records that teach nothing, by reason."""
    shortened: int
    """Records that lost turns, kept or not."""
    rejected: dict[str, int]
    """Broken records that were set aside, by reason."""


class _Outcome(NamedTuple):
    """What became of one line; ``error`` and ``broken`` say why it is not kept."""

    line: str
    raw: bytes
    error: DataError | None = None
    broken: bool = False
    where: Where = Where()
    tree: str | None = None
    """The conversation's ``tree_id``. None unless conversations are shortened, which is what makes branches of a tree equal."""
    cut: bool = False
    """Whether it lost turns."""


def clean(
    dataset_file: str | Path | Sequence[Path],
    output_file: str | Path,
    tokenizer: TokenizerChoice,
    rules: CleaningRules | None = None,
    *,
    jobs: int = 1,
    on_error: OnError = "fail",
    details: str | Path | None = None,
) -> Cleaned:
    """Copy to ``output_file`` the records of one file, or several, that still have a learned token after truncation, in order.

    A record with nothing to learn is removed and counted (upstream: ``removed``); ``details`` names a JSONL file that gets line and
    reason of each. A broken one (upstream removes it silently) ends the job, or is set aside with ``on_error="skip"``.
    Branches of a tree that are equal after ``rules.shorten`` are written once.

    Raises:
        DataError: If a record is broken, unless it is set aside; or if no record is left.
        UsageError: If ``rules.seq_len`` is less than 1, or the tokenizer is none.
    """
    rules = rules or CleaningRules()
    if rules.seq_len < 1:
        raise UsageError(f"--seq_len {rules.seq_len}: use at least 1")
    files = [dataset_file] if isinstance(dataset_file, str | Path) else list(dataset_file)
    kept = shortened = 0
    removed: collections.Counter[str] = collections.Counter()
    branches = _Branches()
    with contextlib.ExitStack() as stack:
        rejects = stack.enter_context(Rejects(output_file, on_error))
        listing = stack.enter_context(atomic_write(details)) if details else None
        output = stack.enter_context(atomic_write(output_file))
        for outcome in map(branches.once, _outcomes(files, tokenizer, rules, jobs)):
            shortened += outcome.cut
            if outcome.error is None:
                output.write(outcome.line)
                kept += 1
            elif outcome.broken:
                rejects.add(outcome.error, outcome.raw)
            else:
                removed[outcome.error.reason] += 1
                if listing:
                    listing.write(json_line({"line": outcome.error.where.line, "reason": outcome.error.reason}))
        if not kept:
            rejects.save()
            raise _nothing_left(files, removed, rejects)
        return Cleaned(kept, dict(removed), shortened, dict(rejects.counts))


def _nothing_left(files: Sequence[str | Path], removed: collections.Counter[str], rejects: Rejects) -> DataError:
    reasons = removed + rejects.counts
    most = max(reasons, key=lambda reason: reasons[reason])
    found = f"{reasons.total()} records, none of which can be used: {most} ({reasons[most]})"
    instead = f"see {rejects.path}" if rejects.count else None
    return DataError(found, where=Where(file=", ".join(map(str, files))), instead=instead)


class _Branches:
    """The branches of the tree that is being written: shortened ones may be equal. Trees stand together in a file."""

    def __init__(self) -> None:
        self._tree: str | None = None
        self._written: set[bytes] = set()

    def once(self, outcome: _Outcome) -> _Outcome:
        """``outcome``, with an error where an equal branch has been written."""
        if outcome.error or outcome.tree is None:
            return outcome
        if outcome.tree != self._tree:
            self._tree, self._written = outcome.tree, set()
        digest = hashlib.blake2b(outcome.line.encode(), digest_size=16).digest()
        if outcome.cut and digest in self._written:
            return outcome._replace(error=DataError("equals another branch of its tree when shortened", where=outcome.where))
        self._written.add(digest)
        return outcome


def _outcomes(files: Sequence[str | Path], tokenizer: TokenizerChoice, rules: CleaningRules, jobs: int) -> Iterator[_Outcome]:
    lines = ((str(file), number, raw) for file in files for number, raw in raw_lines(file))
    results = ordered_map(_work, batches(lines, 32), jobs=jobs, prepare=_prepare, settings=(tokenizer, rules))
    return itertools.chain.from_iterable(results)


_worker: dict[str, Any] = {}
"""What this process works with, set once by ``_prepare``."""


def _prepare(tokenizer: TokenizerChoice, rules: CleaningRules) -> None:
    loaded = tokenizer.load(rules.tokens)
    template = Template.of(loaded, rules.tokens, rules.layout)
    label = _longest_label(rules.shorten, loaded) if rules.shorten else None
    _worker.update(tokenizer=loaded, rules=rules, template=template, label=label)


def _work(group: list[tuple[str, int, bytes]]) -> list[_Outcome]:
    return [_outcome(raw, Where(file=file, line=number)) for file, number, raw in group]


def _outcome(raw: bytes, where: Where) -> _Outcome:
    rules: CleaningRules = _worker["rules"]
    try:
        conversation = _without_hidden_labels(parse_conversation(raw, where), rules)
        conversation = check_conversation(conversation, where, tokens=rules.tokens, schema=rules.schema)
    except DataError as error:
        return _Outcome("", raw, error, broken=True)
    if rules.mode is not None:
        conversation = msgspec.structs.replace(conversation, mode=rules.mode)
    turns = len(conversation.turns)
    cut = False
    try:
        if rules.shorten:
            conversation = _shortened(conversation, _worker["label"])
        cut = len(conversation.turns) < turns
        if cut and all(turn.speaker == conversation.mask for turn in conversation.turns):
            raise DataError(f"no answer left within {rules.seq_len} tokens")
        require_learned(encode_spans(_worker["template"].render(conversation), _worker["tokenizer"]), rules.seq_len)
    except DataError as error:
        return _Outcome("", raw, error.located(file=where.file, line=where.line), cut=cut)
    tree = conversation.tree_id if rules.shorten else None
    return _Outcome(json_line(conversation.to_record()), b"", where=where, tree=tree, cut=cut)


def _without_hidden_labels(conversation: Conversation, rules: CleaningRules) -> Conversation:
    if rules.hide_human == "none":
        return conversation
    hidden = {conversation.mask} if rules.hide_human == "masked" else {turn.speaker for turn in conversation.turns}
    turns = tuple(turn.without_human_label() if turn.speaker in hidden else turn for turn in conversation.turns)
    return msgspec.structs.replace(conversation, turns=turns)


def _shortened(conversation: Conversation, label: str) -> Conversation:
    """``conversation`` up to the last turn that a server can read when every turn has ``label``; the first turn always stays."""
    labelled = tuple(msgspec.structs.replace(turn, label=label) for turn in conversation.turns)

    def length(turns: int) -> int:
        spans = _worker["template"].render(msgspec.structs.replace(conversation, turns=labelled[:turns]), "TEXT_TO_VALUE")
        return len(_worker["tokenizer"].encode(text_of(spans)))

    keep = bisect.bisect_right(range(1, len(labelled) + 1), _worker["rules"].seq_len, key=length)
    return msgspec.structs.replace(conversation, turns=conversation.turns[: max(keep, 1)])


def _longest_label(schema: AttributeSchema, tokenizer: TextTokenizer) -> str:
    values = {attribute.name: max(attribute.values, key=lambda value: len(str(value))) for attribute in schema.attributes}
    labels = [schema.encode(values, language) for language in schema.languages or (None,)]
    return max(labels, key=lambda label: len(tokenizer.encode(label)))
