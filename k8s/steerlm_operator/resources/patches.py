"""What a pipeline and the operator's configuration add to the pods of a role. Whatever the operator itself sets stays as it is."""

from __future__ import annotations

from nemo_steerlm.pipeline.pod_spec import PodSpec, VolumeSpec
from steerlm_operator import names
from steerlm_operator.models import Object


def apply(template: Object, patch: PodSpec, selector: dict[str, str]) -> None:
    """Add ``patch`` to a pod template. ``selector`` are the labels that the pods of one set share, for their spread."""
    metadata, pod = template["metadata"], template["spec"]
    metadata["labels"] = {**patch.labels, **metadata["labels"]}
    if patch.annotations:
        metadata["annotations"] = {**patch.annotations, **metadata.get("annotations", {})}
    _identity(pod, patch)
    _placement(pod, patch, selector)
    # What is asked for beside processors and memory goes to the container that has the devices: the first one.
    containers: list[Object] = [*pod.get("initContainers", ()), *pod["containers"]]
    first, *others = containers
    _container(first, patch)
    _amounts(first["resources"], patch)
    for other in others:
        _container(other, patch)
        if patch.guaranteed:
            _guarantee(other["resources"])
    pod["volumes"] += [_volume(volume) for volume in patch.volumes]


def _identity(pod: Object, patch: PodSpec) -> None:
    if patch.service_account_name:
        pod["serviceAccountName"] = patch.service_account_name
    if patch.runtime_class_name:
        pod["runtimeClassName"] = patch.runtime_class_name
    if patch.priority_class_name:
        pod["priorityClassName"] = patch.priority_class_name
    if patch.host_network:
        pod |= {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"}
    if patch.dns and patch.dns.policy:
        pod["dnsPolicy"] = patch.dns.policy
    if patch.dns and (patch.dns.nameservers or patch.dns.searches):
        lists = {"nameservers": list(patch.dns.nameservers), "searches": list(patch.dns.searches)}
        pod["dnsConfig"] = {key: value for key, value in lists.items() if value}
    known = [secret["name"] for secret in pod.get("imagePullSecrets", ())]
    if more := [name for name in patch.image_pull_secrets if name not in known]:
        pod["imagePullSecrets"] = [{"name": name} for name in (*known, *more)]


def _placement(pod: Object, patch: PodSpec, selector: dict[str, str]) -> None:
    if patch.node_selector:
        pod["nodeSelector"] = {**pod.get("nodeSelector", {}), **patch.node_selector}
    if patch.tolerations:
        more = [each.model_dump(by_alias=True, exclude_none=True) for each in patch.tolerations]
        pod["tolerations"] = [*pod.get("tolerations", ()), *more]
    if patch.node_labels:
        terms = [each.model_dump(by_alias=True, exclude_defaults=False) for each in patch.node_labels]
        expressions = [{key: list(value) if key == "values" else value for key, value in term.items() if value != ()} for term in terms]
        wanted = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchExpressions": expressions}]}}
        pod["affinity"] = {**pod.get("affinity", {}), "nodeAffinity": wanted}
    if patch.spread:
        pod["topologySpreadConstraints"] = [
            {
                "topologyKey": each.topology_key,
                "maxSkew": each.max_skew,
                "whenUnsatisfiable": each.when_unsatisfiable,
                "labelSelector": {"matchLabels": selector},
            }
            for each in patch.spread
        ]


def _container(container: Object, patch: PodSpec) -> None:
    own = {entry["name"] for entry in container["env"]}
    container["env"] += [{"name": name, "value": value.replace("$", "$$")} for name, value in patch.env.items() if name not in own]
    if patch.env_from:
        container["envFrom"] = [
            {"secretRef": {"name": each.secret}} if each.secret else {"configMapRef": {"name": each.config_map}} for each in patch.env_from
        ]
    container["volumeMounts"] += [_mount(volume) for volume in patch.volumes]
    if patch.capabilities:
        container["securityContext"]["capabilities"]["add"] = list(patch.capabilities)


def _amounts(resources: Object, patch: PodSpec) -> None:
    requests, limits = resources.setdefault("requests", {}), resources.setdefault("limits", {})
    limits |= patch.resources
    if patch.ephemeral_storage:
        requests["ephemeral-storage"] = limits["ephemeral-storage"] = patch.ephemeral_storage
    if patch.guaranteed:
        _guarantee(resources)
    for kind in ("requests", "limits"):
        if not resources[kind]:
            del resources[kind]


def _guarantee(resources: Object) -> None:
    if "cpu" in resources.get("requests", {}):
        resources["limits"]["cpu"] = resources["requests"]["cpu"]


def _volume(volume: VolumeSpec) -> Object:
    if volume.config_map:
        source: Object = {"configMap": {"name": volume.config_map}}
    elif volume.secret:
        source = {"secret": {"secretName": volume.secret}}
    elif volume.claim_name:
        source = {"persistentVolumeClaim": {"claimName": volume.claim_name, "readOnly": not volume.writable}}
    else:
        source = {"emptyDir": {"sizeLimit": volume.empty_dir}}
    return {"name": _name(volume), **source}


def _mount(volume: VolumeSpec) -> Object:
    mount: Object = {"name": _name(volume), "mountPath": volume.mount_path}
    if volume.sub_path:
        mount["subPath"] = volume.sub_path
    if not (volume.writable or volume.empty_dir):
        mount["readOnly"] = True
    return mount


def _name(volume: VolumeSpec) -> str:
    """Its own among the operator's volumes."""
    return names.child("user", volume.name)
