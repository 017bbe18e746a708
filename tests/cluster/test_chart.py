"""The chart on a real API server: installed, upgraded with its definition, rolled back, uninstalled, and what each leaves.

The definition is the cluster's, not a namespace's: each test begins and ends without it, and ``conftest.py`` lets them run first.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from local_cluster.client import Cluster, environment_kubeconfig
from steerlm_operator.check import results

from charts.generate import CHART
from tests.cluster.operating import await_definition

CRD = "steerlmpipelines.steerlm.dev"
SPEC = {
    "attributes": {"preset": "helpsteer"},
    "data": {"records": {"train": "t.jsonl", "validation": "v.jsonl"}},
    "model": {"base": "base"},
    "annotate": {"turns": "all"},
}
RELEASE = "steerlm"
NAME = "steerlm-operator"
"""What the chart's objects are called with ``fullnameOverride`` of the same."""


@pytest.fixture(scope="module")
def plane(control_plane) -> Cluster:
    """The control plane, with ``plane.helm(...)`` below."""
    if environment_kubeconfig():
        pytest.skip("removes and replaces the definition, which on another's cluster is not for a test to do")
    return control_plane


@pytest.fixture
def home(plane) -> str:
    """A namespace that enforces Pod Security *restricted*, on a cluster that has never seen the chart."""
    name = new_namespace(plane, "home")
    yield name
    for release in json.loads(plane.helm("list", "--all-namespaces", "--output", "json").stdout):
        plane.helm("uninstall", release["name"], "-n", release["namespace"], "--wait")
    plane.kubectl("delete", "crd", CRD, "--ignore-not-found")
    plane.kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture(scope="module", autouse=True)
def _helm_at_the_plane(plane, helm):
    """``plane.helm(...)``."""
    plane.helm = lambda *arguments, **options: helm(*arguments, cluster=plane, **options)


def new_namespace(plane, prefix):
    name = f"{prefix}-{secrets.token_hex(4)}"
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    plane.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
    return name


def deploy(plane, command, home, *flags, chart=CHART, release=RELEASE, check=True, **values):
    """``helm install`` or ``upgrade`` with these values."""
    given = {"fullnameOverride": NAME, **values}
    return plane.helm(command, release, str(chart), "-n", home, *flags, "-f", "-", stdin=yaml.safe_dump(given), check=check)


def pipeline(name="p", **spec):
    return {"apiVersion": "steerlm.dev/v1alpha1", "kind": "SteerLMPipeline", "metadata": {"name": name}, "spec": SPEC | spec}


def turns(plane, home, name="p"):
    return plane.get("slp", name, namespace=home)["spec"]["annotate"].get("turns")


def rights(role) -> int:
    """How many things a role allows: each verb on each resource counts."""
    return sum(len(rule["apiGroups"]) * len(rule["resources"]) * len(rule["verbs"]) for rule in role["rules"])


@pytest.fixture
def checked(plane, home, tmp_path, monkeypatch):
    """What ``steerlm_operator.check`` says as the pod of ``helm test`` runs it, under the operator's identity: exit code and lines.

    In this process, which has imported it already; ``process`` starts the pod's own command.
    """

    def check(namespace=home, url="", *, process=False):
        manifests = yaml.safe_load_all(plane.helm("get", "hooks", RELEASE, "-n", namespace).stdout)
        pod = next(item["spec"] for item in manifests if item["kind"] == "Pod")
        (container,) = pod["containers"]
        config = tmp_path / "config.yaml"
        config.write_text(plane.get("configmap", NAME, namespace=namespace)["data"]["config.yaml"])
        identity = plane.service_account_kubeconfig(pod["serviceAccountName"], namespace, tmp_path)
        environment = {entry["name"]: entry["value"] for entry in container["env"]}
        environment |= {"STEERLM_OPERATOR_CONFIG": str(config), "STEERLM_OPERATOR_URL": url, "KUBECONFIG": str(identity.kubeconfig)}
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        if process:
            done = subprocess.run([sys.executable, *container["command"][1:]], capture_output=True, text=True, check=False)
            assert not done.stderr
            return done.returncode, done.stdout.splitlines()
        found = asyncio.run(collected(os.environ))
        return int(not all(well for well, _ in found)), [f"{'ok    ' if well else 'FAILED'} {text}" for well, text in found]

    return check


async def collected(environment):
    return [result async for result in results(environment)]


@pytest.fixture(scope="module")
def previous(tmp_path_factory) -> Path:
    """The chart as its previous version might have been: its definition knows no ``annotate.turns``."""
    chart = tmp_path_factory.mktemp("previous") / "steerlm-operator"
    shutil.copytree(CHART, chart)
    about = yaml.safe_load((chart / "Chart.yaml").read_text())
    (chart / "Chart.yaml").write_text(yaml.safe_dump(about | {"version": "0.0.9"}))
    template = chart / "templates/crd.yaml"
    head, mark, body = template.read_text().partition("spec:\n  group:")
    body, end = body.rsplit("{{- end }}", 1)
    definition = yaml.safe_load(mark + body)
    spec = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    del spec["properties"]["annotate"]["properties"]["turns"]
    del spec["properties"]["annotate"]["default"]["turns"]
    for rule in spec["x-kubernetes-validations"]:
        rule["rule"] = rule["rule"].replace(" && self.annotate.turns == oldSelf.annotate.turns", "")
    template.write_text(f"{head}{yaml.safe_dump(definition)}{{{{- end }}}}{end}")
    return chart


def test_install_makes_what_was_rendered_and_the_operator_can_live_there(plane, home, checked):
    deploy(plane, "install", home)
    await_definition(plane)
    _, pod = next(plane.watch("pods", namespace=home))  # Pod Security restricted let it in
    assert pod["spec"]["containers"][0]["command"] == ["python", "-m", "steerlm_operator"]
    for item in yaml.safe_load_all(plane.helm("get", "manifest", RELEASE, "-n", home).stdout):
        found = plane.get(item["kind"], item["metadata"]["name"], namespace=item["metadata"].get("namespace"))
        assert found["metadata"]["annotations"]["meta.helm.sh/release-name"] == RELEASE
    held = rights(plane.get("clusterrole", NAME))
    said = ["ok     steerlm.dev/v1alpha1 is served", f"ok     {held} of {held} rights in all namespaces"]
    assert checked() == checked(process=True) == (0, said)


def test_the_operator_runs_with_these_rights_and_settings_only(plane, home, checked, tmp_path):
    deploy(plane, "install", home, config={"resyncSeconds": 7})
    await_definition(plane)
    config = yaml.safe_load(plane.get("configmap", NAME, namespace=home)["data"]["config.yaml"])
    (tmp_path / "operator.yaml").write_text(yaml.safe_dump(config | {"address": "127.0.0.1:0"}))
    identity = plane.service_account_kubeconfig(NAME, home, tmp_path)
    environment = {"STEERLM_OPERATOR_CONFIG": str(tmp_path / "operator.yaml"), "KUBECONFIG": str(identity.kubeconfig)}
    with subprocess.Popen(
        [sys.executable, "-m", "steerlm_operator"],
        env=os.environ | environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            port = next(found[1] for line in process.stderr if (found := re.search(r"health and metrics on .*?(\d+)\)", line)))
            plane.apply(pipeline(), namespace=home)
            plane.wait("slp", "p", lambda item: item.get("status", {}).get("phase") == "Running", namespace=home)
            code, lines = checked(url=f"http://127.0.0.1:{port}")
            assert code == 0, lines
            assert f"ok     http://127.0.0.1:{port}/readyz: ok" in lines
        finally:
            process.terminate()
            process.communicate(timeout=30)
    plane.kubectl("delete", "slp", "p", namespace=home)
    code, lines = checked(url=f"http://127.0.0.1:{port}")
    assert code == 1
    assert lines[0].startswith(f"FAILED http://127.0.0.1:{port}/healthz: ClientConnectorError")


def test_the_check_names_a_right_that_is_missing(plane, home, checked):
    deploy(plane, "install", home)
    await_definition(plane)
    role = plane.get("clusterrole", NAME)
    wanted = rights(role)
    role["rules"] = [rule for rule in role["rules"] if rule["resources"] not in (["pods/log"], ["events"])]
    plane.kubectl("replace", "-f", "-", stdin=json.dumps(role))
    refused = f"FAILED {wanted - 3} of {wanted} rights in all namespaces; not get pods/log, list events, create events"
    while checked() != (1, ["ok     steerlm.dev/v1alpha1 is served", refused]):
        pass  # the API server learns of a changed role a moment later; the test's own time limit ends this


def test_a_wrong_value_makes_nothing(plane, home):
    done = deploy(plane, "install", home, scope="everywhere", check=False)
    assert done.returncode
    assert "at '/scope': value must be one of 'cluster', 'namespaced'" in done.stderr
    assert plane.helm("list", "-n", home, "--short").stdout == ""
    assert plane.kubectl("get", "crd", CRD, check=False).returncode


def test_an_upgrade_upgrades_the_definition_and_a_rollback_takes_it_back(plane, home, previous, checked):
    deploy(plane, "install", home, chart=previous)
    await_definition(plane)
    refused = plane.kubectl("create", "--validate=strict", "-f", "-", namespace=home, stdin=json.dumps(pipeline("q")), check=False)
    assert 'unknown field "spec.annotate.turns"' in refused.stderr
    plane.apply(pipeline(annotate={"shards": 2}), namespace=home)
    uid = plane.get("slp", "p", namespace=home)["metadata"]["uid"]
    assert f"FAILED steerlm.dev/v1alpha1 is served without spec.annotate.turns: upgrade {CRD}" in checked()[1]

    deploy(plane, "upgrade", home)
    accepts_turns(plane, home, "q")
    assert turns(plane, home) == "unmasked", "the new default of a resource that was there before"
    assert checked()[0] == 0

    plane.helm("rollback", RELEASE, "1", "-n", home)
    plane.wait("crd", CRD, lambda item: "turns" not in annotate(item))
    assert plane.get("slp", "p", namespace=home)["metadata"]["uid"] == uid
    deploy(plane, "upgrade", home)
    accepts_turns(plane, home, "r")
    history = json.loads(plane.helm("history", RELEASE, "-n", home, "--output", "json").stdout)
    assert [entry["chart"].rpartition("-")[2] for entry in history] == ["0.0.9", "0.1.0", "0.0.9", "0.1.0"]
    assert [entry["status"] for entry in history] == ["superseded"] * 3 + ["deployed"]


def annotate(definition):
    spec = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    return spec["properties"]["annotate"]["properties"]


def accepts_turns(plane, home, name):
    """The API server takes a new schema into use a moment after it was written."""
    for _ in iter(
        lambda: (
            plane.kubectl(
                "create", "--validate=strict", "-f", "-", namespace=home, stdin=json.dumps(pipeline(name)), check=False
            ).returncode
        ),
        0,
    ):
        pass  # the test's own time limit ends this
    assert turns(plane, home, name) == "all"


def test_uninstall_leaves_definition_and_pipelines_and_nothing_else(plane, home):
    before = everything(plane, home)
    deploy(plane, "install", home)
    await_definition(plane)
    plane.apply(pipeline(), namespace=home)
    said = plane.helm("uninstall", RELEASE, "-n", home, "--wait").stdout
    assert f"[CustomResourceDefinition] {CRD}" in said
    assert plane.get("slp", "p", namespace=home)["spec"]["annotate"]["turns"] == "all"
    plane.kubectl("wait", "--for=delete", "pods", "--all", "--timeout=60s", namespace=home)
    assert everything(plane, home) - before == {f"{home}/SteerLMPipeline/p", f"/CustomResourceDefinition/{CRD}"}

    deploy(plane, "install", home)  # under its old name the definition is its own
    assert turns(plane, home) == "all"
    plane.helm("uninstall", RELEASE, "-n", home, "--wait")
    other = deploy(plane, "install", home, release="other", check=False)
    assert "invalid ownership metadata" in other.stderr
    deploy(plane, "install", home, "--take-ownership", release="other")
    assert turns(plane, home) == "all"


def everything(plane, namespace):
    """All objects of a namespace and all that belong to none, but for what the control plane writes by itself."""
    found = set()
    for scope in ("true", "false"):
        kinds = plane.kubectl("api-resources", "--verbs=list", f"--namespaced={scope}", "-o", "name").stdout.split()
        kinds = [kind for kind in kinds if not kind.startswith(("events", "leases", "endpoints", "apiservices", "controllerrevisions"))]
        for item in plane.get(",".join(kinds), namespace=namespace if scope == "true" else None)["items"]:
            found.add(f"{item['metadata'].get('namespace', '')}/{item['kind']}/{item['metadata']['name']}")
    return found


def test_namespaced_scope_needs_no_cluster_role(plane, home, checked):
    blue, green, red = (new_namespace(plane, name) for name in ("blue", "green", "red"))
    deploy(plane, "install", home, scope="namespaced", namespaces=[blue, green], rbac={"aggregate": False})
    await_definition(plane)
    held = rights(plane.get("role", NAME, namespace=blue))
    said = [f"ok     {held} of {held} rights in namespace {name}" for name in (blue, green)]
    assert checked() == (0, ["ok     steerlm.dev/v1alpha1 is served", *said])

    def may(namespace):
        account = f"system:serviceaccount:{home}:{NAME}"
        return plane.kubectl("auth", "can-i", "create", "jobs", "--as", account, namespace=namespace, check=False).returncode == 0

    assert [may(namespace) for namespace in (blue, green, red, home)] == [True, True, False, False]
    deploy(plane, "upgrade", home, scope="namespaced", namespaces=[green], rbac={"aggregate": False})
    assert [may(namespace) for namespace in (blue, green)] == [False, True]


@pytest.mark.slow
def test_two_operators_share_one_definition(plane, home, checked):
    second = new_namespace(plane, "second")
    deploy(plane, "install", home, scope="namespaced")
    deploy(plane, "install", second, scope="namespaced", crds={"install": False}, rbac={"aggregate": False})
    await_definition(plane)
    assert checked(second)[0] == 0
    plane.helm("uninstall", RELEASE, "-n", second, "--wait")
    await_definition(plane)


def test_people_with_view_read_and_people_with_edit_write(plane, home):
    deploy(plane, "install", home)
    await_definition(plane)
    for role in ("view", "edit"):
        plane.kubectl("create", "rolebinding", role, f"--clusterrole={role}", f"--user={role}er", namespace=home)
        plane.wait("clusterrole", role, lambda item: any("steerlm.dev" in rule.get("apiGroups", ()) for rule in item["rules"]))
    asked = [("list", "slp"), ("create", "slp"), ("update", "slp", "--subresource=scale"), ("update", "slp", "--subresource=status")]

    def may(user):
        said = [plane.kubectl("auth", "can-i", *each, "--as", user, namespace=home, check=False) for each in asked]
        return [each.returncode == 0 for each in said]

    while not (may("viewer")[0] and may("editer")[1]):
        pass  # the API server learns of new roles a moment later; the test's own time limit ends this
    assert may("viewer") == [True, False, False, False]
    assert may("editer") == [True, True, True, False]
    assert may("nobody") == [False, False, False, False]


@pytest.mark.slow
def test_pipelines_in_the_values_come_change_and_go(plane, home):
    mine = {"mine": {"spec": SPEC}}
    said = deploy(plane, "install", home, pipelines=mine).stdout
    assert "are not there yet" in said
    await_definition(plane)
    assert not plane.get("slp", namespace=home)["items"]
    deploy(plane, "upgrade", home, pipelines=mine)
    uid = plane.get("slp", "mine", namespace=home)["metadata"]["uid"]
    deploy(plane, "upgrade", home, pipelines={"mine": {"spec": SPEC | {"suspend": True}}})
    changed = plane.get("slp", "mine", namespace=home)
    assert (changed["metadata"]["uid"], changed["spec"]["suspend"]) == (uid, True)
    wrong = {"mine": {"spec": SPEC | {"suspend": True, "attributes": {"preset": "paper", "custom": [{"name": "a"}]}}}}
    assert "give exactly one of preset and custom" in deploy(plane, "upgrade", home, pipelines=wrong, check=False).stderr
    assert plane.get("slp", "mine", namespace=home)["metadata"]["uid"] == uid
    deploy(plane, "upgrade", home)
    assert not plane.get("slp", namespace=home)["items"]


def test_monitors_say_what_they_lack(plane, home):
    said = deploy(plane, "install", home, metrics={"serviceMonitor": {"enabled": True}}, check=False).stderr
    assert 'no matches for kind "ServiceMonitor" in version "monitoring.coreos.com/v1"' in said
    assert "ensure CRDs are installed first" in said
