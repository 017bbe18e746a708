"""Tokenizers by what they say of themselves, and files that hold none."""

from __future__ import annotations

import json
import pickle

import pytest
import tokenizers

from nemo_steerlm.core.errors import ConfigError, UsageError
from nemo_steerlm.core.template import ChatTokens
from nemo_steerlm.core.tokenization import HuggingFaceTokenizer, SentencePieceTokenizer, load_tokenizer
from tests.core.tokenizers_of_all_kinds import MODEL, byte_level_bpe, sentencepiece_plain, sentencepiece_with_control

TEXTS = ["Once upon a time", "schön naïve 日本語", "  two  spaces\n\ttab\n", "12 345", "<extra_id_1>User\n"]
MARKERS = ChatTokens().markers


@pytest.fixture(params=["sentencepiece", "control", "bpe"])
def tokenizer(request, tmp_path):
    if request.param == "sentencepiece":
        return sentencepiece_plain()
    return sentencepiece_with_control(MARKERS, tmp_path) if request.param == "control" else byte_level_bpe(MARKERS)


@pytest.fixture
def bpe_folder(tmp_path):
    byte_level_bpe()._tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


@pytest.mark.parametrize("text", TEXTS)
def test_ids_offsets_and_pieces_agree(tokenizer, text):
    ids, offsets = tokenizer.encode_offsets(text)
    assert ids == tokenizer.encode(text)
    assert all(0 <= i < tokenizer.vocab_size for i in ids)
    assert offsets[0][0] == 0
    assert offsets[-1][1] == len(text)
    assert all(start <= end for start, end in offsets)
    assert tokenizer.decode(ids) == text
    for i in ids:
        if not tokenizer.piece(i).startswith("<0x"):
            assert tokenizer.token_id(tokenizer.piece(i)) in (i, None)


def test_a_word_that_is_no_single_entry_has_no_id(tokenizer):
    assert tokenizer.token_id("no such entry at all") is None


def test_added_markers_are_one_control_token_each(tmp_path):
    for made in (sentencepiece_with_control(MARKERS, tmp_path), byte_level_bpe(MARKERS)):
        assert set(MARKERS) <= set(made.special)
        ids = [made.token_id(marker) for marker in MARKERS]
        assert None not in ids
        assert set(ids) <= made.special_ids
        assert ids[0] in made.encode(f"a{MARKERS[0]}b")
        assert made.decode([ids[0]]) == MARKERS[0]
    assert not set(MARKERS) & {*sentencepiece_plain().special, *byte_level_bpe().special}


def test_a_digest_tells_tokenizers_apart(tmp_path):
    made = [sentencepiece_plain(), sentencepiece_with_control(MARKERS, tmp_path), byte_level_bpe(), byte_level_bpe(MARKERS)]
    assert len({each.digest for each in made}) == len(made)
    assert SentencePieceTokenizer(MODEL).digest == made[0].digest


def test_a_tokenizer_goes_to_other_processes(tokenizer):
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert [copy.encode(text) for text in TEXTS] == [tokenizer.encode(text) for text in TEXTS]
    assert (copy.vocab_size, copy.special, copy.digest, copy.eos_id) == (
        tokenizer.vocab_size, tokenizer.special, tokenizer.digest, tokenizer.eos_id,
    )  # fmt: skip


@pytest.mark.parametrize("where", ["folder", "file"])
def test_a_tokenizer_is_found_in_its_folder_or_by_its_file(bpe_folder, where):
    loaded = HuggingFaceTokenizer.load(bpe_folder if where == "folder" else bpe_folder / "tokenizer.json", add=("<mark>",))
    assert loaded.encode("a time") == byte_level_bpe().encode("a time")
    assert "<mark>" in loaded.special
    assert load_tokenizer(bpe_folder).encode("a time") == loaded.encode("a time")


def test_a_file_may_have_any_name(bpe_folder):
    (bpe_folder / "tokenizer.json").rename(bpe_folder / "mine.json")
    assert HuggingFaceTokenizer.load(bpe_folder / "mine.json").encode("a time") == byte_level_bpe().encode("a time")
    with pytest.raises(UsageError, match=r"no tokenizer\.json"):
        HuggingFaceTokenizer.load(bpe_folder)


def test_a_name_that_no_hub_can_have_is_named():
    with pytest.raises(UsageError, match="tokenizer 'no such: name': no such folder, and the hub did not give it"):
        HuggingFaceTokenizer.load("no such: name")


@pytest.mark.parametrize(
    ("config", "eos"),
    [(None, "<|endoftext|>"), ({"eos_token": "t"}, "t"), ({"eos_token": {"content": "m"}}, "m"), ({"eos_token": None}, "<|endoftext|>")],
)
def test_the_end_of_text_is_what_the_config_names(bpe_folder, config, eos):
    if config is not None:
        (bpe_folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    loaded = HuggingFaceTokenizer.load(bpe_folder)
    assert loaded.piece(loaded.eos_id) == eos


@pytest.mark.parametrize("known", ["<|endoftext|>", "</s>", "<|im_end|>"])
def test_an_end_of_text_that_nobody_names_goes_by_the_usual_names(known):
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, known: 1, "[UNK]": 2}, unk_token="[UNK]"))
    assert HuggingFaceTokenizer(tokenizer).eos_id == 1
    assert HuggingFaceTokenizer(tokenizer, eos="a").eos_id == 0
    assert HuggingFaceTokenizer(tokenizer, eos="gone").eos_id == 1


def test_a_tokenizer_without_an_end_of_text_says_what_to_set():
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a"))
    with pytest.raises(ConfigError, match=r"set eos_token in tokenizer_config\.json"):
        _ = HuggingFaceTokenizer(tokenizer).eos_id


def test_truncation_and_padding_of_the_file_are_not_obeyed(bpe_folder):
    file = bpe_folder / "tokenizer.json"
    plain = tokenizers.Tokenizer.from_file(str(file))
    plain.enable_truncation(2)
    plain.enable_padding(length=50)
    plain.save(str(file))
    assert HuggingFaceTokenizer.load(bpe_folder).encode(TEXTS[0]) == byte_level_bpe().encode(TEXTS[0])


def test_what_is_no_tokenizer_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"no tokenizer\.json; for a sentencepiece model use --library sentencepiece"):
        HuggingFaceTokenizer.load(tmp_path)
    (tmp_path / "tokenizer.model").write_text("no model")
    with pytest.raises(UsageError, match=r"tokenizer\.model: not a sentencepiece model"):
        SentencePieceTokenizer(tmp_path / "tokenizer.model")
    with pytest.raises(UsageError, match=r"absent\.model: not a sentencepiece model"):
        SentencePieceTokenizer(tmp_path / "absent.model")
