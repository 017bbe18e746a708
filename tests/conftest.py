"""Two tiny models and their servers, shared by all tests of servers and of their clients."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadScopeScheduling

from nemo_steerlm.core.model_info import ModelKind
from tests.inputs import STORIES
from tests.serving.servers import Server, running
from tests.training.records import base_nemo, records  # noqa: F401  fixtures

EXAMPLE = Path(__file__).parents[1] / "examples" / "megatron_gpt_eval.py"

settings.register_profile("any-machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any-machine")

ON_A_NODE = ("test_installed.py", "test_node.py", "test_node_loss.py", "test_pages.py", "test_pipeline.py")
LONGEST = (
    "node",
    "control plane",
    "tests/pipeline/test_end_to_end.py",
    "tests/examples/test_tutorial.py",
    "tests/inference/test_engines.py",
)
"""They begin, so that at the end no process works alone."""


class ByFile(LoadScopeScheduling):
    """A file's tests run in one process, for its servers; those of a cluster, with a node or without, all in one, for the cluster."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        if not file.startswith("tests/cluster/"):
            return file
        return "node" if file.endswith(ON_A_NODE) else "control plane"

    def _assign_work_unit(self, node: Any) -> None:
        for scope in reversed(LONGEST):
            if scope in self.workqueue:
                self.workqueue.move_to_end(scope, last=False)
        super()._assign_work_unit(node)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile:
    return ByFile(config, log)


class _Lines(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.fixture
def package_log() -> Iterator[list[str]]:
    """What the package logs during a test. Not caplog: trainings and servers that ran in this process have configured logging for good."""
    package, handler = logging.getLogger("nemo_steerlm"), _Lines()
    logging.disable(logging.NOTSET)
    for name, logger in list(logging.root.manager.loggerDict.items()):
        if isinstance(logger, logging.Logger) and name.partition(".")[0] == package.name:
            logger.disabled, logger.propagate = False, True
            logger.setLevel(logging.NOTSET)
    level = package.level
    package.setLevel(logging.INFO)
    package.addHandler(handler)
    yield handler.lines
    package.removeHandler(handler)
    package.setLevel(level)


@pytest.fixture(scope="session")
def value_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.serving.tiny_models import teach_labels

    folder = _folder(tmp_path_factory.mktemp("value"), "value")
    teach_labels(folder)
    return folder


@pytest.fixture(scope="session")
def steer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _folder(tmp_path_factory.mktemp("steer"), "steer")


def _folder(folder: Path, kind: ModelKind) -> Path:
    from tests.serving.tiny_models import model_folder  # torch, which most tests do without

    return model_folder(STORIES, folder, kind=kind)


@pytest.fixture(scope="session")
def value_server(value_folder: Path) -> Iterator[Server]:
    # Started by the tutorial's own command, so that this is tested as well.
    flags = (f"gpt_model_file={value_folder}", "server=True", "port=0", "host=127.0.0.1", "trainer.accelerator=cpu")
    with running(value_folder, command=(str(EXAMPLE), *flags)) as server:
        yield server


@pytest.fixture(scope="session")
def steer_server(steer_folder: Path) -> Iterator[Server]:
    with running(steer_folder, "--name", "writer", "--default", "humor=3", "--default", "lang=en") as server:
        yield server
