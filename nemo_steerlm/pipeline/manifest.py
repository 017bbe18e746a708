"""The ``SteerLMPipeline`` resource: what ``steerlm run`` executes and ``kubectl apply`` accepts, one definition for both."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field, model_validator

from nemo_steerlm.core.errors import SteerLMError, UsageError, nearest
from nemo_steerlm.core.spec import from_plain
from nemo_steerlm.core.yaml_files import FieldPath, read_yaml
from nemo_steerlm.data.sources.helpsteer import HelpSteerSource
from nemo_steerlm.pipeline.cluster_spec import ClusterFields
from nemo_steerlm.pipeline.cluster_types import NamespaceName, SecretKeySpec
from nemo_steerlm.pipeline.engine_spec import NO_GUIDANCE, EngineSpec
from nemo_steerlm.pipeline.evaluate_spec import EvaluateSpec
from nemo_steerlm.pipeline.mistakes import mistakes
from nemo_steerlm.pipeline.model_spec import AttributesSpec, ModelSpec
from nemo_steerlm.pipeline.registry import MAX_ROUNDS
from nemo_steerlm.pipeline.sources import DataSource, Name, Spec
from nemo_steerlm.pipeline.train_spec import Count, Positive, SteerTrainSpec, TrainSpec

API_VERSION = "steerlm.dev/v1alpha1"
KIND = "SteerLMPipeline"


class ServersSpec(Spec):
    """Inference servers that live as long as a stage needs them: of annotate, and of the bootstrap rounds and evaluate."""

    replicas: Annotated[int, Field(ge=1, le=1024)] = 1
    """How many."""
    devices: Annotated[int, Field(ge=1, le=64)] = 1
    """GPUs for each, where there are any."""
    startup_timeout_seconds: Annotated[int, Field(ge=1, le=86_400)] = 1800
    """How long one may take to load its model."""
    engine: EngineSpec = EngineSpec()
    """What runs the model. An ``external`` one is the value model's: the SteerLM model, which changes from round to round, runs in
    transformers beside it."""

    @model_validator(mode="after")
    def _engine_fits(self) -> ServersSpec:
        self.engine.fit(self.devices)
        return self


class AnnotateSpec(Spec):
    """Labelling conversations with the value model."""

    servers: ServersSpec = ServersSpec()
    """Servers of the value model."""
    shards: Annotated[int, Field(ge=1, le=4096)] = 1
    """Parts that are labelled side by side on a cluster; the result is the same for any number."""
    turns: Literal["unmasked", "all"] = "unmasked"
    """Label the turns that the value model learned to read, or all turns as the tutorial does."""


PAIRS_TEACH_NOTHING = "both answers of a pair have the same label, so a value model learns nothing from pairs: leave preference out"


class RoundTrainSpec(Spec):
    """What a bootstrap round trains with instead of ``trainSteer``'s settings; what is not named is as there."""

    max_steps: Positive | None = None
    """Optimizer steps."""
    max_epochs: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """Passes over the data at most."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] | None = None
    """Peak learning rate."""
    min_learning_rate: Annotated[float, Field(ge=0, le=1)] | None = None
    """Learning rate at the end of the cosine."""
    warmup_steps: Count | None = None
    """Steps from zero to the peak."""
    constant_steps: Count | None = None
    """Steps at ``minLearningRate`` at the end."""
    validate_every: Positive | None = None
    """Steps between validations, each followed by a checkpoint."""

    def over(self, spec: SteerTrainSpec) -> SteerTrainSpec:
        """``spec`` with these settings in place of its own. Raises ValueError where they do not go together."""
        try:
            return SteerTrainSpec.model_validate({**spec.model_dump(by_alias=True), **self.model_dump(by_alias=True, exclude_none=True)})
        except pydantic.ValidationError as error:
            raise ValueError(f"bootstrap.train with trainSteer: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from error


WHAT_TO_REQUIRE = (
    "rounds need require, such as {quality: 4}, which says what labels to sample under; "
    "write requireAny: true to draw from all labels, bad ones too; not both"
)


class BootstrapSpec(Spec):
    """Rounds of sampling from the SteerLM model, labelling the samples and training again (paper section 3.4)."""

    rounds: Annotated[int, Field(ge=0, le=MAX_ROUNDS)] = 0
    """How many rounds."""
    prompts: Positive = 512
    """Training prompts in each round; where there are fewer, each is asked oftener: answers are ``prompts`` x ``samplesPerPrompt``."""
    samples_per_prompt: Annotated[int, Field(ge=1, le=1024)] = 4
    """Answers to each."""
    require: Annotated[dict[Name, int], Field(max_length=64)] = {}
    """Label combinations are drawn from those in the annotated data with these values, such as ``quality: 4``. Needed with ``rounds``."""
    require_any: bool = False
    """Draw from all combinations of the annotated data, those of bad answers too."""
    contexts: Literal["first", "any"] = "first"
    """Which prompts: the first question of a conversation, or all that came before any of its answers."""
    keep: Literal["all", "reached", "best"] = "all"
    """Which answers are taught: all, as the paper has it; those that read as ``require`` wants; or the best of each prompt's answers, which
    are then asked for under one label."""
    mix_original: Annotated[float, Field(ge=0, le=100)] = 0.0
    """Annotated training records for each sampled one, so that what they alone teach is not forgotten; the paper has none."""
    train: RoundTrainSpec = RoundTrainSpec()
    """How a round trains, where otherwise than ``trainSteer``."""
    top_k: Annotated[int, Field(ge=0, le=1_000_000)] = 50
    """Sampling: the paper's 50; 0 for no limit."""
    temperature: Annotated[float, Field(gt=0, le=100)] = 1.0
    """Sampling temperature."""
    max_tokens: Annotated[int, Field(ge=1, le=1_048_576)] = 512
    """Longest answer. One that is cut there is asked for again, then left out."""

    @model_validator(mode="after")
    def _says_what_is_good(self) -> BootstrapSpec:
        if self.rounds and bool(self.require) == self.require_any:
            raise ValueError(WHAT_TO_REQUIRE)
        return self


WHO_MAY_ASK = (
    "a server that stays needs a token, write token: {name: SECRET, key: KEY}, "
    "or insecure: true where everybody who reaches it may ask it; not both"
)


class ServeSpec(Spec):
    """A server of the finished model that stays (on a cluster; locally, ``steerlm serve``)."""

    enabled: bool = False
    """Whether the pipeline ends with one."""
    replicas: Annotated[int, Field(ge=0, le=1024)] = 1
    """How many."""
    devices: Annotated[int, Field(ge=1, le=64)] = 1
    """GPUs for each, where there are any."""
    token: SecretKeySpec | None = None
    """The Secret's key that has the token which requests must bring. Needed, unless ``insecure`` says that none is meant."""
    insecure: bool = False
    """Answer whoever reaches the server, without a token."""
    max_surge: Annotated[int, Field(ge=0, le=64)] = 0
    """Servers beyond ``replicas`` while they are replaced, so that none of those is missed; 0 where no GPU is spare for it."""
    autoscaled: bool = False
    """An autoscaler, an HPA or KEDA on Deployment ``NAME-serve``, sets the number of servers, which starts with 1; not ``replicas``."""
    engine: EngineSpec = EngineSpec()
    """What runs the model."""
    namespaces: Annotated[tuple[NamespaceName, ...], Field(max_length=64)] = ()
    """Further namespaces whose pods may reach it, such as an ingress controller's and Prometheus'; its own may in any case."""
    page: bool = False
    """Whether it has the page to chat and compare on; it asks for the token."""

    @model_validator(mode="after")
    def _says_who_may_ask(self) -> ServeSpec:
        if self.enabled and (self.token is None) != self.insecure:
            raise ValueError(WHO_MAY_ASK)
        return self

    @model_validator(mode="after")
    def _engine_fits(self) -> ServeSpec:
        self.engine.fit(self.devices)
        return self


class PipelineSpec(ClusterFields):
    """What to learn, from what, and how."""

    attributes: AttributesSpec
    """The attributes to read and to write under."""
    data: DataSource
    """The rated data."""
    model: ModelSpec
    """The base model and its prompt layout."""
    train_value: TrainSpec = TrainSpec()
    """Training of the value model."""
    annotate: AnnotateSpec = AnnotateSpec()
    """Labelling with it."""
    train_steer: SteerTrainSpec = SteerTrainSpec()
    """Training of the SteerLM model."""
    bootstrap: BootstrapSpec = BootstrapSpec()
    """Further rounds of sampling, labelling and training."""
    evaluate: EvaluateSpec = EvaluateSpec()
    """Evaluation and the report."""
    serve: ServeSpec = ServeSpec()
    """A server that stays."""

    @model_validator(mode="after")
    def _pairs_teach_something(self) -> PipelineSpec:
        for entry in self.data.entries:
            if isinstance(entry.source, HelpSteerSource) and entry.source.preference:
                raise ValueError(f"{entry.field}.preference: {PAIRS_TEACH_NOTHING}")
        return self

    @model_validator(mode="after")
    def _rounds_can_train(self) -> PipelineSpec:
        self.bootstrap.train.over(self.train_steer)
        return self

    @model_validator(mode="after")
    def _engine_guides(self) -> PipelineSpec:
        if self.annotate.servers.engine.vllm and self.evaluate.guidance_scale != 1:
            raise ValueError(NO_GUIDANCE)
        return self

    @model_validator(mode="after")
    def _names_exist(self) -> PipelineSpec:
        schema = self.attributes.schema_()
        uses = {
            "evaluate.attributes": self.evaluate.attributes or (),
            "evaluate.base": self.evaluate.base,
            "evaluate.judges": self.evaluate.judges,
            "evaluate.wording": self.evaluate.wording,
            "evaluate.pairs.weights": self.evaluate.pairs.weights if self.evaluate.pairs else (),
            "bootstrap.require": self.bootstrap.require,
        }
        for field, names in uses.items():
            for name in names:
                if name not in schema.names:
                    raise ValueError(f"{field}: unknown attribute {name!r}; {nearest(name, schema.names)}known: {', '.join(schema.names)}")
        self.data.check(schema)
        self.evaluate.check(schema)
        for field, values in (("evaluate.base", self.evaluate.base), ("bootstrap.require", self.bootstrap.require)):
            try:
                schema.check(values)
            except SteerLMError as error:
                raise ValueError(f"{field}: {error}") from error
        return self


class Metadata(pydantic.BaseModel):
    """Kubernetes object metadata; only the name means something here, the rest passes through."""

    model_config = pydantic.ConfigDict(extra="allow", frozen=True)

    name: Annotated[str, Field(min_length=1, max_length=40, pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$")]
    """Lower case letters, digits and -, at most 40: stage and attempt are appended and must fit a host name."""


class SteerLMPipeline(Spec):
    """A pipeline from rated data to a steerable model."""

    api_version: Literal["steerlm.dev/v1alpha1"]
    """steerlm.dev/v1alpha1"""
    kind: Literal["SteerLMPipeline"]
    """SteerLMPipeline"""
    metadata: Metadata
    """Its name."""
    spec: PipelineSpec
    """What to do."""


def parse(
    data: Any, source: str, lines: Mapping[FieldPath, int] | None = None, texts: Mapping[FieldPath, str] | None = None
) -> SteerLMPipeline:
    """A manifest from plain data. A ``status``, which a cluster adds, is passed over.

    Args:
        data: What JSON can say.
        source: The name that errors begin with.
        lines: The line of each value in ``source``, where there are lines.
        texts: What was written there for each scalar.

    Raises:
        UsageError: With one line a mistake, each naming its field and what to write instead.
    """
    if isinstance(data, Mapping):
        data = {key: value for key, value in data.items() if key != "status"}
    try:
        return from_plain(SteerLMPipeline, data)
    except pydantic.ValidationError as error:
        raise UsageError(mistakes(error, SteerLMPipeline, source, lines, texts)) from error


def load(path: str | Path) -> SteerLMPipeline:
    """The manifest in a YAML or JSON file. Raises UsageError where it is absent, no YAML, or wrong."""
    documents = read_yaml(path)
    if len(documents) != 1:
        raise UsageError(f"{path}: expected one YAML document with a {KIND}, found {len(documents)}")
    [document] = documents
    return parse(document.value, str(path), document.lines, document.texts)
