"""Tokenizers the template is tested with: real sentencepiece, the same with control pieces, and a byte-level BPE trained here."""

from __future__ import annotations

import functools
import io
from pathlib import Path

import sentencepiece
import tokenizers
from sentencepiece import sentencepiece_model_pb2

from nemo_steerlm.core.template import ChatTokens
from nemo_steerlm.core.tokenization import HuggingFaceTokenizer, SentencePieceTokenizer, load_tokenizer
from tests.inputs import STORIES

MODEL = STORIES / "tokenizer.model"
CORPUS = (
    "A chat between a curious user and an artificial intelligence assistant. quality:4,toxicity:0,lang:en\nUser\nAssistant\n",
    "Das Wetter ist schön, naïve façade; 日本語のテキスト и немного русского. Don't they're I've 12 345 6789.\n",
    "def f(x):\n    return x + 1\n",
)


def sentencepiece_plain() -> SentencePieceTokenizer:
    return SentencePieceTokenizer(MODEL)


@functools.cache
def sentencepiece_with_control(markers: tuple[str, ...], folder: Path) -> SentencePieceTokenizer:
    """What the models of this project carry: control tokens as USER_DEFINED pieces."""
    model = sentencepiece_model_pb2.ModelProto.FromString(
        sentencepiece.SentencePieceProcessor(model_file=str(MODEL)).serialized_model_proto()
    )
    # sentencepiece cannot hold NUL; byte fallback already has a piece for it.
    for marker in (m for m in markers if m != "\x00"):
        piece = model.pieces.add()
        piece.piece, piece.score, piece.type = marker, 0.0, sentencepiece_model_pb2.ModelProto.SentencePiece.USER_DEFINED
    file = folder / "control.model"
    file.write_bytes(model.SerializeToString())
    return SentencePieceTokenizer(file)


@functools.cache
def byte_level_bpe(markers: tuple[str, ...] = ()) -> HuggingFaceTokenizer:
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = tokenizers.processors.ByteLevel(trim_offsets=True)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=600,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS * 4, trainer)
    return HuggingFaceTokenizer(tokenizer, eos="<|endoftext|>", add=markers)


SENTENCEPIECE_RULES = ("nmt_nfkc", "nfkc", "nmt_nfkc_cf", "nfkc_cf")
"""The normalisers that sentencepiece has by name; the first is what it trains with when nobody says otherwise."""


@functools.cache
def normalising_sentencepiece(rule: str, kind: str, markers: tuple[str, ...], folder: Path) -> SentencePieceTokenizer:
    """A sentencepiece model that normalises, with ``markers`` as USER_DEFINED pieces."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 4),
        model_writer=written,
        vocab_size=200,
        hard_vocab_limit=False,
        model_type=kind,
        normalization_rule_name=rule,
        user_defined_symbols=list(markers),
        byte_fallback=False,
        character_coverage=1.0,
        minloglevel=2,
    )
    file = folder / f"{rule}-{kind}.model"
    file.write_bytes(written.getvalue())
    return SentencePieceTokenizer(file)


HUGGING_FACE_NORMALIZERS = {
    "NFKC": tokenizers.normalizers.NFKC(),
    "NFKD, no accents, lower case": tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.NFKD(), tokenizers.normalizers.StripAccents(), tokenizers.normalizers.Lowercase()]
    ),
    "as sentencepiece": tokenizers.normalizers.Sequence([tokenizers.normalizers.NFKC(), tokenizers.normalizers.Replace(" ", "▁")]),
    "BERT": tokenizers.normalizers.BertNormalizer(),
}


def normalising_hugging_face(name: str, markers: tuple[str, ...], folder: Path) -> HuggingFaceTokenizer:
    """A ``tokenizer.json`` of somebody's, in which the markers exist already and are looked for in normalised text."""
    tokenizer = byte_level_bpe()._tokenizer
    data = tokenizers.Tokenizer.from_str(tokenizer.to_str())
    data.normalizer = HUGGING_FACE_NORMALIZERS[name]
    data.add_special_tokens([tokenizers.AddedToken(marker, special=True, normalized=True) for marker in markers])
    file = folder / "tokenizer.json"
    data.save(str(file))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<|endoftext|>"}')
    loaded = load_tokenizer(folder, ChatTokens(system_turn_start=markers[0], turn_start=markers[1], label_start=markers[2]))
    assert isinstance(loaded, HuggingFaceTokenizer)
    return loaded
