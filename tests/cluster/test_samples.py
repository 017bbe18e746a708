"""The samples for six kinds of clusters, and engines of servers: what they make is admitted by a real API server."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from tests.cluster.operating import ROOT
from tests.operator.test_pods import SAMPLES, rendered
from tests.operator.test_resources import BUILT_IN, templates

NAMES = sorted(path.stem for path in SAMPLES.glob("*.yaml"))
PRIVILEGED = {"infiniband"}
"""Samples whose comments ask for a namespace that is *privileged*."""
GOLDEN = ROOT / "tests/operator/golden_engines"


def in_namespace(objects, namespace):
    return [{**item, "metadata": {**item["metadata"], "namespace": namespace}} for item in objects]


def dry_run(cluster, objects, namespace):
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": in_namespace(objects, namespace)})
    arguments = ("create", "--dry-run=server", "--validate=strict", "-f", "-")
    return cluster.kubectl(*arguments, namespace=namespace, stdin=text, check=False)


def pods(found):
    """Pods as controllers would make them: Pod Security refuses those, not the Jobs and Deployments that they are of."""
    for item, template in templates(found):
        name = f"{item['kind'].lower()}-{item['metadata']['name']}"
        yield {"apiVersion": "v1", "kind": "Pod", "metadata": {**template["metadata"], "name": name}, "spec": template["spec"]}


@pytest.mark.parametrize("sample", NAMES)
def test_what_a_sample_makes_is_admitted(control_plane, namespace, sample, tmp_path):
    """Its pods in a *restricted* namespace, unless it says that it needs a *privileged* one: then there, and nowhere else."""
    made = rendered(sample, tmp_path)
    own = [item for item in made if item["kind"] in (*BUILT_IN, "PodDisruptionBudget")]
    assert {item["kind"] for item in made} - {item["kind"] for item in own} <= {"PodGroup", "JobSet"}
    if sample in PRIVILEGED:
        refused = dry_run(control_plane, pods(made), namespace)
        assert 'violates PodSecurity "restricted' in refused.stderr
        control_plane.kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=privileged", "--overwrite")
    for objects in (own, list(pods(made))):
        done = dry_run(control_plane, objects, namespace)
        assert done.returncode == 0, done.stderr
        assert len(done.stdout.splitlines()) == len(objects)


def test_the_servers_of_every_engine_are_admitted(control_plane, namespace):
    """vLLM's container beside ours too."""
    deployments = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted(GOLDEN.glob("serve-*.yaml"))]
    assert len(deployments) == 3
    for objects in (deployments, list(pods(deployments))):
        named = [{**item, "metadata": {**item["metadata"], "name": f"{item['metadata']['name']}-{n}"}} for n, item in enumerate(objects)]
        done = dry_run(control_plane, named, namespace)
        assert done.returncode == 0, done.stderr


def test_what_the_pages_have_people_apply_is_taken(control_plane, namespace):
    """Autoscalers and storage classes; KEDA's objects are of a kind that is not here."""
    texts = [page.read_text(encoding="utf-8") for page in sorted(Path(ROOT, "docs/kubernetes").glob("*.md"))]
    blocks = [yaml.safe_load(block) for text in texts for block in re.findall(r"^```yaml\n(.*?)^```", text, re.DOTALL | re.MULTILINE)]
    objects = [block for block in blocks if block.get("apiVersion", "").startswith(("autoscaling/", "storage.k8s.io/"))]
    assert len(objects) >= 4
    for item in objects:
        item["metadata"]["name"] = item["metadata"]["name"].lower()
    done = dry_run(control_plane, objects, namespace)
    assert done.returncode == 0, done.stderr
