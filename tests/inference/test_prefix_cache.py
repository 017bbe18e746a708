"""What was read is not read again where a text begins alike, and nobody's answer changes by it."""

from __future__ import annotations

import json

import msgspec
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nemo_steerlm.core.conversation import Turn
from nemo_steerlm.inference import prefix_cache
from nemo_steerlm.inference.blocks import Block, Part
from nemo_steerlm.inference.engine import GenerationRequest, NextToken, Sampling, ScoreRequest
from nemo_steerlm.inference.huggingface import HuggingFaceEngine
from nemo_steerlm.inference.prefix_cache import PrefixCache
from nemo_steerlm.inference.registry import EngineOptions
from tests.inference.test_scoring import requests
from tests.serving.test_server import metrics


class CountingEngine(HuggingFaceEngine):
    """Counts the tokens that its model reads, and notes how much room is taken after each step."""

    def __init__(self, folder, **settings) -> None:
        super().__init__(folder, EngineOptions(device="cpu", **settings))
        self.read = 0
        self.rooms: list[int] = []
        forward = self._model.forward

        def counted(cache, block, *arguments, **named):
            self.read += sum(block.widths)
            return forward(cache, block, *arguments, **named)

        self._model.forward = counted

    def step(self) -> dict[int, NextToken]:
        told = super().step()
        self.rooms.append(self._prefixes.tokens + (self._cache.rows * self._cache.length if self._cache is not None else 0))
        return told


def text(seed: int, length: int) -> tuple[int, ...]:
    return tuple(5 + (seed * 37 + i * i) % 400 for i in range(length))


SYSTEM = text(0, 60)
STEPS = 8


def conversations(engine: HuggingFaceEngine) -> list[list[NextToken]]:
    """Every kind of beginning that requests share: of those that come together, that run, that are answered, and of one that is guided."""
    told: list[list[NextToken]] = []

    def add(*prompts: tuple[int, ...], **settings) -> None:
        for prompt in prompts:
            engine.add(len(told), GenerationRequest(prompt=prompt, sampling=Sampling(greedy=True), logprobs=3, **settings))
            told.append([])

    def step() -> None:
        for row, token in engine.step().items():
            told[row].append(token)
            if len(told[row]) == STEPS:
                engine.remove(row)

    def finish() -> None:
        while any(len(row) < STEPS for row in told):
            step()
        step()  # those that are complete leave

    def answer(row: int) -> tuple[int, ...]:
        return tuple(token.token for token in told[row])

    add(SYSTEM + text(1, 30), SYSTEM + text(2, 9), text(3, 40))
    step()
    step()
    add(SYSTEM + text(4, 20), *[text(5, 50)] * 3)
    finish()
    add(SYSTEM + text(1, 30) + answer(0) + text(6, 12), text(5, 50) + answer(4) + text(7, 5), text(5, 50) + text(8, 25), text(9, 3))
    step()
    add(SYSTEM + text(4, 20), reference=SYSTEM + text(4, 15), guidance=1.5)
    add(SYSTEM[:40])
    finish()
    return told


def test_answers_are_the_same_and_less_is_read(steer_folder):
    cached, plain = CountingEngine(steer_folder), CountingEngine(steer_folder, prefix_cache=False)
    for _ in range(2):  # the second time all is known
        found, expected = conversations(cached), conversations(plain)
        for mine, theirs in zip(found, expected, strict=True):
            assert [token.token for token in mine] == [token.token for token in theirs]
            for one, other in zip(mine, theirs, strict=True):
                assert one.logprob.logprob == pytest.approx(other.logprob.logprob, abs=1e-4)
                assert [value for _, value in one.logprob.top] == pytest.approx([value for _, value in other.logprob.top], abs=1e-4)
    generated = 2 * sum(map(len, expected))
    # Both read what several begin with once where they come together.
    assert cached.read - generated < 0.5 * (plain.read - generated)
    assert cached.reused_tokens > plain.reused_tokens


def test_what_is_kept_makes_room_for_rows_that_run(steer_folder):
    """Room for few of these rows, and less for what they leave behind."""
    engine = CountingEngine(steer_folder, cache_tokens=480)
    assert [[t.token for t in row] for row in conversations(engine)] == [
        [t.token for t in row] for row in conversations(CountingEngine(steer_folder, prefix_cache=False))
    ]
    assert max(engine.rooms) <= 480
    assert 0 < engine._prefixes.tokens <= 120
    assert engine.reused_tokens


def threads(count: int) -> list[ScoreRequest]:
    """Conversations, and of each another that goes on otherwise from its second turn."""
    found = [request for request in requests(2 * count) if len(request.conversation.turns) == 4][:count]
    for request in found[:]:
        turns = list(request.conversation.turns)
        turns[3] = Turn(speaker="Assistant", text="I do not know, and the cat sat.")
        found.append(ScoreRequest(conversation=msgspec.structs.replace(request.conversation, turns=tuple(turns)), turns=request.turns))
    return found


def test_conversations_that_share_turns_read_them_once_and_score_the_same(value_folder):
    wanted = threads(4)
    first = len(wanted) // 2
    cached, plain = CountingEngine(value_folder), CountingEngine(value_folder, prefix_cache=False)
    saved = []
    for part in (wanted[:first], wanted[first:], [wanted[0]]):
        for mine, theirs in zip(cached.score(part), plain.score(part), strict=True):
            assert [turn.label for turn in mine] == [turn.label for turn in theirs]
            for one, other in zip(mine, theirs, strict=True):
                for name, choice in one.choices.items():
                    assert choice.probabilities == pytest.approx(other.choices[name].probabilities, abs=1e-4)
        saved.append(plain.read - cached.read)
        words = sum(len(turn.text.split()) for request in part for turn in request.conversation.turns[:2])
        if len(saved) > 1:
            assert saved[-1] - saved[-2] > words, "the first question and its answer were known"


def test_conversations_that_come_together_share_their_turns_too(value_folder):
    wanted = threads(4)
    together, apart = (CountingEngine(value_folder, prefix_cache=False) for _ in range(2))
    together.score(wanted)
    apart.score(wanted[: len(wanted) // 2])
    apart.score(wanted[len(wanted) // 2 :])
    assert together.read < 0.95 * apart.read


TEXTS = st.lists(st.lists(st.integers(1, 2), min_size=1, max_size=9), min_size=1, max_size=12)


@given(texts=TEXTS, most=st.integers(0, 25))
def test_the_longest_known_beginning_is_found(prefixes_of, texts, most):
    """Against looking at all that was kept, one after another. Each text has the keys and values of its own tokens."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefix_cache, "_LEAST", 1)
        prefixes, read = prefixes_of(most)
        for ids in texts:
            kept = [one.ids for one in prefixes._kept]
            assert kept == sorted(kept)
            assert prefixes.tokens == sum(map(len, kept)) <= most
            assert not any(other[: len(one)] == one for one in kept for other in kept if one is not other)
            known = max((sum(1 for _ in _alike(one, ids[:-1])) for one in kept), default=0)
            assert prefixes.unread(ids) == len(ids) - known
            cache, (have,) = prefixes.begin([ids], together=True)
            assert have == known == cache.length
            if known:
                assert torch.allclose(cache.keys[-1][0, :, :known], read(ids).keys[-1][0, :, :known], atol=1e-4)
            prefixes.keep(ids, Part(read(ids), 0, range(len(ids))))
            assert len(ids) > most or any(one.ids[: len(ids)] == ids for one in prefixes._kept)


def kept_after(prefixes_of, most, *steps):
    """The texts that are kept after some were kept (a list, or one with the tokens of its answer) or looked for (a tuple)."""
    prefixes, read = prefixes_of(most)
    for step in steps:
        if isinstance(step, tuple):
            prefixes.unread(list(step))
        else:
            ids, answer = step if isinstance(step[0], list) else (step, 0)
            prefixes.keep(ids, Part(read(ids), 0, range(len(ids))), answer)
    return [kept.ids for kept in prefixes._kept]


A, B, C = ([first, *range(20, 39)] for first in (5, 6, 7))
"""Texts of 20 tokens that begin with different ones."""


def test_what_was_looked_for_last_stays(prefixes_of):
    assert kept_after(prefixes_of, 50, A, B, C) == [B, C]
    assert kept_after(prefixes_of, 50, A, B, (*A, 50), C) == [A, C]
    assert kept_after(prefixes_of, 50, A, B, (*A[:17], 50), C) == [A, C], "part of it was wanted"
    assert kept_after(prefixes_of, 50, B, A, (*B, 50), C) == [B, C]


def test_of_several_answers_to_one_prompt_the_first_is_kept(prefixes_of):
    one, other, longer = (A + answer for answer in ([50, 51], [60, 61], [50, 51, 52]))
    assert kept_after(prefixes_of, 99, [one, 2], [other, 2]) == [one]
    assert kept_after(prefixes_of, 99, [one, 2], [[*A, 60], 1], [[*B, 60], 1]) == [one, [*B, 60]]
    assert kept_after(prefixes_of, 99, one, other) == [one, other], "of which nothing is an answer"
    assert kept_after(prefixes_of, 99, one, longer) == [longer], "which the other one begins"
    assert kept_after(prefixes_of, 99, longer, one) == [longer]


def test_what_is_too_short_or_too_long_is_not_kept(prefixes_of):
    assert kept_after(prefixes_of, 20, A[:15]) == []
    assert kept_after(prefixes_of, 20, A[:16]) == [A[:16]]
    assert kept_after(prefixes_of, 20, A) == [A]
    assert kept_after(prefixes_of, 19, A) == []


def _alike(one: list[int], other: list[int]):
    for a, b in zip(one, other, strict=False):
        if a != b:
            return
        yield a


@pytest.fixture(scope="module")
def prefixes_of(steer_folder):
    model = HuggingFaceEngine(steer_folder, EngineOptions(device="cpu"))._model

    def read(ids: list[int]):
        cache = model.cache(1)
        model.forward(cache, Block([ids], [0]))
        return cache

    return lambda most: (PrefixCache(model, most), read)


def test_a_server_counts_what_it_need_not_read(steer_server):
    """The second turn of a chat, over a socket."""
    messages = [{"role": "user", "content": "Tell me of the little dog who lived by the sea and swam every day"}]
    with steer_server.client() as client:

        def chat() -> tuple[dict, float]:
            before = metrics(client)["steerlm_prefix_cache_tokens_total"]
            body = {"messages": messages, "temperature": 0, "max_tokens": 8}
            answer = client.post("/v1/chat/completions", json=body).raise_for_status().json()
            return answer, metrics(client)["steerlm_prefix_cache_tokens_total"] - before

        first, _ = chat()
        messages += [first["choices"][0]["message"], {"role": "user", "content": "And then?"}]
        second, reused = chat()
        assert first["usage"]["prompt_tokens"] - 1 <= reused < second["usage"]["prompt_tokens"]
        again, reused = chat()
        assert json.dumps(again["choices"]) == json.dumps(second["choices"])
        assert reused == second["usage"]["prompt_tokens"] - 1
