"""Sampling the next token of every row of a batch, each with its own settings and its own random numbers."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import torch

from nemo_steerlm.inference.engine import Sampling

_CANDIDATES = 256
"""Most probable tokens that top-p tries first; sorting the whole vocabulary costs more than a small model's step."""

PLAUSIBLE = 0.1
"""With guidance above 1, tokens that have less than this share of the most probable token's probability are left out."""


def generator(sampling: Sampling) -> torch.Generator:
    """A row's own source of random numbers, seeded by ``sampling.seed`` or at random."""
    source = torch.Generator()
    if sampling.seed is None:
        source.seed()
    else:
        source.manual_seed(sampling.seed % 2**63)
    return source


def penalize(logits: torch.Tensor, seen: torch.Tensor, penalty: float) -> None:
    """Apply the repetition penalty in place, as transformers does (CTRL, arXiv:1909.05858).

    Args:
        logits: Scores [vocabulary].
        seen: Token ids of prompt and output, each once.
        penalty: Divides positive scores and multiplies negative ones.
    """
    scores = logits[seen]
    logits[seen] = torch.where(scores < 0, scores * penalty, scores / penalty)


def guide(asked: torch.Tensor, reference: torch.Tensor, scale: float) -> torch.Tensor:
    """Classifier-free guidance (arXiv:2306.17806) of the scores of one row.

    By Bayes the difference of the two is what a token says of the label, so ``scale - 1`` is the weight of the model's own classifier.
    Above 1, tokens that are implausible under ``asked`` are left out (contrastive decoding, arXiv:2210.15097): there it is noise.

    Args:
        asked: Scores [vocabulary] after the prompt that was asked for.
        reference: Scores [vocabulary] after the reference prompt and the same answer.
        scale: 1 is ``asked`` alone, 0 ``reference`` alone.

    Returns:
        ``reference + scale * (asked - reference)`` of log-probabilities, fp32.
    """
    c, u = asked.float().log_softmax(-1), reference.float().log_softmax(-1)
    guided = u + scale * (c - u)
    if scale > 1:
        guided[c < c.max() + math.log(PLAUSIBLE)] = -torch.inf
    return guided


def adjust(logits: torch.Tensor, sampling: Sampling, seen: Collection[int], generated: Mapping[int, int]) -> None:
    """Change the scores [vocabulary] of one row in place, as ``sampling`` asks.

    Args:
        logits: The model's scores.
        sampling: The row's settings.
        seen: Tokens of prompt and answer; empty where there is no repetition penalty.
        generated: How often the answer has each of its tokens.
    """
    if seen:
        penalize(logits, torch.tensor(sorted(seen)), sampling.repetition_penalty)
    if generated and (sampling.frequency_penalty or sampling.presence_penalty):
        counts = torch.tensor(list(generated.values()), dtype=logits.dtype)
        logits[list(generated)] -= sampling.frequency_penalty * counts + sampling.presence_penalty
    for token, bias in sampling.bias:
        logits[token] += bias
    if sampling.allowed:
        kept = torch.tensor(sampling.allowed)
        scores = logits[kept]
        logits.fill_(-torch.inf)
        logits[kept] = scores


def draw(logits: torch.Tensor, settings: Sequence[Sampling], sources: Sequence[torch.Generator]) -> list[int]:
    """Sample one token per row.

    Args:
        logits: Scores [rows, vocabulary], the repetition penalty applied.
        settings: Per row.
        sources: Per row; each sampled token takes one random number.

    Returns:
        Token ids, one per row.
    """
    rows = zip(logits, settings, sources, strict=True)
    return [int(row.argmax()) if sampling.takes_best else _draw_row(row, sampling, source) for row, sampling, source in rows]


def _draw_row(logits: torch.Tensor, sampling: Sampling, source: torch.Generator) -> int:
    scores = logits / sampling.temperature
    vocabulary = scores.shape[0]
    if not sampling.top_k and sampling.top_p >= 1:
        return int(_pick(scores.softmax(0), source))
    kept = min(sampling.top_k or vocabulary, vocabulary)
    if sampling.top_p >= 1:
        values, ids = scores.topk(kept)
        return int(ids[_pick(values.softmax(0), source)])
    total = scores.topk(kept)[0].logsumexp(0) if sampling.top_k else scores.logsumexp(0)
    for size in (min(_CANDIDATES, kept), kept):
        values, ids = scores.topk(size)
        chances = (values - total).exp()
        # A token stays if the tokens before it sum to less than top_p; so at least one stays.
        before = chances.cumsum(0) - chances
        inside = int((before < sampling.top_p).sum())
        if inside < size or size == kept:
            chances = chances[: max(inside, 1)]
            return int(ids[_pick(chances / chances.sum(), source)])
    raise AssertionError("unreachable: the last size is all candidates")


def _pick(chances: torch.Tensor, source: torch.Generator) -> int:
    """Index drawn from ``chances`` (sum 1) by one uniform number."""
    point = float(torch.rand((), generator=source, dtype=torch.float64))
    sums = chances.double().cumsum(0)
    return min(int(torch.searchsorted(sums, point * float(sums[-1]), right=True)), len(chances) - 1)
