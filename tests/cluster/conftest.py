"""Clusters as fixtures, once a session: ``control_plane`` has no node and starts in seconds, ``node_cluster`` runs pods."""

from __future__ import annotations

import dataclasses
import os
import secrets
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

from local_cluster import binaries, clients
from local_cluster.client import Cluster, environment_kubeconfig
from local_cluster.clients import Helm
from local_cluster.cluster import LocalCluster, unavailable
from local_cluster.errors import ClusterError, UnavailableError
from local_cluster.images import IMAGE_VARIABLES

from tests.cluster import audited, operating
from tests.cluster.pipelines import Namespace
from tests.cluster.stand_in import DONE, Kubelet, Play

CLUSTER_FIXTURES = ("programs", "control_plane", "node_cluster", "own_node_cluster")
BUSY_SECONDS = 900
"""For one test and the clusters that it may be the first to need, on a machine that is busy with other things."""
FAILED = pytest.StashKey[bool]()
REASON = pytest.StashKey[str]()
PARTIAL = pytest.StashKey[bool]()
"""Whether some of this folder's tests were left out."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here comes last, in an order in which no cluster runs for much longer than it is used."""
    here = Path(__file__).parent
    places: dict[Path, tuple[int, bool]] = {}
    files = {item.path: number for number, item in enumerate(items)}
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.cluster)
            if not item.get_closest_marker("timeout"):
                item.add_marker(pytest.mark.timeout(BUSY_SECONDS))
            used = [number for number, name in enumerate(CLUSTER_FIXTURES, 2) if name in _fixtures(item)]
            # The chart's tests remove the definition and with it every pipeline: they go before the others.
            place = (max(used, default=1), item.path.name != "test_chart.py")
            places[item.path] = max(places.get(item.path, place), place)
    items.sort(key=lambda item: (places.get(item.path, (0, False)), files[item.path], bool(item.get_closest_marker("last"))))


def _fixtures(item: pytest.Item) -> set[str]:
    return set(getattr(item, "fixturenames", ()))


def pytest_deselected(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.session.stash[PARTIAL] = True


def pytest_collection_finish(session: pytest.Session) -> None:
    """Build the programs before the first test: a test's time limit must not count a build of many minutes.

    The processes of pytest-xdist do not: they could tell nobody of it, and ``make test`` has done it before.
    """
    files = {item.path for item in session.items}
    session.stash[PARTIAL] = session.stash.get(PARTIAL, False) or not files.issuperset(Path(__file__).parent.glob("test_*.py"))
    wanted = any(not _fixtures(item).isdisjoint(CLUSTER_FIXTURES) for item in session.items)
    if session.config.option.collectonly or not wanted or environment_kubeconfig():
        return
    reporter = session.config.pluginmanager.getplugin("terminalreporter")
    try:
        if reason := unavailable():
            raise UnavailableError(reason)
        if hasattr(session.config, "workerinput") and not binaries.built():
            raise UnavailableError("the cluster's programs are not built; python tests/cluster/cluster.py build does it, or says why not")
        binaries.ensure(lambda line: reporter.write_line(f"cluster: {line}") if reporter else None)
    except (UnavailableError, ClusterError, OSError) as error:
        session.config.stash[REASON] = str(error)
        if reporter:
            reporter.write_line(f"no cluster: {error}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report = yield
    if report.failed:
        item.stash[FAILED] = True
        item.session.stash[FAILED] = True
    return report


@pytest.fixture(scope="session")
def programs(request: pytest.FixtureRequest) -> binaries.Binaries:
    """The built programs; skips where they cannot be had."""
    found = binaries.built()
    if found is None:
        pytest.skip(request.config.stash.get(REASON, "the cluster's programs are not built"))
    return found


@pytest.fixture(scope="session")
def control_plane(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """etcd, API server, controllers and scheduler, without a node: pods stay pending."""
    yield from _cluster(request, tmp_path_factory, node=False)


@pytest.fixture(scope="session")
def node_cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster with a node that runs pods."""
    yield from _cluster(request, tmp_path_factory, node=True)


@pytest.fixture(scope="module")
def own_node_cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster with a node for one module, which installs and removes the chart; skips where another's cluster is used."""
    if environment_kubeconfig():
        pytest.skip("installs and removes the definition, which on another's cluster is not for a test to do")
    yield from _cluster(request, tmp_path_factory, node=True)


def _cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, *, node: bool) -> Iterator[Cluster]:
    if other := environment_kubeconfig():
        if node and (missing := [name for name in IMAGE_VARIABLES.values() if not os.environ.get(name)]):
            pytest.skip(f"pods of another's cluster need images that it can pull, NAME:TAG in {' and '.join(missing)}")
        yield Cluster(other, str(clients.ensure() / "kubectl"))
        return
    if reason := request.config.stash.get(REASON, ""):
        pytest.skip(reason)
    state = tmp_path_factory.mktemp("node" if node else "control-plane")
    try:
        cluster = LocalCluster.up(state, node=node, tied=True)
    except UnavailableError as error:
        pytest.skip(str(error))
    yield cluster
    failed = request.session.stash.get(FAILED, False)
    cluster.down(keep_logs=failed)
    if failed:
        print(f"\ncluster logs kept in {state}", file=sys.__stderr__)


@pytest.fixture(scope="session")
def installed(node_cluster: Cluster, helm: Helm) -> Iterator[Cluster]:
    """The cluster with the operator on its node, installed by helm into a restricted namespace."""
    node_cluster.apply(operating.restricted(operating.HOME))
    operating.helm_install(helm, node_cluster)
    yield node_cluster
    helm("uninstall", operating.RELEASE, "--namespace", operating.HOME, "--wait", cluster=node_cluster)
    node_cluster.kubectl("delete", "namespace", operating.HOME, "--wait=false")


@pytest.fixture
def local_cluster(request: pytest.FixtureRequest) -> LocalCluster:
    """The cluster with a node, for tests that stop its components or read its files; skips on another's cluster."""
    cluster = request.getfixturevalue("node_cluster")
    if not isinstance(cluster, LocalCluster):
        pytest.skip("needs the processes of a cluster of this machine, and STEERLM_TEST_KUBECONFIG names another")
    return cluster


@dataclasses.dataclass(frozen=True)
class Account:
    """Who the operator is on a cluster."""

    kubeconfig: Path
    name: str
    rules: list[dict[str, object]]


@pytest.fixture(scope="session")
def operator_account(
    request: pytest.FixtureRequest, control_plane: Cluster, helm: Helm, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Account]:
    """The definition is served, and the operator has the identity and the rights that the chart gives it.

    At the end the audit log of the whole run has to show that it asked for nothing else and, where every test was run, for all of it.
    """
    objects = operating.granted(helm)
    kubeconfig = operating.install(control_plane, objects, tmp_path_factory.mktemp("account"))
    user = f"system:serviceaccount:{operating.HOME}:{operating.account(objects)}"
    made = Account(kubeconfig, user, operating.role(objects))
    yield made
    if isinstance(control_plane, LocalCluster):
        used, refused = audited.asked(control_plane.audit(), user)
        assert used, "no request of the operator is in the audit log"
        # An API server that was restarted refuses everything until it has read its roles.
        assert not (used | refused) - audited.rights(made.rules)
        if not request.session.stash[PARTIAL]:
            assert not audited.rights(made.rules) - used, "granted, and no test used it"


@pytest.fixture(scope="module")
def operator(operator_account: Account, tmp_path_factory: pytest.TempPathFactory) -> Iterator[operating.Operator]:
    """An operator for the whole cluster, while the tests of one module run."""
    running = operating.Operator(operator_account.kubeconfig, tmp_path_factory.mktemp("operator"))
    running.start()
    yield running
    running.stop()
    assert not [line for line in running.lines() if "exc_info" in line], running.log.read_text()


@pytest.fixture
def pipelines(control_plane: Cluster, namespace: str) -> Namespace:
    """The test's namespace as a place for pipelines."""
    return Namespace(control_plane.kubeconfig, namespace)


@pytest.fixture
def kubelet(pipelines: Namespace) -> Iterator[Callable[..., Kubelet]]:
    """``kubelet(behaves)`` starts the stand-in for nodes in the test's namespace."""
    started: list[Kubelet] = []

    def start(behaves: Callable[[Any], Play | None] = lambda _: DONE) -> Kubelet:
        started.append(Kubelet(pipelines, behaves))
        started[-1].start()
        return started[-1]

    yield start
    for each in started:
        each.stopped.set()
    for each in started:
        each.join(20)


@pytest.fixture
def namespace(request: pytest.FixtureRequest) -> Iterator[str]:
    """A namespace of this test that enforces Pod Security *restricted*, on whichever cluster the test uses."""
    name = f"test-{secrets.token_hex(4)}"
    used = [request.getfixturevalue(fixture) for fixture in ("control_plane", "node_cluster") if fixture in request.fixturenames]
    if not used:
        raise pytest.UsageError("the namespace fixture needs control_plane or node_cluster beside it")
    for cluster in used:
        cluster.apply(operating.restricted(name))
        cluster.wait("serviceaccount", "default", lambda _: True, namespace=name)
    yield name
    for cluster in used:
        if request.node.stash.get(FAILED, False):
            request.node.add_report_section("teardown", "namespace", cluster.describe_failure(name))
            print(cluster.describe_failure(name))
        cluster.kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture(scope="session")
def helm(tmp_path_factory: pytest.TempPathFactory) -> Helm:
    """``helm(*arguments, cluster=None, check=True)``; skips where its package cannot be had."""
    try:
        return Helm(tmp_path_factory.mktemp("helm"))
    except UnavailableError as error:
        pytest.skip(str(error))
