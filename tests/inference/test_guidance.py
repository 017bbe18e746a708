"""Guidance: scores of a prompt led away from those of a reference."""

from __future__ import annotations

import math

import pytest
import torch

from nemo_steerlm.inference.blocks import Block
from nemo_steerlm.inference.engine import GenerationRequest, Sampling
from nemo_steerlm.inference.huggingface import HuggingFaceEngine
from nemo_steerlm.inference.registry import EngineOptions
from nemo_steerlm.inference.sampling import PLAUSIBLE, guide

STEPS = 8


@pytest.fixture(scope="module")
def engine(steer_folder):
    return HuggingFaceEngine(steer_folder, EngineOptions(device="cpu"))


def ids(engine, text):
    return tuple(engine.tokenizer.encode(text))


def request(prompt, **settings):
    settings.setdefault("sampling", Sampling(seed=5, temperature=0.9))
    return GenerationRequest(prompt=prompt, logprobs=1, **settings)


def texts(engine, requests, steps=STEPS):
    for row, one in enumerate(requests):
        engine.add(row, one)
    told = [engine.step() for _ in range(steps)]
    for row in range(len(requests)):
        engine.remove(row)
    assert engine.step() == {}
    return [[step[row].token for step in told] for row in range(len(requests))]


@pytest.fixture
def prompt(engine):
    return ids(engine, "<extra_id_2>quality:4,toxicity:0\nOnce upon a time there was")


@pytest.fixture
def reference(engine):
    return ids(engine, "<extra_id_2>quality:0,toxicity:3\nOnce upon a time")


def test_scores_are_mixed_in_closed_form():
    asked, reference = torch.tensor([2.0, 1.0, 0.0, -9.0]), torch.tensor([0.5, 1.5, 0.0, 3.0])
    c, u = asked.log_softmax(0), reference.log_softmax(0)
    assert torch.allclose(guide(asked, reference, 0.0), u)
    assert torch.allclose(guide(asked, reference, 1.0), c)
    assert torch.allclose(guide(asked, reference, 0.5), (c + u) / 2)
    strong = guide(asked, reference, 3.0)
    plausible = c >= c.max() + math.log(PLAUSIBLE)
    assert plausible.tolist() == [True, True, True, False]
    assert torch.allclose(strong[plausible], (3 * c - 2 * u)[plausible])
    assert strong[3] == -math.inf


def test_a_scale_of_one_is_the_prompt_alone_and_of_nought_the_reference(engine, prompt, reference):
    plain = texts(engine, [request(prompt)])
    assert texts(engine, [request(prompt, reference=reference, guidance=1.0)]) == plain
    assert texts(engine, [request(prompt, reference=reference, guidance=0.0)]) == texts(engine, [request(reference)])
    assert plain != texts(engine, [request(reference)])


@pytest.mark.parametrize("scale", [0.0, 0.5, 2.0, 10.0])
def test_a_reference_that_is_the_prompt_changes_nothing(engine, prompt, scale):
    assert texts(engine, [request(prompt, reference=prompt, guidance=scale)]) == texts(engine, [request(prompt)])


def test_every_token_is_what_the_mixed_scores_say(engine, prompt, reference):
    """Greedily, against plain forwards over both whole texts."""
    (answer,) = texts(engine, [request(prompt, reference=reference, guidance=2.5, sampling=Sampling(greedy=True))])

    def last(text):
        cache = engine._model.cache(1)
        return engine._model.forward(cache, Block([list(text)], [0]), reads=[(0, len(text) - 1)])[0][: engine.tokenizer.vocab_size]

    with torch.inference_mode():
        for n, token in enumerate(answer):
            so_far = tuple(answer[:n])
            assert token == int(guide(last(prompt + so_far), last(reference + so_far), 2.5).argmax())
    assert [answer] != texts(engine, [request(prompt, sampling=Sampling(greedy=True))])


def test_an_answer_does_not_depend_on_what_shares_the_batch(engine, prompt, reference):
    guided = request(prompt, reference=reference, guidance=3.0)
    others = [request(ids(engine, "a")), request(reference, reference=prompt, guidance=2.0), request(ids(engine, "The dog " * 60))]
    alone = texts(engine, [guided])
    together = texts(engine, [others[0], guided, *others[1:]])
    assert together[1] == alone[0]
    assert together[0] == texts(engine, [others[0]])[0]


def test_rows_join_and_leave_around_a_guided_one(engine, prompt, reference):
    guided = request(prompt, reference=reference, guidance=3.0)
    (alone,) = texts(engine, [guided], steps=6)
    engine.add(7, request(ids(engine, "a")))
    engine.step()
    engine.add(8, guided)
    found = [engine.step()[8].token for _ in range(2)]
    engine.remove(7)
    found += [engine.step()[8].token for _ in range(4)]
    engine.remove(8)
    engine.step()
    assert found == alone


def test_probabilities_are_those_of_the_guided_distribution(engine, prompt, reference):
    engine.add(0, request(prompt, reference=reference, guidance=2.0, sampling=Sampling(greedy=True)))
    token = engine.step()[0]
    engine.remove(0)
    engine.step()
    assert token.logprob.top[0] == (token.token, pytest.approx(token.logprob.logprob))
    engine.add(0, request(prompt, sampling=Sampling(greedy=True)))
    plain = engine.step()[0]
    engine.remove(0)
    engine.step()
    assert plain.logprob.logprob != pytest.approx(token.logprob.logprob, abs=1e-3)
    assert (request(prompt, reference=reference, guidance=2.0).rows, request(prompt, reference=reference).rows) == (2, 1)
