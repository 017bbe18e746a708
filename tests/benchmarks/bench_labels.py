"""How much a SteerLM model heeds labels, without sampling: what held-out texts gain in likelihood by their own label against another's.

A model that ignores labels gains nothing, however good its loss is. Five levels that a text shows beyond doubt are worth 1.6 nats.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoModelForCausalLM

from nemo_steerlm.core.conversation import Conversation
from nemo_steerlm.core.encoding import encode_spans
from nemo_steerlm.core.labels import join, split
from nemo_steerlm.core.model_info import ModelInfo
from nemo_steerlm.core.tokenization import load_tokenizer
from nemo_steerlm.data.parallel import batches
from nemo_steerlm.data.records import read_conversations

ROWS = 32
"""Texts in one forward pass."""


class Listener:
    """An exported SteerLM model that says how likely it finds what a conversation teaches."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = load_tokenizer(folder)
        self.template = ModelInfo.load(folder).template(self.tokenizer)
        self.model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.bfloat16).eval()

    def losses(self, conversations: Sequence[Conversation]) -> npt.NDArray[np.float64]:
        """The cross entropies ``[conversations]`` of their learned tokens, added up, in nats."""
        found: list[float] = []
        encoded = [encode_spans(self.template.render(conversation), self.tokenizer) for conversation in conversations]
        for rows in batches(encoded, ROWS):
            longest = max(len(row.ids) for row in rows)
            ids = torch.tensor([row.ids + [0] * (longest - len(row.ids)) for row in rows])
            learned = torch.tensor([row.loss_mask[1:] + [0] * (longest - len(row.ids)) for row in rows])
            with torch.inference_mode():
                logits = self.model(ids).logits[:, :-1].float()
                tokens = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
            found += (tokens.view_as(learned) * learned).sum(1).tolist()
        return np.array(found)


def told(conversation: Conversation, attribute: str, level: int) -> Conversation:
    """``conversation`` with another level of ``attribute`` in every label that names it."""
    turns = []
    for turn in conversation.turns:
        fields = [(field.name, level if field.name == attribute else field.text or "") for field in split(turn.label or "")]
        turns.append(msgspec.structs.replace(turn, label=join(fields) if fields else turn.label))
    return msgspec.structs.replace(conversation, turns=tuple(turns))


def gains(listener: Listener, conversations: Sequence[Conversation], seed: int) -> dict[str, npt.NDArray[np.float64]]:
    """By attribute, what each text loses in likelihood when that attribute's level is another text's, in nats ``[conversations]``."""
    own, draw = listener.losses(conversations), random.Random(seed)
    levels: dict[str, list[int]] = {}
    for conversation in conversations:
        for turn in conversation.turns:
            for field in split(turn.label or ""):
                if field.level is not None:
                    levels.setdefault(field.name, []).append(field.level)
    return {
        name: listener.losses([told(conversation, name, draw.choice(taught)) for conversation in conversations]) - own
        for name, taught in levels.items()
    }


def main(models: Sequence[Path], records: Path, texts: int, seed: int) -> None:
    """Print a row for each attribute of each model: the mean gain in nats a text, and its standard error."""
    conversations = [conversation for _, conversation in zip(range(texts), read_conversations(records), strict=False)]
    print(f"{len(conversations)} texts of {records.name}")
    print(f"{'model':32} {'attribute':14} {'nats a text':>12} {'error':>7}")
    for folder in models:
        for name, found in gains(Listener(folder), conversations, seed).items():
            print(f"{folder.parent.parent.name[-32:]:32} {name:14} {found.mean():12.2f} {found.std() / len(found) ** 0.5:7.2f}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", type=Path, nargs="+", help="Exported models, RUN/train-steer/hf.")
    parser.add_argument("--records", type=Path, required=True, help="Labelled records that taught no model: RUN/annotate/val.jsonl.")
    parser.add_argument("--texts", type=int, default=160)
    parser.add_argument("--seed", type=int, default=0)
    main(**vars(parser.parse_args()))
