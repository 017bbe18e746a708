"""Rows that share a batch, asked of an engine in this process."""

from __future__ import annotations

import asyncio
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from nemo_steerlm.inference.engine import GenerationRequest, NextToken, Sampling
from nemo_steerlm.inference.huggingface import HuggingFaceEngine
from nemo_steerlm.inference.registry import EngineOptions
from nemo_steerlm.serving.model import Delta, Generation
from nemo_steerlm.serving.scheduler import Scheduler
from nemo_steerlm.serving.text_stream import AnswerText

TEXTS = ["Once upon a time", "a", "The little dog was very happy because " * 12, "One day, Lily and her mom went to the"]


@pytest.fixture(scope="module")
def engine(steer_folder):
    return HuggingFaceEngine(steer_folder, EngineOptions(device="cpu"))


def prompts(engine) -> list[tuple[int, ...]]:
    found = [tuple(engine.tokenizer.encode(text)) for text in TEXTS]
    assert max(map(len, found)) > 128, "one should be read in pieces"
    return found


def asked(prompt, **settings) -> GenerationRequest:
    return GenerationRequest(prompt=prompt, sampling=Sampling(greedy=True), logprobs=2, **settings)


def together(engine, requests: list[GenerationRequest], steps: int = 6) -> list[list[NextToken]]:
    """Each row's tokens when all run at once."""
    for row, request in enumerate(requests):
        engine.add(row, request)
    told = [engine.step() for _ in range(steps)]
    for row in range(len(requests)):
        engine.remove(row)
    return [[step[row] for step in told] for row in range(len(requests))]


def test_prompts_probabilities_are_each_rows_own_whatever_shares_the_batch(engine, steer_folder):
    """Rows that want them and rows that do not, long and short, in one batch."""
    model = AutoModelForCausalLM.from_pretrained(steer_folder, torch_dtype=torch.float32).eval()
    requests = [asked(prompt, prompt_logprobs=i != 1) for i, prompt in enumerate(prompts(engine) * 2)]
    for request, tokens in zip(requests, together(engine, requests), strict=True):
        ids = torch.tensor([[*request.prompt, *(token.token for token in tokens)]])
        with torch.inference_mode():
            logs = model(ids).logits[0].log_softmax(-1)
        start = len(request.prompt)
        assert [token.token for token in tokens] == logs[start - 1 : -1].argmax(-1).tolist()
        answer = [token.logprob.logprob for token in tokens]
        assert answer == pytest.approx([float(logs[start - 1 + i, token.token]) for i, token in enumerate(tokens)], abs=1e-3)
        assert all(token.prompt is None for token in tokens[1:]), "they come once"
        if not request.prompt_logprobs:
            assert tokens[0].prompt is None
            continue
        assert [p.logprob for p in tokens[0].prompt] == pytest.approx(
            [float(logs[i, token]) for i, token in enumerate(request.prompt[1:])], abs=1e-3
        )
        for place, found in enumerate(tokens[0].prompt):
            assert [value for _, value in found.top] == pytest.approx(logs[place].topk(2).values.tolist(), abs=1e-3)


def test_rows_of_a_padded_vocabulary_are_no_tokens(engine, steer_folder, tmp_path):
    """Training pads vocabularies; here the padding would win every draw and take most of the probability."""
    padded = tmp_path / "padded"
    shutil.copytree(steer_folder, padded)
    tensors = load_file(padded / "model.safetensors")
    name = "lm_head.weight" if "lm_head.weight" in tensors else "model.embed_tokens.weight"
    for key in {name, "model.embed_tokens.weight"}:
        tensors[key] = torch.cat([tensors[key], 50 * tensors[key][:20], -50 * tensors[key][:20]])
    save_file(tensors, padded / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((padded / "config.json").read_text())
    (padded / "config.json").write_text(json.dumps(config | {"vocab_size": config["vocab_size"] + 40}))
    requests = [asked(prompt, prompt_logprobs=True, full_logprobs=True) for prompt in prompts(engine)]
    results = (together(model, requests) for model in (engine, HuggingFaceEngine(padded, EngineOptions(device="cpu"))))
    for expected, found in zip(*results, strict=True):
        assert [token.token for token in found] == [token.token for token in expected]
        for one, other in zip(found, expected, strict=True):
            assert one.logprob.full == pytest.approx(other.logprob.full, abs=1e-4)
        assert [p.logprob for p in found[0].prompt] == pytest.approx([p.logprob for p in expected[0].prompt], abs=1e-4)


def test_a_row_that_is_removed_leaves_the_others_as_they_are(engine):
    requests = [asked(prompt) for prompt in prompts(engine)]
    alone = [together(engine, [request])[0] for request in requests]
    for row, request in enumerate(requests):
        engine.add(row, request)
    told = [engine.step(), engine.step()]
    engine.remove(2)  # the longest: its columns go as well
    told += [engine.step() for _ in range(4)]
    assert all(2 not in step for step in told[2:])
    for row in (0, 1, 3):
        assert [step[row].token for step in told] == [token.token for token in alone[row]]
        engine.remove(row)
    assert engine.step() == {}


class WatchedEngine(HuggingFaceEngine):
    """Notes of each step how many rows joined with it, and how many ran."""

    def __init__(self, folder, options):
        super().__init__(folder, options)
        self.new = 0
        self.steps: list[tuple[int, int]] = []

    def add(self, row: int, request: GenerationRequest) -> None:
        self.new += 1
        super().add(row, request)

    def step(self) -> dict[int, NextToken]:
        joined, self.new = self.new, 0
        told = super().step()
        self.steps.append((joined, len(told)))
        return told


def answered(engine: HuggingFaceEngine, lengths: list[int], first: int = 0) -> list[list[Delta]]:
    """Answers of these lengths, all asked for at once; before them one of ``first`` tokens, which has begun."""
    scheduler = Scheduler(engine)
    request = asked(tuple(engine.tokenizer.encode("Once upon a time")))

    def stream(length: int):
        return scheduler.stream(Generation(request, max_tokens=length, text=AnswerText(engine.tokenizer, request.prompt)))

    async def answer(length: int) -> list[Delta]:
        return [delta async for delta in stream(length)]

    async def all_answers() -> list[list[Delta]]:
        if first:
            begun = stream(first)
            await anext(begun)
        return await asyncio.gather(*map(answer, lengths))

    try:
        return asyncio.run(all_answers())
    finally:
        scheduler.close()


def test_places_in_a_full_batch_are_given_out_together(steer_folder):
    lengths = [8 + i * 7 % 23 for i in range(64)]
    engine = WatchedEngine(steer_folder, EngineOptions(device="cpu", max_rows=8))
    assert [len(answer) for answer in answered(engine, lengths)] == lengths
    joins = [joined for joined, _ in engine.steps if joined]
    assert sum(joins) == len(lengths)
    assert len(joins) < 40, "reading a prompt is a forward"
    full = [ran for _, ran in engine.steps[: -max(lengths)]]
    assert sum(full) > 0.8 * 8 * len(full), "nor does the batch run half empty"


def test_who_finds_room_joins_those_that_run(steer_folder):
    engine = WatchedEngine(steer_folder, EngineOptions(device="cpu", max_rows=8))
    answered(engine, [5], first=400)
    assert max(ran for _, ran in engine.steps) == 2
