"""What the pages on Kubernetes say to type, typed: on a node of its own, into which each page installs the chart anew."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from local_cluster.images import version

from tests.docs.commands import ELSEWHERE, ROOT, RUNNERS, blocks

HERE = "tests/cluster/README.md"
PAGES = [page for page in RUNNERS["tests/cluster/test_pages.py"] if page != HERE]
PATIENCE = 2400
OURS = {
    f":{version()}-cpu": f":{version()}",
    "image.registry=REGISTRY": "image.registry=docker.io/library",
    "images.worker=REGISTRY/": "images.worker=docker.io/library/",
    "storageClassName=CLASS": "storageClassName=steerlm-directory",
    # A watch does not end; the page has people look until it is done.
    "kubectl get slp -w": f"kubectl get slp && kubectl wait --for=condition=Complete slp/oasst-tiny --timeout={PATIENCE}s",
}
"""What the pages say, and what is said here in its place."""
AFTER = {"docs/kubernetes/pods.md": "docs/kubernetes/README.md"}
"""A page that goes on from another."""
AWAY = """
set +e
kubectl delete slp --all
helm -n steerlm uninstall steerlm --wait
kubectl delete crd steerlmpipelines.steerlm.dev
kubectl delete namespace steerlm
kubectl delete pod,pvc,secret --all --wait=false
true
"""
"""What is there depends on the page, and on how far it came."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3 * PATIENCE)]


@pytest.fixture
def shell(tmp_path, request):
    """``shell(commands)``: what bash printed in a folder that looks like a clone."""
    for path in ROOT.iterdir():
        (tmp_path / path.name).symlink_to(path)
    programs = [str(request.getfixturevalue("programs").root / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]]
    environment = {**os.environ, "PATH": os.pathsep.join(programs), "TMPDIR": str(tmp_path / "tmp")}
    (tmp_path / "tmp").mkdir()

    def run(commands, **variables):
        script = ["bash", "-euo", "pipefail", "-c", commands]
        done = subprocess.run(script, cwd=tmp_path, env=environment | variables, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        return done.stdout

    return run


def script(page):
    """The page's commands, but those that other tests have."""
    text = (script(AFTER[page]) if page in AFTER else "") + "".join(blocks(page))
    for said, here in OURS.items():
        text = text.replace(said, here)
    return "".join(f"{line}\n" for line in text.splitlines() if line.split("  #")[0].strip() not in ELSEWHERE)


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_typed(page, own_node_cluster, shell, tmp_path):
    """Each installs the chart into a cluster that does not know it."""
    identity = {"KUBECONFIG": str(own_node_cluster.kubeconfig)}
    try:
        said = shell(script(page), **identity)
        assert "Phase:          Succeeded" in said  # helm test
    finally:
        shell(AWAY, **identity)
    if page == "docs/kubernetes/kind.md":
        assert "<html" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_the_cluster_s_own_page_is_typed(shell):
    try:
        said = shell(script(HERE))
    finally:
        shell("python tests/cluster/cluster.py down || true")
    assert "export KUBECONFIG=" in said
    assert "kube-apiserver" in said


def test_what_is_said_otherwise_is_on_the_pages():
    text = "".join(block for page in PAGES for block in blocks(page))
    assert [said for said in OURS if said not in text] == []
