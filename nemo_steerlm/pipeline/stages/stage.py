"""What a stage is: a description that both executors share. Imports nothing that a stage runs."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any, Literal

from nemo_steerlm.core.objectives import ModelKind
from nemo_steerlm.data.splits import SPLITS
from nemo_steerlm.pipeline.engine_spec import EngineSpec
from nemo_steerlm.pipeline.manifest import PipelineSpec
from nemo_steerlm.pipeline.sources import Spec
from nemo_steerlm.pipeline.train_spec import ParallelSpec, TrainSpec

ImageRole = Literal["worker", "train"]
Amount = Literal["prepare", "train", "annotate", "evaluate"]
Credential = Literal["hugging_face", "wandb"]

MODEL_FOLDER = "hf"
"""Where a training stage puts the exported model, inside its own folder."""
CHECKPOINT = "model.nemo"
"""What a training stage leaves for the next training."""


def record_files(prefix: str = "") -> tuple[str, ...]:
    """The record files of both splits: ``train.jsonl`` and ``val.jsonl``."""
    return tuple(f"{prefix}{split}.jsonl" for split in SPLITS)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ServerNeed:
    """Inference servers that have to answer while a stage runs."""

    role: ModelKind
    """Which model; the stage gets their addresses as ``--server ROLE=URL``."""
    stage: str
    """The training stage whose model they serve."""
    replicas: int = 1
    devices: int = 1
    """GPUs for each, where there are any."""
    startup_timeout_seconds: int = 1800
    engine: EngineSpec = EngineSpec()
    """What runs the model."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Records:
    """The record files that a training reads."""

    stage: str
    """The stage that writes them."""
    train: str
    validation: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """What a training stage trains."""

    role: ModelKind
    """What the trained model does: read attributes, or write under them."""
    spec: TrainSpec
    """Hyperparameters."""
    data: Records
    base_reference: str | None = None
    """The base model: a reference of the manifest …"""
    base_stage: str | None = None
    """… or the stage whose checkpoint is trained further. Exactly one of the two is set."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One stage, independent of where and how wide it runs."""

    name: str
    kind: str
    """What it does, whichever its round and model: part of the input hash."""
    format: int
    """Raised by hand when equal inputs give another result than before: it is part of the input hash, the package's version is not."""
    run: str
    """``MODULE:FUNCTION`` that does the work. By name, so that the operator can import descriptions without what they run."""
    inputs: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    """By earlier stage: the outputs that this one's result depends on. A trained model counts as its exported folder: metrics contain
    speeds and ``model.nemo`` contains times, so their digests change without the model."""
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """The manifest fields that change its result and differ from their defaults: dotted path to plain data."""
    files: tuple[str, ...] = ()
    """References outside the work directory whose content changes its result."""
    outputs: tuple[str, ...] = ()
    """What it writes, relative to its folder; a name without a suffix is a folder."""
    round: int | None = None
    """The bootstrap round that it belongs to, counted from 1."""
    training: Training | None = None
    """What it trains, if it is a training."""
    servers: tuple[ServerNeed, ...] = ()
    """Servers that have to answer while it runs."""
    parallel: ParallelSpec = ParallelSpec()
    """How wide it runs."""
    shards: int = 1
    """Parts that may be done side by side, to be merged at the end."""
    image: ImageRole = "worker"
    """Which of ``spec.images`` it runs in."""
    resources: Amount
    """Which entry of ``spec.resources`` its pods ask for."""
    devices: int = 0
    """GPUs for each of its pods, where there are any."""
    credentials: tuple[Credential, ...] = ()
    """Which of ``spec.secrets`` it needs."""

    @property
    def after(self) -> tuple[str, ...]:
        """Stages whose outputs it reads."""
        return tuple(self.inputs)

    def command(self, manifest: str, workdir: str) -> list[str]:
        """The arguments of ``steerlm`` that run it, servers and shard left to the executor."""
        return ["stage", self.name, "--manifest", manifest, "--workdir", workdir]

    def spec_hash(self) -> str:
        """sha256 over what the manifest alone says of it: what tells a cluster that cannot read files that a stage is another than it was.

        Without the format: what an older version finished stays finished.
        """
        inputs = {name: list(read) for name, read in self.inputs.items()}
        return digest({"kind": self.kind, "fields": dict(self.fields), "files": list(self.files), "inputs": inputs})

    def identity(self, file_digests: Mapping[str, str], outputs: Mapping[str, Mapping[str, str]], salt: str = "") -> dict[str, Any]:
        """Everything that changes the result, and nothing that does not (replicas, devices, addresses, the package's version).

        Args:
            file_digests: A digest for each of ``files``.
            outputs: By name of each stage in ``inputs`` the digests of its outputs.
            salt: Anything that is to make another hash: how a cluster asks for finished work to be done again.
        """
        return {
            "kind": self.kind,
            "format": self.format,
            "fields": dict(self.fields),
            "files": {reference: file_digests[reference] for reference in self.files},
            "inputs": {name: {output: outputs[name][output] for output in read} for name, read in self.inputs.items()},
            **({"salt": salt} if salt else {}),
        }

    def input_hash(self, file_digests: Mapping[str, str], outputs: Mapping[str, Mapping[str, str]], salt: str = "") -> str:
        """sha256 over ``identity``, in hexadecimal digits."""
        return digest(self.identity(file_digests, outputs, salt))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a stage stands in its pipeline."""

    name: str
    round: int | None
    """The bootstrap round, counted from 1; None outside of rounds."""
    before: tuple[Stage, ...]
    """The stages that run before it, in order."""

    def all(self, kind: str) -> tuple[Stage, ...]:
        """The earlier stages of a kind."""
        return tuple(stage for stage in self.before if stage.kind == kind)

    def last(self, kind: str) -> Stage:
        """The latest stage of a kind. Raises LookupError where none is before this one: the registry's order is wrong."""
        if earlier := self.all(kind):
            return earlier[-1]
        raise LookupError(f"stage {self.name} needs a stage of kind {kind} before it")

    def trained(self, role: ModelKind) -> Stage:
        """The latest training of a model. Raises LookupError where none is before this one."""
        if earlier := [stage for stage in self.before if stage.training and stage.training.role == role]:
            return earlier[-1]
        raise LookupError(f"stage {self.name} needs a training of a {role} model before it")


def digest(identity: Mapping[str, Any]) -> str:
    """sha256 over plain data, keys sorted."""
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def changed_fields(spec: PipelineSpec, *paths: str, leave_out: tuple[str, ...] = ()) -> dict[str, Any]:
    """The fields at and below ``paths`` that differ from their defaults, so that a new field at its default changes no hash.

    Args:
        spec: The pipeline's spec.
        paths: Dotted names as the models have them, such as ``model.layout`` or ``train_value``.
        leave_out: Fields below ``paths`` that do not count.

    Returns:
        Dotted path as the manifest writes it to plain data.
    """
    changed: dict[str, Any] = {}
    for path in paths:
        *parents, last = path.split(".")
        model: Spec = spec
        written = ""
        for name in parents:
            written += f"{type(model).model_fields[name].alias}."
            model = getattr(model, name)
        changed |= _changed(model, last, written, path, leave_out)
    return changed


def _changed(model: Spec, name: str, written: str, path: str, leave_out: tuple[str, ...]) -> dict[str, Any]:
    field = type(model).model_fields[name]
    value, key = getattr(model, name), f"{written}{field.alias}"
    if path in leave_out or value == field.default:
        return {}
    if isinstance(field.default, Spec) or (isinstance(value, Spec) and field.is_required()):
        changed: dict[str, Any] = {}
        for inner in type(value).model_fields:
            changed |= _changed(value, inner, f"{key}.", f"{path}.{inner}", leave_out)
        return changed
    dumped = model.model_dump(mode="json", by_alias=True, include={name}, exclude_defaults=True)
    return {key: dumped[str(field.alias)]}
