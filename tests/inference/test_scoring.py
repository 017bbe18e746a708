from __future__ import annotations

import json
import math
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM

from nemo_steerlm.core.conversation import Conversation, Turn
from nemo_steerlm.core.template import text_of
from nemo_steerlm.inference.blocks import Block
from nemo_steerlm.inference.engine import ScoreRequest
from nemo_steerlm.inference.huggingface import HuggingFaceEngine
from nemo_steerlm.inference.registry import EngineOptions
from nemo_steerlm.megatron.cpu import multiplies_in_bf16
from tests.inputs import OASST


@pytest.fixture(scope="module")
def engine(value_folder):
    return HuggingFaceEngine(value_folder)


@pytest.fixture(scope="module")
def reference(value_folder):
    return AutoModelForCausalLM.from_pretrained(value_folder, torch_dtype=torch.float32).eval()


def conversations(count: int) -> list[Conversation]:
    """Real threads of two and four turns, short enough for the model's 512 tokens."""
    found = []
    with OASST.open() as file:
        for line in file:
            node, turns = json.loads(line)["prompt"], []
            while True:
                speaker = "User" if node["role"] == "prompter" else "Assistant"
                turns.append(Turn(speaker=speaker, text=node["text"][:60], label="quality:2" if speaker == "User" else None))
                if not node["replies"] or len(turns) == 4:
                    break
                node = node["replies"][0]
            if len(turns) in (2, 4):
                found.append(Conversation(turns=tuple(turns), system="Be kind.\n"))
            if len(found) == count:
                break
    return found


def requests(count: int) -> list[ScoreRequest]:
    return [ScoreRequest(conversation=c, turns=tuple(range(1, len(c.turns), 2))) for c in conversations(count)]


def slow_score(engine, reference, request: ScoreRequest):
    """Value after value with plain forwards over the whole text: every value's own tokens, each normalised among what may follow."""
    plan, conversation = engine._scorer.plan, request.conversation
    for index in request.turns:
        spans = engine.info.template(engine.tokenizer).label_prompt(conversation, index)
        ids, values, found = engine.tokenizer.encode(text_of(spans)), [], {}
        for slot in plan.slots:
            ids += slot.forced
            chances = {}
            for value in slot.values:
                reach, at = 1.0, 0
                taken: list[int] = []
                while not isinstance(at, str):
                    children = slot.tree.nodes[at].children
                    with torch.inference_mode():
                        scores = reference(torch.tensor([ids + taken])).logits[0, -1].double()
                    options = list(children)
                    step = slot.values[value][len(taken)] if len(taken) < len(slot.values[value]) else options[0]
                    if len(taken) == len(slot.values[value]):
                        step = next(t for t in options if children[t] == value)
                    reach *= float(scores[options].softmax(0)[options.index(step)])
                    taken.append(step)
                    at = children[step]
                chances[value] = reach
            best = max(chances, key=chances.__getitem__)
            ids += slot.values[best]
            values.append(best)
            found[slot.name] = chances
        label = plan.label(values)
        yield label, found
        turns = list(conversation.turns)
        turns[index] = Turn(speaker=turns[index].speaker, text=turns[index].text, label=label)
        conversation = Conversation(turns=tuple(turns), system=conversation.system)


def test_a_batch_with_guesses_and_caches_gives_what_value_after_value_gives(engine, reference):
    wanted = requests(6)
    for attempt in range(2):  # the second time the guesses are informed
        results = engine.score(wanted)
        for request, turns in zip(wanted, results, strict=True):
            if attempt and request is not wanted[0]:
                continue
            for turn, (label, chances) in zip(turns, slow_score(engine, reference, request), strict=True):
                assert turn.label == label
                for name, choice in turn.choices.items():
                    assert math.isclose(sum(choice.probabilities.values()), 1.0, abs_tol=1e-9)
                    for value, chance in choice.probabilities.items():
                        assert chance == pytest.approx(chances[name][value], abs=1e-4)
    assert len({turn.label for turns in results for turn in turns}) > 2, "the labels should vary, or nothing is tested"


def test_one_long_text_neither_pads_the_others_nor_changes_them(engine, monkeypatch):
    wanted = requests(6)
    turns = wanted[0].conversation.turns
    long = Turn(speaker="User", text=" ".join(turn.text for turn in turns) + " and the dog ran home" * 20)
    wanted.append(ScoreRequest(conversation=Conversation(turns=(long, *turns[1:]), system="Be kind.\n"), turns=wanted[0].turns))
    alone = [engine.score([request])[0] for request in wanted]
    read = []
    forward = engine._model.forward

    def counted(cache, block, *arguments, **settings):
        read.append((sum(block.widths), block.tokens.numel(), cache.length))
        return forward(cache, block, *arguments, **settings)

    monkeypatch.setattr(engine._model, "forward", counted)
    together = engine.score(wanted)
    tokens, padded, columns = map(list, zip(*read, strict=True))
    assert sum(padded) < 1.5 * sum(tokens)
    longest = max(len(engine.tokenizer.encode(text_of(prompt(engine, request)))) for request in wanted)
    assert max(columns) < 1.3 * longest, "rows of different forwards should share columns"
    for turns, expected in zip(together, alone, strict=True):
        assert [turn.label for turn in turns] == [turn.label for turn in expected]
        for turn, other in zip(turns, expected, strict=True):
            for name, choice in turn.choices.items():
                assert choice.probabilities == pytest.approx(other.choices[name].probabilities, abs=1e-4)


def in_bf16(folder, copy):
    """The same model, as a training in bf16 exports it."""
    shutil.copytree(folder, copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"torch_dtype": "bfloat16", "dtype": "bfloat16"}))
    return copy


def test_openvino_computes_a_model_in_bf16_in_fp32(engine, value_folder, tmp_path):
    module = pytest.importorskip("nemo_steerlm.inference.openvino")
    compiled = module.load_engine(in_bf16(value_folder, tmp_path / "bf16"), EngineOptions())
    for turns, expected in zip(compiled.score(requests(3)), engine.score(requests(3)), strict=True):
        assert [turn.label for turn in turns] == [turn.label for turn in expected]


def test_a_model_in_bf16_is_read_in_it_where_the_cpu_has_it(engine, value_folder, tmp_path):
    rough = HuggingFaceEngine(in_bf16(value_folder, tmp_path / "bf16"))
    assert rough._model.dtype == (torch.bfloat16 if multiplies_in_bf16() else torch.float32)
    scores = rough._model.forward(rough._model.cache(1), Block([[5, 6, 7]], [0]), reads=[(0, 2)], tokens=range(20))
    assert not torch.equal(scores, scores.bfloat16().float()), "values that are weighed against each other come in fp32"
    for turns, expected in zip(rough.score(requests(3)), engine.score(requests(3)), strict=True):
        # The first value: those after it depend on it.
        first = next(iter(turns[0].choices))
        assert turns[0].choices[first].probabilities == pytest.approx(expected[0].choices[first].probabilities, abs=0.05)


def prompt(engine, request: ScoreRequest):
    return engine.info.template(engine.tokenizer).label_prompt(request.conversation, request.turns[-1])


def test_a_value_of_two_tokens_can_win(engine):
    labels = [turn.choices["humor"] for turns in engine.score(requests(6)) for turn in turns]
    assert all(set(choice.probabilities) == set(map(str, range(11))) for choice in labels)
    assert all(choice.probabilities["10"] > 0 for choice in labels)


def test_the_likeliest_value_is_what_upstreams_protocol_reads(value_server, engine):
    """One-token greedy requests through PUT /generate, with the values read so far in the prompt, as upstream's annotator."""
    legal = compared = 0
    with value_server.client() as client:
        for request, turns in zip(requests(8), engine.score(requests(8)), strict=True):
            conversation = request.conversation
            template = engine.info.template(engine.tokenizer)
            prompt = text_of(template.label_prompt(conversation, request.turns[0]))
            for slot in engine._scorer.plan.slots:
                prompt += f"{slot.name}:"
                body = {"sentences": [prompt], "tokens_to_generate": 1, "greedy": True, "top_k": 1, "temperature": 0.1}
                answer = client.put("/generate", json=body).json()["sentences"][0][len(prompt) :]
                choice = turns[0].choices[slot.name]
                compared += 1
                # "1" of "10" is one token of upstream's protocol, and no whole value.
                if answer in choice.probabilities and not any(v != answer and v.startswith(answer) for v in choice.probabilities):
                    legal += 1
                    assert choice.value == answer
                prompt += choice.value + ","
    assert legal > compared / 2, "the model was taught to write values"


def test_the_api_tells_values_probabilities_and_expectations(value_server):
    record = {
        "system": "S",
        "mask": "User",
        "conversations": [{"from": "User", "value": "Hi"}, {"from": "Assistant", "value": "Ho <extra_id_2>quality:4"}],
    }
    with value_server.client() as client:
        model = client.get("/v1/models").json()["data"][0]
        assert model["scores"] is True
        assert model["metadata"]["steerlm"]["attributes"]["attributes"][0]["name"] == "quality"
        answer = client.post("/v1/attributes", json={"conversations": [record, record], "turns": "all"}).json()
        (turns, again) = (result["turns"] for result in answer["results"])
        # The two may be read in batches of their own, which round differently.
        assert [turn["label"] for turn in turns] == [turn["label"] for turn in again]
        for turn, other in zip(turns, again, strict=True):
            for name, found in turn["attributes"].items():
                assert found["probabilities"] == pytest.approx(other["attributes"][name]["probabilities"], abs=1e-5)
        assert [turn["index"] for turn in turns] == [0, 1]
        humor = turns[1]["attributes"]["humor"]
        assert humor["expected"] == pytest.approx(sum(int(v) * p for v, p in humor["probabilities"].items()))
        assert humor["value"] == int(max(humor["probabilities"], key=humor["probabilities"].__getitem__))
        assert turns[1]["lang"]["value"] in ("en", "de", "es")
        assert answer["model"] == "untrained-value"
        raw = client.post("/v1/attributes", json={"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]})
        assert [turn["index"] for turn in raw.json()["results"][0]["turns"]] == [1]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"conversations": [{"from": "User", "value": "x"}]}, "missing key 'system'"),
        ({"system": "", "conversations": [{"from": "User", "value": "word " * 600}], "mask": "User"}, "too long"),
        ({"system": "", "conversations": [{"from": "A", "value": "x"}], "mask": "B"}, "mask role 'B' is not in the conversation"),
        ({"system": "\ud800", "conversations": [{"from": "User", "value": "x"}], "mask": "User"}, "surrogate"),
    ],
)
def test_a_bad_conversation_is_named(value_server, record, message):
    body = json.dumps({"conversations": [record], "turns": "all"})
    with value_server.client() as client:
        answer = client.post("/v1/attributes", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]
    assert "conversations[0]" in answer.json()["error"]["message"]
