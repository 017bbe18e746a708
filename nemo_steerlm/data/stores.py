"""Files and folders of object stores and web servers: ``s3://``, ``gs://``, ``az://`` and ``https://``, fetched by fsspec.

Credentials, endpoints and regions are the user's, from where each store's own programs take them (AWS_ACCESS_KEY_ID and AWS_ENDPOINT_URL,
GOOGLE_APPLICATION_CREDENTIALS, AZURE_STORAGE_ACCOUNT_NAME); fsspec reads further settings from FSSPEC_S3_KEY and its like. What was
fetched is kept for as long as the store says that it has not changed.
"""

from __future__ import annotations

import hashlib
from pathlib import Path, PurePosixPath
from typing import Any

from nemo_steerlm.core.errors import ConfigError, SteerLMError, UnavailableError, UsageError
from nemo_steerlm.data.cache import default_cache, fresh

_VERSION_KEYS = (
    "ETag",
    "etag",
    "md5Hash",
    "content_md5",
    "Content-MD5",
    "LastModified",
    "Last-Modified",
    "last_modified",
    "created",
    "size",
)
"""What stores say of an object that changes with its content."""


def fetch_from_store(reference: str, *, cache: Path | None = None) -> Path:
    """The local copy of an object, or of all objects below a name that is a folder's.

    Raises UsageError where there is nothing, ConfigError where it may not be read or the store's library is missing, UnavailableError
    where the store cannot be reached.
    """
    try:
        import fsspec  # type: ignore[import-untyped]

        system, path = fsspec.url_to_fs(reference, **_settings(reference))
        system.invalidate_cache()  # it is kept from an earlier call, with what was seen then
        objects = _objects(system, path)
        if objects:
            return _kept(reference, system, path, objects, (cache or default_cache()) / "stores")
    except SteerLMError:
        raise
    except ImportError as error:
        raise ConfigError(f"{reference}: this needs {error.name or 'a library'}: pip install 'nemo_steerlm[remote]'") from error
    except Exception as error:  # each store's library raises errors of its own
        raise _explained(reference, error) from error
    raise UsageError(f"{reference}: no such object or folder")


def _settings(reference: str) -> dict[str, Any]:
    # aiohttp knows a proxy of the environment only if it is told to.
    return {"client_kwargs": {"trust_env": True}} if reference.startswith("http") else {}


def _objects(system: Any, path: str) -> dict[str, dict[str, Any]]:
    """Name and properties of one object, or of all below a folder."""
    info = system.info(path)
    if info["type"] == "file":
        return {path: info}
    found: dict[str, dict[str, Any]] = system.find(path, detail=True)
    return {name: info for name, info in found.items() if not name.endswith("/")}  # stores' consoles mark folders by empty objects


def _kept(reference: str, system: Any, path: str, objects: dict[str, dict[str, Any]], home: Path) -> Path:
    """Fetch ``objects`` unless a copy of just these is kept."""
    said = [(name, *(str(info.get(key)) for key in _VERSION_KEYS)) for name, info in sorted(objects.items())]
    target = home / hashlib.sha256(repr((reference, said)).encode()).hexdigest()[:24] / PurePosixPath(path.rstrip("/")).name
    if target.exists():
        return target
    with fresh(target) as out:
        places = {name: out if name == path else out.joinpath(*_below(path, name, reference)) for name in objects}
        for place in places.values():
            place.parent.mkdir(parents=True, exist_ok=True)
        system.get(list(places), [str(place) for place in places.values()])
    return target


def _below(path: str, name: str, reference: str) -> tuple[str, ...]:
    """The parts of an object's name below ``path``. An object may be called what no file should be."""
    parts = PurePosixPath(name.removeprefix(path.rstrip("/")).lstrip("/")).parts
    if not parts or ".." in parts:
        raise UsageError(f"{reference}: the object {name!r} would lie outside of its folder")
    return parts


def _explained(reference: str, error: BaseException) -> SteerLMError:
    cause = error.__cause__
    if isinstance(error, FileNotFoundError) and cause is not None and (hasattr(cause, "status") or isinstance(cause, OSError)):
        error = cause  # fsspec's web client says of every answer that nothing is there
    status, kind = getattr(error, "status", None), type(error).__name__
    if isinstance(error, FileNotFoundError) or status == 404:
        return UsageError(f"{reference}: no such object or folder")
    if isinstance(error, PermissionError) or status in (401, 403) or "Credential" in kind:
        return ConfigError(f"{reference}: these credentials may not read it, or there are none ({kind})")
    said = (str(error).strip().splitlines() or [""])[0]
    return UnavailableError(f"{reference}: the store did not give it ({kind}: {said})" if said else f"{reference}: {kind}")
