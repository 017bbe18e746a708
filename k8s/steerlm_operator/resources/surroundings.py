"""What a pipeline has from its first stage to its end: the claim and the NetworkPolicies."""

from __future__ import annotations

import urllib.parse
from collections.abc import Mapping

from nemo_steerlm.pipeline.manifest import ServersSpec, ServeSpec
from steerlm_operator import names
from steerlm_operator.models import Object, Pipeline
from steerlm_operator.resources.work import SERVER_PORT


def claim(pipeline: Pipeline) -> Object | None:
    """The claim, where the operator makes it. Without an owner where it is to be retained."""
    template = pipeline.storage.template
    if template is None:
        return None
    metadata: Object = {"name": pipeline.storage.claim_name, "namespace": pipeline.namespace, "labels": pipeline.labels()}
    if not template.retain:
        metadata["ownerReferences"] = [pipeline.owner]
    spec: Object = {"accessModes": [template.access_mode], "resources": {"requests": {"storage": template.size}}}
    if template.storage_class_name:
        spec["storageClassName"] = template.storage_class_name
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec}


def network_policies(pipeline: Pipeline) -> list[Object]:
    """Only the pipeline's own pods reach the servers of a stage, only the namespace the one that stays.

    A stage's servers ask for a token only where ``spec.secrets.servers`` names one. The operator makes none: that would need the right to
    write Secrets wherever there are pipelines, to keep from the cluster's network what labels texts for as long as one stage runs.
    """
    if not pipeline.config.security.network_policies:
        return []
    spec = pipeline.manifest.spec
    own = {"podSelector": {"matchLabels": {names.PIPELINE: pipeline.name}}}
    # 5353: where OpenShift's DNS pods listen, which is what a policy sees behind their Service.
    dns = {"ports": [{"port": port, "protocol": protocol} for port in (53, 5353) for protocol in ("UDP", "TCP")]}
    http = [{"port": SERVER_PORT, "protocol": "TCP"}]
    return [
        _policy(pipeline, names.WORK, {"ingress": [{"from": [own]}]}),
        _policy(pipeline, names.SERVER, {"ingress": [{"from": [own], "ports": http}], "egress": [dns, *_external(spec.annotate.servers)]}),
        _policy(pipeline, names.SERVE, {"ingress": [{"from": _may_ask(pipeline), "ports": http}], "egress": [dns, *_external(spec.serve)]}),
    ]


def _may_ask(pipeline: Pipeline) -> list[Object]:
    """Whose pods reach the server that stays."""
    more = list(pipeline.manifest.spec.serve.namespaces)
    chosen = {"matchExpressions": [{"key": "kubernetes.io/metadata.name", "operator": "In", "values": more}]}
    return [{"podSelector": {}}, *([{"namespaceSelector": chosen}] if more else [])]


def _external(servers: ServersSpec | ServeSpec) -> list[Object]:
    """The way to the server elsewhere that has the weights, if there is one."""
    external = servers.engine.external
    if external is None:
        return []
    url = urllib.parse.urlsplit(external.url)
    return [{"ports": [{"port": url.port or (443 if url.scheme == "https" else 80), "protocol": "TCP"}]}]


def _policy(pipeline: Pipeline, component: str, rules: Mapping[str, object]) -> Object:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {
            "name": names.child(pipeline.name, component, "network"),
            "namespace": pipeline.namespace,
            "labels": pipeline.labels(component=component),
            "ownerReferences": [pipeline.owner],
        },
        "spec": {
            "podSelector": {"matchLabels": {names.PIPELINE: pipeline.name, names.COMPONENT: component}},
            "policyTypes": [kind.capitalize() for kind in rules],
            **rules,
        },
    }
