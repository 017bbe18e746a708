"""Where a stage's temporary files go: below the work directory, which has room for an unpacked model and outlives the pod's node."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

from nemo_steerlm.core import environment

logger = logging.getLogger(__name__)

SOCKET_NAME = "pymp-xxxxxxxx/listener-xxxxxxxx"
"""The longest name of a socket that Python's multiprocessing makes below the folder; a checkpoint's writers talk over one."""


@contextlib.contextmanager
def temporary_files(folder: Path) -> Iterator[None]:
    """In the block temporary files of this process and its children go to ``folder``, which is emptied before and removed after it.

    Only where the environment asks for it, and where a Unix socket can be made in it: some network file systems have none, and their names
    have at most 107 bytes.
    """
    if os.environ.get(environment.WORK_TMP) != "1":
        yield
        return
    shutil.rmtree(folder, ignore_errors=True)  # of an attempt that was killed
    folder.mkdir(parents=True, exist_ok=True)
    before = os.environ.get("TMPDIR")
    try:
        if _takes_sockets(folder):
            os.environ["TMPDIR"] = str(folder)
            tempfile.tempdir = None
        yield
    finally:
        os.environ.pop("TMPDIR", None)
        if before is not None:
            os.environ["TMPDIR"] = before
        tempfile.tempdir = None
        shutil.rmtree(folder, ignore_errors=True)


def _takes_sockets(folder: Path) -> bool:
    path = folder / SOCKET_NAME
    path.parent.mkdir()
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(str(path))
    except OSError as error:
        logger.info("temporary files stay in %s: no socket can be made at %s (%s)", tempfile.gettempdir(), path, error)
        return False
    finally:
        shutil.rmtree(path.parent)
    return True
