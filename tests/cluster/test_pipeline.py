"""The proof: the pipeline that ``tests/pipeline`` runs on one machine, applied to a real node, under the operator that helm installed.

Trainings are two pods that find each other by DNS, annotation has two servers and three shards. What comes out is compared with
``steerlm run`` on the same manifest; a second run loses pods again and again and has to come to the same end.
"""

from __future__ import annotations

import concurrent.futures
import json
import os
import random
import re
import shutil
import signal
import subprocess
from pathlib import Path

import httpx
import pytest
from local_cluster.images import image

from nemo_steerlm.core.processes import ChildProcess
from nemo_steerlm.pipeline.artifacts import WorkDirectory
from tests.cluster.operating import THREADS, restricted
from tests.cluster.plugin import Plugin
from tests.inputs import DATA
from tests.pipeline.tiny import BASE, STAGES, STEERLM, TREES, manifest, manifest_file

NAMESPACE = "steerlm-pipelines"
CLAIM = "oasst-tiny-data"
TOKEN = "what-opens-the-served-model"
PATIENCE = 1500
pytestmark = [
    pytest.mark.megatron,
    pytest.mark.timeout(2 * PATIENCE),
]


def trained(**parallel):
    """Both trainings this wide. Two processes of one machine compute to the last digit what two pods do, and one process does not."""
    return {training: {"parallel": parallel} for training in ("trainValue", "trainSteer")}


def in_two_pods(name, **sections):
    return manifest(name, **trained(nodes=2), **sections)


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """``steerlm run`` beside the cluster's first run; ``local()`` is its work directory once it has ended."""
    folder = tmp_path_factory.mktemp("local")
    command = [*STEERLM, "run", str(manifest_file(folder, **trained(devices=2))), "--workdir", str(folder / "work")]
    with ChildProcess(command, log=folder / "run.log", env=THREADS) as run:

        def work():
            assert run.wait() == 0, run.tail()
            return WorkDirectory(folder / "work")

        yield work


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A folder with the inputs, such that another user may read and replace them."""
    folder = tmp_path_factory.mktemp("pipeline") / "inputs"
    folder.mkdir()
    shutil.copy(DATA / TREES, folder)
    shutil.copytree(DATA / BASE, folder / BASE)
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return folder


@pytest.fixture(scope="module")
def place(installed, inputs):
    """The cluster with the operator, a restricted namespace, and a claim in it that holds the inputs."""
    installed.apply(restricted(NAMESPACE))
    installed.wait("serviceaccount", "default", lambda _: True, namespace=NAMESPACE)
    installed.apply(claim(), files_pod(), tokens(), namespace=NAMESPACE)
    installed.wait_condition("pod", "files", "Ready", namespace=NAMESPACE, timeout=120)
    installed.kubectl("cp", str(inputs), "files:/data/inputs", namespace=NAMESPACE)
    yield installed
    installed.kubectl("delete", "slp", "--all", namespace=NAMESPACE)
    installed.kubectl("delete", "namespace", NAMESPACE, "--wait=false")


def claim():
    spec = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": CLAIM}, "spec": spec}


def tokens():
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "tokens"}, "stringData": {"served": TOKEN, "stages": "theirs"}}


def files_pod():
    """A pod through which ``kubectl cp`` reaches the claim."""
    container = {
        "name": "files",
        "image": image("worker"),
        "imagePullPolicy": "IfNotPresent",
        "command": ["sleep", "infinity"],
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
    }
    spec = {
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 1,
        "securityContext": {"runAsNonRoot": True, "runAsUser": 1000, "fsGroup": 1000, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
        "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": CLAIM}}],
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "files"}, "spec": spec}


def ended(item):
    return any(c["type"] in ("Complete", "Failed") and c["status"] == "True" for c in item.get("status", {}).get("conditions", []))


def complete(cluster, name):
    """The finished resource; what went wrong otherwise."""
    item = cluster.wait("slp", name, ended, namespace=NAMESPACE, timeout=PATIENCE)
    assert item["status"]["phase"] == "Succeeded", cluster.describe_failure(NAMESPACE)
    return item


def fetch(cluster, name, folder):
    """The work directory of a finished pipeline, models and logs left where they are."""
    wanted = [f"runs/{name}/{stage}/{file}" for stage in STAGES for file in ("_SUCCESS.json", "metrics.json")]
    for path in (*wanted, f"runs/{name}/annotate/train.jsonl"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        cluster.kubectl("cp", f"files:/data/{path}", str(folder / path), namespace=NAMESPACE, check="metrics.json" not in path)
    return folder / "runs" / name


def success(work, stage):
    return json.loads((Path(work) / stage / "_SUCCESS.json").read_text())


@pytest.fixture(scope="module")
def first(place, local, tmp_path_factory):
    """The first run: the resource at its end, its work directory, and what ``kubectl get slp -w`` and ``get pods -w`` said."""
    folder = tmp_path_factory.mktemp("first")
    with (folder / "slp.txt").open("w") as slp, (folder / "pods.txt").open("w") as pods:
        served = {"enabled": True, "page": True, "token": {"name": "tokens", "key": "served"}}
        secrets = {"servers": {"name": "tokens", "key": "stages"}}
        place.apply(in_two_pods("oasst-tiny", serve=served, secrets=secrets), namespace=NAMESPACE)
        watches = [
            subprocess.Popen(place._argv(NAMESPACE, ("get", "slp", "oasst-tiny", "--watch")), stdout=slp),
            subprocess.Popen(place._argv(NAMESPACE, ("get", "pods", "-l", "steerlm.dev/pipeline=oasst-tiny", "--watch")), stdout=pods),
        ]
        try:
            item = complete(place, "oasst-tiny")
        finally:
            for watch in watches:
                watch.kill()
                watch.wait()
    return item, fetch(place, "oasst-tiny", folder), (folder / "slp.txt").read_text(), (folder / "pods.txt").read_text()


def test_the_whole_loop_runs_in_pods(place, first):
    item, _, slp, pods = first
    place.kubectl("wait", "--for=condition=Complete", "slp/oasst-tiny", "--timeout=0", namespace=NAMESPACE)
    stages = {stage["name"]: (stage["phase"], stage["attempt"]) for stage in item["status"]["stages"]}
    assert stages == dict.fromkeys(STAGES, ("Succeeded", 1))
    assert item["status"]["annotation"]["succeeded"] == 3
    names = {line.split()[0] for line in pods.splitlines()}
    of = {stage: [name for name in names if re.match(rf"oasst-tiny-{stage}-1-\d-", name)] for stage in ("train-value", "annotate")}
    assert (len(of["train-value"]), len(of["annotate"])) == (2, 3)
    assert len([name for name in names if name.startswith("oasst-tiny-annotate-value-1-")]) == 2
    assert all(stage in slp for stage in STAGES)


def test_it_comes_to_what_one_machine_comes_to(first, local):
    (_, work, *_), local = first, local()
    for stage in ("prepare", "train-value"):
        assert success(work, stage)["inputHash"] == success(local.path, stage)["inputHash"], stage
    for stage in ("prepare", "annotate"):
        assert digests(success(work, stage)) == digests(success(local.path, stage)), stage
    for stage in ("train-value", "train-steer"):
        mine, theirs = (json.loads((Path(root) / stage / "metrics.json").read_text()) for root in (work, local.path))
        assert losses(mine) == pytest.approx(losses(theirs), abs=1e-3), stage
    assert numbers(success(work, "evaluate")["metrics"]) == pytest.approx(numbers(success(local.path, "evaluate")["metrics"]), abs=1e-3)


def digests(found):
    """Of a stage's data: its summary names the machine's servers, a page its times."""
    return {name: output["digest"] for name, output in found["outputs"].items() if name.endswith(".jsonl") or name == "tokenizer"}


def losses(metrics):
    return [entry["loss"] for entry in metrics["train"]] + [metrics["validation_loss"]]


def numbers(metrics, prefix=""):
    """Every number of nested metrics but those of speed."""
    found = {}
    for key, value in metrics.items():
        if isinstance(value, dict):
            found |= numbers(value, f"{prefix}{key}.")
        elif isinstance(value, int | float) and "second" not in key:
            found[f"{prefix}{key}"] = value
    return found


def test_the_served_model_answers_through_its_service(place, first):
    place.wait_condition("slp", "oasst-tiny", "Serving", namespace=NAMESPACE, timeout=300)
    url = place.get("slp", "oasst-tiny", namespace=NAMESPACE)["status"]["endpoints"]["serve"]
    asked = {"messages": [{"role": "user", "content": "Once upon a time"}], "max_tokens": 8, "attributes": {"quality": 4}}
    code = (
        "import sys, urllib.request\n"
        "headers = {'Content-Type': 'application/json', 'Authorization': 'Bearer ' + sys.argv[3]}\n"
        "request = urllib.request.Request(sys.argv[1], sys.argv[2].encode(), headers)\n"
        "print(urllib.request.urlopen(request, timeout=60).read().decode())"
    )
    arguments = ("exec", "files", "--", "python", "-c", code, f"{url}/v1/chat/completions", json.dumps(asked))
    assert "401" in place.kubectl(*arguments, "guess", namespace=NAMESPACE, check=False).stderr
    said = place.kubectl(*arguments, TOKEN, namespace=NAMESPACE)
    assert json.loads(said.stdout)["usage"]["completion_tokens"] > 0


def test_the_plugin_shows_what_pods_say_and_opens_the_page(place, first):
    steerlm = Plugin(place, NAMESPACE)
    assert "oasst-tiny: Succeeded, 5/5 stages" in steerlm("status", "oasst-tiny")
    said = steerlm("logs", "oasst-tiny", "--stage", "train-value").splitlines()
    assert {line.split("/")[1].rpartition("-")[0] for line in said} == {"oasst-tiny-train-value-1-0"}  # the other rank is silent
    assert any('"steerlm": "progress"' in line for line in said)
    place.wait_condition("slp", "oasst-tiny", "Serving", namespace=NAMESPACE, timeout=300)
    with steerlm.start("open", "oasst-tiny", "--port", "0") as opened:
        try:
            line = next(line for line in opened.stdout if line.startswith("Forwarding from 127.0.0.1:"))
            found = httpx.get(f"http://{line.split()[2]}/", follow_redirects=True, timeout=60)
        finally:
            os.killpg(opened.pid, signal.SIGTERM)
    assert (found.status_code, "<html" in found.text) in ((200, True), (401, True)), "the page, or the form that asks for its token"


def test_a_second_pipeline_finds_the_stages_of_the_first(place, first):
    """On the same claim: its pods find what is done, and say so."""
    shared = {"claimName": CLAIM, "directory": "runs/oasst-tiny"}
    place.apply(in_two_pods("oasst-same", storage=shared), namespace=NAMESPACE)
    item = place.wait("slp", "oasst-same", lambda item: ended(item) or done(item, "train-value"), namespace=NAMESPACE, timeout=PATIENCE)
    before = {stage["name"]: stage["inputHash"] for stage in first[0]["status"]["stages"]}
    for stage in item["status"]["stages"][:2]:
        assert (stage["phase"], stage["inputHash"]) == ("CacheHit", before[stage["name"]])
    place.kubectl("delete", "slp", "oasst-same", namespace=NAMESPACE)


def done(item, name):
    stages = {stage["name"]: stage for stage in item.get("status", {}).get("stages", [])}
    return stages.get(name, {}).get("phase") in ("Succeeded", "CacheHit")


@pytest.mark.slow
def test_pods_killed_at_random_change_nothing(place, first):
    """One pod of a training, one annotation server and one shard are deleted as they run."""
    _, work, *_ = first
    place.apply(in_two_pods("oasst-again", storage={"claimName": CLAIM}), namespace=NAMESPACE)
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        ending = executor.submit(complete, place, "oasst-again")
        killed = kill_pods(place, ending, random.Random(7))
        item = ending.result()
    assert {name.rpartition("-")[0].rpartition("-")[0] for name in killed} >= {"oasst-again-train-value-1"}
    assert len(killed) >= 3
    attempts = {stage["name"]: stage["attempt"] for stage in item["status"]["stages"]}
    assert attempts["train-value"] > 1, attempts
    other = fetch(place, "oasst-again", work.parents[1])
    for stage in ("prepare", "annotate"):
        assert digests(success(other, stage)) == digests(success(work, stage)), stage
    assert numbers(success(other, "evaluate")["metrics"]) == pytest.approx(numbers(success(work, "evaluate")["metrics"]), abs=1e-3)


def kill_pods(cluster, ending, rng):
    """Delete a random running pod of each kind, until the pipeline has ended. Returns their names."""
    wanted = {("train-value", "work"), ("annotate", "server"), ("annotate", "work")}
    running, killed = {}, []
    for kind, pod in cluster.watch("pods", "-l", "steerlm.dev/pipeline=oasst-again", namespace=NAMESPACE, timeout=PATIENCE):
        if ending.done():
            break
        labels, name = pod["metadata"]["labels"], pod["metadata"]["name"]
        what = (labels.get("steerlm.dev/stage"), labels.get("steerlm.dev/component"))
        if kind == "DELETED" or pod["status"].get("phase") != "Running":
            running.pop(name, None)
        else:
            running[name] = what
        candidates = sorted(other for other, its in running.items() if its == what)
        # The last of a set to run is no more likely to be hit than the first.
        if what in wanted and candidates and (len(candidates) > 1 or rng.random() < 0.5):
            victim = rng.choice(candidates)
            cluster.kubectl("delete", "pod", victim, "--grace-period=2", "--wait=false", namespace=NAMESPACE, check=False)
            killed.append(victim)
            wanted.discard(what)
            if not wanted:
                break
    return killed


@pytest.mark.last
def test_deleting_leaves_nothing_but_the_claim(place, first):
    place.kubectl("delete", "slp", "oasst-tiny", namespace=NAMESPACE)
    kinds = place.kubectl("api-resources", "--namespaced", "--verbs=list,delete", "-o", "name").stdout.split()
    left = ("-l", "steerlm.dev/pipeline=oasst-tiny")
    place.kubectl("wait", "--for=delete", "pods,jobs,deployments,services", *left, "--timeout=180s", namespace=NAMESPACE, timeout=200)
    found = place.kubectl("get", ",".join(kinds), *left, "-o", "name", namespace=NAMESPACE).stdout.split()
    assert found == []
    assert place.get("pvc", CLAIM, namespace=NAMESPACE)["status"]["phase"] == "Bound"
    listed = place.kubectl("exec", "files", "--", "ls", "/data/runs/oasst-tiny/train-steer", namespace=NAMESPACE).stdout
    assert "_SUCCESS.json" in listed
