"""Who may do what: the operator's role to the letter, and pods that no admission policy minds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.chart.test_rendering import MATRIX, named

GOLDEN = Path(__file__).parent / "golden" / "operator-role.yaml"
ENGINES = {"jobSet": "jobset.x-k8s.io", "volcano": "scheduling.volcano.sh", "coscheduling": "scheduling.x-k8s.io"}


def of_kind(objects, *kinds):
    return [item for item in objects if item["kind"] in kinds]


def test_the_operator_s_role_is_the_reviewed_one(render):
    """A change here is a change of what the operator may do in a cluster: say why in the commit."""
    role = named(render({"rbac": dict.fromkeys(ENGINES, True)}), "ClusterRole", "test-steerlm-operator")
    assert role["rules"] == yaml.safe_load(GOLDEN.read_text(encoding="utf-8"))


def test_engines_add_their_own_rights_and_nothing_else(render):
    rules = {name: named(render({"rbac": {name: True}}), "ClusterRole", "test-steerlm-operator")["rules"] for name in ENGINES}
    plain = named(render(), "ClusterRole", "test-steerlm-operator")["rules"]
    for name, group in ENGINES.items():
        assert rules[name][: len(plain)] == plain
        assert [rule["apiGroups"] for rule in rules[name][len(plain) :]] == [[group]]


@pytest.mark.parametrize("values", MATRIX, ids=str)
def test_no_secrets_no_wildcards_no_escalation(render, values):
    for role in of_kind(render(MATRIX[values]), "Role", "ClusterRole"):
        for rule in role["rules"]:
            assert set(rule) - {"resourceNames"} == {"apiGroups", "resources", "verbs"}
            words = json.dumps(rule)
            assert not [word for word in ("*", "secrets", "exec", "escalate", "bind", "impersonate", "finalizers") if f'{word}"' in words]


def test_cluster_scope_binds_one_cluster_role(render):
    objects = render()
    binding = named(objects, "ClusterRoleBinding")
    assert binding["roleRef"]["name"] == named(objects, "ClusterRole", "test-steerlm-operator")["metadata"]["name"]
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "test-steerlm-operator", "namespace": "team"}]
    assert not of_kind(objects, "Role", "RoleBinding")


def test_namespaced_scope_reaches_into_its_namespaces_only(render):
    objects = render({"scope": "namespaced", "namespaces": ["blue", "green", "blue"], "rbac": {"aggregate": False}})
    assert not of_kind(objects, "ClusterRole", "ClusterRoleBinding")
    assert [role["metadata"]["namespace"] for role in of_kind(objects, "Role")] == ["blue", "green"]
    for binding in of_kind(objects, "RoleBinding"):
        assert binding["roleRef"]["kind"] == "Role"
        assert binding["subjects"][0]["namespace"] == "team"
    assert of_kind(objects, "Role")[0]["rules"] == named(render(), "ClusterRole", "test-steerlm-operator")["rules"]


def test_people_s_roles_are_aggregated(render):
    objects = render()
    view, edit = (named(objects, "ClusterRole", f"test-steerlm-operator-{name}") for name in ("view", "edit"))
    to = "rbac.authorization.k8s.io/aggregate-to-"
    assert {key for key in view["metadata"]["labels"] if key.startswith(to)} == {f"{to}{who}" for who in ("view", "edit", "admin")}
    assert {key for key in edit["metadata"]["labels"] if key.startswith(to)} == {f"{to}{who}" for who in ("edit", "admin")}
    assert {verb for rule in view["rules"] for verb in rule["verbs"]} == {"get", "list", "watch"}
    assert not [rule for rule in edit["rules"] if "steerlmpipelines/status" in rule["resources"]]


@pytest.mark.parametrize("values", MATRIX, ids=str)
def test_pods_are_restricted_and_only_they_have_a_token(render, values):
    objects = render(MATRIX[values])
    pods = [named(objects, "Deployment")["spec"]["template"]["spec"], named(objects, "Pod")["spec"]]
    for pod in pods:
        assert pod["automountServiceAccountToken"] is True
        assert pod["securityContext"].items() >= {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}.items()
        assert pod["securityContext"].get("runAsUser", 1) > 0
        assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers"} & set(pod)
        assert all(set(volume) & {"configMap", "emptyDir"} for volume in pod["volumes"])
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"]["limits"]["memory"]
    for account in of_kind(objects, "ServiceAccount"):
        assert account["automountServiceAccountToken"] is False


def test_what_goes_in_and_out(render):
    spec = named(render(MATRIX["everything"]), "NetworkPolicy")["spec"]
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    ports = [sorted((port["port"], port["protocol"]) for port in rule["ports"]) for rule in spec["egress"]]
    assert ports == [[(53, "TCP"), (53, "UDP")], [(6443, "TCP")]]
    (ingress,) = spec["ingress"]
    assert ingress["from"][1]["namespaceSelector"]["matchExpressions"][0]["values"] == ["monitoring"]
    assert "from" not in named(render(), "NetworkPolicy")["spec"]["ingress"][0]
