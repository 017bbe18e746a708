"""The trainings: ``train-value``, ``train-steer``, and one further training of the SteerLM model in each bootstrap round."""

from __future__ import annotations

import dataclasses
from typing import Any

from nemo_steerlm.pipeline.manifest import PipelineSpec
from nemo_steerlm.pipeline.stages.prepare import RECORDS_TO_LABEL, TOKENIZER, VALUE_RECORDS
from nemo_steerlm.pipeline.stages.stage import CHECKPOINT, MODEL_FOLDER, Place, Records, Stage, Training, changed_fields, record_files
from nemo_steerlm.pipeline.train_spec import BEST_CONTROL, TrainSpec

FORMAT = 1

TAUGHT = ("attributes", "data.system", "model.max_sequence_length", "model.chat_tokens", "model.layout")
"""What every training teaches besides its records."""
ASKED = tuple(
    f"evaluate.{name}" for name in ("attributes", "base", "samples_per_level", "prompts", "max_tokens", "temperature", "top_k", "seed")
)
"""What decides which prompts choose a step, and how they are asked."""
HOW_WIDE = ("parallel", "micro_batch_size", "save_every_minutes")
"""Fields of a training that decide how the work is spread and saved, not its result."""


def train_value(spec: PipelineSpec, place: Place) -> Stage:
    """The value model learns to read attributes from what people labelled."""
    train, validation = VALUE_RECORDS
    training = Training(
        role="value",
        spec=spec.train_value,
        data=Records(stage=place.last("prepare").name, train=train, validation=validation),
        base_reference=spec.model.base,
    )
    return _stage(spec, place, "train_value", training)


def train_steer(spec: PipelineSpec, place: Place) -> Stage:
    """The SteerLM model learns to write under the attributes that the value model read."""
    training = Training(role="steer", spec=spec.train_steer, data=_records(place.last("annotate")), base_reference=spec.model.base)
    return _choosing(spec, place, _stage(spec, place, "train_steer", training))


def bootstrap_train(spec: PipelineSpec, place: Place) -> Stage:
    """The SteerLM model learns from its own answers, as the value model read them (paper section 3.4)."""
    settings = spec.bootstrap.train.over(spec.train_steer)
    training = Training(role="steer", spec=settings, data=_records(place.last("sample")), base_stage=place.trained("steer").name)
    return _choosing(spec, place, _stage(spec, place, "train_steer", training, more=("bootstrap.train",)))


def _choosing(spec: PipelineSpec, place: Place, stage: Stage) -> Stage:
    """``stage``, which reads held-out prompts and the value model as well where its step is chosen by control."""
    if spec.train_steer.keep != BEST_CONTROL:
        return stage
    _, questions = RECORDS_TO_LABEL
    inputs = {**stage.inputs, place.last("prepare").name: (questions, TOKENIZER), place.trained("value").name: (MODEL_FOLDER,)}
    return dataclasses.replace(stage, inputs=inputs, fields={**stage.fields, **changed_fields(spec, *ASKED)})


def _records(stage: Stage) -> Records:
    train, validation = record_files()
    return Records(stage=stage.name, train=train, validation=validation)


def _stage(spec: PipelineSpec, place: Place, section: str, training: Training, more: tuple[str, ...] = ()) -> Stage:
    settings: TrainSpec = training.spec
    inputs: dict[str, tuple[str, ...]] = {training.data.stage: (training.data.train, training.data.validation)}
    taught: tuple[str, ...] = TAUGHT
    files: tuple[str, ...] = ()
    if training.base_stage:
        inputs[training.base_stage] = (MODEL_FOLDER,)
    if training.base_reference:
        taught, files = (*TAUGHT, "model.base"), (training.base_reference,)
    fields: dict[str, Any] = changed_fields(spec, *taught, section, *more, leave_out=tuple(f"{section}.{name}" for name in HOW_WIDE))
    return Stage(
        name=place.name,
        kind="train",
        format=FORMAT,
        run="nemo_steerlm.pipeline.steps.train:train",
        inputs=inputs,
        fields=fields,
        files=files,
        outputs=(CHECKPOINT, MODEL_FOLDER, "metrics.json"),
        round=place.round,
        training=training,
        parallel=settings.parallel,
        image="train",
        resources="train",
        devices=settings.parallel.devices,
        credentials=("hugging_face", "wandb"),
    )
