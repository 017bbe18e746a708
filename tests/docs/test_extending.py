"""Additions as ``docs/extending.md`` describes them, through the programs that people run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from nemo_steerlm.core.errors import ConfigError
from nemo_steerlm.evaluation.judges import judge
from nemo_steerlm.formats.families import FAMILIES
from nemo_steerlm.formats.hf_config import config_from_dict
from nemo_steerlm.inference.loading import load_engine
from nemo_steerlm.inference.registry import ENGINES, EngineOptions
from tests.docs import extension
from tests.inputs import OASST, STORIES

HEAD = {"apiVersion": "steerlm.dev/v1alpha1", "kind": "SteerLMPipeline", "metadata": {"name": "p"}}
ROOT = Path(__file__).parents[2]


def steerlm(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.docs.extension", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_a_source_and_a_preset_that_are_registered_can_be_named_and_validated(tmp_path):
    spec = {"attributes": {"preset": "mine"}, "data": {"lines": {"path": "texts.txt"}}, "model": {"base": str(STORIES)}}
    manifest = tmp_path / "pipeline.yaml"
    manifest.write_text(yaml.safe_dump({**HEAD, "spec": spec}))
    (tmp_path / "texts.txt").write_text("Hello!\n" * 20)
    done = steerlm("validate", manifest)
    assert (done.returncode, done.stderr) == (0, "")
    spec["data"]["lines"]["level"] = 3
    manifest.write_text(yaml.safe_dump({**HEAD, "spec": spec}))
    refused = steerlm("validate", manifest)
    assert refused.returncode == 2
    assert "spec.data.lines.level: unknown key" in refused.stderr
    schema = json.loads(steerlm("schema").stdout)
    assert "LinesSource" in json.dumps(schema)


def test_an_engine_that_is_registered_loads_models(tmp_path, monkeypatch):
    monkeypatch.setitem(ENGINES, "echo", extension.ECHO)
    assert load_engine(tmp_path, EngineOptions(max_rows=3), engine="echo") == (tmp_path, 3)


def test_a_family_that_is_registered_is_read_and_knows_its_tensors(monkeypatch):
    monkeypatch.setitem(FAMILIES, "mine", extension.MINE)
    sizes = {"vocab_size": 32, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = config_from_dict({"model_type": "mine", **sizes})
    assert FAMILIES[config.family].tensors(config)["model.layers.0.self_attn.q_norm.weight"] == (4,)
    with pytest.raises(ConfigError, match="hidden_act is 'gelu'; a mine model can be used with 'silu' only"):
        config_from_dict({"model_type": "mine", "hidden_act": "gelu", **sizes})


def test_a_function_of_ones_own_is_a_judge():
    assert judge("tests.docs.extension:exclamations")("Oh! No!") == 2.0


def test_an_objective_that_is_registered_decides_what_of_a_record_is_learned(tmp_path):
    assert "TEXT_AND_VALUE (answers that end with their label)" in " ".join(steerlm("preprocess", "--help").stdout.replace("│", "").split())
    done = steerlm("preprocess", "--input_file", OASST, "--output_file_prefix", tmp_path / "o", "--type", "TEXT_AND_VALUE", "--limit", 9)
    assert (done.returncode, done.stderr) == (0, "")
    record = json.loads((tmp_path / "o_train.jsonl").read_text(encoding="utf-8").splitlines()[0])
    shown = steerlm("render", tmp_path / "o_train.jsonl", "--tokenizer", STORIES / "tokenizer.model")
    answer = record["conversations"][1]
    assert f"Assistant\n⟦{answer['value']}\n⟧<extra_id_2>⟦{answer['label']}\n" in shown.stdout


def test_a_stage_that_is_registered_runs_and_may_be_named(tmp_path):
    spec = {"attributes": {"preset": "mine"}, "data": {"lines": {"path": "texts.txt"}}, "model": {"base": str(STORIES)}}
    manifest = tmp_path / "pipeline.yaml"
    manifest.write_text(yaml.safe_dump({**HEAD, "spec": spec}))
    (tmp_path / "texts.txt").write_text("Hello!\n")
    done = steerlm("stage", "count", "--manifest", manifest, "--workdir", tmp_path / "work")
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "work" / "count" / "count.txt").read_text() == "7\n"
    assert json.loads((tmp_path / "work" / "count" / "_SUCCESS.json").read_text())["metrics"] == {"bytes": 7}
    assert "^(count|prepare|train-value|" in steerlm("schema", "--crd").stdout
    assert "count, prepare, train-value, annotate" in " ".join(steerlm("stage", "--help").stdout.replace("│", "").split())
