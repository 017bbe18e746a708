"""Every reader of the tokenizer files gives the same ids, and markers are one token for all of them."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path

import gguf
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2 as schema
from transformers import AutoTokenizer

from nemo_steerlm.core.errors import ConfigError, UsageError
from nemo_steerlm.core.template import ChatTokens
from nemo_steerlm.core.tokenization import HuggingFaceTokenizer, SentencePieceTokenizer, TextTokenizer, load_tokenizer
from nemo_steerlm.formats.tokenizer_files import is_single_token, source_vocabulary_size, write_tokenizer_files
from tests import inputs

MARKERS = ChatTokens().markers
CONTROL = ("\x00", "\x11", "\x12")
PROMPT = (
    "<extra_id_0>System\nA chat.\n\n\n<extra_id_1>User\nIt's 2023:  12\t\n<extra_id_2>quality:4,lang:en\nYes, naïve 日本 🙂\n<extra_id_1>"
)

pytestmark = pytest.mark.megatron


@pytest.fixture(scope="module")
def sentencepiece_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sentencepiece")
    write_tokenizer_files(inputs.STORIES, folder, MARKERS)
    return folder


@pytest.fixture(scope="module")
def byte_level_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("byte-level")
    write_tokenizer_files(inputs.smollm2(), folder, MARKERS)
    return folder


def _ids(tokenizer: TextTokenizer, text: str) -> list[int]:
    return tokenizer.encode_offsets(text)[0]


def test_sentencepiece_markers_follow_the_vocabulary(sentencepiece_folder: Path) -> None:
    tokenizer = SentencePieceTokenizer(sentencepiece_folder / "tokenizer.model")
    assert [tokenizer.token_id(marker) for marker in MARKERS] == [512, 513, 514]
    assert source_vocabulary_size(inputs.STORIES) == 512
    assert all(is_single_token(tokenizer, marker) for marker in MARKERS)
    assert not is_single_token(SentencePieceTokenizer(inputs.STORIES / "tokenizer.model"), MARKERS[0])
    assert tokenizer.decode(_ids(tokenizer, PROMPT)) == PROMPT


def test_ordinary_text_keeps_its_ids(sentencepiece_folder: Path) -> None:
    before = SentencePieceTokenizer(inputs.STORIES / "tokenizer.model")
    after = SentencePieceTokenizer(sentencepiece_folder / "tokenizer.model")
    for text in inputs.prompts():
        assert _ids(after, text) == _ids(before, text)


def test_transformers_gives_the_ids_of_sentencepiece(sentencepiece_folder: Path) -> None:
    reference = SentencePieceTokenizer(sentencepiece_folder / "tokenizer.model")
    fast = AutoTokenizer.from_pretrained(sentencepiece_folder)
    for text in [PROMPT, *inputs.prompts()]:
        prompt = f"<extra_id_0>System\n{text}\n<extra_id_1>"
        assert fast.encode(prompt, add_special_tokens=False) == _ids(reference, prompt)
    assert (fast.eos_token_id, fast.bos_token_id) == (2, 1)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.lists(
        st.sampled_from(["<extra_id_0>", "<extra_id_1>", " ", "\n", "<s>", "</s>", "<0x0A>", "▁", "\x11", "a", "The"]) | st.text(),
        min_size=1,
    )
)
def test_tokenizer_json_equals_sentencepiece_on_any_text(sentencepiece_folder: Path, text: list[str]) -> None:
    given_text = "".join(text)
    if given_text in MARKERS:  # documented: a marker alone gets no dummy prefix
        return
    sentencepiece, fast = _both(sentencepiece_folder)
    assert _ids(fast, given_text) == _ids(sentencepiece, given_text)


@functools.cache
def _both(folder: Path) -> tuple[TextTokenizer, TextTokenizer]:
    return SentencePieceTokenizer(folder / "tokenizer.model"), HuggingFaceTokenizer.load(folder)


@pytest.mark.slow
def test_byte_level_equals_transformers_own_reading_of_the_gguf(byte_level_folder: Path) -> None:
    source = inputs.smollm2()
    reference = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    ours = load_tokenizer(byte_level_folder)
    assert (ours.vocab_size, ours.eos_id) == (49152 + 3, 2)
    for text in inputs.prompts():
        assert _ids(ours, text) == reference.encode(text, add_special_tokens=False)
        assert ours.decode(_ids(ours, text)) == text


def test_byte_level_digits_stand_alone(byte_level_folder: Path) -> None:
    # SmolLM2's own pre-tokenizer; transformers 4.51 leaves it out when it reads a GGUF.
    tokenizer = load_tokenizer(byte_level_folder)
    assert [tokenizer.decode([i]) for i in _ids(tokenizer, "in 2023")] == ["in", " ", "2", "0", "2", "3"]


@pytest.mark.slow
def test_byte_level_prompt_is_the_same_for_transformers(byte_level_folder: Path) -> None:
    ours, theirs = load_tokenizer(byte_level_folder), AutoTokenizer.from_pretrained(byte_level_folder)
    assert theirs.encode(PROMPT, add_special_tokens=False) == _ids(ours, PROMPT)
    assert theirs.chat_template.startswith("{% for message in messages %}")
    assert [ours.token_id(marker) for marker in MARKERS] == [49152, 49153, 49154]


def test_control_characters_as_markers(tmp_path: Path) -> None:
    for name, source in (("sentencepiece", inputs.STORIES), ("byte-level", inputs.smollm2())):
        tokenizer = write_tokenizer_files(source, tmp_path / name, CONTROL)
        assert all(is_single_token(tokenizer, marker) for marker in CONTROL)


def test_markers_that_are_there_are_reused(sentencepiece_folder: Path, byte_level_folder: Path, tmp_path: Path) -> None:
    for folder in (sentencepiece_folder, byte_level_folder):
        again = write_tokenizer_files(folder, tmp_path / folder.name, MARKERS)
        assert again.vocab_size == load_tokenizer(folder).vocab_size
        assert _ids(again, PROMPT) == _ids(load_tokenizer(folder), PROMPT)
    special = write_tokenizer_files(inputs.smollm2(), tmp_path / "im", ("<|im_start|>", "<|im_end|>", "<file_sep>"))
    assert special.vocab_size == 49152


def test_tokens_added_in_json_keep_their_ids(tmp_path: Path) -> None:
    shutil.copy(inputs.STORIES / "tokenizer.model", tmp_path / "tokenizer.model")
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<pad>": 512, "<sep>": 513}))
    tokenizer = write_tokenizer_files(tmp_path, tmp_path / "out", MARKERS)
    assert [tokenizer.token_id(t) for t in ("<pad>", "<sep>", *MARKERS)] == [512, 513, 514, 515, 516]
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<pad>": 600}))
    with pytest.raises(ConfigError, match=r"added tokens have ids \[600\]"):
        write_tokenizer_files(tmp_path, tmp_path / "out", MARKERS)


def test_sentencepiece_from_a_gguf(tmp_path: Path) -> None:
    model = schema.ModelProto.FromString((inputs.STORIES / "tokenizer.model").read_bytes())
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list([p.piece for p in model.pieces])
    writer.add_token_scores([p.score for p in model.pieces])
    writer.add_token_types([p.type for p in model.pieces])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    ours = write_tokenizer_files(tmp_path / "m.gguf", tmp_path / "out")
    reference = SentencePieceTokenizer(inputs.STORIES / "tokenizer.model")
    assert ours.eos_id == 2
    for text in inputs.prompts()[:40]:
        assert _ids(ours, text) == _ids(reference, text)


def test_a_folder_without_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no tokenizer\.model and no tokenizer\.json"):
        write_tokenizer_files(tmp_path, tmp_path / "out")


def test_a_marker_that_cannot_be_a_token_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot hold NUL"):
        write_tokenizer_files(inputs.STORIES, tmp_path, ("\x00\x01",))
