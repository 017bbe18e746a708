"""How long a request may be: as long as what the model was taught, unless somebody says otherwise."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import httpx
import msgspec
import pytest

from nemo_steerlm.cli.serve import model_length
from nemo_steerlm.core.errors import UsageError
from nemo_steerlm.core.model_info import BASE_LENGTH, ModelInfo
from nemo_steerlm.inference.registry import EngineOptions
from nemo_steerlm.serving.startup import local_model
from nemo_steerlm.serving.vllm import vllm_command
from tests.serving.in_process import listening
from tests.serving.servers import WAIT

TAUGHT, POSITIONS = 64, 512


@pytest.fixture(scope="module")
def taught(steer_folder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("taught")
    for file in steer_folder.iterdir():
        (folder / file.name).symlink_to(file)
    info = msgspec.structs.replace(ModelInfo.load(folder), max_seq_length=TAUGHT)
    (folder / "steerlm.json").unlink()
    info.save(folder)
    return folder


@contextlib.contextmanager
def served(folder: Path, max_model_len: int | None = None) -> Iterator[httpx.Client]:
    model = local_model(folder, EngineOptions(device="cpu", max_rows=2, max_model_len=max_model_len))
    with listening(model) as url, httpx.Client(base_url=url, timeout=WAIT) as client:
        yield client


def announced(client: httpx.Client) -> int:
    return int(client.get("/v1/models").json()["data"][0]["max_model_len"])


def test_what_is_longer_than_the_model_was_taught_is_refused_with_the_limit(taught):
    with served(taught) as client:
        assert announced(client) == TAUGHT
        long = {"prompt": [5] * 100, "max_tokens": 1}
        error = client.post("/v1/completions", json=long).json()["error"]
        assert (error["code"], error["type"]) == ("context_length_exceeded", "invalid_request_error")
        assert error["message"] == "the prompt is too long: 100 tokens; this model takes 63 and one to generate"
        refused = client.put("/generate", json={"sentences": ["a dog " * 60], "tokens_to_generate": 1})
        assert refused.status_code == 400
        assert "this model takes 63" in refused.json()
        answer = client.post("/v1/completions", json={"prompt": [5] * 60, "max_tokens": 100, "min_tokens": 100}).json()
        assert answer["usage"]["total_tokens"] == TAUGHT
        assert answer["choices"][0]["finish_reason"] == "length"


def test_the_limit_can_be_raised_to_what_the_model_has_positions_for(taught, steer_folder):
    with served(taught, BASE_LENGTH) as client:
        assert announced(client) == POSITIONS
        assert client.post("/v1/completions", json={"prompt": [5] * 100, "max_tokens": 1}).status_code == 200
    with served(taught, 100) as client:
        assert announced(client) == 100
    with served(steer_folder) as client:
        assert announced(client) == POSITIONS, "nobody knows what it was taught"
    with pytest.raises(UsageError, match="--max-model-len 513: this model has positions for 512 tokens"):
        local_model(taught, EngineOptions(device="cpu", max_model_len=513))


def test_vllm_is_told_the_same_limit(taught):
    def length(wanted: int | None) -> str:
        command = vllm_command(taught, device="cpu", max_model_len=wanted)
        return command[command.index("--max-model-len") + 1]

    assert [length(wanted) for wanted in (None, 100, BASE_LENGTH)] == ["64", "100", "512"]


def test_the_flag_takes_a_number_or_base():
    assert [model_length(text) for text in ("", "base", "100")] == [None, BASE_LENGTH, 100]
    for text in ("0", "-1", "all", "1e3"):
        with pytest.raises(UsageError, match="write a number of tokens, or base"):
            model_length(text)
