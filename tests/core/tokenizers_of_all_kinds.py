"""Tokenizers the template is tested with: real sentencepiece, the same with control pieces, and a byte-level BPE trained here."""

from __future__ import annotations

import functools
from pathlib import Path

import sentencepiece
import tokenizers
from sentencepiece import sentencepiece_model_pb2

from nemo_steerlm.core.tokenization import HuggingFaceTokenizer, SentencePieceTokenizer
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
