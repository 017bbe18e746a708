"""What temperature, top-k, top-p and the repetition penalty do, against a plain reference: a token list, sorted and cut by the rules."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, RepetitionPenaltyLogitsProcessor

from nemo_steerlm.inference.engine import GenerationRequest, Sampling
from nemo_steerlm.inference.huggingface import HuggingFaceEngine
from nemo_steerlm.inference.registry import EngineOptions
from nemo_steerlm.inference.sampling import adjust, draw, generator, penalize

DRAWS = 1200


def reference(logits: list[float], sampling: Sampling) -> dict[int, float]:
    """Probability of each token that can be drawn: temperature, then the top_k best, then the fewest that have top_p together."""
    weights = {token: math.exp(logit / sampling.temperature) for token, logit in enumerate(logits)}
    best = sorted(weights, key=weights.__getitem__, reverse=True)[: sampling.top_k or None]
    total = sum(weights[token] for token in best)
    kept: dict[int, float] = {}
    for token in best:
        if sum(kept.values()) >= sampling.top_p * total:
            break
        kept[token] = weights[token]
    return {token: weight / sum(kept.values()) for token, weight in kept.items()}


def frequencies(logits: list[float], sampling: Sampling) -> dict[int, float]:
    source = generator(sampling)
    tokens = draw(torch.tensor([logits] * DRAWS), [sampling] * DRAWS, [source] * DRAWS)
    return {token: count / DRAWS for token, count in Counter(tokens).items()}


SMALL = [2.0, 1.5, 1.1, 0.6, 0.0, -0.3]
"""Probabilities of about 0.41, 0.25, 0.17, 0.10, 0.06, 0.04."""


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 3.0},
        {"top_k": 2},
        {"top_k": 4, "temperature": 2.0},
        {"top_k": 100},
        {"top_p": 0.3},
        {"top_p": 0.6},
        {"top_p": 0.7},
        {"top_p": 0.9},
        {"top_p": 0.7, "temperature": 2.0},
        {"top_k": 3, "top_p": 0.7},
        {"top_k": 4, "top_p": 0.95, "temperature": 1.5},
    ],
)
def test_tokens_are_drawn_as_often_as_their_probability_says(settings: dict[str, float]) -> None:
    sampling = Sampling(seed=3, **settings)
    wanted, drawn = reference(SMALL, sampling), frequencies(SMALL, sampling)
    assert set(drawn) == set(wanted)
    assert drawn == pytest.approx(wanted, abs=4 * 0.5 / math.sqrt(DRAWS))


@pytest.mark.parametrize("settings", [{"top_p": 0.5}, {"top_k": 700, "top_p": 0.5}])
def test_top_p_reaches_beyond_the_most_probable_candidates(settings: dict[str, float]) -> None:
    """1000 tokens that hardly differ: half of the probability is about 400 of them."""
    logits = [-i / 1000 for i in range(1000)]
    sampling = Sampling(seed=1, **settings)
    wanted, drawn = reference(logits, sampling), frequencies(logits, sampling)
    assert 256 < len(wanted) < 500
    assert set(drawn) <= set(wanted)
    assert max(drawn) > 256, "not only the first candidates"


@pytest.mark.parametrize("settings", [{"greedy": True, "temperature": 5.0}, {"temperature": 0.0}, {"top_k": 1}])
def test_the_most_probable_token_is_taken_without_chance(settings: dict[str, float]) -> None:
    assert frequencies([0.1, 0.2, 0.15], Sampling(**settings)) == {1: 1.0}


def test_a_seed_gives_the_same_tokens_and_another_seed_gives_others() -> None:
    def drawn(seed: int) -> list[int]:
        sampling = Sampling(seed=seed)
        source = generator(sampling)
        return [draw(torch.zeros(1, 1000), [sampling], [source])[0] for _ in range(5)]

    assert drawn(1) == drawn(1) != drawn(2)


@given(st.lists(st.floats(-9, 9, width=32), min_size=3, max_size=8), st.sets(st.integers(0, 2), min_size=1), st.floats(1.0, 4.0))
def test_the_penalty_is_transformers(logits: list[float], seen: set[int], penalty: float) -> None:
    ours, ids = torch.tensor(logits), torch.tensor(sorted(seen))
    penalize(ours, ids, penalty)
    theirs = RepetitionPenaltyLogitsProcessor(penalty)(ids[None], torch.tensor([logits]))
    assert torch.equal(ours, theirs[0])


@given(
    logits=st.lists(st.floats(-9, 9, width=32), min_size=6, max_size=6),
    generated=st.dictionaries(st.integers(0, 5), st.integers(1, 4), max_size=4),
    frequency=st.sampled_from([0.0, 0.5, -1.5]),
    presence=st.sampled_from([0.0, 0.75, -2.0]),
    repetition=st.sampled_from([1.0, 1.3]),
    bias=st.dictionaries(st.integers(0, 5), st.floats(-20, 20, width=32), max_size=3),
    allowed=st.sets(st.integers(0, 5), max_size=3),
)
def test_scores_are_adjusted_token_by_token(logits, generated, frequency, presence, repetition, bias, allowed) -> None:
    """OpenAI's formula for what the answer has already, the biases, and nothing but what is allowed. The prompt had token 0."""
    sampling = Sampling(
        frequency_penalty=frequency,
        presence_penalty=presence,
        repetition_penalty=repetition,
        bias=tuple(bias.items()),
        allowed=tuple(allowed),
    )
    seen = {0, *generated} if repetition != 1 else set()
    ours = torch.tensor(logits, dtype=torch.float64)
    adjust(ours, sampling, seen, generated)
    for token, logit in enumerate(logits):
        wanted = (logit * repetition if logit < 0 else logit / repetition) if token in seen else logit
        if token in generated:
            wanted -= generated[token] * frequency + presence
        wanted += bias.get(token, 0.0)
        assert float(ours[token]) == pytest.approx(-math.inf if allowed and token not in allowed else wanted, abs=1e-6)


def generated(engine: HuggingFaceEngine, request: GenerationRequest, count: int) -> list[int]:
    engine.add(0, request)
    tokens = [engine.step()[0].token for _ in range(count)]
    engine.remove(0)
    return tokens


def test_penalty_and_least_length_give_what_transformers_generates(steer_folder) -> None:
    engine = HuggingFaceEngine(steer_folder, EngineOptions(device="cpu"))
    model = AutoModelForCausalLM.from_pretrained(steer_folder, torch_dtype=torch.float32).eval()
    prompt = tuple(engine.tokenizer.encode("Once upon a time there was a dog. The dog"))

    def expected(**settings) -> list[int]:
        ids = torch.tensor([prompt])
        settings = {"do_sample": False, "max_new_tokens": 8, "min_new_tokens": 8, "eos_token_id": 2, "pad_token_id": 0, **settings}
        return model.generate(ids, attention_mask=torch.ones_like(ids), **settings)[0, len(prompt) :].tolist()

    plain = expected()
    greedy = GenerationRequest(prompt=prompt, sampling=Sampling(greedy=True))
    assert generated(engine, greedy, 8) == plain
    penalized = GenerationRequest(prompt=prompt, sampling=Sampling(greedy=True, repetition_penalty=1.5))
    assert generated(engine, penalized, 8) == expected(repetition_penalty=1.5) != plain
    held = GenerationRequest(prompt=prompt, sampling=Sampling(greedy=True), stop_ids=frozenset({plain[2]}), min_tokens=5)
    tokens = generated(engine, held, 8)
    assert tokens[:5] == expected(eos_token_id=plain[2], min_new_tokens=5, max_new_tokens=5)
    assert plain[2] not in tokens[:5]
    assert (
        generated(engine, GenerationRequest(prompt=prompt, sampling=Sampling(greedy=True), stop_ids=frozenset({plain[2]}), min_tokens=2), 3)
        == plain[:3]
    )
