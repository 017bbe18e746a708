"""Repositories of the Hugging Face hub: ``hf:OWNER/NAME[@REVISION][/FILE]``, fetched by the hub's own library into its own cache.

Its settings are the user's: HF_ENDPOINT, HF_HOME, HF_HUB_OFFLINE, and a token from HF_TOKEN or ``hf auth login``.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from nemo_steerlm.core.errors import ConfigError, UnavailableError, UsageError, shown

RepositoryKind = Literal["dataset", "model"]

_REFERENCE = re.compile(r"hf:([\w.-]+)/([\w.-]+)(?:@([\w.-]+))?(?:/(.+))?")
_MODEL_FILES = ("*.json", "*.jinja", "tokenizer.model")
_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")
"""In the order they are preferred in. A repository may hold the same weights in other formats, which nobody needs."""


def fetch_from_hub(reference: str, kind: RepositoryKind) -> Path:
    """The local copy of a repository, or of one of its files. Of a model only what is read of one: weights, configs, tokenizer.

    What was fetched before is used where the hub cannot be reached. Raises UsageError where there is no such repository, revision or
    file, ConfigError where it asks for a token or for consent, UnavailableError where the hub cannot be reached.
    """
    match = _REFERENCE.fullmatch(reference)
    if not match:
        raise UsageError(f"{shown(reference)}: write hf:OWNER/NAME{'/FILE' if kind == 'dataset' else '[@REVISION]'}")
    owner, name, revision, file = match.groups()
    from huggingface_hub import errors

    noun = "data set" if kind == "dataset" else "model"
    private = f"{reference}: no public {noun} has this name; if it is private, set HF_TOKEN to a token that may read it"
    try:
        return _fetched(f"{owner}/{name}", revision, file, kind)
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
