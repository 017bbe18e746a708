"""The registry of engines, and what its entries refuse before anything heavy is imported."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from nemo_steerlm.core.errors import ConfigError, UsageError
from nemo_steerlm.inference.loading import load_engine
from nemo_steerlm.inference.registry import ENGINES, EngineOptions


def test_the_flag_offers_what_is_registered() -> None:
    command = [sys.executable, "-m", "nemo_steerlm.cli.main", "serve", "--help"]
    text = " ".join(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert f"--engine [{'|'.join(ENGINES)}]" in text
    assert all(entry.summary in text for entry in ENGINES.values())
    assert f"[default: {next(iter(ENGINES))}]" in text


def test_every_loader_is_a_module() -> None:
    loaders = [loader for entry in ENGINES.values() for loader in (entry.folders, entry.archives) if loader]
    assert len(loaders) == 3
    assert all(importlib.util.find_spec(loader.module) for loader in loaders)
    assert [name for name, entry in ENGINES.items() if entry.remote] == ["vllm", "openai"]


@pytest.mark.parametrize(
    ("path", "options", "message"),
    [
        ("m.nemo", {}, "serves exported model folders on CPUs; steerlm convert m.nemo FOLDER makes one"),
        ("m", {"device": "cuda"}, "serves exported model folders on CPUs; leave --device out"),
    ],
)
def test_openvino_takes_folders_on_cpus_only(path: str, options: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_engine(Path(path), EngineOptions(**options), engine="openvino")


@pytest.mark.parametrize("size", ["tensor", "pipeline", "devices", "nodes"])
def test_a_folder_is_served_by_one_process(size: str) -> None:
    with pytest.raises(ConfigError, match="served by one process"):
        load_engine(Path("m"), EngineOptions(**{size: 2}))
