"""Each number of the manifest reaches its own key of the trainer's configuration, and the manifest refuses what the trainer refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemo_steerlm.core.errors import ConfigError, UsageError
from nemo_steerlm.megatron.machine import Machine
from nemo_steerlm.pipeline.artifacts import WorkDirectory
from nemo_steerlm.pipeline.manifest import parse
from nemo_steerlm.pipeline.run_context import Run
from nemo_steerlm.pipeline.stages import find, stages
from nemo_steerlm.pipeline.steps.train import _environment, model_info, overrides
from nemo_steerlm.pipeline.train_spec import LoraSpec, ParallelSpec, SteerTrainSpec, TrainSpec
from nemo_steerlm.training import config
from nemo_steerlm.training.settings import check
from tests.inputs import STORIES
from tests.pipeline.manifests import with_field

KEYS = {
    # Field of TrainSpec: a value like no other, the trainer's keys, and what they then hold, where that is another.
    "maxSteps": (37, ["trainer.sft.max_steps"]),
    "maxEpochs": (38, ["trainer.sft.max_epochs"]),
    "globalBatchSize": (40, ["model.data.train_ds.global_batch_size", "model.data.validation_ds.global_batch_size"]),
    "microBatchSize": (4, ["model.data.train_ds.micro_batch_size", "model.data.validation_ds.micro_batch_size"]),
    "learningRate": (0.041, ["model.optim.lr"]),
    "minLearningRate": (0.0042, ["model.optim.sched.min_lr"]),
    "warmupSteps": (43, ["model.optim.sched.warmup_steps"]),
    "constantSteps": (44, ["model.optim.sched.constant_steps"]),
    "weightDecay": (0.045, ["model.optim.weight_decay"]),
    "validateEvery": (46, ["trainer.sft.val_check_interval", "trainer.sft.save_interval"]),
    "saveEveryMinutes": (46.5, ["trainer.sft.save_minutes"]),
    "limitValidationBatches": (47, ["trainer.sft.limit_val_batches"]),
    "precision": ("32", ["trainer.precision"], 32),
    "seed": (48, ["model.seed"]),
    "parallel.nodes": (2, ["trainer.num_nodes"]),
    "parallel.devices": (10, ["trainer.devices"]),
    "parallel.tensor": (5, ["model.tensor_model_parallel_size"]),
    "parallel.pipeline": (2, ["model.pipeline_model_parallel_size"]),
    "parallel.deviceMemory": ("56Gi", ["steerlm.device_memory_gb"], 56),
    "lora.rank": (49, ["model.peft.lora_tuning.adapter_dim"]),
    "lora.targetModules": (["mlp", "attention_qkv"], ["model.peft.lora_tuning.target_modules"]),
    "lora.layerSelection": ([3, 2], ["model.peft.lora_tuning.layer_selection"]),
    "lora.alpha": (52.5, ["model.peft.lora_tuning.alpha"]),
    "lora.dropout": (0.053, ["model.peft.lora_tuning.adapter_dropout"]),
    "labelDropout": (0.054, ["model.data.train_ds.file_path"], "/w/train-steer/records/train.jsonl"),
    "attributeDropout": (0.055, ["model.data.train_ds.file_path"], "/w/train-steer/records/train.jsonl"),
    "keep": ("best", ["exp_manager.checkpoint_callback_params.save_best_model"], True),
    "overrides": (["model.hidden_dropout=0.123"], ["model.hidden_dropout"], 0.123),
}
"""All at once, so that a number at another field's key is noticed."""
OF_STEER_ONLY = {str(field.alias) for name, field in SteerTrainSpec.model_fields.items() if name not in TrainSpec.model_fields}


def run_of(content, stage="train-value"):
    pipeline = parse(content, "m")
    found = find(stages(pipeline), stage)
    return Run(pipeline=pipeline, stage=found, work=WorkDirectory("/w"), manifest=Path("/m/pipeline.yaml"), servers={})


def composed(run):
    return config.compose(overrides(run, run.stage.training, Path("/w/info.json")))


def settings(section):
    made = {}
    for path, (value, *_) in keys_of(section).items():
        part, dot, field = path.partition(".")
        if dot:
            made.setdefault(part, {})[field] = value
        else:
            made[path] = value
    return made


def keys_of(section):
    return {path: entry for path, entry in KEYS.items() if section == "trainSteer" or path not in OF_STEER_ONLY}


def with_settings(section):
    content = with_field(f"spec.{section}", settings(section))
    content["spec"]["model"] = {"base": str(STORIES), "maxSequenceLength": 51}
    return content


def test_torchrun_waits_for_a_checkpoint_as_long_as_a_pod_does():
    """Its own 30 seconds would end ranks that are saving."""
    from torch.distributed.launcher.api import LaunchConfig

    environment = _environment(run_of(with_settings("trainValue")).stage.training.spec.parallel)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", environment["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"])
        assert LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=2).shutdown_timeout == 110
        patched.delenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT")
        for grace, waits in (("900", "890"), ("12", "6")):
            patched.setenv("STEERLM_GRACE_SECONDS", grace)
            assert _environment(ParallelSpec())["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] == waits


def test_the_table_has_every_field():
    fields = {str(field.alias) for field in SteerTrainSpec.model_fields.values()} - {"lora", "parallel"}
    fields |= {f"lora.{field.alias}" for field in LoraSpec.model_fields.values()}
    fields |= {f"parallel.{field.alias}" for field in ParallelSpec.model_fields.values()}
    assert fields == set(KEYS)


@pytest.mark.parametrize("stage", ["train-value", "train-steer"])
def test_each_field_reaches_its_own_key(stage):
    section = "trainValue" if stage == "train-value" else "trainSteer"
    cfg = composed(run_of(with_settings(section), stage))
    for path, (value, keys, *held) in keys_of(section).items():
        for key in keys:
            node = cfg
            for part in key.split("."):
                node = node[part]
            assert node == (held[0] if held else value), (path, key)
    for dataset in ("train_ds", "validation_ds"):
        assert cfg.model.data[dataset].max_seq_length == 51
    assert cfg.model.encoder_seq_length == 51
    assert cfg.model.peft.peft_scheme == "lora"


def test_a_training_without_adapters_or_limits_asks_for_none():
    cfg = composed(run_of(with_field("spec.model.base", str(STORIES))))
    assert cfg.model.peft.peft_scheme in (None, "none")
    assert cfg.trainer.sft.limit_val_batches == 1.0


def test_roles_records_and_base_models_are_the_stage_s():
    content = with_field("spec.bootstrap", {"rounds": 2, "requireAny": True})
    content["spec"]["model"]["base"] = str(STORIES)
    found = {}
    for stage in ("train-value", "train-steer", "bootstrap-1-train", "bootstrap-2-train"):
        run = run_of(content, stage)
        data = composed(run).model
        found[stage] = (
            model_info(run, run.stage.training).kind,
            data.restore_from_path,
            data.data.train_ds.file_path,
            data.data.validation_ds.file_path,
        )
    assert found == {
        "train-value": ("value", str(STORIES), "/w/prepare/value_train.jsonl", "/w/prepare/value_val.jsonl"),
        "train-steer": ("steer", str(STORIES), "/w/annotate/train.jsonl", "/w/annotate/val.jsonl"),
        "bootstrap-1-train": (
            "steer", "/w/train-steer/model.nemo", "/w/bootstrap-1-sample/train.jsonl", "/w/bootstrap-1-sample/val.jsonl",
        ),
        "bootstrap-2-train": (
            "steer", "/w/bootstrap-1-train/model.nemo", "/w/bootstrap-2-sample/train.jsonl", "/w/bootstrap-2-sample/val.jsonl",
        ),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("keys", "fields"),
    [
        (["trainer.precision=16"], {"precision": "16"}),
        (["model.optim.lr=1e-4", "model.optim.sched.min_lr=1e-4"], {"learningRate": 1e-4, "minLearningRate": 1e-4}),
        (["model.optim.lr=1e-5", "model.optim.sched.min_lr=1e-4"], {"learningRate": 1e-5, "minLearningRate": 1e-4}),
    ],
)
def test_the_manifest_refuses_what_the_trainer_refuses(keys, fields):
    run = run_of(with_field("spec.model.base", str(STORIES)))
    with pytest.raises(ConfigError):
        check(config.compose([*overrides(run, run.stage.training, Path("/i")), *keys]), Machine(cuda=True))
    with pytest.raises(UsageError):
        parse(with_field("spec.trainValue", fields), "m")
