"""What the evaluate stage measures. Part of the manifest."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from nemo_steerlm.core.attributes import AttributeSchema
from nemo_steerlm.evaluation.judges import NAMES
from nemo_steerlm.pipeline.sources import Name, Reference, Spec, Text

JudgeName = Annotated[str, Field(max_length=512, pattern=rf"^({'|'.join(NAMES)}|[A-Za-z_][A-Za-z0-9_.]*:.+)$")]
Baseline = Literal["prompted", "unlabelled"]


class PairsSpec(Spec):
    """A file of answers in pairs, JSON lines with ``prompt``, ``chosen`` and ``rejected`` (RewardBench's format)."""

    path: Reference
    """The file. Texts, or lists of messages with ``role`` and ``content``."""
    weights: Annotated[dict[Name, Annotated[float, Field(ge=-100, le=100)]], Field(min_length=1, max_length=64)]
    """By attribute, what a step of its reading is worth: the answer with the larger sum is the preferred one."""


class EvaluateSpec(Spec):
    """Does what is asked for come out? Held-out prompts under each value of each steered attribute."""

    attributes: Annotated[tuple[Name, ...], Field(max_length=64)] | None = None
    """Which to steer; all by default."""
    base: Annotated[dict[Name, int], Field(max_length=64)] = {}
    """Values of the attributes that are not being steered; their defaults where unnamed."""
    samples_per_level: Annotated[int, Field(ge=1, le=100_000)] = 64
    """Answers for each value of each attribute. The mean of 64 is known to a fourth of their standard deviation; fewer are faster."""
    judges: Annotated[dict[Name, JudgeName], Field(max_length=64)] = {}
    """A judge that took no part in training, by attribute; the value model judges every attribute besides. ``language:en``,
    ``regex:PATTERN`` and a function of your own, ``MODULE:FUNCTION``, have an argument."""
    prompts: Annotated[tuple[Text, ...], Field(max_length=10_000)] = ()
    """Questions to ask; those of the validation records by default."""
    joint_requests: Annotated[int, Field(ge=0, le=100_000)] = 64
    """Answers under random values of all steered attributes at once, which is how people ask; none where only one is steered."""
    calibration_turns: Annotated[int, Field(ge=0, le=1_000_000)] = 512
    """Held-out rated turns of which the value model's probabilities are looked at."""
    best_of: Annotated[int, Field(ge=1, le=16)] = 1
    """Candidates for each answer, of which the value model chooses. The report shows the first ones, which nobody chose, beside them."""
    guidance_scale: Annotated[float, Field(ge=0, le=10)] = 1.0
    """Strength with which answers follow their labels; 1 is as trained."""
    baselines: Annotated[tuple[Baseline, ...], Field(max_length=2)] = ()
    """What to compare with on the same prompts: the base model asked in words under its own chat template (prompted), and the SteerLM model
    without a label (unlabelled)."""
    best_of_baselines: bool = False
    """Whether the baselines have as many candidates as ``bestOf`` says, chosen the same way, which takes as many times the time. Otherwise
    they answer once, and are compared with the SteerLM model's first candidates."""
    wording: Annotated[dict[Name, Annotated[tuple[Text, ...], Field(max_length=201)]], Field(max_length=64)] = {}
    """By attribute, what the base model is told at each level, from the lowest to the highest, such as ``It must be very negative.``; by
    default the level's number on its scale."""
    perplexity: bool = False
    """Whether to measure how likely the answers are to the base model, which needs it in memory."""
    pairs: PairsSpec | None = None
    """Pairs of answers of which people preferred one: does the value model agree?"""
    max_tokens: Annotated[int, Field(ge=1, le=1_048_576)] = 256
    """Longest answer, in tokens. Time grows with it, and what is cut there is read as it stands."""
    temperature: Annotated[float, Field(ge=0, le=100)] = 1.0
    """Sampling temperature; 0 is greedy. 1 draws answers as the model learned them; lower ones are more alike."""
    top_k: Annotated[int, Field(ge=0, le=1_000_000)] = 50
    """Sample among so many tokens; 0 for no limit. The paper's."""
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 1
    """Seed of the samples."""

    @model_validator(mode="after")
    def _each_once(self) -> EvaluateSpec:
        if len(set(self.baselines)) < len(self.baselines):
            raise ValueError("baselines: name each once")
        if self.best_of_baselines and (self.best_of == 1 or not self.baselines):
            raise ValueError("bestOfBaselines: there is nothing to choose; set bestOf above 1 and name baselines, or leave it out")
        return self

    @property
    def needs_base(self) -> bool:
        """Whether the base model itself takes part."""
        return "prompted" in self.baselines or self.perplexity

    def check(self, schema: AttributeSchema) -> None:
        """Raise ValueError where ``wording`` or ``pairs`` do not fit ``schema``, whose attributes they name."""
        for name, sentences in self.wording.items():
            if len(sentences) != len(schema[name].values):
                wanted = f"{len(schema[name].values)} levels ({schema[name].low} to {schema[name].high})"
                raise ValueError(f"evaluate.wording.{name}: {len(sentences)} sentences for {wanted}; write one for each")
