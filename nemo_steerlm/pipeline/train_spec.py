"""How a model is trained: hyperparameters and how wide a training runs. Part of the manifest."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from nemo_steerlm.pipeline.cluster_types import Quantity
from nemo_steerlm.pipeline.sources import Spec

Positive = Annotated[int, Field(ge=1, le=1_000_000_000)]
Count = Annotated[int, Field(ge=0, le=1_000_000_000)]


class ParallelSpec(Spec):
    """How wide a training runs. It changes where the work is done, not its result."""

    nodes: Annotated[int, Field(ge=1, le=1024)] = 1
    """Machines; more than one only on a cluster."""
    devices: Annotated[int, Field(ge=1, le=64)] = 1
    """Processes on each machine: one a GPU, or gloo processes on a machine without GPUs."""
    tensor: Annotated[int, Field(ge=1, le=1024)] = 1
    """Tensor parallel size."""
    pipeline: Annotated[int, Field(ge=1, le=1024)] = 1
    """Pipeline parallel size."""
    device_memory: Quantity | None = None
    """What one device has, such as ``80Gi``. ``steerlm validate`` and the training refuse, before anything runs, what cannot fit."""

    @model_validator(mode="after")
    def _fits(self) -> ParallelSpec:
        if (self.nodes * self.devices) % (self.tensor * self.pipeline):
            raise ValueError(
                f"tensor x pipeline ({self.tensor} x {self.pipeline}) must divide nodes x devices ({self.nodes} x {self.devices}); "
                "the quotient is the data parallel size"
            )
        return self

    @property
    def data(self) -> int:
        """Data parallel size."""
        return self.nodes * self.devices // (self.tensor * self.pipeline)


class LoraSpec(Spec):
    """Low-rank adapters instead of training every weight."""

    rank: Annotated[int, Field(ge=1, le=1024)] = 32
    """Width of the adapters. NeMo's; 16 takes less memory and is enough for a few attributes."""
    target_modules: Annotated[
        tuple[Literal["attention_qkv", "attention_dense", "mlp_fc1", "mlp_fc2", "attention", "mlp", "all"], ...],
        Field(min_length=1, max_length=7),
    ] = ("attention_qkv",)
    """Which matrices of a layer get one. NeMo's default; ``all`` learns more from few records, and takes more memory."""
    layer_selection: Annotated[tuple[Annotated[int, Field(ge=1, le=1024)], ...], Field(min_length=1, max_length=1024)] | None = None
    """Numbers of the layers that get adapters, the first is 1; all by default. Training goes back no further than the lowest of them."""
    alpha: Annotated[float, Field(gt=0, le=100_000)] | None = None
    """Adapters' output is multiplied by alpha / rank; the rank by default, which is 1."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the adapters' input that is left out at random while training."""


class TrainSpec(Spec):
    """One training. Defaults are the tutorial's steps 6 and 9."""

    max_steps: Positive = 1000
    """Optimizer steps; the end of ``maxEpochs`` may come first. The tutorial's; ``steerlm init`` writes what suits the amount of data."""
    max_epochs: Annotated[int, Field(ge=1, le=10_000)] = 1
    """Passes over the data at most. One: ratings are few and repeat themselves, and what is seen again is soon known by heart."""
    global_batch_size: Annotated[int, Field(ge=1, le=1_048_576)] = 128
    """Samples per optimizer step, over all data parallel ranks. The tutorial's; with a few hundred records 8 or 16 leave enough steps."""
    micro_batch_size: Annotated[int, Field(ge=1, le=65_536)] = 2
    """Samples per forward and backward on one rank. It decides memory and speed, not the result: take the largest that fits."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 6e-6
    """Peak learning rate; above ``minLearningRate``. The tutorial's, for all weights of a 7B model; for adapters ``steerlm init``
    writes 1e-4 to 2e-3."""
    min_learning_rate: Annotated[float, Field(ge=0, le=1)] = 5e-6
    """Learning rate at the end of the cosine. The tutorial's."""
    warmup_steps: Count = 1
    """Steps from zero to the peak. One is enough at the tutorial's low rate; for a high one take a tenth of the steps."""
    constant_steps: Count = 200
    """Steps at ``minLearningRate`` at the end. The tutorial's; a training that is too short for so many has none."""
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.01
    """AdamW's weight decay. The tutorial's."""
    validate_every: Positive = 200
    """Steps between validations, each followed by a checkpoint: what an interruption costs at most. The tutorial's."""
    save_every_minutes: Annotated[float, Field(gt=0, le=10_080)] | None = None
    """Minutes between checkpoints at most, where validations come less often: what an interruption may cost."""
    keep: Literal["last", "best"] = "last"
    """Which step's weights become the model: the last one's, as in the tutorial, or those of the smallest validation loss."""
    limit_validation_batches: Positive | None = None
    """Use so many validation batches of the global batch size; all by default, which takes long where many records validate."""
    precision: Literal["bf16", "32"] = "bf16"
    """Arithmetic of GPUs; fp16 is not supported. CPUs compute in 32, but with instructions for it take matrix products in bf16."""
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 1234
    """Seed of the data order and of new weights. NeMo's."""
    parallel: ParallelSpec = ParallelSpec()
    """How wide it runs."""
    lora: LoraSpec | None = None
    """Train adapters only; all weights by default, as in the tutorial. Adapters take a fraction of the memory."""
    overrides: Annotated[
        tuple[Annotated[str, Field(max_length=1024, pattern=r"^[+~]{0,2}[A-Za-z_][A-Za-z0-9_./@-]*=[^\n\r]*$")], ...], Field(max_length=128)
    ] = ()
    """Anything else of the trainer's configuration, as ``key=value``, such as ``trainer.sft.gradient_clip_val=0.5``,
    ``model.activations_checkpoint_granularity=full`` (less memory) or ``exp_manager.create_wandb_logger=true``."""

    @model_validator(mode="after")
    def _batches_fit(self) -> TrainSpec:
        per_step = self.micro_batch_size * self.parallel.data
        if self.global_batch_size % per_step:
            raise ValueError(
                f"globalBatchSize {self.global_batch_size} must be a multiple of microBatchSize x data parallel size "
                f"({self.micro_batch_size} x {self.parallel.data})"
            )
        return self

    @model_validator(mode="after")
    def _falls_to_the_minimum(self) -> TrainSpec:
        if self.learning_rate <= self.min_learning_rate:
            rates = f"learningRate {self.learning_rate:g} must be above minLearningRate {self.min_learning_rate:g}"
            raise ValueError(f"{rates}: raise it, or lower the other")
        return self


BEST_CONTROL = "best-control"


class SteerTrainSpec(TrainSpec):
    """Training of the SteerLM model."""

    keep: Literal["last", "best", "best-control"] = "last"  # type: ignore[assignment]  # one choice more than other trainings have
    """Which step's weights become the model: the last one's, those of the smallest validation loss, or those under which answers to
    held-out prompts read most like what was asked (``best-control``, which needs both models in memory beside the training)."""
    label_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the training records that are taught without labels, so that the model also knows how to write under none: what strength
    (``guidance_scale``) leads away from."""
    attribute_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the attributes that are left out of training labels at random, so that a request need not name every attribute."""
