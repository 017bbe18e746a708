from __future__ import annotations

import gc
import importlib
import importlib.util
import subprocess
import sys
from types import ModuleType

import pytest

from nemo_steerlm.megatron.imports import OPTIONAL, UNASKED, lean_imports


@pytest.fixture(autouse=True)
def _thawed():
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _library(monkeypatch: pytest.MonkeyPatch) -> None:
    """``library``, which imports ``wave`` and ``gc`` where it finds them, ``xmlrpc`` and ``json`` in any case."""
    monkeypatch.setitem(OPTIONAL, "library", ("wave", "gc"))
    monkeypatch.setitem(UNASKED, "library", ("xmlrpc", "json"))
    for name in ("wave", "xmlrpc", "xmlrpc.client"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def test_nothing_is_collected_within_and_nothing_that_stays_is_looked_at_again() -> None:
    kept: list[object] = []
    with lean_imports("library"):
        assert not gc.isenabled()
        kept.append([])
    assert gc.isenabled()
    assert not any(found is kept[0] for found in gc.get_objects()), "what is frozen is not listed"


def test_what_is_optional_is_not_found_within_and_found_afterwards_unless_it_is_imported_already() -> None:
    with lean_imports("library"):
        assert importlib.util.find_spec("wave") is None
        with pytest.raises(ImportError):
            importlib.import_module("wave")
        assert importlib.import_module("gc") is gc
    assert importlib.util.find_spec("wave") is not None
    assert sys.modules["gc"] is gc


def test_what_nobody_asks_for_can_be_imported_within_and_derived_from_but_not_used() -> None:
    with lean_imports("library"):
        import xmlrpc.client
        from xmlrpc.client import ServerProxy

        class Proxy(ServerProxy):
            pass

        assert xmlrpc.client.ServerProxy.method.of_method is not None
        assert importlib.import_module("json").loads("1") == 1, "this one was imported already"
        assert not isinstance(1, ServerProxy)
    with pytest.raises(ImportError, match=r"Proxy: .*UNASKED"):
        Proxy("http://127.0.0.1")
    assert importlib.import_module("xmlrpc.client").ServerProxy is not ServerProxy
    assert importlib.import_module("json").loads("1") == 1


def test_a_library_that_has_looked_around_finds_what_it_saw(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "library", ModuleType("library"))
    with lean_imports("library"):
        assert importlib.util.find_spec("wave") is not None


def test_an_import_that_fails_leaves_all_as_it_was() -> None:
    with pytest.raises(ImportError), lean_imports("library"):
        raise ImportError("absent")
    assert gc.isenabled()
    assert "wave" not in sys.modules


LOADING = """
import gc, pathlib, sys
from nemo_steerlm.core.errors import UsageError
from nemo_steerlm.inference.loading import load_engine
from nemo_steerlm.inference.registry import EngineOptions
from nemo_steerlm.megatron.imports import OPTIONAL
try:
    load_engine(pathlib.Path("absent"), EngineOptions())
except UsageError:
    print(gc.isenabled(), gc.get_freeze_count() > 100_000, [name for name in OPTIONAL["transformers"] if name in sys.modules])
"""


def test_a_server_imports_no_more_than_its_engine_needs_and_collects_again() -> None:
    said = subprocess.run([sys.executable, "-c", LOADING], capture_output=True, text=True, check=True).stdout
    assert said == "True True []\n"
