"""What commands say before anything runs: what was found of a pipeline's inputs, and what its trainings take on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from nemo_steerlm.core import hardware
from nemo_steerlm.core.errors import ConfigError, UsageError
from nemo_steerlm.pipeline.cluster_types import amount
from nemo_steerlm.pipeline.steps.train import sizes, trainer_arguments

if TYPE_CHECKING:
    from nemo_steerlm.formats.families.base import ModelConfig
    from nemo_steerlm.pipeline.manifest import SteerLMPipeline
    from nemo_steerlm.pipeline.stages import Stage

GIB = 1 << 30


class PlannedTraining(NamedTuple):
    """One training as far as its costs go."""

    steps: int
    global_batch_size: int
    micro_batch_size: int
    tokens: int
    """Of a record, at most."""
    lora_rank: int


def print_foresight(pipeline: SteerLMPipeline, graph: Sequence[Stage], folder: Path, work: Path, heading: str = "") -> None:
    """A line about each source, the base model, what is absent, and what the trainings take.

    Args:
        pipeline: The pipeline.
        graph: Its stages.
        folder: Where its relative references start.
        work: Its work directory.
        heading: The first line: nothing is printed of a pipeline that is refused.

    Raises:
        UsageError, DataError, ConfigError: As ``foresee``; ConfigError as well if a training cannot fit a GPU that the manifest describes.
    """
    from nemo_steerlm.data.survey import MOST
    from nemo_steerlm.formats.families import parameters
    from nemo_steerlm.pipeline.foresight import foresee

    found = foresee(pipeline.spec, folder)
    needs = _device_memory(pipeline, graph, found.config) if found.config else []
    print(heading)
    for name, count in found.read.items():
        print(f"  data.{name}: {f'the first {count}' if count == MOST else f'all {count}'} conversations can be read")
    for sentence in found.absent:
        print(f"  not looked at: {sentence}")
    if found.config is None:
        return
    print(f"  model.base: {found.config.family}, {parameters(found.config) / 1e6:.3g} million parameters")
    for sentence in needs:
        print(f"  {sentence}")
    trainings = [stage.training.spec for stage in graph if stage.training]
    if any(spec.parallel.nodes * spec.parallel.devices > 1 for spec in trainings):
        return  # the estimates are of one process
    length = pipeline.spec.model.max_sequence_length
    print_costs(
        found.config,
        [
            PlannedTraining(
                steps=spec.max_steps,
                global_batch_size=spec.global_batch_size,
                micro_batch_size=spec.micro_batch_size,
                tokens=length,
                lora_rank=spec.lora.rank if spec.lora else 0,
            )
            for spec in trainings
        ],
        work,
    )


def _device_memory(pipeline: SteerLMPipeline, graph: Sequence[Stage], config: ModelConfig) -> list[str]:
    """What the trainings take of each GPU, where the manifest says what one has, a sentence each.

    Raises:
        ConfigError: If a training cannot fit, however short its records are.
    """
    trainings = {stage.name: stage.training.spec for stage in graph if stage.training and stage.training.spec.parallel.device_memory}
    if not trainings:
        return []
    try:
        from nemo_steerlm.training.base_model import memory_of_a_gpu
    except ImportError:
        return []  # ``print_costs`` says so
    longest = pipeline.spec.model.max_sequence_length
    found = []
    for name, spec in trainings.items():
        given = trainer_arguments(sizes(pipeline.spec, spec), spec)
        try:
            memory_of_a_gpu(config, given, width=1, learned=1).require(float(amount(spec.parallel.device_memory or "0")))
            most = memory_of_a_gpu(config, given, width=longest, learned=longest // 2)
        except (UsageError, ConfigError) as error:
            raise type(error)(f"{name}: {error}") from error
        found.append(f"{name}: {most} on GPUs, where its longest records have {longest} tokens and teach half of them")
    return found


def print_costs(config: ModelConfig, trainings: Sequence[PlannedTraining], work: Path) -> None:
    """Time, memory and disk of ``trainings`` on this machine, and what is too much for it."""
    try:
        from nemo_steerlm.training import forecast
    except ImportError:
        print("Training needs NeMo: pip install 'nemo_steerlm[nemo]'. What it takes can be said once that is there.")
        return
    costs = [forecast.Workload(**training._asdict(), mean_tokens=training.tokens // 2) for training in trainings]
    processor, gpus = hardware.processor(), hardware.gpus()
    needed, free = forecast.memory(config, costs), hardware.memory()[1]
    stored, room = forecast.disk(config, costs), hardware.disk(work)
    print(f"On this machine ({processor.cores} cores{', fp32' if not processor.bf16 else ''}) the trainings take at most:")
    if not gpus:
        speed = forecast.speed(processor)
        minutes = sum(forecast.seconds(config, training, speed) for training in costs) / 60
        print(f"  time    {max(1, round(minutes))} minutes; labelling and evaluation come on top, about as long again for a small model")
        print(f"  memory  {needed / GIB:.1f} GiB; {free / GIB:.1f} GiB are free")
    print(f"  disk    {stored / GIB:.1f} GiB; {room / GIB:.1f} GiB are free")
    if needed > free and not gpus:
        print("That is more memory than is free: choose a smaller base model, or another machine.")
    if stored > room:
        print("That is more disk than is free: choose another --workdir.")
