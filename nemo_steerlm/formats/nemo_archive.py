"""``.nemo`` files: a tar, or a folder of what is in it. Read without NeMo, and as a stranger's: ``SECURITY.md`` says what is refused."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple, cast

import yaml

from nemo_steerlm.core.errors import ConfigError, DataError, UsageError, Where, shown
from nemo_steerlm.core.tokenization import TextTokenizer, fetch_tokenizer, load_tokenizer

if TYPE_CHECKING:
    from omegaconf import DictConfig

CONFIG = "model_config.yaml"
_WEIGHTS = "model_weights/metadata.json"
_PARTS = re.compile(
    r"[^/]+|model_weights/(metadata\.json|common\.pt|\.metadata|__\d+_\d+\.distcp)|(mp_rank_\d+|tp_rank_\d+_pp_rank_\d+)/model_weights\.ckpt"
)
"""A configuration and artifacts, weights of torch's distributed checkpoints, weights by rank."""
_BACKENDS = {"sharded_backend": "torch_dist", "common_backend": "torch"}

_MOST_MEMBERS = 100_000
_MOST_CONFIG_BYTES = 1 << 20
_MOST_TOKENIZER_BYTES = 256 << 20
_MOST_EXPANSION = 20
"""What a compressed archive may become, as a multiple of its own size: weights hardly shrink."""

_ARTIFACTS = ("model", "vocab_file", "merge_file", "tokenizer_json", "tokenizer_config")
"""Fields of the tokenizer's section that name files."""
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_TARGET = "_target_"
_CODE = frozenset({"cls", "params"})
"""Keys by which a configuration names code to run: Hydra's anywhere in it, NeMo's at its top."""


class _Member(NamedTuple):
    size: int
    open: Callable[[], IO[bytes]]


def is_nemo(path: str) -> bool:
    """Whether ``path`` is a ``.nemo``, packed or unpacked."""
    return path.endswith(".nemo") or (Path(path) / CONFIG).is_file()


def nemo_archive(path: str | Path) -> tuple[DictConfig, TextTokenizer]:
    """Model config and tokenizer of a ``.nemo``, without NeMo.

    Raises UsageError where it is none, DataError naming the member or field that is refused.
    """
    with tempfile.TemporaryDirectory() as folder:
        return unpack_tokenizer(path, Path(folder))


def unpack_tokenizer(path: str | Path, folder: Path) -> tuple[DictConfig, TextTokenizer]:
    """As ``nemo_archive``; the tokenizer's files are written into ``folder``."""
    with _members(Path(path)) as members:
        cfg = _config(members)
        return cfg, _archived_tokenizer(cfg.tokenizer, members, folder)


def archived_config(path: str | Path) -> DictConfig:
    """The model config of a ``.nemo`` whose members and fields are all such as may be given to NeMo. Raises as ``nemo_archive`` does."""
    with _members(Path(path)) as members:
        return _config(members)


@contextlib.contextmanager
def _members(path: Path) -> Iterator[dict[str, _Member]]:
    """The regular files of a ``.nemo`` by name. Errors that the block raises name the file."""
    try:
        with contextlib.ExitStack() as stack:
            members = _in_folder(path) if path.is_dir() else _in_archive(stack.enter_context(tarfile.open(path)), path.stat().st_size)
            if _WEIGHTS in members:
                _check_backends(members[_WEIGHTS])
            yield members
    except DataError as error:
        raise error.located(file=str(path)) from error
    except (OSError, EOFError, tarfile.TarError) as error:
        raise UsageError(f"{path}: not a .nemo ({error})") from error


def _in_archive(archive: tarfile.TarFile, size: int) -> dict[str, _Member]:
    members: dict[str, _Member] = {}
    total = 0
    for member in archive:
        if member.isdir():
            continue
        name = _plain(member.name, members)
        if not member.isreg() or member.issparse():
            raise DataError(f"member {shown(name)} is no regular file", instead="a .nemo has no links, devices or sparse files")
        total += member.size
        if total > max(size, 1 << 20) * _MOST_EXPANSION:
            raise DataError(f"member {shown(name)} brings the archive to {total} bytes, more than {_MOST_EXPANSION} times its size")
        members[name] = _Member(member.size, lambda member=member: cast(IO[bytes], archive.extractfile(member)))  # type: ignore[misc]
    return members


def _in_folder(folder: Path) -> dict[str, _Member]:
    members: dict[str, _Member] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not (path.is_dir() or path.is_file()):
            raise DataError(f"member {shown(str(path.relative_to(folder)))} is no regular file", instead="a .nemo has no links or devices")
        if path.is_file():
            name = _plain(path.relative_to(folder).as_posix(), members)
            members[name] = _Member(path.stat().st_size, lambda path=path: path.open("rb"))  # type: ignore[misc]
    return members


def _plain(name: str, members: Mapping[str, _Member]) -> str:
    """The name of a member without ``./``, if such a member may be there."""
    plain = name.removeprefix("./")
    if plain.startswith("/") or ".." in plain.split("/"):
        raise DataError(f"member {shown(name)} leads out of the archive")
    if not _PARTS.fullmatch(plain):
        raise DataError(f"member {shown(name)} is no part of a .nemo that can be read here")
    if plain in members:
        raise DataError(f"member {shown(name)} is there twice")
    if len(members) == _MOST_MEMBERS:
        raise DataError(f"more than {_MOST_MEMBERS} members")
    return plain


def _check_backends(member: _Member) -> None:
    try:
        stored = json.loads(_content(_WEIGHTS, member, _MOST_CONFIG_BYTES))
        found = {key: stored.get(key, wanted) for key, wanted in _BACKENDS.items()}
    except (ValueError, AttributeError) as error:
        raise DataError(f"member {_WEIGHTS} is no JSON object") from error
    for key, wanted in _BACKENDS.items():
        if found[key] != wanted:
            raise DataError(f"weights stored as {key} {shown(found[key])}", instead=f"save them again as {wanted}")


def _content(name: str, member: _Member, most: int) -> bytes:
    if member.size > most:
        raise DataError(f"member {shown(name)} has {member.size} bytes", instead=f"{most} are read at most")
    with member.open() as file:
        return file.read(most)


def _config(members: Mapping[str, _Member]) -> DictConfig:
    if CONFIG not in members:
        raise FileNotFoundError(f"no {CONFIG} in it")
    from omegaconf import OmegaConf  # which comes with NeMo, and every stage asks whether a path is a ``.nemo``
    from omegaconf.errors import OmegaConfBaseException

    text = _content(CONFIG, members[CONFIG], _MOST_CONFIG_BYTES)
    where = Where(field=CONFIG)
    try:
        # An alias of an alias of an alias is a small text and an enormous configuration.
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader)):
            raise DataError("a YAML alias", where=where, instead="write out what it stands for")
        cfg = OmegaConf.create(text.decode())
        plain = OmegaConf.to_container(cfg, resolve=False)
    except (yaml.YAMLError, OmegaConfBaseException, RecursionError, ValueError) as error:
        raise DataError(f"not a YAML mapping ({' '.join(str(error).split())[:200]})", where=where) from error
    section = plain.get("tokenizer") if isinstance(plain, dict) else None
    if not isinstance(plain, dict) or not isinstance(section, dict):
        raise DataError("has no tokenizer section", where=where)
    for key in _CODE & plain.keys():
        raise DataError(f"key {key} names code to run", where=where)
    _check_values(plain, where)
    _check_tokenizer(section, members, where.at("tokenizer"))
    return cast("DictConfig", cfg)


def _check_values(value: Any, where: Where) -> None:
    """Nothing that is looked up elsewhere when it is read, nothing that is run."""
    if isinstance(value, str) and "${" in value:
        raise DataError(f"an interpolation, {shown(value)}", where=where, instead="write its value")
    if isinstance(value, dict):
        for key, inner in value.items():
            if key == _TARGET:
                raise DataError(f"key {key} names code to run", where=where)
            _check_values(inner, where.at(str(key)))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            _check_values(inner, where.at(f"[{index}]"))


def _check_tokenizer(section: Mapping[str, Any], members: Mapping[str, _Member], where: Where) -> None:
    """Every file it names is a member, and it brings no code."""
    for key in _ARTIFACTS:
        value = section.get(key)
        if value and _member_name(value) not in members:
            raise DataError(f"{shown(value)} is no member of the archive", where=where.at(key), instead="write nemo:NAME of a member")
    if section.get("trust_remote_code"):
        raise DataError("asks for code from the hub", where=where.at("trust_remote_code"), instead="leave it out")
    kind = section.get("type")
    if kind and not (isinstance(kind, str) and _HUB_NAME.fullmatch(kind)):
        raise DataError(f"{shown(kind)} is no name of a tokenizer", where=where.at("type"), instead="write NAME or OWNER/NAME")


def _member_name(value: object) -> str:
    return str(value).removeprefix("nemo:")


def _archived_tokenizer(section: DictConfig, members: Mapping[str, _Member], folder: Path) -> TextTokenizer:
    def written(key: str, name: str) -> bool:
        if not section.get(key):
            return False
        source = _member_name(section[key])
        if members[source].size > _MOST_TOKENIZER_BYTES:
            raise DataError(f"member {shown(source)} has {members[source].size} bytes", instead=f"{_MOST_TOKENIZER_BYTES} are read at most")
        with members[source].open() as file, (folder / name).open("wb") as copy:
            shutil.copyfileobj(file, copy, 1 << 20)
        return True

    if section.get("library") == "sentencepiece" and written("model", "tokenizer.model"):
        return load_tokenizer(folder / "tokenizer.model")
    if written("tokenizer_json", "tokenizer.json"):
        written("tokenizer_config", "tokenizer_config.json")
        return load_tokenizer(folder)
    if section.get("type") is None:
        raise ConfigError(f"model.tokenizer.library={section.get('library')} has no tokenizer that can be read")
    for file in fetch_tokenizer(section.type).iterdir():
        shutil.copy(file, folder)
    return load_tokenizer(folder)
