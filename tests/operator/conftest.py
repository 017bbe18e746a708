"""A valid resource, and the pipeline it parses to."""

import copy

import pytest
from steerlm_operator import models
from steerlm_operator.config import OperatorConfig

RESOURCE = {
    "apiVersion": "steerlm.dev/v1alpha1",
    "kind": "SteerLMPipeline",
    "metadata": {
        "name": "demo",
        "namespace": "team",
        "uid": "11111111-2222-3333-4444-555555555555",
        "generation": 1,
        "resourceVersion": "1",
    },
    "spec": {
        "attributes": {"preset": "helpsteer"},
        "data": {"records": {"train": "t.jsonl", "validation": "v.jsonl"}},
        "model": {"base": "base"},
        "trainValue": {"parallel": {"nodes": 2, "devices": 4}, "globalBatchSize": 16},
        "trainSteer": {"globalBatchSize": 8},
        "annotate": {"shards": 3, "servers": {"replicas": 2}},
        "bootstrap": {"rounds": 1, "requireAny": True},
        "serve": {"enabled": True, "token": {"name": "t", "key": "served"}},
    },
}


@pytest.fixture
def resource():
    """A function: the resource with other spec fields."""

    def make(**spec):
        made = copy.deepcopy(RESOURCE)
        made["spec"].update(spec)
        return made

    return make


@pytest.fixture
def pipeline(resource):
    """A function: the parsed pipeline with other spec fields, under an operator's configuration."""

    def make(config=None, **spec):
        return models.parse(resource(**spec), config or OperatorConfig())

    return make
