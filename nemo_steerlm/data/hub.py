"""Repositories of the Hugging Face hub: ``hf:OWNER/NAME[@REVISION][/FILE]``, fetched and pushed by the hub's own library.

Its settings are the user's: HF_ENDPOINT, HF_HOME, HF_HUB_OFFLINE, and a token from HF_TOKEN or ``hf auth login``.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from nemo_steerlm.core.errors import ConfigError, UnavailableError, UsageError, shown

RepositoryKind = Literal["dataset", "model"]

_REFERENCE = re.compile(r"hf:([\w.-]+)/([\w.-]+)(?:@([\w.-]+))?(?:/(.+))?")
_HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+(@[\w.-]+)?")
_MODEL_FILES = ("*.json", "*.jinja", "tokenizer.model")
_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")
"""In the order they are preferred in. A repository may hold the same weights in other formats, which nobody needs."""


def fetch_from_hub(reference: str, kind: RepositoryKind) -> Path:
    """The local copy of a repository, or of one of its files. Of a model only what is read of one: weights, configs, tokenizer.

    What was fetched before is used where the hub cannot be reached. Raises UsageError where there is no such repository, revision or
    file, ConfigError where it asks for a token or for consent, UnavailableError where the hub cannot be reached.
    """
    owner, name, revision, file = _parts(reference, kind)
    with _refusals(reference, kind):
        return _fetched(f"{owner}/{name}", revision, file, kind)


def ask_hub(reference: str) -> None:
    """Whether a data set, or the file of one, may be had: asks without fetching it. Raises what ``fetch_from_hub`` raises."""
    from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_url

    owner, name, revision, file = _parts(reference, "dataset")
    with _refusals(reference, "dataset"):
        if file:
            get_hf_file_metadata(hf_hub_url(f"{owner}/{name}", file, repo_type="dataset", revision=revision))
        else:
            HfApi().auth_check(f"{owner}/{name}", repo_type="dataset")


def _parts(reference: str, kind: RepositoryKind) -> tuple[str, str, str | None, str | None]:
    match = _REFERENCE.fullmatch(reference)
    if not match:
        raise UsageError(f"{shown(reference)}: write hf:OWNER/NAME{'/FILE' if kind == 'dataset' else '[@REVISION]'}")
    owner, name, revision, file = match.groups()
    return owner, name, revision, file


@contextlib.contextmanager
def _refusals(reference: str, kind: RepositoryKind) -> Iterator[None]:
    """What the hub's library raises in the block, as this project says it."""
    from huggingface_hub import errors

    owner, name, revision, _ = _parts(reference, kind)
    noun = "data set" if kind == "dataset" else "model"
    private = f"{reference}: no public {noun} has this name; if it is private, set HF_TOKEN to a token that may read it"
    try:
        yield
    except errors.GatedRepoError as error:
        where = f"accept the terms of {owner}/{name} on the hub, then set HF_TOKEN to a token of that account"
        raise ConfigError(f"{reference}: this {noun} is gated; {where}") from error
    except errors.RepositoryNotFoundError as error:
        if error.response is not None and error.response.status_code == 401:
            raise ConfigError(private) from error
        raise UsageError(f"{reference}: the Hugging Face hub has no such {noun}, or HF_TOKEN may not see it") from error
    except errors.RevisionNotFoundError as error:
        raise UsageError(f"{reference}: the {noun} has no revision {revision or 'main'}") from error
    except errors.LocalEntryNotFoundError as error:
        raise UnavailableError(f"{reference}: the Hugging Face hub cannot be reached, and no copy was kept") from error
    except (errors.EntryNotFoundError, errors.HFValidationError) as error:
        raise UsageError(f"{reference}: the Hugging Face hub has no such file or {noun}") from error
    except (errors.HfHubHTTPError, OSError) as error:
        if getattr(getattr(error, "response", None), "status_code", None) == 401:
            raise ConfigError(private) from error
        raise UnavailableError(f"{reference}: the Hugging Face hub did not give it ({type(error).__name__})") from error


def model_folder(source: str) -> Path:
    """A path as it is; where nothing is there, ``OWNER/NAME[@REVISION]`` is a model on the hub, with ``hf:`` before it or without.

    Raises what ``fetch_from_hub`` raises.
    """
    path = Path(source)
    if source.startswith("hf:"):
        return fetch_from_hub(source, "model")
    if path.exists() or not _HUB_ID.fullmatch(source):
        return path
    try:
        return fetch_from_hub(f"hf:{source}", "model")
    except (UsageError, ConfigError, UnavailableError) as error:
        raise type(error)(f"{source}: no such file or folder; {error}") from error


def files_to_push(folder: Path) -> list[tuple[str, int]]:
    """Name and bytes of each file of ``folder`` that ``push`` sends: all but hidden ones."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    names = [(path.relative_to(folder), path.stat().st_size) for path in files]
    return [(name.as_posix(), size) for name, size in names if not any(part.startswith(".") for part in name.parts)]


def push(folder: Path, repository: str, *, private: bool) -> str:
    """Make ``folder`` the content of a model repository, which is made where there is none. Returns its address.

    Raises UsageError for a name that is none, ConfigError without a token that may write there, UnavailableError where the hub cannot be
    reached.
    """
    from huggingface_hub import HfApi, errors, get_token

    check_repository(repository)
    if get_token() is None:
        raise ConfigError(f"--push {repository}: no token; set HF_TOKEN to one that may write to {repository}")
    api = HfApi()
    names = [name for name, _ in files_to_push(folder)]
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, allow_patterns=names, commit_message="Export of nemo_steerlm")
    except errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        if status in (401, 403):
            raise ConfigError(f"--push {repository}: HF_TOKEN may not write there (HTTP {status})") from error
        raise UnavailableError(f"--push {repository}: the Hugging Face hub did not take it (HTTP {status})") from error
    except OSError as error:
        raise UnavailableError(f"--push {repository}: the Hugging Face hub cannot be reached ({type(error).__name__})") from error
    return f"{api.endpoint}/{repository}"


def check_repository(repository: str) -> None:
    """Raise UsageError where ``repository`` is no ``OWNER/NAME``."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise UsageError(f"--push {shown(repository)}: write OWNER/NAME")


def _fetched(repository: str, revision: str | None, file: str | None, kind: RepositoryKind) -> Path:
    from huggingface_hub import hf_hub_download, snapshot_download

    if file:
        return Path(hf_hub_download(repository, file, repo_type=kind, revision=revision))
    if kind == "dataset":
        return Path(snapshot_download(repository, repo_type=kind, revision=revision))
    for weights in _WEIGHTS:
        folder = Path(snapshot_download(repository, revision=revision, allow_patterns=[*_MODEL_FILES, weights]))
        if any(folder.glob(weights)):
            return folder
    raise UsageError(f"hf:{repository}: the repository has no {' and no '.join(_WEIGHTS)}")
