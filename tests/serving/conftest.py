"""Two tiny models and their servers, shared by all serving tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serving.servers import Server, running
from tests.serving.tiny_models import SHARED, STORIES, model_folder


@pytest.fixture(scope="session")
def value_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _folder(tmp_path_factory.mktemp("value"), "value")


@pytest.fixture(scope="session")
def steer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _folder(tmp_path_factory.mktemp("steer"), "steer")


def _folder(folder: Path, kind) -> Path:
    if not STORIES.exists():
        pytest.skip(f"no model at {SHARED.name}/{STORIES.name}")
    return model_folder(STORIES, folder, kind=kind, noise=0.4 if kind == "value" else 0.0)


@pytest.fixture(scope="session")
def value_server(value_folder: Path) -> Iterator[Server]:
    with running(value_folder, "--name", "reader") as server:
        yield server


@pytest.fixture(scope="session")
def steer_server(steer_folder: Path) -> Iterator[Server]:
    with running(steer_folder, "--name", "writer", "--default", "humor=3", "--default", "lang=en") as server:
        yield server
