"""The engines that a manifest names, on one machine: what ``steerlm serve`` is asked for, and what is refused before anything runs."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import pytest
import typer

from nemo_steerlm.cli.main import application
from nemo_steerlm.core.errors import UsageError
from nemo_steerlm.pipeline import manifest
from nemo_steerlm.pipeline.local import check_engine, engine_options, run_pipeline
from nemo_steerlm.pipeline.stages import stages

EXTERNAL = {"external": {"url": "https://vllm.example:8000", "token": {"name": "s", "key": "k"}}}


def body(engine, devices=2):
    return {
        "apiVersion": "steerlm.dev/v1alpha1",
        "kind": "SteerLMPipeline",
        "metadata": {"name": "p"},
        "spec": {
            "attributes": {"preset": "helpsteer"},
            "data": {"records": {"train": "t.jsonl", "validation": "v.jsonl"}},
            "model": {"base": "base"},
            "annotate": {"servers": {"devices": devices, "engine": engine}},
        },
    }


def asked(engine, stage, role, folder):
    """What ``steerlm serve`` makes of its arguments."""
    graph = {each.name: each for each in stages(manifest.parse(body(engine), "a test"))}
    [need] = [need for need in graph[stage].servers if need.role == role]
    model, options = engine_options(need, folder)
    command = typer.main.get_command(application(["serve"])).commands["serve"]
    return command.make_context("serve", [str(model), *options]).params


@pytest.mark.parametrize(
    ("engine", "role", "wanted"),
    [
        ({}, "value", {"model": "hf", "engine": "embedded", "tensor_parallel": 1}),
        ({"vllm": {"args": ["--quantization", "fp8"]}}, "steer", {"model": "hf", "engine": "vllm"}),
        ({"megatron": {}}, "steer", {"model": "model.nemo", "engine": "embedded", "tensor_parallel": 2, "pipeline_parallel": 1}),
        ({"megatron": {"pipeline": 2}}, "value", {"model": "model.nemo", "tensor_parallel": 1, "pipeline_parallel": 2}),
        (EXTERNAL, "value", {"model": "hf", "engine": "openai", "upstream": "https://vllm.example:8000", "upstream_wait": 1800.0}),
        (EXTERNAL, "steer", {"model": "hf", "engine": "embedded", "upstream": ""}),
    ],
)
def test_each_engine_is_what_serve_is_asked_for(engine, role, wanted, tmp_path):
    params = asked(engine, "evaluate", role, tmp_path)
    assert {"model": Path(params["model"]).name} | {name: params[name] for name in wanted if name != "model"} == wanted


def test_vllm_gets_the_devices_and_the_words_that_were_written(tmp_path):
    words = ["--hf-overrides", '{"a": "b c"}']
    options = asked({"vllm": {"args": words}}, "annotate", "value", tmp_path)["vllm_options"]
    assert shlex.split(options) == ["--tensor-parallel-size", "2", *words]


def refused(engine, folder):
    """What ``steerlm run`` says of it. Nothing has been made by then."""
    file = folder / "pipeline.yaml"
    file.write_text(json.dumps(body(engine)))
    with pytest.raises(UsageError) as caught:
        run_pipeline(file, folder / "run")
    assert not (folder / "run").exists()
    return str(caught.value)


def test_what_this_machine_lacks_is_said_before_anything_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("STEERLM_VLLM", "/no/such/vllm")
    monkeypatch.delenv("STEERLM_UPSTREAM_KEY", raising=False)
    assert "annotate.servers.engine.vllm: no program /no/such/vllm" in refused({"vllm": {}}, tmp_path)
    assert "annotate.servers.engine.external.token" in refused(EXTERNAL, tmp_path)
    monkeypatch.setenv("STEERLM_VLLM", sys.executable)
    monkeypatch.setenv("STEERLM_UPSTREAM_KEY", "token")
    for engine in ({"vllm": {}}, EXTERNAL):
        [need] = next(each for each in stages(manifest.parse(body(engine), "a test")) if each.name == "annotate").servers
        check_engine(need)
