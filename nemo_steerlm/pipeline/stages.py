"""The stage graph: what each stage reads, writes and needs, as plain descriptions. Executors only decide where a stage runs.

``prepare → train-value → annotate → train-steer → [bootstrap-N-sample → bootstrap-N-train]… → evaluate``, and ``serve`` after that.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any, Literal

from nemo_steerlm import __version__
from nemo_steerlm.core.errors import UsageError, nearest, shown
from nemo_steerlm.pipeline.manifest import ParallelSpec, PipelineSpec, SteerLMPipeline, TrainSpec

Kind = Literal["prepare", "train", "annotate", "sample", "evaluate", "serve"]
ModelRole = Literal["value", "steer"]

MODEL_FOLDER = "hf"
"""Where a training stage puts the exported model, inside its own folder."""
SPLITS = ("train.jsonl", "val.jsonl")
"""The records that annotation and sampling leave for a training."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ServerNeed:
    """Inference servers that have to answer while a stage runs."""

    role: ModelRole
    """Which model; the stage gets their addresses as ``--server ROLE=URL``."""
    stage: str
    """The training stage whose model they serve."""
    replicas: int = 1
    devices: int = 1
    """GPUs for each, where there are any."""
    startup_timeout_seconds: int = 1800


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One stage, independent of where and how wide it runs."""

    name: str
    kind: Kind
    reads: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    """Of each earlier stage the outputs that change this one's result. A training's metrics hold its speed and ``model.nemo`` its time of
    writing: what stands for a model is the exported one."""
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """The manifest fields that change its result, as plain data."""
    files: tuple[str, ...] = ()
    """References outside the work directory whose content changes its result."""
    outputs: tuple[str, ...] = ()
    """What it writes, relative to its folder; a name without a suffix is a folder."""
    servers: tuple[ServerNeed, ...] = ()
    parallel: ParallelSpec = ParallelSpec()
    shards: int = 1

    @property
    def after(self) -> tuple[str, ...]:
        """Stages whose outputs it reads."""
        return tuple(self.reads)

    def command(self, manifest: str, workdir: str) -> list[str]:
        """The arguments of ``steerlm`` that run it, servers and shard left to the executor."""
        return ["stage", self.name, "--manifest", manifest, "--workdir", workdir]

    def input_hash(self, file_digests: Mapping[str, str], outputs: Mapping[str, Mapping[str, str]], salt: str = "") -> str:
        """sha256 over everything that changes the result, and nothing that does not (replicas, devices, addresses).

        ``file_digests`` has a digest for each of ``files``; ``outputs`` the output digests of each stage in ``reads``. Another ``salt``
        is another hash: how a cluster asks for work that is done to be done again.
        """
        described = {
            "package": __version__,
            "kind": self.kind,
            "fields": self.fields,
            "files": {reference: file_digests[reference] for reference in self.files},
            "inputs": {name: {output: outputs[name][output] for output in read} for name, read in self.reads.items()},
            **({"salt": salt} if salt else {}),
        }
        text = json.dumps(described, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()


def stages(manifest: SteerLMPipeline) -> tuple[Stage, ...]:
    """Every stage of a pipeline in the order they run, without ``serve`` (it is no work that ends)."""
    spec = manifest.spec
    teach = _plain(spec, "attributes", "model") | {"system": spec.data.system}
    rated, unlabelled = ("value_train.jsonl", "value_val.jsonl"), ("annotate_train.jsonl", "annotate_val.jsonl")
    graph = [
        Stage(
            name="prepare",
            kind="prepare",
            fields=_plain(spec, "attributes", "data", "model"),
            files=(*_data_files(spec), spec.model.base),
            outputs=(*rated, *unlabelled, "tokenizer"),
        ),
        _train("train-value", spec.train_value, teach, {"prepare": rated}, base=spec.model.base),
        Stage(
            name="annotate",
            kind="annotate",
            reads={"prepare": (*unlabelled, "tokenizer"), "train-value": (MODEL_FOLDER,)},
            fields={"turns": spec.annotate.turns, **_plain(spec, "model")},
            outputs=(*SPLITS, "summary.json"),
            servers=(_servers("value", "train-value", spec),),
            shards=spec.annotate.shards,
        ),
        _train("train-steer", spec.train_steer, teach, {"annotate": SPLITS}, base=spec.model.base),
    ]
    for number in range(1, spec.bootstrap.rounds + 1):
        graph += _bootstrap(number, spec, teach, previous=graph[-1].name)
    graph.append(
        Stage(
            name="evaluate",
            kind="evaluate",
            reads={
                "prepare": ("value_train.jsonl", "annotate_val.jsonl", "tokenizer"),
                "train-value": (MODEL_FOLDER,),
                "annotate": SPLITS,
                graph[-1].name: (MODEL_FOLDER,),
            },
            fields=_plain(spec, "attributes", "evaluate", "model"),
            outputs=("metrics.json", "samples.jsonl", "report.html"),
            servers=(_servers("value", "train-value", spec), _servers("steer", graph[-1].name, spec)),
        )
    )
    return tuple(graph)


def final_model(manifest: SteerLMPipeline) -> str:
    """The training stage whose model is the pipeline's result."""
    rounds = manifest.spec.bootstrap.rounds
    return f"bootstrap-{rounds}-train" if rounds else "train-steer"


def find(graph: tuple[Stage, ...], name: str) -> Stage:
    """The stage called ``name``. Raises UsageError listing those there are."""
    for stage in graph:
        if stage.name == name:
            return stage
    names = [stage.name for stage in graph]
    raise UsageError(f"unknown stage {shown(name)}: {nearest(name, names)}known: {', '.join(names)}")


def train_spec(manifest: SteerLMPipeline, stage: Stage) -> TrainSpec:
    """The hyperparameters of a training stage."""
    return manifest.spec.train_value if stage.name == "train-value" else manifest.spec.train_steer


def _train(name: str, spec: TrainSpec, teach: Mapping[str, Any], reads: Mapping[str, tuple[str, ...]], *, base: str | None) -> Stage:
    result = spec.model_dump(mode="json", by_alias=True, exclude={"parallel", "micro_batch_size"})
    return Stage(
        name=name,
        kind="train",
        reads=reads,
        fields={**teach, "train": result},
        files=(base,) if base else (),
        outputs=("model.nemo", MODEL_FOLDER, "metrics.json"),
        parallel=spec.parallel,
    )


def _bootstrap(number: int, spec: PipelineSpec, teach: Mapping[str, Any], *, previous: str) -> tuple[Stage, Stage]:
    sample = Stage(
        name=f"bootstrap-{number}-sample",
        kind="sample",
        reads={"prepare": ("tokenizer",), "annotate": SPLITS, "train-value": (MODEL_FOLDER,), previous: (MODEL_FOLDER,)},
        fields={"round": number, **_plain(spec, "attributes", "bootstrap")},
        outputs=SPLITS,
        servers=(_servers("value", "train-value", spec), _servers("steer", previous, spec)),
    )
    train = _train(f"bootstrap-{number}-train", spec.train_steer, teach, {sample.name: SPLITS, previous: (MODEL_FOLDER,)}, base=None)
    return sample, train


def _servers(role: ModelRole, stage: str, spec: PipelineSpec) -> ServerNeed:
    wanted = spec.annotate.servers
    return ServerNeed(
        role=role,
        stage=stage,
        replicas=wanted.replicas if role == "value" else 1,
        devices=wanted.devices,
        startup_timeout_seconds=wanted.startup_timeout_seconds,
    )


def _plain(spec: PipelineSpec, *names: str) -> dict[str, Any]:
    dumped: dict[str, Any] = spec.model_dump(mode="json", by_alias=True, include=set(names), exclude_none=True)
    return dumped


def _data_files(spec: PipelineSpec) -> tuple[str, ...]:
    data = spec.data
    if data.oasst:
        return (data.oasst.path,)
    if data.helpsteer:
        return (data.helpsteer.path,)
    if data.rated_text:
        return tuple(file.path for file in data.rated_text.files)
    assert data.records is not None  # DataSource holds exactly one
    return tuple(path for path in (data.records.train, data.records.validation, data.records.unlabelled) if path)
