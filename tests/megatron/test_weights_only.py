"""Weights that a stranger wrote: nothing in them runs, whichever of their pickles it is in."""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint import filesystem
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import WriteItemType

from nemo_steerlm.core.errors import DataError
from nemo_steerlm.megatron.weights_only import weights_only
from tests.formats.hostile_nemo import changed

pytestmark = pytest.mark.megatron


class Harm:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture
def trap(tmp_path):
    path = tmp_path / "it-ran"
    yield path
    assert not path.exists()


def saved(content: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def test_tensors_are_read_and_code_is_not_run(tmp_path, trap):
    weights = {"a": torch.arange(3), "b": io.BytesIO(b"scales")}
    load, pickles = torch.load, filesystem.pickle
    with weights_only("m.nemo"):
        found = torch.load(io.BytesIO(saved(weights)), weights_only=False)
    assert (found["a"].tolist(), found["b"].getvalue()) == ([0, 1, 2], b"scales")
    for content in (saved(Harm(trap)), saved({"a": [Harm(trap)]}), pickle.dumps(Harm(trap))):
        with pytest.raises(DataError, match=r"m\.nemo: its weights hold more than weights: .*") as refused, weights_only("m.nemo"):
            torch.load(io.BytesIO(content), weights_only=False)
        assert "\n" not in str(refused.value)
    assert (torch.load, filesystem.pickle) == (load, pickles)


class Pair:
    """Pickled, it is what a function makes of two values."""

    def __init__(self, function: object, *values: object) -> None:
        self.reduced = function, values

    def __reduce__(self):
        return self.reduced


def test_members_of_enumerations_are_read_as_every_python_writes_them():
    """Python 3.11.2, Debian 12's, writes ``getattr(enumeration, name)``."""

    def read(content: object) -> Metadata:
        with weights_only("m.nemo"):
            return filesystem.pickle.load(io.BytesIO(pickle.dumps(Metadata({}, planner_data=content))))

    assert read(Pair(getattr, WriteItemType, "TENSOR")).planner_data is WriteItemType.TENSOR
    assert read(WriteItemType.SHARD).planner_data is WriteItemType.SHARD
    for kind, name in ((WriteItemType, "mro"), (WriteItemType, "__class__"), (Metadata, "__init__"), (torch.Size, "numel")):
        with pytest.raises(DataError, match=r"more than weights: builtins\.getattr"):
            read(Pair(getattr, kind, name))


RESTORE = """
import sys
from nemo_steerlm.core.errors import DataError
from nemo_steerlm.megatron.nemo_files import restore_nemo

for path in sys.argv[1:]:
    try:
        restore_nemo(path)
    except DataError as error:
        print("refused:", error)
    else:
        print("restored:", path)
"""


@pytest.mark.slow
def test_a_checkpoint_whose_parts_hold_code_is_refused(base_nemo, tmp_path, trap):
    def elsewhere(content: bytes) -> bytes:
        description = pickle.loads(content)
        for info in description.storage_data.values():
            info.relative_path = "../x"
        return pickle.dumps(description)

    changes = {
        "common.pt": ("common.pt", lambda _: saved({"a": Harm(trap)}), "mkdir"),
        "description": (".metadata", lambda _: pickle.dumps(Harm(trap)), "mkdir"),
        "files": (".metadata", elsewhere, "a file elsewhere, '../x'"),
        "configuration": ("model_config.yaml", lambda content: content + b"secret: ${oc.env:HOME}\n", "an interpolation"),
    }
    paths = []
    for number, (name, replace, _) in enumerate(changes.values()):
        paths.append(tmp_path / f"{number}.nemo")
        changed(
            base_nemo, paths[-1], lambda found, content, name=name, replace=replace: replace(content) if found.endswith(name) else content
        )
    # A process of its own: NeMo remembers a restoration that failed.
    command = [sys.executable, "-c", RESTORE, *map(str, [*paths, base_nemo])]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
    said = [line for line in ended.stdout.splitlines() if line.startswith(("refused:", "restored:"))]
    for line, path, (_, _, reason) in zip(said[:-1], paths, changes.values(), strict=True):
        assert line.startswith(f"refused: {path}: ")
        assert reason in line
    assert said[-1] == f"restored: {base_nemo}"
