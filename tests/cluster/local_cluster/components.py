"""The command line and the configuration file of every component, as pure functions of the layout."""

from __future__ import annotations

import json
from typing import Any

from local_cluster.layout import (
    CONTAINERD_SOCKET,
    GATEWAY_ADDRESS,
    NODE,
    NODE_ADDRESS,
    PAUSE_IMAGE,
    POD_RANGE,
    PROVISIONER,
    SERVICE_RANGE,
    STORAGE_CLASS,
    Layout,
)

ETCD = "http://127.0.0.1:2379"

Manifest = dict[str, Any]


def commands(layout: Layout) -> dict[str, list[str]]:
    """Every component's argument vector."""
    chosen = {
        "etcd": _etcd(layout),
        "kube-apiserver": _apiserver(layout),
        "kube-controller-manager": _controllers(layout),
        "kube-scheduler": _scheduler(layout),
    }
    if layout.node:
        configured = {name: str(layout.path("config", name)) for name in ("containerd", "kubelet", "kube-proxy", "coredns")}
        kubelet = [
            "--config",
            configured["kubelet"],
            "--kubeconfig",
            layout.kubeconfig("kubelet"),
            "--hostname-override",
            NODE,
            "--node-ip",
            NODE_ADDRESS,
        ]
        chosen |= {
            "containerd": ["containerd", "--config", configured["containerd"]],
            "kubelet": [layout.program("kubelet"), *kubelet],
            "kube-proxy": [layout.program("kube-proxy"), "--config", configured["kube-proxy"], "--hostname-override", NODE],
            "coredns": [layout.program("coredns"), "-conf", configured["coredns"]],
        }
    return chosen


def configurations(layout: Layout) -> dict[str, str]:
    """The text of each configuration file, by the name of its component."""
    texts = {"audit": json.dumps(_audit_policy())}
    if layout.node:
        texts |= {
            "containerd": _containerd(layout),
            "kubelet": json.dumps(_kubelet(layout), indent=1),
            "kube-proxy": json.dumps(_proxy(layout), indent=1),
            "coredns": _corefile(layout),
        }
    return texts


def _etcd(layout: Layout) -> list[str]:
    peer = "http://127.0.0.1:2380"
    urls = [
        "--listen-client-urls",
        ETCD,
        "--advertise-client-urls",
        ETCD,
        "--listen-peer-urls",
        peer,
        "--initial-advertise-peer-urls",
        peer,
    ]
    return [
        layout.program("etcd"),
        "--data-dir",
        "/var/lib/etcd",
        "--unsafe-no-fsync",
        "--log-level",
        "warn",
        *urls,
        "--initial-cluster",
        f"default={peer}",
    ]


def _apiserver(layout: Layout) -> list[str]:
    options = {
        "etcd-servers": ETCD,
        "bind-address": "0.0.0.0",
        "secure-port": layout.port,
        "advertise-address": NODE_ADDRESS,
        "tls-cert-file": layout.certificate("kube-apiserver.crt"),
        "tls-private-key-file": layout.certificate("kube-apiserver.key"),
        "client-ca-file": layout.certificate("ca.crt"),
        "kubelet-client-certificate": layout.certificate("kubelet-client.crt"),
        "kubelet-client-key": layout.certificate("kubelet-client.key"),
        "kubelet-certificate-authority": layout.certificate("ca.crt"),
        "kubelet-preferred-address-types": "InternalIP",
        "service-account-key-file": layout.certificate("service-account.pub"),
        "service-account-signing-key-file": layout.certificate("service-account.key"),
        "service-account-issuer": "https://kubernetes.default.svc.cluster.local",
        "authorization-mode": "Node,RBAC",
        "enable-admission-plugins": "NodeRestriction",
        "allow-privileged": "true",
        "service-cluster-ip-range": SERVICE_RANGE,
        # Five minutes by default: how long pods stay on a node that is tainted because it is not ready.
        "default-not-ready-toleration-seconds": 5,
        "default-unreachable-toleration-seconds": 5,
        "audit-policy-file": layout.path("config", "audit"),
        "audit-log-path": layout.path("audit.log"),
        "audit-log-mode": "blocking",
        "profiling": "false",
        "v": 1,
    }
    return [layout.program("kube-apiserver"), *_flags(options)]


def _controllers(layout: Layout) -> list[str]:
    options = {
        **_three_kubeconfigs(layout, "kube-controller-manager"),
        "controllers": "*",
        "use-service-account-credentials": "true",
        "leader-elect": "false",
        "root-ca-file": layout.certificate("ca.crt"),
        "service-account-private-key-file": layout.certificate("service-account.key"),
        "cluster-signing-cert-file": layout.certificate("ca.crt"),
        "cluster-signing-key-file": layout.certificate("ca.key"),
        "allocate-node-cidrs": "false",
        # With one credential per controller the default of 20 requests a second delays the first service account by seconds.
        "kube-api-qps": 500,
        "kube-api-burst": 1000,
        "node-monitor-grace-period": "30s",
        "flex-volume-plugin-dir": "/var/lib/kubelet/volumeplugins",
    }
    return [layout.program("kube-controller-manager"), *_flags(options)]


def _scheduler(layout: Layout) -> list[str]:
    return [layout.program("kube-scheduler"), *_flags({**_three_kubeconfigs(layout, "kube-scheduler"), "leader-elect": "false"})]


def _three_kubeconfigs(layout: Layout, name: str) -> dict[str, Any]:
    return dict.fromkeys(("kubeconfig", "authentication-kubeconfig", "authorization-kubeconfig"), layout.kubeconfig(name))


def _flags(options: dict[str, Any]) -> list[str]:
    return [f"--{name}={value}" for name, value in options.items()]


def _audit_policy() -> Manifest:
    """Who asked for what, once a request: enough to compare the requests of a run with a role."""
    return {"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"], "rules": [{"level": "Metadata"}]}


def _kubelet(layout: Layout) -> Manifest:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "containerRuntimeEndpoint": f"unix://{CONTAINERD_SOCKET}",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{layout.cgroup}",
        "failCgroupV1": False,
        "failSwapOn": False,
        "tlsCertFile": layout.certificate("kubelet-serving.crt"),
        "tlsPrivateKeyFile": layout.certificate("kubelet-serving.key"),
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": layout.certificate("ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "clusterDomain": "cluster.local",
        "clusterDNS": [NODE_ADDRESS],
        "resolvConf": str(layout.path("config", "resolv.conf")),
        "podLogsDir": str(layout.path("podlogs")),
        "volumePluginDir": "/var/lib/kubelet/volumeplugins",
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%", "nodefs.inodesFree": "1%"},
        # An imported image cannot be pulled again.
        "imageGCHighThresholdPercent": 100,
        "nodeStatusUpdateFrequency": "4s",
        "nodeLeaseDurationSeconds": 20,
        "syncFrequency": "10s",
        "makeIPTablesUtilChains": False,
    }


def _proxy(layout: Layout) -> Manifest:
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "clientConnection": {"kubeconfig": layout.kubeconfig("kube-proxy")},
        "clusterCIDR": POD_RANGE,
        # Zero leaves the initial namespace's connection tracking alone.
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
    }


def _corefile(layout: Layout) -> str:
    zone = f"kubernetes cluster.local in-addr.arpa {{\n    kubeconfig {layout.kubeconfig('coredns')}\n    pods insecure\n    ttl 1\n  }}"
    return f".:53 {{\n  bind {NODE_ADDRESS}\n  health 127.0.0.1:8080\n  ready 127.0.0.1:8181\n  errors\n  cache 1\n  {zone}\n}}\n"


def _containerd(layout: Layout) -> str:
    cri = 'plugins."io.containerd.grpc.v1.cri"'
    return f"""version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
  address = "{CONTAINERD_SOCKET}"
[{cri}]
  sandbox_image = "{PAUSE_IMAGE}"
  disable_apparmor = true
  restrict_oom_score_adj = true
[{cri}.containerd]
  snapshotter = "overlayfs"
  default_runtime_name = "runc"
[{cri}.containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
  base_runtime_spec = "{layout.path("config", "base-spec.json")}"
[{cri}.containerd.runtimes.runc.options]
  SystemdCgroup = false
[{cri}.cni]
  bin_dir = "{layout.network_plugins}"
  conf_dir = "{layout.path("config", "cni")}"
"""


def pod_network(layout: Layout) -> Manifest:
    """The CNI configuration: one bridge, addresses handed out on the node, no masquerading as nothing lies outside."""
    addresses = {
        "type": "host-local",
        "ranges": [[{"subnet": POD_RANGE}]],
        "routes": [{"dst": "0.0.0.0/0"}],
        "dataDir": "/var/lib/cni/addresses",
    }
    bridge = {"type": "bridge", "bridge": "cni0", "isGateway": True, "hairpinMode": True, "ipMasq": False, "ipam": addresses}
    return {"cniVersion": "0.4.0", "name": "pods", "plugins": [bridge, {"type": "portmap", "capabilities": {"portMappings": True}}]}


def network_commands(layout: Layout) -> list[str]:
    """``ip`` commands for a network with no way out. A ClusterIP is routed before it is translated: hence the default route."""
    pair = [
        "link add node0 type veth peer name closed0",
        f"addr add {NODE_ADDRESS}/30 dev node0",
        f"addr add {GATEWAY_ADDRESS}/30 dev closed0",
    ]
    return ["link set lo up", *pair, "link set node0 up", "link set closed0 up", f"route add default via {GATEWAY_ADDRESS} dev node0"]


def bootstrap_objects() -> Manifest:
    """What a cluster has before its first user: a default storage class and the roles of DNS and of the volume provisioner."""
    return {
        "apiVersion": "v1",
        "kind": "List",
        "items": [_storage_class(), *_role("system:coredns", _DNS_RULES), *_role("system:provisioner", _VOLUME_RULES)],
    }


def _storage_class() -> Manifest:
    metadata = {"name": STORAGE_CLASS, "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}}
    return {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": metadata,
        "provisioner": PROVISIONER,
        "volumeBindingMode": "Immediate",
    }


_DNS_RULES = [
    {"apiGroups": [""], "resources": ["endpoints", "services", "pods", "namespaces"], "verbs": ["list", "watch"]},
    {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
]
_VOLUME_RULES = [
    {"apiGroups": [""], "resources": ["persistentvolumeclaims"], "verbs": ["list", "watch"]},
    {"apiGroups": [""], "resources": ["persistentvolumes"], "verbs": ["list", "watch", "create", "delete"]},
]


def _role(user: str, rules: list[Manifest]) -> list[Manifest]:
    group = "rbac.authorization.k8s.io"
    role = {"apiVersion": f"{group}/v1", "kind": "ClusterRole", "metadata": {"name": user}, "rules": rules}
    subject = {"kind": "User", "apiGroup": group, "name": user}
    binding = {"apiVersion": f"{group}/v1", "kind": "ClusterRoleBinding", "metadata": {"name": user}, "subjects": [subject]}
    return [role, {**binding, "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": user}}]
