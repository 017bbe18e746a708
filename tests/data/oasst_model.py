"""What upstream's preprocessing.py writes, said again in the plainest way and used as the oracle; ordinary input only."""

from __future__ import annotations

import json
import random
from typing import Any

KEYS = [
    *("quality", "toxicity", "humor", "creativity", "violence", "helpfulness", "not_appropriate", "hate_speech", "sexual_content"),
    *("fails_task", "political_content", "moral_judgement"),
]
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions.\n\n"
)


def outputs(lines: list[str], mask: str, kind: str, ratio: float, seed: int) -> tuple[list[str], list[str]]:
    """The lines of the training and of the validation file."""
    trees = [json.loads(line) for line in lines]
    random.seed(seed)
    random.shuffle(trees)
    border = int(len(trees) * ratio)
    return records(trees[:border], mask, kind), records(trees[border:], mask, kind)


def records(trees: list[dict[str, Any]], mask: str, kind: str) -> list[str]:
    found = []
    for tree in trees:
        for turns in paths(tree["prompt"]):
            if len(turns) > 1:
                record = {"conversations": turns, "tree_id": tree["message_tree_id"], "system": SYSTEM, "mask": mask, "type": kind}
                found.append(json.dumps(record, ensure_ascii=False) + "\n")
    return found


def paths(message: dict[str, Any]) -> list[list[dict[str, str]]]:
    turn = {"value": message["text"], "from": {"prompter": "User", "assistant": "Assistant"}[message["role"]]}
    if "labels" in message:
        turn["label"] = ",".join(f"{k}:{round(message['labels'][k]['value'] * 4)}" for k in KEYS if k in message["labels"])
    if "lang" in message:
        turn["lang"] = message["lang"].split("-")[0]
        turn["label"] += ("," if turn["label"] else "") + "lang:" + turn["lang"]
    below = [path for reply in message["replies"] for path in paths(reply)]
    return [[turn, *path] for path in below] or [[turn]]
