"""A file is whole or absent, also when its writer dies."""

from __future__ import annotations

import gzip
import subprocess
import sys

import pytest

from nemo_steerlm.core.errors import DataError, Where, shown
from nemo_steerlm.core.files import atomic_write, file_digest


def test_nothing_appears_before_the_block_ends_well(tmp_path):
    path = tmp_path / "folder" / "out.jsonl"
    with atomic_write(path) as file:
        file.write("é\n")
        assert not path.exists()
    assert path.read_bytes() == "é\n".encode()
    assert [p.name for p in path.parent.iterdir()] == ["out.jsonl"]


def test_an_error_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "out.txt"
    path.write_text("old")
    with pytest.raises(TypeError), atomic_write(path) as file:
        file.writelines(["new", None])
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["out.txt"]


def test_a_killed_writer_leaves_no_half_file(tmp_path):
    code = (
        "import os, signal, sys; from nemo_steerlm.core.files import atomic_write\n"
        "with atomic_write(sys.argv[1]) as f: f.write('half'); f.flush(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "out.txt")], check=False)
    assert done.returncode == -9
    assert not (tmp_path / "out.txt").exists()


def test_the_same_content_packs_to_the_same_bytes(tmp_path):
    for name in ("a.gz", "b.gz"):
        with atomic_write(tmp_path / name) as file:
            file.write("text\n" * 100)
    assert file_digest(tmp_path / "a.gz") == file_digest(tmp_path / "b.gz")
    assert gzip.decompress((tmp_path / "a.gz").read_bytes()) == b"text\n" * 100


def test_an_error_names_its_place_and_what_to_write_instead():
    error = DataError("label is 9", where=Where(file="a.jsonl").at("conversations").at("[2]").at("label"), instead="write 0 to 4")
    assert str(error.located(line=3)) == "a.jsonl:3: conversations[2].label: label is 9; write 0 to 4"


def test_a_value_too_deep_to_print_is_named_by_its_kind():
    value: list[object] = []
    for _ in range(100_000):
        value = [value]
    assert shown(value) == "a deeply nested list"
