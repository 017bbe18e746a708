"""What runs a server's model: its containers, devices, images and secrets, in stages and for the server that stays."""

from __future__ import annotations

import os
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from steerlm_operator import models
from steerlm_operator.config import OperatorConfig
from steerlm_operator.reconcile import objects
from steerlm_operator.resources import settings

from nemo_steerlm.core import vllm
from nemo_steerlm.core.errors import UsageError
from tests.operator.lifetime import Lifetime
from tests.operator.test_resources import by_name

GOLDEN = Path(__file__).parent / "golden_engines"
VLLM = {"vllm": {"args": ["--max-model-len", "8192"]}}
IMAGES = {"worker": "w:1", "train": "t:1", "vllm": "v:1"}
SERVE = {"enabled": True, "token": {"name": "t", "key": "served"}}
ENGINES = {
    "vllm": VLLM,
    "megatron": {"megatron": {"pipeline": 2}},
    "external": {"external": {"url": "https://kserve.example:8443", "token": {"name": "e", "key": "k"}}},
}


@pytest.fixture
def made(pipeline):
    """A function: by name, the objects of a pipeline all of whose servers have an engine and four devices."""

    def make(engine, **spec):
        servers = {"devices": 4, "engine": engine}
        return objects(pipeline(images=IMAGES, annotate={"servers": servers}, serve={**SERVE, **servers}, **spec))

    return make


def pod(found, name):
    deployment = by_name(found, name)
    kubernetes_validate.validate(deployment, "1.34", strict=True)
    return deployment["spec"]["template"]["spec"]


def gpus(container):
    return container["resources"]["limits"].get("nvidia.com/gpu")


def secrets(container):
    keyed = (entry for entry in container["env"] if "valueFrom" in entry)
    return {entry["name"]: entry["valueFrom"]["secretKeyRef"]["name"] for entry in keyed}


@pytest.mark.parametrize("name", ENGINES)
def test_the_deployments_are_as_they_were_reviewed(made, name):
    """The whole of the server that stays; ``STEERLM_UPDATE_GOLDEN=1`` writes it anew."""
    file = GOLDEN / f"serve-{name}.yaml"
    deployment = by_name(made(ENGINES[name]), "demo-serve")
    if os.environ.get("STEERLM_UPDATE_GOLDEN"):
        file.write_text(yaml.safe_dump(deployment, sort_keys=False, width=140), encoding="utf-8")
    assert deployment == yaml.safe_load(file.read_text(encoding="utf-8"))


@pytest.mark.parametrize(("name", "token"), [("demo-annotate-value-1", None), ("demo-evaluate-steer-1", None), ("demo-serve", "t")])
def test_vllm_has_the_devices_and_our_server_the_port(made, name, token):
    found = pod(made(VLLM), name)
    [engine], [server] = found["initContainers"], found["containers"]
    assert (engine["restartPolicy"], engine["image"], server["image"]) == ("Always", "v:1", "w:1")
    assert (gpus(engine), gpus(server)) == ("4", None)
    assert engine["command"] == ["vllm"]
    arguments = engine["args"]
    assert arguments[:4] == ["serve", server["args"][1], "--tensor-parallel-size", "4"]
    assert arguments[4:6] == ["--max-model-len", "8192"]
    assert arguments[6:] == [*vllm.OPTIONS, "--host", "0.0.0.0", "--port", "8001"]  # what we rely on comes last and wins
    assert server["args"][-4:] == ["--engine", "openai", "--upstream", "http://127.0.0.1:8001"]
    assert secrets(engine) == ({"VLLM_API_KEY": token} if token else {})
    assert secrets(server) == ({"STEERLM_API_KEY": token, "STEERLM_UPSTREAM_KEY": token} if token else {})
    assert engine["startupProbe"]["httpGet"] == {"path": "/health", "port": 8001}
    assert {mount["mountPath"] for mount in engine["volumeMounts"]} >= {"/data", "/dev/shm", "/tmp"}
    assert engine["securityContext"] == server["securityContext"]


def test_what_pods_have_more_goes_to_the_container_with_the_devices(made):
    patch = {"env": {"NCCL_DEBUG": "WARN"}, "resources": {"rdma/hca": "1"}, "guaranteed": True, "ephemeralStorage": "9Gi"}
    found = pod(made(VLLM, pods={"serve": patch}), "demo-serve")
    [engine], [server] = found["initContainers"], found["containers"]
    assert engine["resources"]["limits"]["rdma/hca"] == "1"
    assert not {"rdma/hca", "ephemeral-storage"} & set(server["resources"]["limits"])
    for container in (engine, server):
        assert {"name": "NCCL_DEBUG", "value": "WARN"} in container["env"]
        assert container["resources"]["limits"]["cpu"] == container["resources"]["requests"]["cpu"]


@pytest.mark.parametrize(("name", "stage"), [("demo-annotate-value-1", "train-value"), ("demo-serve", "bootstrap-1-train")])
def test_megatron_runs_the_checkpoint_on_all_devices_in_the_image_with_nemo(made, name, stage):
    [server] = pod(made(ENGINES["megatron"]), name)["containers"]
    assert (server["image"], gpus(server)) == ("t:1", "4")
    assert server["args"][1] == f"/data/runs/demo/{stage}/model.nemo"
    assert server["args"][-4:] == ["--tensor-parallel", "2", "--pipeline-parallel", "2"]


def test_a_server_elsewhere_has_the_value_model_and_is_reached(made):
    found = made(ENGINES["external"])
    for name in ("demo-annotate-value-1", "demo-evaluate-value-1", "demo-serve"):
        [server] = pod(found, name)["containers"]
        assert gpus(server) is None
        assert server["args"][-6:-2] == ["--engine", "openai", "--upstream", "https://kserve.example:8443"]
        assert server["args"][-2:] == ["--upstream-wait", "1800"], "an exit while the other server loads would count as a crash"
        assert secrets(server)["STEERLM_UPSTREAM_KEY"] == "e"
    [steer] = pod(found, "demo-evaluate-steer-1")["containers"]
    assert gpus(steer) == "4"
    assert "--upstream" not in steer["args"]
    policies = {item["metadata"]["name"]: item["spec"] for item in found if item["kind"] == "NetworkPolicy"}
    for component in ("server", "serve"):
        assert {"ports": [{"port": 8443, "protocol": "TCP"}]} in policies[f"demo-{component}-network"]["egress"]


@pytest.mark.parametrize("where", ["annotate", "serve"])
def test_vllm_wants_its_image_named(resource, where):
    spec = {"annotate": {"servers": {"engine": VLLM}}} if where == "annotate" else {"serve": {**SERVE, "engine": VLLM}}
    with pytest.raises(UsageError, match=r"spec\.images\.vllm: an engine is vllm"):
        models.parse(resource(**spec), OperatorConfig())
    chart = OperatorConfig.model_validate({"images": {"worker": "w:1", "vllm": "platform:1"}})
    assert models.parse(resource(**spec), chart).images.vllm == "platform:1"


@pytest.mark.parametrize(
    ("servers", "words"),
    [
        ({"engine": {"vllm": {}, "megatron": {}}}, "name at most one of vllm, megatron and external"),
        ({"devices": 3, "engine": {"megatron": {"pipeline": 2}}}, "engine.megatron.pipeline must divide devices"),
        ({"engine": {"external": {"url": "vllm:8000"}}}, "spec.annotate.servers.engine.external.url"),
    ],
)
def test_what_does_not_go_together_is_refused(resource, servers, words):
    with pytest.raises(UsageError, match=words):
        models.parse(resource(annotate={"servers": servers}), OperatorConfig())


def test_vllm_is_refused_what_it_cannot_do_before_a_stage_asks_it(resource):
    spec = {"annotate": {"servers": {"engine": VLLM}}, "evaluate": {"guidanceScale": 2.0}, "images": IMAGES}
    with pytest.raises(UsageError, match="combines no two prompts"):
        models.parse(resource(**spec), OperatorConfig())


def test_the_stages_are_told_nothing_of_it(pipeline):
    """A worker of an earlier version refuses fields that it does not know, and a stage's result does not depend on them."""
    plain = pipeline(images=IMAGES)
    other = pipeline(images=IMAGES, annotate={"shards": 3, "servers": {"replicas": 2, "engine": VLLM}})
    assert settings.text(other) == settings.text(plain)
    assert [stage.spec_hash() for stage in other.graph] == [stage.spec_hash() for stage in plain.graph]


@pytest.mark.parametrize(("engine", "folder"), [({}, "evaluate/hf"), (ENGINES["megatron"], "train-steer/model.nemo")])
def test_the_best_model_is_served_from_where_its_files_are(engine, folder):
    """Evaluate's folder has the best model's export; its checkpoint stays with the training."""
    life = Lifetime()
    life.begin(shards=1, rounds=0, nodes=1, done=0)
    life.edit(serve={"enabled": True, "insecure": True, "devices": 2, "engine": engine})
    life.evaluate({"best": "train-steer"})
    served = life.world.children["Deployment", "p-serve"]["spec"]["template"]["spec"]["containers"][0]
    assert served["args"][1] == f"/data/runs/p/{folder}"
    life.loop.close()
