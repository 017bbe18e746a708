"""Rows wait for room in the cache, and long prompts are read in pieces: nobody's answer changes by it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nemo_steerlm.inference import blocks
from nemo_steerlm.inference.engine import GenerationRequest, NextToken, Sampling
from nemo_steerlm.inference.huggingface import HuggingFaceEngine
from nemo_steerlm.inference.registry import EngineOptions
from nemo_steerlm.megatron import grouped_attention
from nemo_steerlm.megatron.grouped_attention import grouped_sdpa
from tests.inference.test_scoring import requests

ROOM = 320
"""Tokens: two of the rows below begin together, and both would need 360 in the end."""
LENGTHS = (5, 90, 30, 11, 60, 41)
ANSWER = 90


class WatchedEngine(HuggingFaceEngine):
    """Notes how much room the batch took at each step."""

    def __init__(self, folder, **settings):
        super().__init__(folder, EngineOptions(device="cpu", **settings))
        self.rooms: list[tuple[int, int]] = []
        self.sent_back = 0

    def step(self) -> dict[int, NextToken]:
        told = super().step()
        self.sent_back += sum(row.generated > 0 for row in self._waiting)
        if self._cache is not None:
            self.rooms.append((self._cache.rows, self._cache.length))
        return told


def answers(engine: HuggingFaceEngine, **settings) -> dict[int, list[NextToken]]:
    """Each row's tokens, as the scheduler would ask for them."""
    told: dict[int, list[NextToken]] = {row: [] for row in range(len(LENGTHS))}
    for row, length in enumerate(LENGTHS):
        prompt = tuple(5 + (row * 37 + i * i) % 400 for i in range(length))
        sampling = Sampling(seed=row, temperature=0.7, repetition_penalty=1.2)
        engine.add(row, GenerationRequest(prompt=prompt, sampling=sampling, **settings))
    while any(len(tokens) < ANSWER for tokens in told.values()):
        for row, token in engine.step().items():
            told[row].append(token)
            if len(told[row]) == ANSWER:
                engine.remove(row)
    return told


def ids(told: dict[int, list[NextToken]]) -> dict[int, list[int]]:
    return {row: [token.token for token in tokens] for row, tokens in told.items()}


@pytest.fixture(scope="module")
def unlimited(steer_folder):
    return HuggingFaceEngine(steer_folder, EngineOptions(device="cpu"))


def test_rows_wait_for_room_and_are_answered_as_if_they_had_not(steer_folder, unlimited):
    engine = WatchedEngine(steer_folder, cache_tokens=ROOM)
    told = answers(engine, logprobs=0, prompt_logprobs=True)
    assert ids(told) == ids(answers(unlimited))
    assert all(rows * length <= ROOM for rows, length in engine.rooms)
    assert engine.sent_back, "rows that had begun waited again"
    for row, tokens in told.items():
        assert [token.prompt is None for token in tokens] == [False] + [True] * (ANSWER - 1), "told once, though the row was sent back"
        assert len(tokens[0].prompt or []) == LENGTHS[row] - 1


def test_a_guided_row_waits_together_with_its_reference(steer_folder, unlimited):
    guided = {"reference": tuple(range(5, 25)), "guidance": 1.5}
    engine = WatchedEngine(steer_folder, cache_tokens=2 * ROOM)
    assert ids(answers(engine, **guided)) == ids(answers(unlimited, **guided))
    assert all(rows * length <= 2 * ROOM for rows, length in engine.rooms)
    assert all(rows % 2 == 0 for rows, _ in engine.rooms)
    assert engine.sent_back


def test_a_row_alone_always_has_room_because_no_request_may_be_longer(steer_folder):
    engine = HuggingFaceEngine(steer_folder, EngineOptions(device="cpu", cache_tokens=100))
    assert engine.max_length == 100
    assert HuggingFaceEngine(steer_folder, EngineOptions(device="cpu", cache_tokens=10_000)).max_length == 512


def test_long_prompts_are_read_in_pieces(unlimited, monkeypatch):
    whole = ids(answers(unlimited))
    widest = 0
    forward = unlimited._model.forward

    def watched(cache, block, *arguments, **settings):
        nonlocal widest
        widest = max(widest, block.tokens.numel())
        return forward(cache, block, *arguments, **settings)

    monkeypatch.setattr(unlimited._model, "forward", watched)
    monkeypatch.setattr(blocks, "PIECE_TOKENS", 17)
    assert ids(answers(unlimited)) == whole
    assert widest <= 17
    monkeypatch.setattr(blocks, "PIECE_TOKENS", 1 << 20)
    monkeypatch.setattr(blocks, "PIECE_MASK", 1000)
    widest = 0
    assert ids(answers(unlimited)) == whole
    assert widest <= 1000 // 11, "of rows of 11 columns"


def test_labels_of_long_conversations_are_read_in_pieces(value_folder, monkeypatch):
    engine = HuggingFaceEngine(value_folder, EngineOptions(device="cpu"))

    asked = requests(6)
    whole = engine.score(asked)
    monkeypatch.setattr(blocks, "PIECE_TOKENS", 40)
    for expected, found in zip(whole, engine.score(asked), strict=True):
        assert [turn.label for turn in found] == [turn.label for turn in expected]
        for one, other in zip(found, expected, strict=True):
            for name, choice in one.choices.items():
                assert choice.probabilities == pytest.approx(other.choices[name].probabilities, abs=1e-4)


ROWS = st.lists(st.lists(st.integers(1, 9), max_size=20), min_size=1, max_size=4).filter(any)


@given(rows=ROWS, start=st.integers(0, 5), most=st.integers(1, 30))
def test_pieces_of_a_block_are_the_block(rows, start, most):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "PIECE_TOKENS", most)
        cut = list(blocks.pieces(rows, [start] * len(rows)))
    whole = blocks.Block(rows, [start] * len(rows))
    for name in ("tokens", "positions", "visible"):
        assert torch.equal(torch.cat([getattr(block, name) for block in cut], dim=1), getattr(whole, name))
    assert all(block.tokens.numel() <= max(most, len(rows)) for block in cut)


def test_a_mask_that_is_not_copied_for_each_head_gives_the_same(monkeypatch):
    torch.manual_seed(0)
    query, key, value = torch.randn(2, 6, 5, 8), torch.randn(2, 2, 9, 8), torch.randn(2, 2, 9, 8)
    mask = torch.zeros(2, 1, 5, 9).masked_fill_(torch.rand(2, 1, 5, 9) < 0.3, float("-inf"))
    mask[..., 0] = 0
    copied, _ = grouped_sdpa(torch.nn.Module(), query, key, value, mask)
    monkeypatch.setattr(grouped_attention, "_COPIED", 0)
    found, _ = grouped_sdpa(torch.nn.Module(), query, key, value, mask)
    assert torch.allclose(found, copied, atol=1e-6)
