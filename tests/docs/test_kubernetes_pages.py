"""The YAML of the pages on Kubernetes is what clusters, the chart and the operator take."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from steerlm_operator import models, names
from steerlm_operator.config import OperatorConfig
from steerlm_operator.reconcile import objects

from charts import values
from nemo_steerlm.pipeline.pod_spec import EVERYBODY_MAY, PodSpec
from nemo_steerlm.serving.metrics import Metrics

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs/kubernetes"
BLOCKS = [
    pytest.param(document, id=f"{page.stem}-{number}")
    for page in sorted(PAGES.glob("*.md"))
    for number, text in enumerate(re.findall(r"^```yaml\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE))
    for document in [yaml.safe_load(text)]
]
ALL = OperatorConfig.model_validate({"podFields": [str(field.alias) for field in PodSpec.model_fields.values()]})
BASE = {
    "attributes": {"preset": "helpsteer"},
    "data": {"records": {"train": "t.jsonl", "validation": "v.jsonl"}},
    "model": {"base": "base"},
}


def pipeline(spec):
    metadata = {"name": "p", "namespace": "team", "uid": "u"}
    return models.parse({"metadata": metadata, "spec": copy.deepcopy(BASE) | spec}, ALL)


@pytest.mark.parametrize("document", BLOCKS)
def test_each_block_is_taken(document):
    """A Kubernetes object, a part of a pipeline, or values of the chart."""
    if document.get("kind") == "ScaledObject":
        assert document["apiVersion"] == "keda.sh/v1alpha1"  # its schema is not at hand
    elif "kind" in document:
        kubernetes_validate.validate(document, "1.34", strict=True)
    elif "spec" in document:
        made = objects(pipeline(document["spec"]))
        assert made
    else:
        found = values.Values.model_validate(document)
        assert found


def test_there_is_a_page_for_each_kind_of_cluster():
    pages = {page.stem for page in PAGES.glob("*.md")}
    assert pages >= {"eks", "gke", "aks", "openshift", "bare-metal", "kind"}


def test_whoever_allows_more_fields_keeps_those_that_everybody_may_set():
    """``podFields`` is the whole list."""
    for document in (block.values[0] for block in BLOCKS):
        if fields := document.get("config", {}).get("podFields"):
            assert set(fields) > set(EVERYBODY_MAY)


def test_autoscalers_name_the_deployment_and_a_metric_that_there_are():
    blocks = {block.values[0].get("kind"): block.values[0] for block in BLOCKS}
    target = names.serve("NAME")
    hpa, keda = blocks["HorizontalPodAutoscaler"]["spec"], blocks["ScaledObject"]["spec"]
    assert hpa["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": target}
    assert keda["scaleTargetRef"] == {"name": target}
    known = {family.name for family in Metrics().registry.collect()}
    assert hpa["metrics"][0]["pods"]["metric"]["name"] in known
    assert set(re.findall(r"steerlm_\w+", keda["triggers"][0]["metadata"]["query"])) <= known
