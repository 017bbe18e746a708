from __future__ import annotations

import pytest
import torch
from starlette.testclient import TestClient
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from nemo_steerlm.core.tokenization import load_tokenizer
from nemo_steerlm.inference.registry import EngineOptions
from nemo_steerlm.serving.app import create_app
from nemo_steerlm.serving.remote_reader import RemoteReader
from nemo_steerlm.serving.service import Service, Settings
from nemo_steerlm.serving.startup import local_model

TEMPERATURE = "temperature must be a positive number less than or equal to 100.0"


@pytest.fixture(scope="module")
def put(steer_server):
    with steer_server.client() as client:
        yield lambda body: client.put("/generate", json=body)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"tokens_to_generate": 0}, "tokens_to_generate must be an integer greater than 0"),
        ({"tokens_to_generate": 1.0}, "tokens_to_generate must be an integer greater than 0"),
        ({"all_probs": 1}, "all_probs must be a boolean value"),
        ({"temperature": 0}, TEMPERATURE),
        ({"temperature": True}, TEMPERATURE),
        ({"add_BOS": "no"}, "add_BOS must be a boolean value"),
        ({"greedy": 1}, "greedy must be a boolean value"),
        ({"top_k": -1}, "top_k must be a positive integer number"),
        ({"top_p": 1.5}, "top_p must be a positive number less than or equal to 1.0"),
        ({"repetition_penalty": 0.5}, "repetition_penalty must be a positive number no less than 1.0"),
        ({"end_strings": "x"}, "expect end_strings to be a list of strings"),
        ({"end_strings": [1]}, "expect end_strings to be a list of strings"),
        ({"min_tokens_to_generate": -1}, "min_tokens_to_generate must be an integer no less than 0"),
        ({"neighbors": "x"}, "num of neighbors must be an integer no less than 0"),
        ({"compute_logprob": None}, "compute_logprob must be a boolean value"),
        ({"random_seed": -1}, "random_seed must be a positive integer number or None"),
    ],
)
def test_wrong_options_are_answered_as_upstream_answers_them(put, option, message):
    answer = put({"sentences": ["a"], **option})
    assert (answer.status_code, answer.json()) == (200, message)


def test_status_codes(put):
    assert (put({"sentences": ["a"] * 129}).status_code, put({"sentences": ["a"] * 129}).json()) == (
        400,
        "Maximum number of sentences is 128",
    )
    missing = put({"tokens_to_generate": 1})
    assert (missing.status_code, missing.json()) == (400, {"message": "sentences is missing: a list of prompts"})
    assert put({"sentences": ["a"], "task_ids": [1]}).json().startswith("Input at 'sentences' must by a tuple of two tensors like: ")
    assert put({"sentences": "a"}).status_code == 400
    assert put({"sentences": ["a"], "unknown": 1, "tokens_to_generate": True}).status_code == 200


def test_greedy_text_is_what_transformers_generates_whatever_shares_the_batch(put, steer_folder):
    model = AutoModelForCausalLM.from_pretrained(steer_folder, torch_dtype=torch.float32).eval()
    tokenizer = load_tokenizer(steer_folder)
    sentences = ["Once upon a time", "The little dog was very happy because", "<extra_id_1>User\nHi"]
    answer = put(
        {"sentences": sentences, "tokens_to_generate": 24, "greedy": True, "end_strings": ["<never>"], "compute_logprob": True}
    ).json()
    assert sorted(answer) == ["logprob", "offsets", "sentences", "token_ids", "tokens"]
    for sentence, ids, text, logs, words, offsets in zip(
        sentences, *(answer[k] for k in ("token_ids", "sentences", "logprob", "tokens", "offsets")), strict=True
    ):
        prompt = torch.tensor([tokenizer.encode(sentence)])
        expected = model.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=24, pad_token_id=0)
        assert ids == expected[0].tolist()
        assert text.startswith(sentence)
        with torch.inference_mode():
            logits = model(expected).logits[0, :-1].log_softmax(-1)
        assert logs == pytest.approx(logits[range(len(ids) - 1), ids[1:]].tolist(), abs=1e-3)
        assert offsets == [sum(map(len, words[:i])) for i in range(len(words))]


def test_the_first_token_is_added_only_where_it_is_asked_for(put, steer_folder):
    tokenizer = load_tokenizer(steer_folder)
    prompt = tokenizer.encode("Once upon a time")
    body = {"sentences": ["Once upon a time"], "tokens_to_generate": 1}
    bare, begun = (put({**body, "add_BOS": add}).json()["token_ids"][0] for add in (False, True))
    assert (bare[:-1], begun[:-1]) == (prompt, [tokenizer.token_id("<s>"), *prompt])


def test_each_option_reaches_the_sampler(put, steer_folder):
    """One token, from settings of which each alone leaves one choice or forbids the usual one."""
    body = {"sentences": ["Once upon a time"], "tokens_to_generate": 1, "end_strings": []}

    def first(**options):
        return put({**body, **options}).json()["token_ids"][0][-1]

    likely = first(greedy=True)
    assert {first(top_k=1), first(top_p=1e-6), first(temperature=1e-3)} == {likely}
    assert len({first(temperature=100.0, top_p=1.0, random_seed=seed) for seed in range(4)}) > 1
    end = Tokenizer.from_file(str(steer_folder / "tokenizer.json")).id_to_token(likely)
    assert [first(greedy=True, end_strings=[end], min_tokens_to_generate=least) == likely for least in (0, 1)] == [True, False]
    repeated = {"sentences": ["Once upon a time, there was a time, there was a time, there was"], "greedy": False, "top_k": 1}
    assert first(**repeated, repetition_penalty=1.0) != first(**repeated, repetition_penalty=50.0)


def test_seeds_make_sampling_repeatable(put):
    body = {"sentences": ["Once upon a time"], "tokens_to_generate": 20, "top_k": 20, "top_p": 0.9, "temperature": 1.2}
    first, again, other = (put({**body, "random_seed": seed}).json()["sentences"] for seed in (1, 1, 2))
    assert first == again != other


def test_end_strings_stop_by_token_and_by_text(put):
    body = {"sentences": ["Once upon a time"], "tokens_to_generate": 60, "greedy": True}
    whole = put({**body, "end_strings": []}).json()["sentences"][0]
    cut = put({**body, "end_strings": [whole[30:36]]}).json()["sentences"][0]
    assert len(cut) < len(whole)
    assert whole.startswith(cut)
    assert whole[30:36] in cut, "upstream's answers contain the end string"


def test_full_logprob_only_when_asked_for(put, steer_folder):
    answer = put({"sentences": ["Once"], "tokens_to_generate": 2, "all_probs": True}).json()
    assert len(answer["full_logprob"][0]) == len(answer["token_ids"][0]) - 1
    assert len(answer["full_logprob"][0][0]) == load_tokenizer(steer_folder).vocab_size


READ = "<extra_id_0>System\nBe kind.\n<extra_id_1>User\nSay it\n<extra_id_1>Assistant\nthe cat sat\n<extra_id_2>quality:"
WRITE = "<extra_id_0>System\nBe kind.\n<extra_id_1>User\nSay it\n<extra_id_1>Assistant\n<extra_id_2>quality:4,toxicity:0,humor:3,lang:en\n"


def test_a_prompt_is_answered_by_the_model_that_can_go_on(steer_folder, value_folder, value_server):
    """A server of a pipeline has both; upstream's annotator names none, but ends its prompts where a value is to come."""
    writer, reader = (Service(local_model(folder, EngineOptions(device="cpu")), Settings()) for folder in (steer_folder, value_folder))
    options = {"tokens_to_generate": 1, "greedy": True, "compute_logprob": True}
    with TestClient(create_app(writer)) as client, value_server.client() as value_client:

        def answer(*sentences: str, of=client):
            return of.put("/generate", json={"sentences": list(sentences), **options})

        refused = answer(READ)
        assert (refused.status_code, refused.json()) == (
            400,
            "steerlm writes under labels and does not write labels; serve the value model",
        )
        writer.remote_reader = RemoteReader("http://127.0.0.1:1")
        assert answer(READ).json().endswith("ask the server that reads for it")
        writer.reader = reader
        found, expected = answer(READ).json(), answer(READ, of=value_client).json()
        assert found["token_ids"] == expected["token_ids"]
        assert found["logprob"][0] == pytest.approx(expected["logprob"][0], abs=1e-3)
        assert answer(WRITE).json()["logprob"][0] != pytest.approx(answer(WRITE, of=value_client).json()["logprob"][0], abs=1e-3)
        both = answer(READ, WRITE)
        assert (both.status_code, "send two requests" in both.json()) == (400, True)
