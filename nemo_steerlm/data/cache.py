"""Where fetched inputs are kept, and how one gets there whole."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def fresh(target: Path) -> Iterator[Path]:
    """A path beside ``target`` to write a file or folder to, which then becomes ``target``."""
    target.parent.mkdir(parents=True, exist_ok=True)
    # Beside it: renaming must not cross file systems.
    with tempfile.TemporaryDirectory(prefix=".fetching.", dir=target.parent) as scratch:
        yield Path(scratch) / target.name
        # Another process may have been faster; its copy is as good.
        with contextlib.suppress(OSError):
            (Path(scratch) / target.name).replace(target)


def default_cache() -> Path:
    """``steerlm`` in the user's cache folder (``XDG_CACHE_HOME``, or ``~/.cache``)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "steerlm"
