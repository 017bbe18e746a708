"""Tokenizer files in which the chat markers are single tokens, from a Hugging Face folder or a GGUF file.

One folder serves every reader with the same ids: NeMo (``model.tokenizer``), ``core.tokenization`` (training, cleaning, serving) and
transformers (exported models). A sentencepiece model stays one: markers become USER_DEFINED pieces, which sentencepiece finds in text
before anything else, and a ``tokenizer.json`` that gives the same ids is written beside it. Any other tokenizer is a
``tokenizer.json``, where markers are added special tokens. Markers that the vocabulary already has keep their id.

sentencepiece cannot hold the NUL character in a piece; a model with byte fallback has ``<0x00>`` for it, and that is used.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers

from nemo_steerlm.core.errors import ConfigError, UsageError, shown
from nemo_steerlm.core.files import atomic_write
from nemo_steerlm.core.tokenization import TextTokenizer, load_tokenizer
from nemo_steerlm.formats.checkpoint_files import refuse_pointer
from nemo_steerlm.formats.gguf_files import open_gguf
from nemo_steerlm.formats.nemo_archive import is_nemo, unpack_tokenizer

SENTENCEPIECE = "tokenizer.model"
HUGGING_FACE = "tokenizer.json"
SETTINGS = "tokenizer_config.json"
_SPACE = "▁"
_NAMED = ("bos_token", "eos_token", "unk_token", "pad_token")


def write_tokenizer_files(source: str | Path, folder: str | Path, markers: Sequence[str] = ()) -> TextTokenizer:
    """Write the tokenizer of ``source``, with ``markers`` as single tokens, into ``folder``.

    ``source`` is a Hugging Face folder, a ``.gguf`` or a ``.nemo``, which has to have them: it has weights for the tokens
    that are there, and no others.

    Raises UsageError where ``source`` has no tokenizer and ConfigError where a marker cannot become a token.
    """
    source, folder = Path(source), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if is_nemo(str(source)):
        _, unpacked = unpack_tokenizer(source, folder)
        require_markers(unpacked, markers, str(source))
        return unpacked
    settings = _settings(source)
    if (model := _sentencepiece_model(source)) is not None:
        _write_sentencepiece(folder, _with_pieces(model, markers, source), settings)
    else:
        _write_hugging_face(folder, _tokenizer(_tokenizer_json(source), source), settings, markers)
    tokenizer = load_tokenizer(folder)
    for marker in markers:
        if not is_single_token(tokenizer, marker):
            raise ConfigError(f"{source}: chat token {shown(marker)} cannot become one token of this vocabulary; choose another")
    return tokenizer


def is_single_token(tokenizer: TextTokenizer, marker: str) -> bool:
    """Whether ``marker`` inside text is one token that says nothing else."""
    start, end = 1, 1 + len(marker)
    _, offsets = tokenizer.encode_offsets(f"a{marker}a")
    return [(i, j) for i, j in offsets if i < j and i < end and j > start] == [(start, end)]


def require_markers(tokenizer: TextTokenizer, markers: Sequence[str], source: str) -> None:
    """Raise ConfigError where a marker is spelled in several tokens: an answer's end would be no token that an engine can stop at."""
    for marker in markers:
        if not is_single_token(tokenizer, marker):
            raise ConfigError(
                f"{source}: chat token {shown(marker)} is no single token of the vocabulary; convert the Hugging Face checkpoint with "
                "steerlm convert, which adds it, or name tokens that there are as the chat tokens"
            )


def source_vocabulary_size(source: str | Path) -> int:
    """How many tokens the tokenizer of ``source`` has before anything is added."""
    source = Path(source)
    if (model := _sentencepiece_model(source)) is not None:
        return len(model.pieces)
    size: int = _tokenizer(_tokenizer_json(source), source).get_vocab_size(with_added_tokens=True)
    return size


def nemo_tokenizer_config(folder: str | Path) -> dict[str, Any]:
    """The ``model.tokenizer`` section that makes NeMo read ``folder``.

    A sentencepiece section is NeMo's own. For a ``tokenizer.json`` NeMo knows only a name on the hub, which a ``.nemo`` cannot carry;
    ``tokenizer_json`` and ``tokenizer_config`` are this project's keys, stored in the ``.nemo`` as artifacts (see build_nemo_tokenizer).
    """
    folder = Path(folder)
    if (folder / SENTENCEPIECE).is_file():
        return {"library": "sentencepiece", "type": None, "model": str(folder / SENTENCEPIECE), "sentencepiece_legacy": False}
    return {
        "library": "huggingface",
        "type": None,
        "model": None,
        "tokenizer_json": str(folder / HUGGING_FACE),
        "tokenizer_config": str(folder / SETTINGS),
        "use_fast": True,
    }


def export_tokenizer_files(nemo_tokenizer: Any, folder: Path) -> None:
    """Write the tokenizer of a model in memory as files for transformers and ``core.tokenization``."""
    inner = nemo_tokenizer.tokenizer
    if hasattr(inner, "serialized_model_proto"):
        _write_sentencepiece(folder, _parse_sentencepiece(inner.serialized_model_proto()), {})
        return
    settings = {name: getattr(inner, name) for name in _NAMED if getattr(inner, name, None)}
    settings["chat_template"] = getattr(inner, "chat_template", None)
    settings["additional_special_tokens"] = list(inner.additional_special_tokens)
    _write_hugging_face(folder, Tokenizer.from_str(inner.backend_tokenizer.to_str()), settings, ())


def _settings(source: Path) -> dict[str, Any]:
    if source.is_file():
        gguf = open_gguf(source)
        return {**gguf.named_tokens(), "chat_template": gguf.value("tokenizer.chat_template")}
    path = source / SETTINGS
    if not path.is_file():
        return {}
    stored = _json(path)
    settings = {name: _content(stored[name]) for name in _NAMED if stored.get(name)}
    return {**settings, "chat_template": stored.get("chat_template")}


def _json(path: Path) -> dict[str, Any]:
    refuse_pointer(path)
    try:
        stored = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not JSON ({error}); download the model again") from error
    if not isinstance(stored, dict):
        raise UsageError(f"{path}: holds {shown(stored)}, not an object")
    return stored


def _content(token: Any) -> str:
    text: str = token["content"] if isinstance(token, dict) else token
    return text


def _sentencepiece_model(source: Path) -> Any | None:
    """The sentencepiece model of ``source`` with the tokens its folder adds behind it, or None where it has none."""
    if source.is_file():
        gguf = open_gguf(source)
        return _parse_sentencepiece(gguf.sentencepiece_model()) if gguf.tokenizer_kind() == "llama" else None
    path = source / SENTENCEPIECE
    if not path.is_file():
        return None
    refuse_pointer(path)
    model = _parse_sentencepiece(path.read_bytes())
    # Llama 3 ships a tiktoken file under this name.
    if model is None or not model.pieces:
        return None
    added = {i: token for i, token in _added_tokens(source).items() if i >= len(model.pieces)}
    if sorted(added) != list(range(len(model.pieces), len(model.pieces) + len(added))):
        raise ConfigError(f"{source}: added tokens have ids {sorted(added)}, not the ones after the {len(model.pieces)} of {SENTENCEPIECE}")
    for _, token in sorted(added.items()):
        _append(model, token)
    return model


def _parse_sentencepiece(data: bytes) -> Any | None:
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2 as schema

    try:
        return schema.ModelProto.FromString(data)
    except DecodeError:
        return None


def _added_tokens(folder: Path) -> dict[int, str]:
    """Tokens that a folder's JSON files add to its sentencepiece model, by id."""
    added: dict[int, str] = {}
    if (path := folder / "added_tokens.json").is_file():
        added |= {int(i): token for token, i in _json(path).items()}
    if (path := folder / SETTINGS).is_file():
        decoder = _json(path).get("added_tokens_decoder") or {}
        added |= {int(i): token["content"] for i, token in decoder.items()}
    if (path := folder / HUGGING_FACE).is_file():
        tokens = _json(path).get("added_tokens") or []
        added |= {int(token["id"]): token["content"] for token in tokens}
    return added


def _with_pieces(model: Any, markers: Sequence[str], source: Path) -> Any:
    user_defined = model.pieces[0].USER_DEFINED
    present = {piece.piece: piece for piece in model.pieces}
    for marker in markers:
        if marker in present:
            # An ordinary piece is found only where the segmentation likes it; a user-defined one always is.
            present[marker].type = user_defined
        elif "\x00" not in marker:
            _append(model, marker)
        elif marker != "\x00" or not model.trainer_spec.byte_fallback:
            raise ConfigError(
                f"{source}: chat token {shown(marker)}: a sentencepiece model without byte fallback cannot hold NUL; choose another"
            )
    model.trainer_spec.vocab_size = len(model.pieces)
    return model


def _append(model: Any, token: str) -> None:
    model.pieces.add(piece=token, score=0.0, type=model.pieces[0].USER_DEFINED)


def _write_sentencepiece(folder: Path, model: Any, settings: dict[str, Any]) -> None:
    _write_bytes(folder / SENTENCEPIECE, model.SerializeToString())
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    ids = {"bos_token": trainer.bos_id, "eos_token": trainer.eos_id, "unk_token": trainer.unk_id}
    named = {name: model.pieces[i].piece for name, i in ids.items() if i >= 0}
    # Other normalizers and segmentations have no exact counterpart in a tokenizer.json.
    exact = (normalizer.name == "identity" or not normalizer.precompiled_charsmap) and not normalizer.remove_extra_whitespaces
    if exact and trainer.model_type == trainer.BPE:
        with atomic_write(folder / HUGGING_FACE) as file:
            file.write(_fast_tokenizer(model))
        kind: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "additional_special_tokens": _user_defined(model)}
    else:
        kind = {"tokenizer_class": "LlamaTokenizer", "legacy": True}
    pad = {"pad_token": settings["pad_token"]} if settings.get("pad_token") else {}
    _write_json(
        folder / SETTINGS,
        {**kind, **named, **pad, "add_bos_token": trainer.bos_id >= 0, "clean_up_tokenization_spaces": False, **_chat_template(settings)},
    )


def _user_defined(model: Any) -> list[str]:
    return [piece.piece for piece in model.pieces if piece.type == piece.USER_DEFINED]


def _fast_tokenizer(model: Any) -> str:
    """A ``tokenizer.json`` with the ids that sentencepiece gives.

    Control pieces come out of no merge: typed text must not become one. The one text that still differs from sentencepiece is a marker
    and nothing else, which gets no dummy prefix here.
    """
    user_defined = _user_defined(model)
    ids = {piece.piece: i for i, piece in enumerate(model.pieces)}
    tokenizer = Tokenizer(
        models.BPE(vocab=ids, merges=_merges(model, ids), unk_token=model.trainer_spec.unk_piece, fuse_unk=True, byte_fallback=True)
    )
    spaces = normalizers.Replace(" ", _SPACE)
    strip = []
    if model.normalizer_spec.add_dummy_prefix:
        # The pattern spares the markers because tokens to be found in normalized text are normalized as well.
        markers = "|".join(re.escape(token) for token in user_defined)
        start = Regex(rf"\A(?!(?:{markers})\z)" if markers else r"\A")
        spaces = normalizers.Sequence([normalizers.Replace(start, _SPACE), spaces])
        strip = [decoders.Strip(content=" ", left=1)]
    tokenizer.normalizer = spaces
    tokenizer.decoder = decoders.Sequence([decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    # Normalized: found after the dummy prefix is put in front, so that it stands before a leading marker, as in sentencepiece.
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=True) for token in user_defined])
    text: str = tokenizer.to_str(pretty=True)
    return text


def _merges(model: Any, ids: dict[str, int]) -> list[tuple[str, str]]:
    """Merges that rebuild a sentencepiece BPE model: every split of an ordinary piece into two pieces, best score first.

    Ties in the order of transformers' ``SentencePieceExtractor``, so that exports keep their bytes.
    """
    found = []
    for piece in model.pieces:
        text = piece.piece
        if piece.type != piece.NORMAL:
            continue
        splits = [(text[:at], text[at:]) for at in range(1, len(text)) if text[:at] in ids and text[at:] in ids]
        found += [(piece.score, *split) for split in sorted(splits, key=lambda split: (ids[split[0]], ids[split[1]]))]
    found.sort(key=lambda merge: (merge[0], len(merge[1]), len(merge[2])), reverse=True)
    return [(left, right) for _, left, right in found]


def _tokenizer_json(source: Path) -> str:
    if source.is_file():
        return open_gguf(source).tokenizer_json()
    path = source / HUGGING_FACE
    if not path.is_file():
        raise UsageError(f"{source}: no {SENTENCEPIECE} and no {HUGGING_FACE}")
    refuse_pointer(path)
    return path.read_text(encoding="utf-8")


def _tokenizer(vocabulary: str, source: Path) -> Tokenizer:
    try:
        return Tokenizer.from_str(vocabulary)
    except Exception as error:  # the library raises no other class
        raise UsageError(f"{source}: {HUGGING_FACE} cannot be read ({shown(str(error))}); download the model again") from error


def _write_hugging_face(folder: Path, tokenizer: Tokenizer, settings: dict[str, Any], markers: Sequence[str]) -> None:
    tokenizer.add_special_tokens([AddedToken(marker, special=True, normalized=False) for marker in markers])
    with atomic_write(folder / HUGGING_FACE) as file:
        file.write(tokenizer.to_str(pretty=True))
    _write_json(
        folder / SETTINGS,
        {
            # Understood by transformers 4.51 and 5 alike; everything else is in tokenizer.json.
            "tokenizer_class": "PreTrainedTokenizerFast",
            **{name: settings[name] for name in _NAMED if settings.get(name)},
            "additional_special_tokens": list(dict.fromkeys([*settings.get("additional_special_tokens", ()), *markers])),
            "clean_up_tokenization_spaces": False,
            **_chat_template(settings),
        },
    )


def _chat_template(settings: dict[str, Any]) -> dict[str, Any]:
    return {"chat_template": settings["chat_template"]} if settings.get("chat_template") else {}


def _write_json(path: Path, data: dict[str, Any]) -> None:
    with atomic_write(path) as file:
        file.write(json.dumps(data, ensure_ascii=False, indent=2) + "\n")


def _write_bytes(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(data)
    os.replace(temporary, path)
