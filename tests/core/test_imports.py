from __future__ import annotations

import gc
import importlib
import importlib.util
import subprocess
import sys

import pytest

from nemo_steerlm.core.imports import lean_imports


@pytest.fixture(autouse=True)
def _thawed():
    yield
    gc.unfreeze()


def test_nothing_is_collected_within_and_nothing_that_stays_is_looked_at_again() -> None:
    kept: list[object] = []
    with lean_imports():
        assert not gc.isenabled()
        kept.append([])
    assert gc.isenabled()
    assert not any(found is kept[0] for found in gc.get_objects()), "what is frozen is not listed"


def test_what_is_absent_is_found_by_nobody_within_and_by_everybody_afterwards() -> None:
    assert "wave" not in sys.modules
    with lean_imports("wave"):
        assert importlib.util.find_spec("wave") is None
        with pytest.raises(ImportError):
            importlib.import_module("wave")
    assert importlib.util.find_spec("wave") is not None


def test_what_is_imported_already_stays() -> None:
    with lean_imports("gc"):
        assert importlib.import_module("gc") is gc
    assert sys.modules["gc"] is gc


def test_an_import_that_fails_leaves_all_as_it_was() -> None:
    with pytest.raises(ImportError), lean_imports("wave"):
        raise ImportError("absent")
    assert gc.isenabled()
    assert "wave" not in sys.modules


LOADING = """
import gc, pathlib, sys
from nemo_steerlm.cli.serve import load_engine
from nemo_steerlm.core.errors import UsageError
from nemo_steerlm.core.imports import OPTIONAL_OF_TRANSFORMERS
try:
    load_engine(pathlib.Path("absent"), max_rows=1, device=None)
except UsageError:
    print(gc.isenabled(), gc.get_freeze_count() > 100_000, [name for name in OPTIONAL_OF_TRANSFORMERS if name in sys.modules])
"""


def test_a_server_imports_no_more_than_its_engine_needs_and_collects_again() -> None:
    said = subprocess.run([sys.executable, "-c", LOADING], capture_output=True, text=True, check=True).stdout
    assert said == "True True []\n"
