"""A base model in its own words: what it answers under its own chat template, and how likely texts are to it."""

from __future__ import annotations

import json
import shutil
import sys
from types import SimpleNamespace

import msgspec
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from nemo_steerlm.core.errors import ConfigError
from nemo_steerlm.formats.gguf_files import open_gguf
from nemo_steerlm.inference import base_answers
from nemo_steerlm.inference.base_answers import BaseModel, hugging_face_folder
from nemo_steerlm.inference.base_job import BaseJob, BaseRequest, BaseResult
from nemo_steerlm.inference.registry import EngineOptions
from tests.inputs import STORIES, smollm2

TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
STORY = [{"role": "user", "content": "Tell me of a dog."}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The tiny Llama with a chat template of its own."""
    folder = tmp_path_factory.mktemp("base") / "hf"
    shutil.copytree(STORIES, folder)
    settings = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "legacy": False}
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": TEMPLATE}))
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return BaseModel(folder)


def job(folder, count=3, **fields):
    requests = [BaseRequest(messages=STORY, seed=seed) for seed in range(count)]
    return BaseJob(model=str(folder), requests=requests, max_tokens=6, top_k=20, **fields)


def test_it_is_asked_by_its_own_template(model, folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.decode(model.prompt(STORY)).endswith("user: Tell me of a dog.\nassistant: ")


def test_greedy_answers_are_those_of_transformers(model, folder):
    (answer,) = model.answers(msgspec.structs.replace(job(folder, 1), temperature=0.0), lambda _: None)
    reference = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32)
    prompt = torch.tensor([model.prompt(STORY)])
    whole = reference.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=6, do_sample=False)
    text = AutoTokenizer.from_pretrained(folder).decode(whole[0, prompt.shape[1] :], skip_special_tokens=True)
    assert (answer.text, answer.finish) == (text.strip(), "length")


def test_answers_come_in_order_whatever_fits_a_batch_and_a_seed_decides(model, folder):
    seen = []
    several = model.answers(job(folder, 5), seen.append)
    assert seen == [1, 2, 3, 4, 5]
    assert len({answer.text for answer in several}) > 1
    assert model.answers(job(folder, 5), seen.append, EngineOptions(max_rows=2)) == several


def test_a_stop_token_ends_an_answer(model, folder, monkeypatch):
    (whole,) = model.answers(msgspec.structs.replace(job(folder, 1), temperature=0.0), lambda _: None)
    third = AutoTokenizer.from_pretrained(folder).encode(whole.text, add_special_tokens=False)[2]
    monkeypatch.setattr(model, "_ends", frozenset({third}))
    (cut,) = model.answers(msgspec.structs.replace(job(folder, 1), temperature=0.0), lambda _: None)
    assert cut.finish == "stop"
    assert whole.text.startswith(cut.text)
    assert len(cut.text) < len(whole.text)


@pytest.mark.parametrize("piece", [1, 5, 256])
def test_a_likelihood_is_that_of_transformers(model, folder, monkeypatch, piece):
    monkeypatch.setattr(base_answers, "PIECE", piece)
    found = model.likelihood("Once upon a time there was a dog.")
    reference, tokenizer = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32), AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor([[tokenizer.bos_token_id, *model.tokenizer.encode("Once upon a time there was a dog.")]])
    with torch.no_grad():
        mean = reference(ids, labels=ids).loss
    assert found.tokens == ids.shape[1] - 1
    assert found.nll == pytest.approx(float(mean) * found.tokens, rel=1e-4)


def test_the_command_does_the_whole_job(folder, tmp_path, monkeypatch, capsys):
    source, target = tmp_path / "job.json", tmp_path / "result.json"
    source.write_bytes(msgspec.json.encode(job(folder, 2, likelihoods=True, texts=["A dog.", ""])))
    monkeypatch.setattr(sys, "argv", ["base_answers", str(source), str(target)])
    monkeypatch.setattr(base_answers, "exit_on_sigterm", lambda: None)
    base_answers.main()
    result = msgspec.json.decode(target.read_bytes(), type=BaseResult)
    assert len(result.answers) == 2
    assert all(answer.likelihood.nll > 0 for answer in result.answers if answer.text)
    assert result.texts[0].nll > 0
    assert (result.texts[1].nll, result.texts[1].tokens) == (0.0, 0)
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["done"] == 6


def test_a_base_without_template_is_a_sentence(model, monkeypatch):
    monkeypatch.setattr(model._chat, "chat_template", None)
    with pytest.raises(ConfigError, match="no chat template"):
        model.prompt(STORY)


def test_a_gguf_has_its_own_template(monkeypatch):
    path = smollm2()
    monkeypatch.setattr(base_answers, "open_weights", lambda path: SimpleNamespace(names=()))  # half a gigabyte is not what this is about
    with hugging_face_folder(path) as folder:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        assert tokenizer.chat_template == open_gguf(path).value("tokenizer.chat_template")
        assert tokenizer.eos_token == "<|im_end|>"
    assert not folder.exists()
