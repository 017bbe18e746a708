"""How far a SteerLM model misses what it is asked for, without a server: what a training chooses its step by."""

from __future__ import annotations

import msgspec
import pytest

from nemo_steerlm.core.conversation import Conversation, Turn
from nemo_steerlm.core.model_info import ModelInfo
from nemo_steerlm.inference import control_error as module
from nemo_steerlm.inference.control_job import Asked, ControlJob
from nemo_steerlm.inference.huggingface import HuggingFaceEngine
from tests.serving.in_process import local, served

QUESTION = Conversation(turns=(Turn(speaker="User", text="Once upon a time"),), system="Be kind.")


@pytest.fixture(scope="module")
def job(steer_folder, value_folder):
    schema = ModelInfo.load(steer_folder).attributes
    asked = [
        Asked(
            conversation=QUESTION.to_prompt_record(),
            label=schema.encode({**schema.defaults(), "toxicity": level}, "en"),
            attribute="toxicity",
            level=level,
            seed=level,
        )
        for level in range(5)
    ]
    return ControlJob(value_model=str(value_folder), asked=asked, max_tokens=8, temperature=1.0, top_k=0)


def test_answers_and_readings_are_those_of_the_servers(job, steer_folder, value_folder):
    texts = module.answers(HuggingFaceEngine(steer_folder), job)
    assert len(set(texts)) > 1
    found = module.errors(HuggingFaceEngine(value_folder), job, texts)
    with served(local(steer_folder), reader=local(value_folder)) as client:
        for one, text, error in zip(job.asked, texts, found, strict=True):
            body = {
                "messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Once upon a time"}],
                "attributes": {"quality": 4, "toxicity": one.level, "humor": 0, "lang": "en"},
                "seed": one.seed,
                "max_tokens": 8,
            }
            choice = client.post("/v1/chat/completions", json=body).json()["choices"][0]
            assert choice["message"]["content"] == text
            read = choice["steerlm"]["read"]["attributes"]["toxicity"]["expected"]
            assert error == pytest.approx(abs(read - one.level), abs=1e-3)


def test_the_command_writes_their_mean(job, steer_folder, value_folder, tmp_path, monkeypatch):
    source, target = tmp_path / "job.json", tmp_path / "result.json"
    source.write_bytes(msgspec.json.encode(job))
    monkeypatch.setattr("sys.argv", ["control_error", str(source), str(steer_folder), str(target)])
    monkeypatch.setattr(module, "exit_on_sigterm", lambda: None)
    module.main()
    found = module.errors(HuggingFaceEngine(value_folder), job, module.answers(HuggingFaceEngine(steer_folder), job))
    assert msgspec.json.decode(target.read_bytes())["control"] == pytest.approx(sum(found) / 5)
