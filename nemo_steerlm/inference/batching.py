"""Continuous batching and scoring over any ``BlockModel``: everything of an engine but its layers."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence

import msgspec
import torch

from nemo_steerlm.core.model_info import ModelInfo
from nemo_steerlm.core.tokenization import TextTokenizer
from nemo_steerlm.inference.blocks import Block, BlockModel, Part, RowCache, pieces
from nemo_steerlm.inference.engine import GenerationRequest, NextToken, ScoredTurn, ScoreRequest, TokenLogprob
from nemo_steerlm.inference.memory import free_bytes
from nemo_steerlm.inference.prefix_cache import Known, PrefixCache
from nemo_steerlm.inference.registry import EngineOptions
from nemo_steerlm.inference.sampling import adjust, draw, generator, guide
from nemo_steerlm.inference.scoring import AttributeScorer

logger = logging.getLogger(__name__)

_PIECE = 128
"""Prompt tokens per forward if their log-probabilities are requested."""
_MARGIN = 64
"""Tokens for which there must be room beside a row's own when it joins, so that rows are not sent back as soon as they have joined."""

_KEPT = 4
"""One part in so many of the tokens there is room for may be kept for texts that begin alike."""


class _Running:
    """A row in the batch."""

    def __init__(self, row: int, request: GenerationRequest, reference: _Running | None = None) -> None:
        self.row = row
        self.request = request
        self.reference = reference
        """The row that reads the same answer after the reference prompt; None where there is no guidance."""
        self.ids = list(request.prompt)
        self.generated = 0
        self.source = generator(request.sampling)
        self.prompt_logprobs: list[TokenLogprob] | None = None
        penalty = request.sampling.repetition_penalty
        self.seen = set(request.prompt) if penalty != 1.0 else set()
        self.counts: Counter[int] = Counter()

    @property
    def rows(self) -> list[_Running]:
        """Itself and its reference: they choose their tokens together."""
        return [self] if self.reference is None else [self, self.reference]

    @property
    def wants_prompt(self) -> bool:
        """Whether the log-probabilities of its prompt are still to be told."""
        return self.request.prompt_logprobs and not self.generated


class BatchedEngine:
    """See ``Engine``. Rows join and leave the batch between steps (continuous batching)."""

    info: ModelInfo

    def __init__(self, info: ModelInfo | None, tokenizer: TextTokenizer, model: BlockModel, options: EngineOptions) -> None:
        """Wrap a loaded model. One of no ``info``, such as a base model, only generates.

        Raises:
            ConfigError: If it is a value model whose labels cannot be scored.
            UsageError: If ``options`` want it to take more tokens than it has positions for.
        """
        if info is not None:
            self.info = info
        self.tokenizer = tokenizer
        self.max_rows = options.max_rows
        self._model = model
        self._cache_tokens = options.cache_tokens or free_bytes(options.device) // 2 // model.token_bytes
        length = model.max_length if info is None else info.served_length(model.max_length, options.max_model_len)
        self.max_length = min(length, self._cache_tokens)
        if self.max_length < length:
            logger.warning("takes %d tokens of prompt and answer together: there is no memory for more", self.max_length)
        elif length < model.max_length:
            logger.info("takes %d tokens of prompt and answer together; --max-model-len raises it, to %d at most", length, model.max_length)
        self._prefixes = PrefixCache(model, self._cache_tokens // _KEPT if options.prefix_cache else 0)
        self._scorer = AttributeScorer(model, tokenizer, info, self._prefixes) if info is not None and info.kind == "value" else None
        self._waiting: list[_Running] = []
        self._running: list[_Running] = []
        self._removed: set[int] = set()
        self._cache: RowCache | None = None

    @property
    def reused_tokens(self) -> int:
        """See Engine."""
        return self._prefixes.reused

    def add(self, row: int, request: GenerationRequest) -> None:
        """See Engine."""
        if row in self._removed:
            self._remove()
        reference = None
        if request.guided and request.reference is not None:
            reference = _Running(row, msgspec.structs.replace(request, prompt=request.reference, reference=None))
        self._waiting.append(_Running(row, request, reference))

    def remove(self, row: int) -> None:
        """See Engine. Takes effect with the next step, so that rows which end together leave the cache together."""
        self._removed.add(row)

    def close(self) -> None:
        """See Engine. The engine holds nothing but memory."""

    def _remove(self) -> None:
        gone, self._removed = self._removed, set()
        self._waiting = [r for r in self._waiting if r.row not in gone]
        keep = [i for i, r in enumerate(self._running) if r.row not in gone]
        if len(keep) == len(self._running):
            return
        self._make_room([self._running[i] for i in keep])
        for row, known in zip(self._running, self._known(), strict=False):
            if row.row in gone:
                self._prefixes.keep(known.ids, known.part, answer=len(known.ids) - len(row.request.prompt))
        self._running = [self._running[i] for i in keep]
        if not keep:
            self._cache = None
        elif self._cache is not None:
            self._cache.select(keep)

    def score(self, requests: Sequence[ScoreRequest]) -> list[list[ScoredTurn]]:
        """See Engine.

        Raises:
            RuntimeError: On a steer model, whose server offers no scoring.
        """
        if self._scorer is None:
            raise RuntimeError("a steer model writes under labels; it does not read them")
        return self._scorer.score(requests)

    @torch.inference_mode()
    def step(self) -> dict[int, NextToken]:
        """See Engine. New rows get their prompts read and their first token in the same step."""
        self._remove()
        self._send_back()
        tokens: dict[int, NextToken] = {}
        running = self._running
        if running and self._cache is not None:
            block = Block([[r.ids[-1]] for r in running], [len(r.ids) - 1 for r in running])
            tokens |= self._choose(running, self._model.forward(self._cache, block, reads=_last(block)))
        admitted = self._admitted()
        self._make_room([*running, *(one for row in admitted for one in row.rows)])
        for group in self._groups(admitted):
            cache, scores = self._prefill(group)
            tokens |= self._choose(group, scores)
            if self._cache is None:
                self._cache = cache
            else:
                self._cache.append(cache)
            self._running = self._running + group
        return tokens

    def _send_back(self) -> None:
        """Let the rows that came last wait, with what they have generated, where there is no room for one more token of each."""
        keep = len(self._running)
        while keep > 1 and keep * (1 + max(len(r.ids) for r in self._running[:keep])) > self._cache_tokens:
            keep -= 1
        if keep and self._running[keep - 1].reference is not None:
            keep += 1 if keep == 1 else -1  # it stays or goes with its reference, which is the next row
        if keep < len(self._running) and self._cache is not None:
            back, self._running = self._running[keep:], self._running[:keep]
            references = {id(row.reference) for row in back}
            self._waiting = [row for row in back if id(row) not in references] + self._waiting
            self._cache.select(range(keep))

    def _admitted(self) -> list[_Running]:
        """The waiting rows, first come, first served, for which there is room beside those that run; one if none runs."""
        rows, longest = len(self._running), max((len(r.ids) for r in self._running), default=0)
        count = 0
        for row in self._waiting:
            longest = max(longest, *(len(r.ids) for r in row.rows))
            if rows and (rows + len(row.rows)) * (longest + _MARGIN) > self._cache_tokens:
                break
            rows += len(row.rows)
            count += 1
        admitted, self._waiting = self._waiting[:count], self._waiting[count:]
        return admitted

    def _make_room(self, rows: list[_Running]) -> None:
        """Keep texts only in the room that ``rows`` leave."""
        longest = max((len(r.ids) for r in rows), default=0)
        self._prefixes.limit(self._cache_tokens - len(rows) * (longest + _MARGIN))

    def _known(self) -> list[Known]:
        """What the rows that run have in the cache: all but the token that was chosen last."""
        if self._cache is None or not self._prefixes.most:
            return []
        columns = [visible.nonzero()[:, 0].tolist() for visible in self._cache.visible]
        return [Known(r.ids[:-1], Part(self._cache, i, columns[i])) for i, r in enumerate(self._running)]

    def _groups(self, admitted: list[_Running]) -> list[list[_Running]]:
        """Rows in groups that have similarly much to read; rows that request prompt log-probabilities form groups of one."""
        running = self._known() if admitted else []
        unread = {id(row): self._prefixes.unread(row.ids, running) for row in admitted}
        groups: list[list[_Running]] = []
        alone: list[list[_Running]] = []
        for row in sorted(admitted, key=lambda r: unread[id(r)]):
            if row.wants_prompt:
                alone.append(row.rows)
            elif groups and unread[id(row)] <= 1.3 * unread[id(groups[-1][0])] + 16:
                groups[-1] += row.rows
            else:
                groups.append(row.rows)
        return groups + alone

    def _prefill(self, rows: list[_Running]) -> tuple[RowCache, torch.Tensor]:
        """Read the prompts. Returns their cache, and the scores of each row's next token [rows, vocabulary]."""
        if rows[0].wants_prompt and len(rows) == 1:
            return self._prefill_with_logprobs(rows[0])
        cache, known = self._prefixes.begin([r.ids for r in rows], self._known(), together=True)
        scores = torch.empty(0)
        for block in pieces([r.ids[have:] for r, have in zip(rows, known, strict=True)], known, max(known)):
            scores = self._model.forward(cache, block, reads=_last(block))
        return cache, scores

    def _prefill_with_logprobs(self, row: _Running) -> tuple[RowCache, torch.Tensor]:
        """In pieces: the scores of all prompt tokens over the whole vocabulary take much memory."""
        cache = self._model.cache(1, len(row.ids))
        logprobs: list[TokenLogprob] = []
        scores = torch.empty(0)
        for start in range(0, len(row.ids), _PIECE):
            piece = row.ids[start : start + _PIECE]
            scores = self._model.forward(cache, Block([piece], [start]), reads=[(0, i) for i in range(len(piece))])
            logs = scores[:, : self.tokenizer.vocab_size].log_softmax(-1)
            logprobs += [_logprob(log, token, row.request) for log, token in zip(logs, row.ids[start + 1 :], strict=False)]
        row.prompt_logprobs = logprobs
        return cache, scores[-1:]

    def _choose(self, rows: list[_Running], logits: torch.Tensor) -> dict[int, NextToken]:
        # A padded vocabulary has columns beyond the tokenizer's; they stand for no token.
        logits = logits[:, : self.tokenizer.vocab_size]
        if any(r.reference is not None for r in rows):
            rows, logits = _guided(rows, logits)
        raw = logits.log_softmax(-1) if any(r.request.logprobs is not None or r.request.full_logprobs for r in rows) else None
        if raw is not None and any(r.request.sampling.changes_scores or r.request.min_tokens for r in rows):
            logits = logits.clone()
        for i, row in enumerate(rows):
            adjust(logits[i], row.request.sampling, row.seen, row.counts)
            if row.generated < row.request.min_tokens:
                logits[i, list(row.request.stop_ids)] = -torch.inf
        tokens = draw(logits, [r.request.sampling for r in rows], [r.source for r in rows])
        result = {}
        for i, (row, token) in enumerate(zip(rows, tokens, strict=True)):
            wanted = row.request.logprobs is not None or row.request.full_logprobs
            logprob = _logprob(raw[i], token, row.request) if wanted and raw is not None else None
            result[row.row] = NextToken(token, logprob, row.prompt_logprobs)
            row.prompt_logprobs = None
            row.ids.append(token)
            if row.reference is not None:
                row.reference.ids.append(token)
            row.generated += 1
            row.counts[token] += 1
            if row.request.sampling.repetition_penalty != 1.0:
                row.seen.add(token)
        return result


def _guided(rows: list[_Running], logits: torch.Tensor) -> tuple[list[_Running], torch.Tensor]:
    """The rows that answer, and their scores [rows, vocabulary]: those of a guided row combined with its reference's, the next row."""
    answering, scores = [], []
    beside = iter(zip(rows, logits, strict=True))
    for row, own in beside:
        answering.append(row)
        scores.append(own if row.reference is None else guide(own, next(beside)[1], row.request.guidance))
    return answering, torch.stack(scores)


def _last(block: Block) -> list[tuple[int, int]]:
    """(row, column) of the scores of every row's next token."""
    return [(row, block.tokens.shape[1] - 1) for row in range(block.tokens.shape[0])]


def _logprob(logs: torch.Tensor, token: int, request: GenerationRequest) -> TokenLogprob:
    count = min(request.logprobs or 0, logs.shape[0])
    if request.logprob_ids:
        pairs = sorted(((i, float(logs[i])) for i in request.logprob_ids), key=lambda pair: -pair[1])
    else:
        top = logs.topk(count)
        pairs = list(zip(top.indices.tolist(), top.values.tolist(), strict=True))
    return TokenLogprob(float(logs[token]), pairs, logs.tolist() if request.full_logprobs else None)
