"""``validate`` and ``run --dry-run`` find before anything runs what can be found: files, kinds, families, licences, sizes, times."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys

import msgspec
import pytest
import yaml

from nemo_steerlm.cli import foresight
from nemo_steerlm.core import hardware
from nemo_steerlm.core.errors import ConfigError, DataError, UsageError
from nemo_steerlm.formats.families import parameters
from nemo_steerlm.formats.hf_config import load_config
from nemo_steerlm.pipeline.foresight import foresee
from nemo_steerlm.pipeline.manifest import parse
from nemo_steerlm.pipeline.stages import stages
from nemo_steerlm.training import forecast
from tests.data.shapes import chats
from tests.data.test_hub import Hub, hub  # noqa: F401  a fixture
from tests.inputs import STORIES

RATINGS = {"quality": {"key": "scores.quality", "range": [0, 4]}}


def manifest(data, base=STORIES, **parallel):
    """Of a small training, as plain data."""
    training = {"maxSteps": 10, "globalBatchSize": 8, "microBatchSize": 4, "parallel": parallel}
    return {
        "apiVersion": "steerlm.dev/v1alpha1",
        "kind": "SteerLMPipeline",
        "metadata": {"name": "p"},
        "spec": {
            "attributes": {"custom": [{"name": "quality"}]},
            "data": data,
            "model": {"base": str(base), "maxSequenceLength": 256},
            "trainValue": training,
            "trainSteer": {**training, "lora": {}},
        },
    }


def found(folder, data, base=STORIES):
    return foresee(parse(manifest(data, base), "m").spec, folder)


def steerlm(folder, *arguments, data=None, base=STORIES, attributes=None, **variables):
    """A command about ``p.yaml`` in ``folder``, as people call it."""
    pipeline = manifest(data or messages(), base)
    pipeline["spec"]["attributes"] = attributes or pipeline["spec"]["attributes"]
    (folder / "p.yaml").write_text(yaml.safe_dump(pipeline))
    env = {name: value for name, value in os.environ.items() if not name.startswith("HF_")} | {"NO_PROXY": "127.0.0.1", **variables}
    command = [sys.executable, "-m", "nemo_steerlm.cli.main", *arguments]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)


def messages(path="chats.jsonl", **fields):
    return {"messages": {"path": path, "ratings": RATINGS}, **fields}


def test_what_is_here_is_read_to_try(tmp_path):
    chats(tmp_path / "chats.jsonl", rows=140)
    seen = found(tmp_path, messages())
    assert (seen.read, seen.absent, seen.config.family) == ({"messages": 140}, [], "llama")


def test_what_is_not_here_is_named_and_no_mistake(tmp_path):
    data = {"sources": [{"messages": {"path": "a.jsonl", "ratings": RATINGS}}, {"records": {"train": "b.jsonl", "validation": "c.jsonl"}}]}
    seen = found(tmp_path, data, "models/base")
    assert (seen.read, seen.config) == ({}, None)
    assert [sentence.partition(":")[0] for sentence in seen.absent] == ["a.jsonl", "b.jsonl", "c.jsonl", "models/base"]


def test_a_file_that_is_absent_is_named_once(tmp_path):
    data = {"sources": [{"messages": {"path": "a.jsonl", "ratings": RATINGS}}, {"messages": {"path": "a.jsonl", "ratings": RATINGS}}]}
    assert len(found(tmp_path, data).absent) == 1


def test_records_that_cannot_be_used_are_found_now(tmp_path):
    (tmp_path / "chats.jsonl").write_text(json.dumps({"message": "Hi"}) + "\n")
    with pytest.raises(DataError, match=r"chats.jsonl:1: messages: missing key 'messages'; did you mean message\?"):
        found(tmp_path, messages())
    with pytest.raises(DataError, match=r"data.messages: none of 1 records can be used; 1 of them: missing key 'messages'"):
        found(tmp_path, messages(onError="skip"))


RATED = {"prompt": "Hi", "response": "Ho", **dict.fromkeys(("helpfulness", "correctness", "coherence", "complexity", "verbosity"), 3)}


def lines(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def helpsteer(path, validation):
    lines(path / "train.jsonl", *[RATED] * 120)
    if validation:
        lines(path / "validation.jsonl", validation)


def record(label=None):
    answer = {"from": "Assistant", "value": "Ho", **({"label": label} if label else {})}
    return {"system": "", "mask": "User", "type": "TEXT_TO_VALUE", "conversations": [{"from": "User", "value": "Hi"}, answer]}


def records(folder, rated="quality:3", unlabelled=None):
    lines(folder / "a.jsonl", *[record(rated)] * 120)
    lines(folder / "more.jsonl", record(unlabelled))
    return {"records": {"train": "a.jsonl", "validation": "a.jsonl", "unlabelled": "more.jsonl"}}


def unrated(folder):
    (folder / "chats.jsonl").write_text("".join(json.dumps({"messages": QUESTION}) + "\n" for _ in range(120)))
    return messages()


def all_alike(folder):
    """Conversations that begin alike are in one split."""
    (folder / "chats.jsonl").write_text("".join(json.dumps({"messages": QUESTION, "scores": {"quality": i % 5}}) + "\n" for i in range(8)))
    return messages()


def broken_later(folder):
    chats(folder / "chats.jsonl", rows=140)
    with (folder / "chats.jsonl").open("a") as file:
        file.write(json.dumps({"messages": [QUESTION[0], {"role": "tool", "content": "4"}]}) + "\n")
    return messages()


def helpsteer3(folder):
    pair = {"domain": "general", "context": [QUESTION[0]], "response1": "A", "response2": "B", "overall_preference": -2}
    for part in ("train", "validation"):
        lines(folder / "hs" / f"{part}.jsonl", pair)


QUESTION = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]


@pytest.mark.parametrize(
    ("write", "code", "sentence"),
    [
        (broken_later, 65, r"chats.jsonl:141: messages\[1\].role: role 'tool' is not supported"),
        (unrated, 65, "the data has 120 conversations and no rated answer"),
        (all_alike, 65, "the data has no conversation to teach in split"),
        (helpsteer3, 65, "train.jsonl:1: preference of HelpSteer3 is not supported; .*; use hf:nvidia/HelpSteer2"),
        (lambda folder: helpsteer(folder / "hs", None), 2, "hs: no validation.jsonl"),
        (lambda folder: helpsteer(folder / "hs", RATED | {"helpfulness": 9}), 65, "validation.jsonl:1: helpfulness: label out of range"),
        (lambda folder: records(folder, unlabelled="humor:3"), 65, "more.jsonl:1: conversations.1..label: .*humor"),
    ],
)
def test_whatever_the_first_stage_would_refuse_is_no_valid_pipeline(write, code, sentence, tmp_path):
    """Nothing is said to be valid that is not."""
    data = write(tmp_path) or {"helpsteer": {"path": "hs"}}
    refused = steerlm(tmp_path, "validate", "p.yaml", data=data, attributes={"preset": "helpsteer"} if "helpsteer" in data else None)
    assert (refused.returncode, refused.stdout) == (code, ""), refused.stderr
    assert re.search(sentence, refused.stderr), refused.stderr


def test_a_base_model_without_a_tokenizer_is_found_now(tmp_path):
    chats(tmp_path / "chats.jsonl")
    shutil.copytree(STORIES, tmp_path / "base", ignore=shutil.ignore_patterns("tokenizer*"))
    with pytest.raises(UsageError, match="no tokenizer"):
        found(tmp_path, messages(), "base")


def test_a_base_model_that_cannot_be_trained_is_found_now(tmp_path):
    chats(tmp_path / "chats.jsonl")
    shutil.copytree(STORIES, tmp_path / "base")
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    (tmp_path / "base" / "config.json").write_text(json.dumps({**config, "model_type": "mamba"}))
    with pytest.raises(ConfigError, match="model_type is 'mamba'; known families: llama"):
        found(tmp_path, messages(), "base")
    (tmp_path / "base" / "config.json").write_text(json.dumps({**config, "intermediate_size": 8}))
    with pytest.raises(ConfigError, match=r"config\.json makes it"):
        found(tmp_path, messages(), "base")


def test_the_hub_is_asked_for_licences_and_fetches_nothing(hub, tmp_path):  # noqa: F811
    chats(tmp_path / "chats.jsonl")
    for base, data, code, sentence in (
        ("hf:own/gated", None, 78, "hf:own/gated/config.json: this model is gated; accept the terms of own/gated on the hub"),
        ("hf:own/missing", None, 2, "hf:own/missing/config.json: the Hugging Face hub has no such"),
        ("hf:own/public", None, 78, "model_type is None; known families"),
        (STORIES, messages("hf:own/gated/train.jsonl"), 78, "hf:own/gated/train.jsonl: this data set is gated; accept the terms"),
    ):
        refused = steerlm(tmp_path, "validate", "p.yaml", data=data, base=base, HF_ENDPOINT=hub, HF_HOME=str(tmp_path / "home"))
        assert (refused.returncode, sentence in refused.stderr) == (code, True), refused.stderr
    assert not set(Hub.asked) & {"model.safetensors", "train.jsonl"}
    rated = messages("hf:own/other/train.jsonl")
    gone = steerlm(tmp_path, "validate", "p.yaml", data=rated, base="hf:own/never", HF_ENDPOINT="http://127.0.0.1:9", HF_HOME=str(tmp_path))
    assert gone.returncode == 0, gone.stderr
    assert "not looked at: hf:own/never/config.json: the Hugging Face hub cannot be reached" in gone.stdout
    assert "not looked at: hf:own/other/train.jsonl: the Hugging Face hub did not give it" in gone.stdout


@pytest.mark.parametrize("command", [("validate", "p.yaml"), ("run", "p.yaml", "--dry-run")])
def test_commands_say_it_with_what_the_trainings_take(command, tmp_path):
    chats(tmp_path / "chats.jsonl")
    done = steerlm(tmp_path, *command)
    assert (done.returncode, done.stderr) == (0, "")
    assert "  data.messages: all 60 conversations can be read\n  model.base: llama, 0.26 million parameters\n" in done.stdout
    for pattern in (r"  memory  \d+\.\d GiB; \d+\.\d GiB are free", r"  disk    0\.0 GiB; \d+\.\d GiB are free"):
        assert re.search(pattern, done.stdout), done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chats.jsonl", "p.yaml"]


def test_a_training_that_cannot_fit_the_named_device_is_refused(tmp_path, capsys):
    chats(tmp_path / "chats.jsonl")

    def check(memory, base=STORIES):
        pipeline = parse(manifest(messages(), base, deviceMemory=memory), "m")
        foresight.print_foresight(pipeline, stages(pipeline), tmp_path, tmp_path)
        return capsys.readouterr().out

    said = check("80Gi")
    assert re.search(r"  train-value: 1\.\d GiB a device .* on GPUs, where its longest records have 256 tokens", said), said
    assert "  train-steer: 1." in said
    with pytest.raises(ConfigError, match=r"train-value: this training needs 1\.5 GiB a device .*a device has 1\.5 GiB; train with LoRA"):
        check("1500Mi")
    assert "train-value:" not in check("1500Mi", "not/here")  # its sizes are not known


def test_disk_counts_what_trainings_leave_and_what_passes():
    config = load_config(STORIES)
    adapters = forecast.Workload(steps=1, global_batch_size=1, micro_batch_size=1, tokens=8, mean_tokens=4, lora_rank=4)
    whole = msgspec.structs.replace(adapters, lora_rank=0)
    # fp32 both in the .nemo and in the export, as a run of this model leaves it; and two checkpoints of 12 bytes a weight.
    assert forecast.disk(config, [adapters, adapters]) == 2 * 8 * parameters(config)
    assert forecast.disk(config, [adapters, whole]) == (2 * 8 + 2 * 12) * parameters(config)


def test_each_training_is_estimated_with_its_own_numbers(tmp_path, monkeypatch):
    chats(tmp_path / "chats.jsonl")
    planned = []
    monkeypatch.setattr(foresight, "print_costs", lambda config, trainings, work: planned.extend(trainings))
    pipeline = parse(manifest(messages()), "m")
    foresight.print_foresight(pipeline, stages(pipeline), tmp_path, tmp_path)
    value = foresight.PlannedTraining(steps=10, global_batch_size=8, micro_batch_size=4, tokens=256, lora_rank=0)
    assert planned == [value, value._replace(lora_rank=32)]


MEMORY, DISK = "more memory than is free", "more disk than is free"


@pytest.mark.parametrize(
    ("memory", "disk", "gpus", "said"),
    [
        (1 << 60, 1 << 60, [], set()),
        (1 << 10, 1 << 60, [], {MEMORY}),
        (1 << 60, 1 << 10, [], {DISK}),
        (1 << 10, 1 << 10, [hardware.Gpu("H200", 1 << 37)], {DISK}),
    ],
)
def test_what_is_too_much_for_this_machine_is_said(memory, disk, gpus, said, monkeypatch, capsys, tmp_path):
    """With a GPU the weights are in its memory, which is not this one."""
    for name, value in (("memory", (memory, memory)), ("disk", disk), ("gpus", gpus)):
        monkeypatch.setattr(hardware, name, lambda *_, value=value: value)
    training = foresight.PlannedTraining(steps=10, global_batch_size=8, micro_batch_size=4, tokens=256, lora_rank=0)
    foresight.print_costs(load_config(STORIES), [training], tmp_path)
    out = capsys.readouterr().out
    assert {sentence for sentence in (MEMORY, DISK) if sentence in out} == said
    assert ("  time " in out) is (not gpus)
