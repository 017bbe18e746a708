"""lm-eval's clients against a server, unchanged, on tasks that are files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from nemo_steerlm.core.tokenization import load_tokenizer
from tests.environments import environment
from tests.serving.servers import Server

DOCUMENTS = [
    {"question": "Once upon a time, there was a little", "choices": [" girl", " stone", " boy"], "answer": 0},
    {"question": "The dog was very", "choices": [" happy", " table"], "answer": 0},
    {"question": "Lily and her mom went to the", "choices": [" park", " red", " ran"], "answer": 0},
]
DATA = """
dataset_path: json
dataset_kwargs: {data_files: {test: %s}}
test_split: test
doc_to_text: question
"""
CHOICE = """
task: local_choice
output_type: multiple_choice
doc_to_choice: choices
doc_to_target: answer
target_delimiter: ""
metric_list: [{metric: acc}]
"""
GENERATE = """
task: local_generate
output_type: generate_until
doc_to_target: "never this"
generation_kwargs: {until: ["."], max_gen_toks: 30, temperature: 0}
metric_list: [{metric: exact_match}]
"""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # the first run makes the environment


@pytest.fixture(scope="module")
def lm_eval():
    return environment("lm-eval-0.4.13", ["lm_eval[api]==0.4.13", "transformers==4.57.6"])


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "documents.jsonl").write_text("".join(json.dumps(d) + "\n" for d in DOCUMENTS))
    (folder / "choice.yaml").write_text(CHOICE + DATA % (folder / "documents.jsonl"))
    (folder / "generate.yaml").write_text(GENERATE + DATA % (folder / "documents.jsonl"))
    return folder


def evaluate(python: Path, tasks: Path, output: Path, server: Server, model: str, names: list[str], *more: str) -> list[list[dict]]:
    """Run lm-eval; gives each task's samples in the order of the documents."""
    path = "chat/completions" if "chat" in model else "completions"
    arguments = f"model=writer,base_url={server.url}/v1/{path},num_concurrent=2,max_retries=1,{more[0]}"
    return run(python, tasks, output, model, arguments, names, *more[1:])


def run(
    python: Path, tasks: Path, output: Path, model: str, arguments: str, names: list[str], *more: str, **variables: str
) -> list[list[dict]]:
    command = [python, "-m", "lm_eval", "--model", model, "--model_args", arguments, "--include_path", tasks, "--tasks", ",".join(names)]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(output / "home"), "NO_PROXY": "127.0.0.1"}
    done = subprocess.run(
        [*map(str, command), "--log_samples", "--output_path", str(output), *more],
        capture_output=True,
        text=True,
        env=os.environ | offline | variables,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = []
    for name in names:
        [samples] = output.rglob(f"samples_{name}_*.jsonl")
        found.append(sorted(map(json.loads, samples.read_text().splitlines()), key=lambda sample: sample["doc_id"]))
    return found


def assert_likelihoods(folder: Path, told: list[dict]) -> None:
    """Log-likelihoods are those of plain forwards of transformers."""
    model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32).eval()
    tokenizer = load_tokenizer(folder)
    for document, sample in zip(DOCUMENTS, told, strict=True):
        for choice, response in zip(document["choices"], sample["filtered_resps"], strict=True):
            context, ids = (tokenizer.encode(text) for text in (document["question"], document["question"] + choice))
            with torch.inference_mode():
                logs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            places = range(len(context) - 1, len(ids) - 1)
            assert float(response[0]) == pytest.approx(sum(float(logs[at, ids[at + 1]]) for at in places), abs=2e-3)
            assert str(response[1]) == str(all(int(logs[at].argmax()) == ids[at + 1] for at in places))


def assert_answers(server: Server, path: str, told: list[dict], **asking: object) -> None:
    """Answers are the server's own, and end before the stop string."""
    for document, sample in zip(DOCUMENTS, told, strict=True):
        [[text]] = sample["resps"]
        question = document["question"]
        asked = {"prompt": question} if path == "completions" else {"messages": [{"role": "user", "content": question}]}
        with server.client() as client:
            body = {**asked, **asking, "temperature": 0, "max_tokens": 30, "stop": ["."]}
            choice = client.post(f"/v1/{path}", json=body).json()["choices"][0]
        expected = choice["message"]["content"] if "message" in choice else choice["text"]
        assert text.strip() == expected.strip()  # in its own process lm-eval decodes an answer without the prompt before it
        assert "." not in text
    assert any(sample["resps"][0][0] for sample in told)


def test_local_completions_reads_log_likelihoods_and_answers(lm_eval, tasks, tmp_path, steer_server, steer_folder):
    names = ["local_choice", "local_generate"]
    likelihoods, answers = evaluate(lm_eval, tasks, tmp_path, steer_server, "local-completions", names, f"tokenizer={steer_folder}")
    assert_likelihoods(steer_folder, likelihoods)
    assert_answers(steer_server, "completions", answers)


def test_local_chat_completions_reads_answers(lm_eval, tasks, tmp_path, steer_server):
    more = ("eos_string=<extra_id_1>", "--apply_chat_template")
    [answers] = evaluate(lm_eval, tasks, tmp_path, steer_server, "local-chat-completions", ["local_generate"], *more)
    assert_answers(steer_server, "chat/completions", answers)


def test_a_model_in_lm_evals_own_process_is_asked_under_attributes(lm_eval, tasks, tmp_path, steer_server, steer_folder):
    """``chat_template_args`` reach the exported folder's chat template: what is asked and answered is what our server asks and answers."""
    [packages] = lm_eval.parent.parent.glob("lib/*/site-packages")  # beside this environment's torch
    for quality in (0, 4):
        attributes = {"quality": quality, "humor": 2, "lang": "en"}  # the server's own defaults are others than the schema's
        arguments = {"pretrained": str(steer_folder), "dtype": "float32", "chat_template_args": {"attributes": attributes}}
        output = tmp_path / str(quality)
        given = json.dumps(arguments), ["local_generate"], "--apply_chat_template"
        [answers] = run(Path(sys.executable), tasks, output, "hf", *given, PYTHONPATH=str(packages))
        assert all(f"quality:{quality}" in sample["arguments"]["gen_args_0"]["arg_0"] for sample in answers)
        assert_answers(steer_server, "chat/completions", answers, attributes=attributes)
