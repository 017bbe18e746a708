"""The chart, rendered by the real helm."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "cluster"))

from local_cluster.clients import Helm
from local_cluster.errors import UnavailableError

from charts.generate import CHART

Object = dict[str, Any]
Render = Callable[..., list[Object]]


@pytest.fixture(scope="session")
def helm(tmp_path_factory: pytest.TempPathFactory) -> Helm:
    """``helm(*arguments, check=True, stdin=None)``; skips where its package cannot be had."""
    try:
        return Helm(tmp_path_factory.mktemp("helm"))
    except UnavailableError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def render(helm: Helm) -> Render:
    """``render(values, *flags)``: the objects that the chart makes of these values, hooks included."""
    return lambda values=None, *flags: helm.template(CHART, "-n", "team", *flags, values=values)


@pytest.fixture(scope="session")
def refused(helm: Helm) -> Callable[[Object], str]:
    """``refused(values)``: what helm says about values that the chart does not take."""

    def said(values: Object) -> str:
        done = helm("template", "test", str(CHART), "-n", "team", "-f", "-", stdin=yaml.safe_dump(values), check=False)
        assert done.returncode, "helm took them"
        return done.stderr

    return said
