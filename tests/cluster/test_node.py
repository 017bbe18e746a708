"""The node: restricted pods run the real package, find each other by name, share volumes, answer through Services."""

from __future__ import annotations

import urllib.request

import pytest
from local_cluster.client import environment_kubeconfig
from local_cluster.images import SOURCE, image

SECURITY = {"runAsNonRoot": True, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}}
CONTAINER_SECURITY = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": True}


def pod_spec(code, **more):
    container = {
        "name": "main",
        "image": image("worker"),
        "imagePullPolicy": "IfNotPresent",
        "command": ["python", "-c", code],
        "securityContext": CONTAINER_SECURITY,
        **more.pop("container", {}),
    }
    return {"restartPolicy": "Never", "automountServiceAccountToken": False, "securityContext": SECURITY, "containers": [container], **more}


def job(name, spec, **more):
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name},
        "spec": {"backoffLimit": 0, "template": {"spec": spec}, **more},
    }


def service(name, selector, **more):
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"selector": selector, "ports": [{"port": 8000}], **more},
    }


def claim(name):
    resources = {"requests": {"storage": "1Gi"}}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name},
        "spec": {"accessModes": ["ReadWriteMany"], "resources": resources},
    }


def finished(cluster, name, namespace, timeout=120):
    def over(item):
        return any(c["type"] in ("Complete", "Failed") and c["status"] == "True" for c in item.get("status", {}).get("conditions", []))

    item = cluster.wait("job", name, over, namespace=namespace, timeout=timeout)
    logs = cluster.kubectl("logs", "-l", f"batch.kubernetes.io/job-name={name}", "--tail=-1", namespace=namespace, check=False).stdout
    return item["status"].get("succeeded", 0), logs


def test_the_node_is_ready(node_cluster):
    node = node_cluster.get("nodes")["items"][0]
    node_cluster.wait_condition("node", node["metadata"]["name"], "Ready")


def test_a_restricted_job_imports_the_package_under_test(node_cluster, namespace):
    code = (
        "import os, nemo_steerlm, steerlm_operator, pydantic\n"
        "status = dict(line.split(':', 1) for line in open('/proc/self/status').read().splitlines())\n"
        "print(nemo_steerlm.__file__, os.getuid(), status['CapEff'].strip(), status['NoNewPrivs'].strip(), status['Seccomp'].strip())"
    )
    node_cluster.apply(job("import", pod_spec(code)), namespace=namespace)
    succeeded, logs = finished(node_cluster, "import", namespace)
    where, *rights = logs.split()
    assert (succeeded, rights) == (1, ["1000", "0000000000000000", "1", "2"])
    assert environment_kubeconfig() or where == f"{SOURCE}/nemo_steerlm/__init__.py"


def test_the_console_script_runs_in_a_pod(node_cluster, namespace):
    node_cluster.apply(job("script", pod_spec("", container={"command": ["steerlm", "--help"]})), namespace=namespace)
    succeeded, logs = finished(node_cluster, "script", namespace)
    assert succeeded == 1
    assert "steerlm" in logs


def test_pods_of_an_indexed_job_find_their_peer_by_name(node_cluster, namespace):
    code = (
        "import os, socket, time\n"
        "index = int(os.environ['JOB_COMPLETION_INDEX'])\n"
        "if index == 0:\n"
        "    peer, _ = socket.create_server(('', 8000)).accept()\n"
        "    print(peer.recv(64).decode())\n"
        "else:\n"
        "    for _ in range(600):\n"
        "        try:\n"
        "            peer = socket.create_connection(('ring-0.ring', 8000), timeout=5)\n"
        "            break\n"
        "        except OSError:\n"
        "            time.sleep(0.1)\n"
        "    peer.sendall(b'hello from 1')\n"
    )
    ring = job("ring", pod_spec(code, subdomain="ring"), completionMode="Indexed", completions=2, parallelism=2)
    headless = service("ring", {"batch.kubernetes.io/job-name": "ring"}, clusterIP="None", publishNotReadyAddresses=True)
    node_cluster.apply(headless, ring, namespace=namespace)
    succeeded, logs = finished(node_cluster, "ring", namespace)
    assert (succeeded, logs.strip()) == (2, "hello from 1")


def test_a_claim_of_the_default_class_is_shared_by_two_pods_and_its_volume_goes_with_it(node_cluster, namespace):
    volumes = {"volumes": [{"name": "work", "persistentVolumeClaim": {"claimName": "work"}}]}
    mounted = {"volumeMounts": [{"name": "work", "mountPath": "/shared"}]}
    node_cluster.apply(
        claim("work"),
        job("write", pod_spec("open('/shared/a', 'w').write('shared')", container=mounted, **volumes)),
        namespace=namespace,
    )
    assert finished(node_cluster, "write", namespace)[0] == 1
    node_cluster.apply(job("read", pod_spec("print(open('/shared/a').read())", container=mounted, **volumes)), namespace=namespace)
    assert finished(node_cluster, "read", namespace) == (1, "shared\n")
    volume = node_cluster.get("pvc", "work", namespace=namespace)["spec"]["volumeName"]
    node_cluster.kubectl("delete", "job,pvc", "--all", namespace=namespace)
    node_cluster.wait_gone("pv", volume)


def test_an_unrestricted_pod_is_refused(node_cluster, namespace):
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "bare"},
        "spec": {"containers": [{"name": "main", "image": image("worker")}]},
    }
    refused = node_cluster.apply(pod, namespace=namespace, check=False)
    assert refused.returncode
    assert 'violates PodSecurity "restricted:latest"' in refused.stderr


def test_a_cluster_address_answers_from_another_pod_and_from_outside(node_cluster, namespace):
    server = pod_spec("import http.server, os; os.chdir('/usr'); http.server.test(http.server.SimpleHTTPRequestHandler, port=8000)")
    probe = {"httpGet": {"path": "/", "port": 8000}, "periodSeconds": 1}
    server["containers"][0]["readinessProbe"] = probe
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web", "labels": {"app": "web"}}, "spec": server}
    node_cluster.apply(service("web", {"app": "web"}), pod, namespace=namespace)
    node_cluster.wait_condition("pod", "web", "Ready", namespace=namespace)
    code = (
        "import time, urllib.request\n"
        "for _ in range(300):\n"
        "    try:\n"
        "        print(urllib.request.urlopen('http://web:8000/', timeout=30).status)\n"
        "        break\n"
        "    except OSError:  # the proxy learns of a ready pod when everybody else does\n"
        "        time.sleep(0.1)\n"
    )
    node_cluster.apply(job("ask", pod_spec(code)), namespace=namespace)
    assert finished(node_cluster, "ask", namespace) == (1, "200\n")
    with node_cluster.port_forward("service/web", 8000, namespace=namespace) as url:
        assert urllib.request.urlopen(url, timeout=30).status == 200


def test_too_much_memory_ends_a_pod_as_out_of_memory(node_cluster, namespace):
    limits = {"resources": {"limits": {"memory": "64Mi"}}}
    # A child eats: where the kernel kills the container's own process, containerd 1.6 may learn of its end before it learns why.
    code = "import os, sys, time\nif not os.fork():\n    x = b'x' * (300 << 20)\nos.wait()\ntime.sleep(2)\nsys.exit(137)\n"
    node_cluster.apply(job("eater", pod_spec(code, container=limits)), namespace=namespace)
    assert finished(node_cluster, "eater", namespace)[0] == 0
    (pod,) = node_cluster.get("pods", "-l", "batch.kubernetes.io/job-name=eater", namespace=namespace)["items"]
    state = pod["status"]["containerStatuses"][0]["state"]["terminated"]
    assert (state["reason"], state["exitCode"]) == ("OOMKilled", 137)


def test_a_stopped_component_stays_down_until_started(local_cluster):
    local_cluster.stop("kube-scheduler")
    assert local_cluster.components()["kube-scheduler"]["pid"] == 0
    local_cluster.start("kube-scheduler")
    assert local_cluster.components()["kube-scheduler"]["pid"] > 0


@pytest.mark.parametrize("component", ["kubelet", "containerd"])
def test_pods_survive_the_restart_of_a_node_component(local_cluster, namespace, component):
    local_cluster.apply(job("long", pod_spec("import time; time.sleep(4); print('done')")), namespace=namespace)
    local_cluster.wait("job", "long", lambda item: item.get("status", {}).get("ready", 0) == 1, namespace=namespace)
    local_cluster.restart(component)
    assert finished(local_cluster, "long", namespace) == (1, "done\n")
