from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from nemo_steerlm.core.conversation import Conversation
from nemo_steerlm.core.encoding import encode_spans
from nemo_steerlm.core.errors import DataError
from nemo_steerlm.core.template import ChatTokens, Template
from nemo_steerlm.core.tokenization import SentencePieceTokenizer
from nemo_steerlm.training import token_files
from nemo_steerlm.training.dataset import ChatDataset
from tests.core.tokenizers_of_all_kinds import normalising_sentencepiece
from tests.inputs import STORIES
from tests.training.records import Records, record


@pytest.fixture(scope="module")
def tokenizer() -> SentencePieceTokenizer:
    return SentencePieceTokenizer(STORIES / "tokenizer.model")


def read(path: Path, tokenizer: SentencePieceTokenizer, length: int = 512) -> ChatDataset:
    return token_files.dataset(path, Template.of(tokenizer), tokenizer, length)


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
    every = np.arange(6)
    limit = int(whole.lengths(every).max()) - 5
    data = read(records(6, "VALUE_TO_TEXT"), tokenizer, limit)
    assert max(len(data.record(i)[0]) for i in range(6)) == limit + 1
    assert data.lengths(every).tolist() == [len(data.record(i)[0]) - 1 for i in range(6)]
    assert data.counts.tolist() == [int(data.record(i)[1][1:].sum()) for i in range(6)]
    assert data.info.cut == sum(length > limit for length in whole.lengths(every))
    assert data.learned_tokens(every) == sum(data.counts)


def test_value_tokens_are_the_values_of_learned_labels(records: Records, tokenizer: SentencePieceTokenizer) -> None:
    data = read(records(8), tokenizer)
    for i in range(8):
        values = data.value_tokens(i)
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
    ids = token_files.dataset(path, Template.of(normalising, tokens), normalising, 4096).record(0)[0].tolist()
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
    assert data.info.labels["toxicity"] == {0, 1}
    assert data.info.labels["quality"] <= set(range(5))
    assert data.info.languages == {"en"}
    assert data.starts.dtype == np.int64


def test_a_record_with_nothing_left_within_the_length_is_left_out_and_said(
    records: Records, tokenizer: SentencePieceTokenizer, package_log: list[str]
) -> None:
    path = records(6)
    whole = read(path, tokenizer)
    limit = int(np.sort([int(whole.record(i)[1].nonzero()[0][0]) for i in range(6)])[2])  # the labels of two records start before it
    data = read(path, tokenizer, limit)
    assert (len(data), data.info.left_out) == (3, 3)
    assert data.counts.min() >= 1
    assert f"of 6 records {data.info.cut} are cut to max_seq_length={limit}, and 3 left out" in "\n".join(package_log)


def test_what_was_tokenized_is_mapped_the_next_time_by_what_it_follows_from(
    records: Records, tokenizer: SentencePieceTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = records(5)
    template = Template.of(tokenizer)

    def mapped(length: int = 512, like: Template = template) -> ChatDataset:
        return token_files.dataset(path, like, tokenizer, length, tmp_path)

    written, plain = mapped(), read(path, tokenizer)
    monkeypatch.setattr(token_files, "tokenize", None)  # nothing is tokenized again
    again = mapped()
    assert isinstance(again.ids, np.memmap)
    for name in token_files.ARRAYS:
        assert getattr(again, name).tolist() == getattr(written, name).tolist() == getattr(plain, name).tolist()
    assert again.info == plain.info
    assert again.digest == plain.digest
    for other in ({"length": 300}, {"like": Template.of(tokenizer, ChatTokens(turn_start="<t>"))}):
        with pytest.raises(TypeError):
            mapped(**other)  # type: ignore[arg-type]
    path.write_text(path.read_text() + json.dumps(record(9, "TEXT_TO_VALUE")) + "\n")
    monkeypatch.undo()
    assert len(mapped()) == 6
    assert not list(tmp_path.glob(".r*"))


def test_a_file_that_is_wrong_leaves_nothing_half_written(records: Records, tokenizer: SentencePieceTokenizer, tmp_path: Path) -> None:
    path = records(3)
    path.write_text(path.read_text() + "{torn")
    with pytest.raises(DataError, match=":4: broken JSON"):
        token_files.dataset(path, Template.of(tokenizer), tokenizer, 512, tmp_path)
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == []


def test_many_processes_tokenize_in_the_order_of_the_file(
    records: Records, tokenizer: SentencePieceTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = records(40)
    alone = read(path, tokenizer)
    monkeypatch.setattr(token_files, "WORTH_PROCESSES", 1)
    monkeypatch.setattr(token_files, "LINES_AT_ONCE", 7)
    together = read(path, tokenizer)
    assert together.ids.tolist() == alone.ids.tolist()
    assert together.info == alone.info


def test_ranks_that_start_together_tokenize_once(records: Records, tmp_path: Path) -> None:
    """Eight processes; each says whether it was the one that wrote."""
    script = (
        "import sys; from pathlib import Path\n"
        "from nemo_steerlm.core.template import Template; from nemo_steerlm.core.tokenization import load_tokenizer\n"
        "from nemo_steerlm.training import token_files\n"
        "tokenizer = load_tokenizer(sys.argv[2]); wrote = []; write = token_files._write\n"
        "token_files._write = lambda *a: (wrote.append(1), write(*a))\n"
        "data = token_files.dataset(sys.argv[1], Template.of(tokenizer), tokenizer, 512, Path(sys.argv[3]))\n"
        "print(len(wrote), len(data))\n"
    )
    command = [sys.executable, "-c", script, str(records(30)), str(STORIES / "tokenizer.model"), str(tmp_path)]
    ranks = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(8)]
    said = [rank.communicate(timeout=120)[0].split() for rank in ranks]
    assert sorted(said) == [["0", "30"]] * 7 + [["1", "30"]]
