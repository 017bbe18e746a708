"""The chart's values: what may be set, what it means, and the defaults. ``generate.py`` writes values.yaml and its schema from here."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field
from steerlm_operator.config import OperatorConfig

from nemo_steerlm.pipeline.cluster_types import LabelKey, LabelValue, NamespaceName, ObjectName, Quantity, TolerationSpec
from nemo_steerlm.pipeline.manifest import PipelineSpec
from nemo_steerlm.pipeline.sources import Spec

NamePart = Annotated[str, Field(max_length=53, pattern="^([a-z0-9]([-a-z0-9]*[a-z0-9])?)?$")]
PipelineName = Annotated[str, Field(min_length=1, max_length=40, pattern="^[a-z]([-a-z0-9]*[a-z0-9])?$")]
EnvironmentName = Annotated[str, Field(min_length=1, max_length=256, pattern="^[A-Za-z_][A-Za-z0-9_]*$")]
Labels = dict[LabelKey, LabelValue]
Annotations = dict[LabelKey, str]
Duration = Annotated[str, Field(pattern="^([0-9]+(ms|s|m|h))+$")]
Port = Annotated[int, Field(ge=1, le=65_535)]
Amounts = dict[Annotated[str, Field(min_length=1, max_length=316, pattern="^[a-z0-9][-a-zA-Z0-9./]*$")], Quantity]

SET_BY_THE_CHART = ("namespaces", "address")
"""Fields of the operator's configuration that follow from other values."""


class ImageValues(Spec):
    """A container image."""

    registry: Annotated[str, Field(max_length=253, pattern=r"^[^\s]*$")] = ""
    """Registry in front of the repository; the node's default one where empty."""
    repository: Annotated[str, Field(min_length=1, max_length=255, pattern=r"^[^\s:@]+$")] = "nemo-steerlm-operator"
    """Its name."""
    tag: Annotated[str, Field(max_length=128, pattern=r"^([A-Za-z0-9_][A-Za-z0-9_.-]*)?$")] = ""
    """Its tag; the chart's appVersion where empty."""
    digest: Annotated[str, Field(pattern="^(sha256:[a-f0-9]{64})?$")] = ""
    """Its digest, `sha256:` and 64 hexadecimal digits; wins over the tag."""
    pull_policy: Literal["IfNotPresent", "Always", "Never"] = "IfNotPresent"
    """When a node pulls it."""


class Definition(Spec):
    """The CustomResourceDefinition."""

    install: bool = True
    """Install and upgrade it with this release. It stays when the release is uninstalled, and with it every pipeline."""
    annotations: Annotations = {}
    """Further annotations of it."""


class ServiceAccount(Spec):
    """Who the operator is to the API server."""

    create: bool = True
    """Make a ServiceAccount."""
    name: Annotated[str, Field(max_length=253, pattern="^([a-z0-9]([-a-z0-9.]*[a-z0-9])?)?$")] = ""
    """Its name; the release's full name where empty, and `default` where none is made."""
    annotations: Annotations = {}
    """Its annotations."""


class Rights(Spec):
    """What the operator may do, and who may do what with pipelines."""

    create: bool = True
    """Make the operator's role and its binding: a ClusterRole with scope `cluster`, a Role in each namespace with scope `namespaced`."""
    aggregate: bool = True
    """Let everybody with the cluster's own view role read pipelines, and everybody with edit or admin change them."""
    job_set: bool = False
    """Allow making JobSets, for pipelines with `engine: JobSet`."""
    volcano: bool = False
    """Allow making Volcano's PodGroups, for pipelines with `scheduling.gang: Volcano`."""
    coscheduling: bool = False
    """Allow making the scheduler plugins' PodGroups, for pipelines with `scheduling.gang: Coscheduling`."""


class User(Spec):
    """Which user the operator's process is. Everything else about it satisfies Pod Security *restricted* and cannot be changed."""

    run_as_user: Annotated[int, Field(ge=1)] | None = 65_532
    """Its user; null leaves it to the image, or to a cluster that assigns users to namespaces."""
    run_as_group: Annotated[int, Field(ge=1)] | None = 65_532
    """Its group; null as above."""


class ContainerResources(Spec):
    """Processors and memory of the operator."""

    requests: Amounts = {"cpu": "50m", "memory": "128Mi"}
    """What it asks for."""
    limits: Amounts = {"memory": "256Mi"}
    """What it may use at most."""


class Probe(Spec):
    """How the kubelet asks how the operator is."""

    period_seconds: Annotated[int, Field(ge=1)] = 10
    """Between two questions."""
    timeout_seconds: Annotated[int, Field(ge=1)] = 5
    """How long an answer may take."""
    failure_threshold: Annotated[int, Field(ge=1)] = 3
    """So many failures in a row count."""


class Probes(Spec):
    """Probes of the operator. /healthz fails when reconciling has stopped, /readyz until the API server has been reached."""

    startup: Probe = Probe(periodSeconds=2, failureThreshold=60)
    """Until the first success, the others wait."""
    liveness: Probe = Probe()
    """Restarts the container."""
    readiness: Probe = Probe()
    """Takes it out of the metrics Service."""


class MetricsService(Spec):
    """The Service in front of /metrics."""

    enabled: bool = True
    """Make it."""
    annotations: Annotations = {}
    """Its annotations."""


class MonitorValues(Spec):
    """An object that tells the Prometheus operator to read /metrics; its CustomResourceDefinitions must be there."""

    enabled: bool = False
    """Make it."""
    labels: Labels = {}
    """Labels that your Prometheus selects on."""
    interval: Duration = "30s"
    """Between two readings."""
    scrape_timeout: Duration = "10s"
    """How long one reading may take."""


class Dashboard(Spec):
    """A Grafana dashboard in a ConfigMap, for Grafana's sidecar."""

    enabled: bool = False
    """Make it."""
    labels: Labels = {"grafana_dashboard": "1"}
    """Labels that the sidecar selects on."""
    annotations: Annotations = {}
    """Its annotations, such as the sidecar's folder."""


class Rules(Spec):
    """A PrometheusRule with alerts on the operator's metrics; its CustomResourceDefinition must be there."""

    enabled: bool = False
    """Make it."""
    labels: Labels = {}
    """Labels that your Prometheus selects on."""


class MetricsValues(Spec):
    """Prometheus metrics."""

    service: MetricsService = MetricsService()
    """The Service in front of them."""
    service_monitor: MonitorValues = MonitorValues()
    """A ServiceMonitor; needs the Service."""
    pod_monitor: MonitorValues = MonitorValues()
    """A PodMonitor; needs no Service."""
    rules: Rules = Rules()
    """A PrometheusRule."""
    dashboard: Dashboard = Dashboard()
    """A Grafana dashboard."""


class NetworkPolicy(Spec):
    """The NetworkPolicy around the operator's pod. Those around pipelines are `config.security.networkPolicies`."""

    enabled: bool = True
    """Make it: in come only readings of metrics and probes, out go only DNS and requests to the API server."""
    api_server_ports: Annotated[tuple[Port, ...], Field(min_length=1, max_length=16)] = (443, 6443, 8443, 16443)
    """Ports on which API servers listen; the one of this cluster's is enough."""
    metrics_namespaces: Annotated[tuple[NamespaceName, ...], Field(max_length=64)] = ()
    """Namespaces whose pods may read the metrics; all where empty."""


class PipelineValues(Spec):
    """A SteerLMPipeline that belongs to the release."""

    namespace: Annotated[str, Field(max_length=63, pattern="^([a-z0-9]([-a-z0-9]*[a-z0-9])?)?$")] = ""
    """Its namespace; the release's own where empty."""
    labels: Labels = {}
    """Its labels."""
    annotations: Annotations = {}
    """Its annotations."""
    spec: PipelineSpec
    """Its spec."""


class Values(Spec):
    """All values."""

    global_: Annotated[dict[str, Any], Field(alias="global")] = {}
    """Not read here; Helm hands it to every chart that is part of another."""
    name_override: NamePart = ""
    """In place of the chart's name in the names of objects."""
    fullname_override: NamePart = ""
    """In place of release and chart name in the names of objects."""
    common_labels: Labels = {}
    """Further labels of every object."""
    scope: Literal["cluster", "namespaced"] = "cluster"
    """`cluster` runs the pipelines of all namespaces; `namespaced` those of the namespaces named below, with rights in those only."""
    namespaces: Annotated[tuple[NamespaceName, ...], Field(max_length=256)] = ()
    """With scope `namespaced`: which; the release's own where empty. With scope `cluster` it has to be empty."""
    crds: Definition = Definition()
    """The CustomResourceDefinition."""
    image: ImageValues = ImageValues()
    """The operator's image. The workloads' images are `config.images`."""
    image_pull_secrets: Annotated[tuple[ObjectName, ...], Field(max_length=8)] = ()
    """Names of the Secrets, in the release's namespace, that allow pulling it."""
    config: OperatorConfig = OperatorConfig()
    """The operator's configuration: defaults for whatever a pipeline leaves out."""
    log_format: Literal["json", "text"] = "json"
    """How the operator logs."""
    service_account: ServiceAccount = ServiceAccount()
    """Who the operator is."""
    rbac: Rights = Rights()
    """What it may do."""
    replicas: Annotated[int, Field(ge=1, le=5)] = 1
    """Operators. Of more than one a single one acts, the holder of a Lease; another takes over within half a minute when it is gone."""
    user: User = User()
    """The user of its process."""
    resources: ContainerResources = ContainerResources()
    """Its processors and memory. 1,000 pipelines fit."""
    probes: Probes = Probes()
    """Its probes."""
    termination_grace_period_seconds: Annotated[int, Field(ge=1)] = 30
    """Between SIGTERM and SIGKILL."""
    environment: Annotated[dict[EnvironmentName, str], Field(max_length=64)] = {}
    """Further environment of the operator, such as a proxy's. That of the workloads is `config.environment`."""
    pod_labels: Labels = {}
    """Further labels of its pod."""
    pod_annotations: Annotations = {}
    """Annotations of its pod."""
    priority_class_name: Annotated[str, Field(max_length=253, pattern="^([a-z0-9]([-a-z0-9.]*[a-z0-9])?)?$")] = ""
    """PriorityClass of its pod."""
    node_selector: Labels = {}
    """Labels that its node must have."""
    tolerations: Annotated[tuple[TolerationSpec, ...], Field(max_length=32)] = ()
    """Taints that its pod accepts."""
    affinity: dict[str, Any] = {}
    """Affinity of its pod, as in a pod's spec."""
    metrics: MetricsValues = MetricsValues()
    """Metrics."""
    network_policy: NetworkPolicy = NetworkPolicy()
    """The NetworkPolicy around its pod."""
    pipelines: Annotated[dict[PipelineName, PipelineValues], Field(max_length=256)] = {}
    """Pipelines that belong to the release, by name. Helm cannot make a resource together with its definition, so that on a cluster that
    has none yet they come with the first `helm upgrade`; NOTES says so."""
