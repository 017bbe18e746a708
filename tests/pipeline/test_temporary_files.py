"""A stage's temporary files are in its work directory, where a socket can be too, and gone afterwards."""

import os
import tempfile
from pathlib import Path

import pytest

from nemo_steerlm.core import environment
from nemo_steerlm.pipeline.temporary_files import temporary_files


@pytest.fixture
def work(monkeypatch):
    """A work directory whose name leaves room for a socket's, unlike pytest's own folders."""
    monkeypatch.setenv(environment.WORK_TMP, "1")
    with tempfile.TemporaryDirectory(prefix="w") as folder:
        yield Path(folder)


def test_they_are_below_the_work_directory_and_gone_at_the_end(work):
    before = tempfile.gettempdir()
    folder = work / ".tmp" / "prepare"
    folder.mkdir(parents=True)
    (folder / "of an attempt that was killed").touch()
    with pytest.raises(ValueError, match="the stage failed"), temporary_files(folder):
        assert os.environ["TMPDIR"] == tempfile.gettempdir() == str(folder)
        assert list(folder.iterdir()) == []
        tempfile.mkdtemp()
        raise ValueError("the stage failed")
    assert not folder.exists()
    assert tempfile.gettempdir() == before


def test_where_no_socket_can_be_made_they_stay_where_they_were(work):
    before = tempfile.gettempdir()
    with temporary_files(work / ("x" * 100)):
        assert tempfile.gettempdir() == before


def test_only_where_the_environment_asks_for_it(work, monkeypatch):
    monkeypatch.delenv(environment.WORK_TMP)
    with temporary_files(work / "t"):
        assert not (work / "t").exists()
