"""Records whose labels follow from their texts, and a base model to train on them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from nemo_steerlm.core.template import ChatTokens
from nemo_steerlm.training.dataset import ChatDataset, DatasetInfo
from tests.inputs import STORIES

Records = Callable[..., Path]


def record(number: int, kind: str | None) -> dict[str, object]:
    """A conversation whose labels follow from its answer's length and its number."""
    vocabulary = ("once", "upon", "a", "time", "little", "girl", "boy", "dog", "happy", "sad")
    words = random.Random(number).choices(vocabulary, k=3 + number * 7 % 22)
    quality, toxicity = min(4, len(words) // 5), number % 2
    return {
        "conversations": [
            {"from": "User", "value": f"Tell me about {number}", "label": f"quality:{number % 5},lang:en"},
            {"from": "Assistant", "value": " ".join(words), "label": f"quality:{quality},toxicity:{toxicity},lang:en"},
        ],
        "system": "A chat.\n\n",
        "mask": "User",
        **({"type": kind} if kind else {}),
    }


def dataset_of(records: list[list[int]], learned: list[list[bool]]) -> ChatDataset:
    """A data set of these token ids, of which these are learned."""
    starts = np.cumsum([0, *map(len, records)], dtype=np.int64)
    return ChatDataset(
        file="f",
        digest="",
        info=DatasetInfo(max_seq_length=10_000),
        ids=np.concatenate([np.array(row, dtype=np.int32) for row in records]),
        learned=np.concatenate([np.array(row, dtype=np.bool_) for row in learned]),
        starts=starts,
        counts=np.array([sum(row[1:]) for row in learned], dtype=np.int32),
        values=np.zeros((0, 3), dtype=np.int32),
        value_starts=np.zeros(len(records) + 1, dtype=np.int64),
    )


@pytest.fixture(scope="session")
def records(tmp_path_factory: pytest.TempPathFactory) -> Records:
    """Writes a file of ``count`` records."""

    def write(count: int, kind: str | None = "TEXT_TO_VALUE", start: int = 0) -> Path:
        path = tmp_path_factory.mktemp("records") / "records.jsonl"
        path.write_text("".join(json.dumps(record(i, kind)) + "\n" for i in range(start, start + count)), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def base_nemo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random Llama as a .nemo: grouped queries, tied embeddings, four layers; its vocabulary needs padding."""
    import torch

    torch.set_num_threads(1)
    from nemo_steerlm.formats.tokenizer_files import nemo_tokenizer_config, write_tokenizer_files
    from nemo_steerlm.megatron.gpt_sft import build_model
    from nemo_steerlm.megatron.nemo_files import save_nemo

    tokenizer = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer_files(STORIES, tokenizer, ChatTokens().markers)
    model = build_model(
        {
            "tokenizer": nemo_tokenizer_config(tokenizer),
            "num_layers": 4,
            "encoder_seq_length": 256,
            "share_embeddings_and_output_weights": True,
            "make_vocab_size_divisible_by": 96,
        }
    )
    path = tmp_path_factory.mktemp("base") / "base.nemo"
    save_nemo(model, path)
    return path
