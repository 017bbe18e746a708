"""Tokenizers: sentencepiece models and ``tokenizer.json`` files. Neither torch nor transformers is imported."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from nemo_steerlm.core.errors import ConfigError, UsageError, shown
from nemo_steerlm.core.escape import Normalizer
from nemo_steerlm.core.template import ChatTokens

if TYPE_CHECKING:
    import sentencepiece
    import tokenizers


class TextTokenizer(Protocol):
    """What the template needs of a tokenizer."""

    vocab_size: int

    def __hash__(self) -> int:
        """One tokenizer is like no other."""

    @property
    def special(self) -> tuple[str, ...]:
        """Strings that encode to one special token when they occur in text."""

    @property
    def normalizer(self) -> Normalizer | None:
        """What it does to text before it looks for tokens; None where it takes text as it is."""

    @property
    def special_ids(self) -> frozenset[int]:
        """Tokens of those ``special`` strings that no ordinary text has in it: not those of white space or of one visible character."""

    @property
    def digest(self) -> str:
        """Of everything that text is encoded by."""

    def encode(self, text: str) -> list[int]:
        """Token ids, no BOS or EOS."""

    def encode_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """The same, and each one's ``[start, end)`` in characters of ``text``; slower."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ``ids``, special tokens included."""

    def token_id(self, token: str) -> int | None:
        """The id of a token that is a single vocabulary entry, else None."""

    def piece(self, token: int) -> str:
        """The vocabulary entry itself, as the tokenizer writes it."""

    @property
    def eos_id(self) -> int:
        """End of text, also used for padding. Raises ConfigError if the tokenizer names none."""


class SentencePieceTokenizer:
    """A sentencepiece model file. Control tokens that this project adds to it are USER_DEFINED pieces, found in text as one token."""

    def __init__(self, model_file: str | Path) -> None:
        """Read a model file.

        Raises:
            UsageError: If it is none.
        """
        import sentencepiece

        try:
            self._processor: sentencepiece.SentencePieceProcessor = sentencepiece.SentencePieceProcessor(model_file=str(model_file))
        except (OSError, RuntimeError) as error:
            raise UsageError(f"{model_file}: not a sentencepiece model ({error})") from error
        self.vocab_size: int = self._processor.vocab_size()

    @functools.cached_property
    def special(self) -> tuple[str, ...]:
        """USER_DEFINED pieces, matched in text before it is normalised, and again after. Control pieces never come from text."""
        from sentencepiece import sentencepiece_model_pb2 as schema

        return tuple(p.piece for p in self._model.pieces if p.type == schema.ModelProto.SentencePiece.USER_DEFINED)

    @functools.cached_property
    def normalizer(self) -> Normalizer | None:
        """See TextTokenizer. White space stays as it is: what the model does to it makes no letters."""
        import sentencepiece

        if not self._model.normalizer_spec.precompiled_charsmap:
            return None
        normalizer: Normalizer = sentencepiece.SentencePieceNormalizer(
            model_proto=self._processor.serialized_model_proto(),
            add_dummy_prefix=False,
            escape_whitespaces=False,
            remove_extra_whitespaces=False,
        ).normalize
        return normalizer

    @functools.cached_property
    def special_ids(self) -> frozenset[int]:
        """See TextTokenizer."""
        return frozenset(self._processor.piece_to_id(piece) for piece in self.special if _is_control(piece))

    @property
    def digest(self) -> str:
        """See TextTokenizer."""
        return hashlib.sha256(self._processor.serialized_model_proto()).hexdigest()

    def __getstate__(self) -> dict[str, Any]:
        return {"_processor": self._processor, "vocab_size": self.vocab_size}

    @functools.cached_property
    def _model(self) -> Any:
        from sentencepiece import sentencepiece_model_pb2 as schema

        return schema.ModelProto.FromString(self._processor.serialized_model_proto())

    def encode(self, text: str) -> list[int]:
        """See TextTokenizer."""
        ids: list[int] = self._processor.encode(text)
        return ids

    def encode_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """See TextTokenizer."""
        ids, offsets = [], []
        for piece in self._processor.encode(text, out_type="immutable_proto").pieces:  # each is made anew: once is enough
            ids.append(piece.id)
            offsets.append((piece.begin, piece.end))
        return ids, offsets

    def decode(self, ids: Sequence[int]) -> str:
        """See TextTokenizer."""
        text: str = self._processor.decode(list(ids))
        return text

    def token_id(self, token: str) -> int | None:
        """See TextTokenizer."""
        entry: int = self._processor.piece_to_id(token)
        return None if entry == self._processor.unk_id() else entry

    def piece(self, token: int) -> str:
        """See TextTokenizer."""
        piece: str = self._processor.id_to_piece(token)
        return piece

    @property
    def eos_id(self) -> int:
        """See TextTokenizer."""
        found: int = self._processor.eos_id()
        return found


class HuggingFaceTokenizer:
    """A ``tokenizer.json`` (in a folder, or on the hub by name), through the ``tokenizers`` library alone."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, *, eos: str | None = None, add: Sequence[str] = ()) -> None:
        from tokenizers import AddedToken, pre_tokenizers, processors

        # Byte-level post-processing trims white space off the offsets, and the end-of-turn newline with it.
        if isinstance(tokenizer.post_processor, processors.ByteLevel) or isinstance(tokenizer.pre_tokenizer, pre_tokenizers.ByteLevel):
            tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in add])
        self._tokenizer = tokenizer
        self._eos = eos
        self.vocab_size: int = tokenizer.get_vocab_size(with_added_tokens=True)

    @classmethod
    def load(cls, name: str | Path, *, add: Sequence[str] = ()) -> HuggingFaceTokenizer:
        """From a folder, a ``tokenizer.json``, or a model's name on the hub (downloaded once, then cached by its library).

        Raises:
            UsageError: If there is no ``tokenizer.json``, here or on the hub.
        """
        import json

        from tokenizers import Tokenizer

        path = Path(name)
        if not path.exists():
            path = fetch_tokenizer(str(name))
        folder = path if path.is_dir() else path.parent
        file = folder / "tokenizer.json" if path.is_dir() else path
        if not file.is_file():
            raise UsageError(f"{folder}: no tokenizer.json; for a sentencepiece model use --library sentencepiece --model_file")
        eos = None
        if (folder / "tokenizer_config.json").is_file():
            eos = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")).get("eos_token")
        return cls(Tokenizer.from_file(str(file)), eos=eos["content"] if isinstance(eos, dict) else eos, add=add)

    @functools.cached_property
    def special(self) -> tuple[str, ...]:
        """Added special tokens, which are cut out of text before the model sees it, and what is taken for them once it is normalised."""
        added = [token for token in self._tokenizer.get_added_tokens_decoder().values() if token.special]
        normalizer = self.normalizer
        normal = [normalizer(token.content) for token in added if token.normalized] if normalizer else []
        return tuple(dict.fromkeys([*(token.content for token in added), *filter(None, normal)]))

    @functools.cached_property
    def normalizer(self) -> Normalizer | None:
        """See TextTokenizer."""
        found = self._tokenizer.normalizer
        normalizer: Normalizer | None = None if found is None else found.normalize_str
        return normalizer

    @property
    def digest(self) -> str:
        """See TextTokenizer."""
        return hashlib.sha256(self._tokenizer.to_str().encode()).hexdigest()

    def __getstate__(self) -> dict[str, Any]:
        return {"_tokenizer": self._tokenizer, "_eos": self._eos, "vocab_size": self.vocab_size}

    @functools.cached_property
    def special_ids(self) -> frozenset[int]:
        """See TextTokenizer."""
        added = self._tokenizer.get_added_tokens_decoder()
        return frozenset(i for i, token in added.items() if token.special and _is_control(token.content))

    def encode(self, text: str) -> list[int]:
        """See TextTokenizer."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def encode_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """See TextTokenizer."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets

    def decode(self, ids: Sequence[int]) -> str:
        """See TextTokenizer."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=False)
        return text

    def token_id(self, token: str) -> int | None:
        """See TextTokenizer."""
        entry: int | None = self._tokenizer.token_to_id(token)
        return entry

    def piece(self, token: int) -> str:
        """See TextTokenizer."""
        return self._tokenizer.id_to_token(token) or ""

    @property
    def eos_id(self) -> int:
        """See TextTokenizer.

        Raises:
            ConfigError: If the tokenizer names no end-of-text token.
        """
        for token in (self._eos, "<|endoftext|>", "</s>", "<|im_end|>"):
            if token and (found := self.token_id(token)) is not None:
                return found
        raise ConfigError("the tokenizer names no end-of-text token; set eos_token in tokenizer_config.json")


def _is_control(token: str) -> bool:
    return bool(token.strip("\u2581 \t\r\n")) and (len(token) > 1 or ord(token) < 0x20)


def fetch_tokenizer(name: str) -> Path:
    """The folder with the tokenizer files of a model on the hub. Raises UsageError where the hub does not give them."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=["tokenizer*.json"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise UsageError(f"tokenizer {shown(name)}: no such folder, and the hub did not give it ({type(error).__name__})") from error


def load_tokenizer(path: str | Path, tokens: ChatTokens | None = None) -> TextTokenizer:
    """The tokenizer at ``path``: a sentencepiece ``.model`` file, a ``tokenizer.json``, a folder with either, or a hub name.

    ``tokens``' markers are added as special tokens where a Hugging Face tokenizer lacks them (as upstream's data_clean.py does).
    """
    markers = tokens.markers if tokens else ()
    file = Path(path)
    if file.suffix == ".model":
        return SentencePieceTokenizer(file)
    if file.is_dir() and not (file / "tokenizer.json").is_file() and (file / "tokenizer.model").is_file():
        return SentencePieceTokenizer(file / "tokenizer.model")
    return HuggingFaceTokenizer.load(path, add=markers)
