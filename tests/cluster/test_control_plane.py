"""The control plane itself: versions, admission, roles, controllers, audit, and real helm against it."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from local_cluster import binaries
from local_cluster.cluster import LocalCluster


def config_map(name, value="1"):
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"value": value}}


def test_the_api_server_reports_the_version_it_was_built_from(control_plane):
    version = json.loads(control_plane.kubectl("version", "-o", "json").stdout)
    if isinstance(control_plane, LocalCluster):
        assert version["serverVersion"]["gitVersion"] == f"v{binaries.KUBERNETES}"


def test_a_service_account_may_do_what_its_role_says_and_nothing_else(control_plane, namespace, tmp_path):
    control_plane.kubectl("create", "serviceaccount", "reader", namespace=namespace)
    control_plane.kubectl("create", "role", "reader", "--verb=get,list", "--resource=configmaps", namespace=namespace)
    control_plane.kubectl("create", "rolebinding", "reader", "--role=reader", f"--serviceaccount={namespace}:reader", namespace=namespace)
    reader = control_plane.service_account_kubeconfig("reader", namespace, tmp_path)
    assert reader.get("configmaps")["items"][0]["metadata"]["name"] == "kube-root-ca.crt"
    refused = reader.apply(config_map("new"), check=False)
    assert refused.returncode
    assert f"system:serviceaccount:{namespace}:reader" in refused.stderr


def test_owned_objects_go_with_their_owner(control_plane, namespace):
    control_plane.apply(config_map("owner"), namespace=namespace)
    uid = control_plane.get("configmap", "owner", namespace=namespace)["metadata"]["uid"]
    child = config_map("child")
    child["metadata"]["ownerReferences"] = [{"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": uid}]
    control_plane.apply(child, namespace=namespace)
    control_plane.kubectl("delete", "configmap", "owner", namespace=namespace)
    control_plane.wait_gone("configmap", "child", namespace=namespace)


def test_a_wait_that_is_not_met_shows_the_last_status(control_plane, namespace):
    with pytest.raises(AssertionError, match="not as wanted after 2 s"):
        control_plane.wait("configmap", "absent", lambda _: True, namespace=namespace, timeout=2)


def test_the_audit_log_names_user_verb_and_object(control_plane, namespace):
    if not isinstance(control_plane, LocalCluster):
        pytest.skip("the audit log of another cluster cannot be read")
    control_plane.apply(config_map("audited"), namespace=namespace)
    events = [
        e for e in control_plane.audit() if e.get("objectRef", {}).get("name") == "audited" and e["objectRef"]["namespace"] == namespace
    ]
    assert {(e["user"]["username"], e["verb"], e["annotations"]["authorization.k8s.io/decision"]) for e in events} >= {
        ("kubernetes-admin", "patch", "allow")
    }


def test_helm_installs_and_uninstalls_a_chart(control_plane, namespace, helm, tmp_path):
    chart = tmp_path / "chart"
    (chart / "templates").mkdir(parents=True)
    (chart / "Chart.yaml").write_text("apiVersion: v2\nname: smoke\nversion: 0.1.0\n")
    (chart / "templates/map.yaml").write_text("apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: {{ .Release.Name }}\n")
    helm("install", "smoke", str(chart), "-n", namespace, cluster=control_plane)
    assert control_plane.get("configmap", "smoke", namespace=namespace)["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "Helm"
    helm("uninstall", "smoke", "-n", namespace, cluster=control_plane)
    control_plane.wait_gone("configmap", "smoke", namespace=namespace)


def host_state():
    """What a cluster could leave behind: mounts, links, control groups."""
    mounts = sorted(line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines())
    groups = sorted(map(str, Path("/sys/fs/cgroup").glob(f"**/steerlm-test-{os.getpid()}-*")))  # others' tests have their own
    kernel = [Path("/proc/sys", key).read_text() for key in ("vm/overcommit_memory", "kernel/panic", "kernel/panic_on_oops")]
    return mounts, sorted(os.listdir("/sys/class/net")), groups, kernel


def test_a_dead_api_server_is_restarted_and_down_leaves_nothing(programs, tmp_path):
    before = host_state()
    cluster = LocalCluster.up(tmp_path / "own", node=False, tied=True)
    try:
        cluster.signal("kube-apiserver", signal.SIGKILL)
        while cluster.kubectl("get", "--raw=/readyz", check=False).returncode:
            pass  # the test's own time limit ends this
        assert cluster.components()["kube-apiserver"]["restarts"] == 1
    finally:
        cluster.down()
    assert not (tmp_path / "own").exists()
    assert host_state() == before
    assert not [path for path in Path("/proc").glob("[0-9]*/cmdline") if str(tmp_path / "own").encode() in path.read_bytes()]
