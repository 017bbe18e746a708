from __future__ import annotations

import gc
import subprocess
import sys

import pytest

from nemo_steerlm.core.garbage import not_collected


@pytest.fixture(autouse=True)
def _thawed():
    yield
    gc.unfreeze()


def test_nothing_is_collected_within_and_nothing_that_stays_is_looked_at_again() -> None:
    kept: list[object] = []
    with not_collected():
        assert not gc.isenabled()
        kept.append([])
    assert gc.isenabled()
    assert not any(found is kept[0] for found in gc.get_objects()), "what is frozen is not listed"


def test_an_import_that_fails_leaves_the_collector_on() -> None:
    with pytest.raises(ImportError), not_collected():
        raise ImportError("absent")
    assert gc.isenabled()


LOADING = """
import gc, pathlib
from nemo_steerlm.cli.serve import load_engine
from nemo_steerlm.core.errors import UsageError
try:
    load_engine(pathlib.Path("absent"), max_rows=1, device=None)
except UsageError:
    print(gc.isenabled(), gc.get_freeze_count() > 100_000)
"""


def test_a_server_collects_again_once_its_engine_is_imported() -> None:
    said = subprocess.run([sys.executable, "-c", LOADING], capture_output=True, text=True, check=True).stdout
    assert said == "True True\n"
