"""``.nemo`` files: a tar, or a folder of what is in it. Read here without NeMo."""

from __future__ import annotations

import os
import tarfile
import tempfile
from pathlib import Path
from typing import cast

from omegaconf import DictConfig, OmegaConf

from nemo_steerlm.core.errors import ConfigError, UsageError
from nemo_steerlm.core.tokenization import TextTokenizer, load_tokenizer


def is_nemo(path: str) -> bool:
    """Whether ``path`` is a ``.nemo``, packed or unpacked."""
    return path.endswith(".nemo") or (Path(path) / "model_config.yaml").is_file()


def nemo_archive(path: str | Path) -> tuple[DictConfig, TextTokenizer]:
    """Model config and tokenizer of a ``.nemo``, without NeMo. Raises UsageError where it is none."""
    path = Path(path)
    try:
        with tempfile.TemporaryDirectory() as folder:
            _extract(path, Path(folder))
            cfg = cast(DictConfig, OmegaConf.load(Path(folder) / "model_config.yaml"))
            return cfg, _archived_tokenizer(cfg.tokenizer, Path(folder))
    except (OSError, tarfile.TarError) as error:
        raise UsageError(f"model.restore_from_path: {path}: not a .nemo ({error})") from error


def _extract(path: Path, folder: Path) -> None:
    if path.is_dir():
        for file in path.iterdir():
            if file.is_file():
                (folder / file.name).symlink_to(file.absolute())
        return
    with tarfile.open(path) as archive:
        for member in archive:
            name = member.name.removeprefix("./")
            if member.isfile() and "/" not in name and (content := archive.extractfile(member)):
                (folder / name).write_bytes(content.read())


def _archived_tokenizer(section: DictConfig, folder: Path) -> TextTokenizer:
    def file_of(key: str) -> Path | None:
        value = section.get(key)
        return None if value is None else folder / str(value).removeprefix("nemo:")

    if (model := file_of("model")) is not None and section.library == "sentencepiece":
        os.link(model, folder / "tokenizer.model") if model.name != "tokenizer.model" else None
        return load_tokenizer(folder / "tokenizer.model")
    if (vocabulary := file_of("tokenizer_json")) is not None:
        files = folder / "tokenizer"
        files.mkdir()
        vocabulary.rename(files / "tokenizer.json")
        if settings := file_of("tokenizer_config"):
            settings.rename(files / "tokenizer_config.json")
        return load_tokenizer(files)
    if section.get("type") is None:
        raise ConfigError(f"model.tokenizer.library={section.library} has no tokenizer that can be read")
    return load_tokenizer(section.type)
