"""A bootstrap round's sampling (paper section 3.4, step 4a): answers under good labels, read again by the value model."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from typing import Any

from nemo_steerlm.client.bulk import AnswerRequest, GenerationOptions, generate_answers
from nemo_steerlm.core.attributes import AttributeSchema
from nemo_steerlm.core.conversation import ASSISTANT, Conversation, Turn
from nemo_steerlm.core.errors import DataError
from nemo_steerlm.data.records import read_conversations, write_conversations
from nemo_steerlm.pipeline.run_context import Run
from nemo_steerlm.pipeline.steps.annotate import label_and_clean
from nemo_steerlm.pipeline.steps.evaluate import question


def sample(run: Run) -> dict[str, Any]:
    """Draw label combinations, answer training prompts under them, label the answers: ``train.jsonl`` for the next training."""
    spec = run.pipeline.spec
    how = spec.bootstrap
    train = run.input("annotate", "train.jsonl")
    conversations = list(read_conversations(train))
    combinations = sorted({label for c in conversations for label in good_labels(c, how.require, spec.attributes.schema_())})
    if not combinations:
        wanted = ", ".join(f"{name}:{value}" for name, value in how.require.items())
        raise DataError(f"no label in {train} has {wanted}", instead="loosen bootstrap.require")
    draw = random.Random(run.stage.round)
    questions = list(dict.fromkeys(q for c in conversations if (q := question(c)) is not None))
    asked = draw.sample(questions, min(how.prompts, len(questions)))
    schema = spec.attributes.schema_()
    requests = [
        AnswerRequest(conversation=q, label=schema.parse(draw.choice(combinations)), seed=draw.randrange(2**31))
        for q in asked
        for _ in range(how.samples_per_prompt)
    ]
    options = GenerationOptions(max_tokens=how.max_tokens, temperature=how.temperature, top_k=how.top_k)
    texts = generate_answers(run.servers["steer"], requests, options, lambda n: run.progress(n, len(requests), phase="sampling"))
    drawn = run.folder / "sampled.jsonl"
    count = write_conversations(drawn, (_answered(request, text) for request, text in zip(requests, texts, strict=True) if text.strip()))
    if not count:
        raise DataError("the model answered every prompt with nothing", instead="train it longer, or raise bootstrap.maxTokens")
    metrics = label_and_clean(run, {"train": drawn}) or {}
    shutil.copyfile(run.input("annotate", "val.jsonl"), run.folder / "val.jsonl")
    return {"combinations": len(combinations), "sampled": len(requests), **metrics}


def good_labels(conversation: Conversation, require: dict[str, int], schema: AttributeSchema) -> Iterator[str]:
    """The attribute combinations of a conversation's learned turns that have the required values, as label strings."""
    for turn in conversation.turns:
        if turn.label is None or turn.speaker == conversation.mask:
            continue
        parsed = schema.parse(turn.label)
        values = parsed.values
        if all(values.get(name) == value for name, value in require.items()):
            yield schema.encode(values, parsed.language)


def _answered(request: AnswerRequest, text: str) -> Conversation:
    asked = request.conversation
    turns = (*asked.turns, Turn(speaker=ASSISTANT, text=text))
    return Conversation(turns=turns, system=asked.system, mask=asked.mask, mode="VALUE_TO_TEXT")
