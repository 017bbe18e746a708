from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from nemo_steerlm.core.conversation import Conversation
from nemo_steerlm.core.errors import DataError
from nemo_steerlm.core.template import ChatTokens, Template
from nemo_steerlm.core.tokenization import SentencePieceTokenizer, encode_spans
from nemo_steerlm.training.dataset import ChatDataset, read_dataset
from tests.core.tokenizers_of_all_kinds import normalising_sentencepiece
from tests.inputs import STORIES
from tests.training.records import Records, record


@pytest.fixture(scope="module")
def tokenizer() -> SentencePieceTokenizer:
    return SentencePieceTokenizer(STORIES / "tokenizer.model")


def read(path: Path, tokenizer: SentencePieceTokenizer, length: int = 512) -> ChatDataset:
    return read_dataset(path, Template.of(tokenizer), tokenizer, length)


def test_ids_and_masks_are_those_of_the_template(records: Records, tokenizer: SentencePieceTokenizer) -> None:
    data = read(records(5), tokenizer)
    for i in range(5):
        conversation = Conversation.from_record(record(i, "TEXT_TO_VALUE"))
        ids, mask = encode_spans(Template.of(tokenizer).render(conversation), tokenizer)
        found_ids, found_mask = data.record(i)
        assert found_ids.tolist() == ids
        assert found_mask.astype(int).tolist() == mask


def test_records_are_cut_on_the_right_and_lengths_say_so(records: Records, tokenizer: SentencePieceTokenizer) -> None:
    # V2T learns the text, which starts early enough to survive the cut.
    whole = read(records(6, "VALUE_TO_TEXT"), tokenizer)
    limit = int(whole.lengths().max()) - 5
    data = read(records(6, "VALUE_TO_TEXT"), tokenizer, limit)
    assert max(len(data.record(i)[0]) for i in range(6)) == limit + 1
    assert data.lengths().tolist() == [len(data.record(i)[0]) - 1 for i in range(6)]
    assert data.learned_counts().tolist() == [int(data.record(i)[1][1:].sum()) for i in range(6)]


def test_value_tokens_are_the_values_of_learned_labels(records: Records, tokenizer: SentencePieceTokenizer) -> None:
    data = read(records(8), tokenizer)
    for i, values in enumerate(data.values):
        label = record(i, None)["conversations"][1]["label"]  # type: ignore[index]
        assert [f"{v.attribute}:{v.value}" for v in values] == label.split(",")[:2]
        ids, learned = data.record(i)
        for value in values:
            assert learned[value.position]
            assert tokenizer.decode([int(ids[value.position])]).strip().endswith(str(value.value))


@pytest.mark.parametrize("mode", ["TEXT_TO_VALUE", "VALUE_TO_TEXT"])
def test_look_alikes_of_markers_are_learned_as_text(tmp_path: Path, mode: str) -> None:
    """Under sentencepiece's default normaliser a fullwidth marker would be a turn of its own, and where answers stop."""
    tokens = ChatTokens()
    normalising = normalising_sentencepiece("nmt_nfkc", "unigram", tokens.markers, tmp_path)
    typed = "＜extra_id_1＞User\n‹extra_id_①> ﹤extra_id_2﹥ <ex\x01tra_id_0>"
    turns = [{"from": "User", "value": typed}, {"from": "Assistant", "value": typed, "label": "quality:4"}]
    path = tmp_path / "records.jsonl"
    path.write_text(json.dumps({"conversations": turns, "system": typed, "mask": "User", "type": mode}) + "\n", encoding="utf-8")
    ids = read_dataset(path, Template.of(normalising, tokens), normalising, 4096).record(0)[0].tolist()
    assert [ids.count(normalising.token_id(marker)) for marker in tokens.markers] == [1, 3, 1], "two turns, and the marker at the end"


def test_a_record_without_anything_to_learn_is_named_by_line(tmp_path: Path, tokenizer: SentencePieceTokenizer) -> None:
    bare = record(1, "TEXT_TO_VALUE")
    for turn in bare["conversations"]:  # type: ignore[attr-defined]
        turn.pop("label")
    path = tmp_path / "r.jsonl"
    path.write_text(json.dumps(record(0, "TEXT_TO_VALUE")) + "\n" + json.dumps(bare) + "\n")
    with pytest.raises(DataError, match=r"r\.jsonl:2: nothing to learn") as raised:
        read(path, tokenizer)
    assert raised.value.exit_code == 65


def test_a_record_whose_labels_are_cut_off_is_named_by_line(records: Records, tokenizer: SentencePieceTokenizer) -> None:
    with pytest.raises(DataError, match=r":1: nothing to learn within 20 tokens"):
        read(records(1), tokenizer, 20)


def test_one_file_teaches_one_thing(tmp_path: Path, tokenizer: SentencePieceTokenizer) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(json.dumps(record(0, "TEXT_TO_VALUE")) + "\n" + json.dumps(record(1, "VALUE_TO_TEXT")) + "\n")
    with pytest.raises(DataError, match=r":2: type: type VALUE_TO_TEXT in a file that starts with type TEXT_TO_VALUE"):
        read(path, tokenizer)


def test_labels_and_languages_are_collected(records: Records, tokenizer: SentencePieceTokenizer) -> None:
    data = read(records(10), tokenizer)
    assert data.labels["toxicity"] == {0, 1}
    assert data.labels["quality"] <= set(range(5))
    assert data.languages == {"en"}
    assert data.starts.dtype == np.int64
