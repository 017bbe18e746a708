"""What a file is, its first bytes say: packed files open under any name, byte order marks are passed over, what is no text is named."""

from __future__ import annotations

import bz2
import gzip
import lzma
import random

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_steerlm.core.errors import DataError
from nemo_steerlm.core.text_files import BOM, READ_ERRORS, open_text, packing, unreadable

PACKINGS = {
    "gzip": gzip.compress,
    "zstd": zstandard.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    None: lambda data: data,
}
TEXT = "".join(f"line {i} é\n" for i in range(20_000)).encode()


def content(path):
    try:
        with open_text(path) as file:
            return file.read()
    except READ_ERRORS as error:
        raise unreadable(error, path) from error


@pytest.mark.parametrize("mark", [b"", BOM], ids=["plain", "bom"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.csv", "a"])
@pytest.mark.parametrize("kind", PACKINGS)
def test_a_file_is_what_its_bytes_are_whatever_its_name(tmp_path, kind, name, mark):
    path = tmp_path / name
    path.write_bytes(PACKINGS[kind](mark + TEXT))
    assert packing(path) == kind
    assert content(path) == TEXT
    with open_text(path) as file:
        assert [next(file) for _ in range(3)] == TEXT.splitlines(keepends=True)[:3]


@pytest.mark.parametrize("kind", PACKINGS)
def test_several_packed_files_put_together_are_one(tmp_path, kind):
    path = tmp_path / "a"
    path.write_bytes(PACKINGS[kind](b"one\n") + PACKINGS[kind](b"two\n"))
    assert content(path) == b"one\ntwo\n"


@pytest.mark.parametrize("kind", [kind for kind in PACKINGS if kind])
@pytest.mark.parametrize("damage", ["torn", "header", "flipped"])
def test_a_damaged_file_is_named(tmp_path, kind, damage):
    path = tmp_path / "a.jsonl"
    # Random bytes: what cannot be packed is stored, so that a changed one is noticed by a checksum.
    whole = bytearray(PACKINGS[kind](random.Random(4).randbytes(50_000).hex().encode()))
    middle = len(whole) // 2
    if damage == "flipped":
        whole[middle : middle + 64] = bytes(64)
    path.write_bytes(whole[:middle] if damage == "torn" else whole[:9] if damage == "header" else whole)
    if kind == "zstd" and damage == "flipped":
        return  # its frames have no checksum unless asked for
    with pytest.raises(DataError, match=rf"a\.jsonl: broken {kind}: ") as error:
        content(path)
    assert "\n" not in str(error.value)


OTHERS = {
    "UTF-16": ["é\n".encode("utf-16"), "text".encode("utf-16-le"), "text".encode("utf-16-be"), b"\xfe\xff" + "text".encode("utf-16-be")],
    "UTF-32": ["text".encode("utf-32"), b"\x00\x00\xfe\xff" + "text".encode("utf-32-be")],
    "Parquet": [b"PAR1" + bytes(40)],
    "Arrow": [b"ARROW1" + bytes(40)],
    "zip": [b"PK\x03\x04" + bytes(40)],
    "Git LFS": [b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"],
    "web page": [b"<!DOCTYPE html>\n", b"<html>"],
    "binary": [bytes(64), b"\x80\x04\x00\x95\x00"],
}


@pytest.mark.parametrize("pack", [gzip.compress, bytes], ids=["packed", "plain"])
@pytest.mark.parametrize(("name", "data"), [(name, data) for name, files in OTHERS.items() for data in files])
def test_what_is_no_text_is_called_by_its_name(tmp_path, name, data, pack):
    path = tmp_path / "a.jsonl"
    path.write_bytes(pack(data))
    with pytest.raises(DataError, match=f"the file is .*{name}") as error:
        open_text(path)
    assert error.value.instead


@settings(max_examples=60)
@given(st.text(st.characters(codec="utf-8", exclude_characters="\0\ufeff"), max_size=80).filter(lambda text: not text.startswith("<")))
def test_any_other_text_is_read_as_it_is(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("t") / "a"
    path.write_bytes(text.encode())
    assert packing(path) is None
    assert content(path) == text.encode()


def test_an_absent_file_and_a_folder(tmp_path):
    with pytest.raises(DataError, match="cannot be read: No such file"):
        open_text(tmp_path / "a")
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        open_text(tmp_path)
