"""The ids of a family's tokenizer stay the same when chat tokens are added: 2,000 texts of 30 languages, one tokenizer of each kind."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import sentencepiece
from babel import Locale
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from nemo_steerlm.core.template import ChatTokens
from nemo_steerlm.formats.tokenizer_files import write_tokenizer_files
from tests.inputs import STORIES

LANGUAGES = [
    "ar",
    "bg",
    "bn",
    "ca",
    "cs",
    "da",
    "de",
    "el",
    "en",
    "es",
    "fa",
    "fi",
    "fr",
    "he",
    "hi",
    "hu",
    "id",
    "it",
    "ja",
    "ka",
    "ko",
    "nl",
    "pl",
    "pt",
    "ru",
    "sv",
    "th",
    "tr",
    "uk",
    "zh",
]
TEXTS = 2000

CL100K = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
"""How Llama 3 and OLMo 2 cut text into words; Qwen cuts numbers into single digits."""

Encode = Callable[[str], list[int]]


def texts() -> list[str]:
    """Names of places, languages and months as people write them, with marks, numbers and white space of all kinds between."""
    chance, found = random.Random(0), []
    names = {language: words(language) for language in LANGUAGES}
    between = [" ", ", ", ". ", "  ", "\n", " \n\n", "-", "…", "'s ", " (", "\t", " 1234 ", " 5 ", "🙂", "\u00a0"]
    while len(found) < TEXTS:
        language = LANGUAGES[len(found) % len(LANGUAGES)]
        found.append("".join(chance.choice(names[language]) + chance.choice(between) for _ in range(chance.randint(1, 12))))
    return found


def words(language: str) -> list[str]:
    locale = Locale(language)
    return [*locale.territories.values(), *locale.languages.values(), *locale.months["format"]["wide"].values()]


def of_stories(folder: Path, corpus: Sequence[str]) -> Encode:
    """Llama 1 and 2: sentencepiece with byte fallback, as it was trained."""
    (folder / "tokenizer.model").write_bytes((STORIES / "tokenizer.model").read_bytes())
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model")).encode


def of_sentencepiece(folder: Path, corpus: Sequence[str]) -> Encode:
    """Mistral and Phi-3: the same with other pieces."""
    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus), model_writer=trained, vocab_size=3000, model_type="bpe", byte_fallback=True, split_digits=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, character_coverage=0.99, minloglevel=2,
    )  # fmt: skip
    (folder / "tokenizer.model").write_bytes(trained.getvalue())
    return sentencepiece.SentencePieceProcessor(model_proto=trained.getvalue()).encode


def byte_level(cut: str | None, *, composed: bool = False) -> Callable[[Path, Sequence[str]], Encode]:
    """A byte-level BPE whose words are cut out by ``cut``, GPT-2's own where it is None."""

    def build(folder: Path, corpus: Sequence[str]) -> Encode:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.normalizer = normalizers.NFC() if composed else None
        level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=cut is None)
        tokenizer.pre_tokenizer = level if cut is None else pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(cut), "isolated"), level])
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=3000, initial_alphabet=alphabet, special_tokens=["<|end|>"], show_progress=False)
        tokenizer.train_from_iterator(corpus, trainer)
        tokenizer.save(str(folder / "tokenizer.json"))
        (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>"}))
        return lambda text: tokenizer.encode(text, add_special_tokens=False).ids

    return build


KINDS = {
    "llama 2": of_stories,
    "mistral, phi-3": of_sentencepiece,
    "llama 3, olmo 2": byte_level(CL100K),
    "qwen": byte_level(CL100K.replace("{1,3}", ""), composed=True),
    "granite": byte_level(None),
}


@pytest.mark.parametrize("kind", KINDS)
def test_ids_stay_the_same(kind: str, tmp_path: Path) -> None:
    corpus = texts()
    (tmp_path / "source").mkdir()
    encode = KINDS[kind](tmp_path / "source", corpus)
    ours = write_tokenizer_files(tmp_path / "source", tmp_path / "written", ChatTokens().markers)
    written = Tokenizer.from_file(str(tmp_path / "written" / "tokenizer.json"))
    for text in corpus:
        ids = encode(text)
        assert ours.encode(text) == ids, text
        assert written.encode(text, add_special_tokens=False).ids == ids, text
        assert ours.decode(ids).lstrip() == text.lstrip() or kind == "qwen"  # NFC writes some letters as one
