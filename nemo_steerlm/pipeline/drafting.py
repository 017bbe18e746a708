"""A manifest for data that somebody has, with a sentence beside each number that they may want to change."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import msgspec

from nemo_steerlm.core.attributes import Attribute
from nemo_steerlm.core.yaml_files import dump_yaml
from nemo_steerlm.data.guessing import Guess
from nemo_steerlm.data.survey import Survey

CHARACTERS_A_TOKEN = 3.0
"""Where the base model's tokenizer is not here: fewer than English has in large vocabularies, so that texts fit."""
TEMPLATE_TOKENS = 16
"""Control tokens and line ends of a short conversation."""
TEMPLATE_CHARACTERS = 40
"""Names of roles in it."""
MARGIN = 1.15
"""Texts differ in how many characters their tokens have."""
SMALL = 500_000_000
"""Parameters below which adapters learn best at the quickstart's high learning rates."""


class PipelineSizes(msgspec.Struct, frozen=True, kw_only=True):
    """The numbers of a pipeline."""

    name: str
    base: str
    length: int
    """Longest prompt with answer, in tokens."""
    answer_length: int
    batch: int
    micro_batch: int
    read_steps: int
    """Of the value model's training."""
    write_steps: int
    """Of the SteerLM model's training."""
    small: bool
    """Whether the base model is."""


def sized(
    survey: Survey,
    name: str,
    base: str,
    *,
    attributes: Sequence[str],
    parameters: int | None,
    characters_a_token: float = CHARACTERS_A_TOKEN,
) -> PipelineSizes:
    """Numbers that suit the amount and the length of what was found."""
    train = max(1, survey.conversations.get("train", 0))
    batch = min(16 if train < 4000 else 64, 1 << (train.bit_length() - 1))
    label = sum(len(name) + len(":4,") for name in attributes)
    # Every turn has room for a label: that is what a server of the value model is asked with.
    characters = survey.characters[0] + TEMPLATE_CHARACTERS + label * survey.turns
    tokens = MARGIN * characters / characters_a_token + TEMPLATE_TOKENS
    return PipelineSizes(
        name=re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40].lstrip("0123456789-").rstrip("-") or "pipeline",
        base=base,
        length=min(4096, max(64, math.ceil(tokens / 64) * 64)),
        answer_length=min(512, max(32, math.ceil(survey.characters[1] / characters_a_token / 16) * 16)),
        batch=batch,
        micro_batch=min(batch, 8),
        read_steps=min(400, max(20, math.ceil(3 * train / batch))),
        write_steps=min(800, max(40, math.ceil(6 * train / batch))),
        small=parameters is None or parameters < SMALL,
    )


def described(guess: Guess, path: str) -> dict[str, Any]:
    """What the manifest says of the source, its share that validates included."""
    found = guess.source(path)
    if guess.kind == "ratedText":
        found["hidden"] = 0.2
    return found if guess.kind == "helpsteer" else {**found, "splitRatio": 0.9}


def manifest(sizes: PipelineSizes, guess: Guess, survey: Survey, path: str) -> str:
    """The pipeline file, comments included. ``path`` is the data's, as the file will name it."""
    rates = ("2.0e-3", "2.0e-4", "2.0e-3", "2.0e-4") if sizes.small else ("1.0e-4", "1.0e-5", "2.0e-4", "2.0e-5")
    train = survey.conversations.get("train", 0)
    lines = [
        f"# Written by `steerlm init` from {path}. Check it with `steerlm validate FILE`, run it with `steerlm run FILE`.",
        "apiVersion: steerlm.dev/v1alpha1",
        "kind: SteerLMPipeline",
        "metadata:",
        f"  name: {sizes.name}",
        "spec:",
        "  # What the models read and write: levels from low to high; default is what a request gets that names others only.",
        "  attributes:",
        *(["    preset: " + guess.preset] if guess.preset else ["    custom:", *(_attribute(r.attribute) for r in guess.ratings)]),
        "  # What teaches them; `system` is the system prompt of records that bring none.",
        "  data:",
        *_data(guess, survey, path),
        "  model:",
        "    # Llama, Mistral, Qwen2, Qwen3, Phi-3, Granite, OLMo 2 or SmolLM3: a folder, hf:OWNER/NAME, or a .gguf file.",
        f"    base: {_plain(sizes.base)}",
        "    # Tokens. What is longer is cut; most of these conversations are not.",
        f"    maxSequenceLength: {sizes.length}",
        "  # Learning to read. Adapters of rank 16 spare memory; leave lora out to train every weight.",
        "  trainValue:",
        *_training(sizes, sizes.read_steps, rates[:2], train),
        "  # Learning to write under the labels that the value model gave.",
        "  trainSteer:",
        *_training(sizes, sizes.write_steps, rates[2:], train),
        "  # Does what is asked for come out? More samples give narrower intervals and take longer.",
        "  evaluate:",
        "    samplesPerLevel: 16",
        "    jointRequests: 16",
        f"    maxTokens: {sizes.answer_length}",
        "    temperature: 0.7",
    ]
    return "\n".join(lines) + "\n"


def _data(guess: Guess, survey: Survey, path: str) -> list[str]:
    rejected = sum(survey.rejected.values())
    said = [f"{rejected} rows cannot be used: {_commonest(survey.rejected)}. They go to a .rejected.jsonl."] if rejected else []
    said += guess.notes
    if guess.kind == "ratedText":
        said.append("hidden: this share of the ratings checks the value model instead of teaching it.")
    data = {**({"onError": "skip"} if rejected else {}), "system": "", guess.kind: described(guess, path)}
    return [*(f"    # {sentence}" for sentence in said), *(f"    {line}" for line in dump_yaml(data).splitlines())]


def _attribute(attribute: Attribute) -> str:
    said = f", description: {_plain(attribute.description)}" if attribute.description else ""
    return f"      - {{name: {_plain(attribute.name)}, low: {attribute.low}, high: {attribute.high}, default: {attribute.default}{said}}}"


def _training(sizes: PipelineSizes, steps: int, rates: Sequence[str], train: int) -> list[str]:
    """A training's section; ``rates`` are the highest and the lowest learning rate."""
    return [
        "    lora: {rank: 16, targetModules: [all]}",
        f"    # {steps} steps of {sizes.batch} conversations: {_passes(steps * sizes.batch, train)} over them.",
        f"    maxSteps: {steps}",
        f"    maxEpochs: {math.ceil(steps / max(1, train // sizes.batch))}",
        f"    globalBatchSize: {sizes.batch}",
        f"    microBatchSize: {sizes.micro_batch}",
        f"    learningRate: {rates[0]}",
        f"    minLearningRate: {rates[1]}",
        f"    warmupSteps: {max(1, steps // 10)}",
        "    constantSteps: 0",
        f"    validateEvery: {steps}",
        "    limitValidationBatches: 4",
    ]


def _passes(records: int, train: int) -> str:
    times = records / max(1, train)
    return f"about {times:.0f} passes" if times >= 1.5 else "about one pass" if times > 0.7 else f"{times:.0%} of a pass"


def _plain(text: str) -> str:
    return dump_yaml(text).removesuffix("\n...\n").rstrip("\n")


def _commonest(rejected: dict[str, int]) -> str:
    return " ".join(max(rejected, key=lambda reason: rejected[reason]).split())
