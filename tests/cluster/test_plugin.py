"""``kubectl steerlm`` against a real API server and the operator; ``test_pipeline.py`` has the parts that need running pods."""

from __future__ import annotations

import pytest
import yaml

from tests.cluster.pipelines import SPEC
from tests.cluster.plugin import Plugin
from tests.cluster.stand_in import DONE, stage_of


@pytest.fixture
def steerlm(control_plane, namespace):
    return Plugin(control_plane, namespace)


@pytest.fixture
def written(tmp_path):
    """A pipeline's file with these fields in its spec."""

    def write(**spec):
        content = {"apiVersion": "steerlm.dev/v1alpha1", "kind": "SteerLMPipeline", "metadata": {"name": "p"}, "spec": SPEC | spec}
        path = tmp_path / "p.yaml"
        path.write_text(yaml.safe_dump(content))
        return str(path)

    return write


@pytest.mark.usefixtures("operator_account")
def test_plan_says_what_applying_would_change(control_plane, namespace, steerlm, written):
    assert "+  name: p\n" in steerlm("plan", written())
    control_plane.kubectl("apply", "-f", written(), namespace=namespace)
    assert steerlm("plan", written()) == ""
    changed = [
        line
        for line in steerlm("plan", written(serve={"enabled": True, "insecure": True})).splitlines()
        if line[:1] in "+-" and "enabled" in line
    ]
    assert changed == ["-    enabled: false", "+    enabled: true"]
    code, said = steerlm.refused("plan", written(storage={"claimName": "a", "claimTemplate": {"size": "1Gi"}}))
    assert "give claimName or claimTemplate, not both" in said
    assert "the API server did not take the file" in said
    assert code


@pytest.mark.usefixtures("operator")
def test_status_suspend_resume_and_retry(pipelines, kubelet, steerlm):
    bad = {"exit": 78, "message": "no such precision"}
    held = {"train-value"}
    kubelet(lambda pod: None if stage_of(pod) in held else bad if bad and stage_of(pod) == "train-steer" else DONE)
    pipelines.create()
    assert "has not started" in steerlm.refused("logs", "p", "--stage", "evaluate")[1]
    pipelines.until(lambda s: s.stages.get("train-value", {}).get("attempt"))
    assert steerlm("suspend", "p") == "p: suspended\n"
    pipelines.until(lambda s: s.holds("Suspended"))
    lines = steerlm("status", "p").splitlines()
    assert lines[0] == "p: Suspended, suspended"
    assert [line.split()[:2] for line in lines[1:3]] == [["prepare", "Succeeded"], ["train-value", "Pending"]]
    assert any(line.split()[:3] == ["Suspended", "True", "Suspended:"] for line in lines)
    held.clear()
    assert steerlm("resume", "p") == "p: resumed\n"
    pipelines.until(lambda s: s.holds("Failed"))
    said = steerlm("status", "p")
    assert "p: Failed, train-steer BadConfiguration" in said
    assert "BadConfiguration: exit code 78: p-train-steer-1" in said
    assert "no such precision" in said
    code, said = steerlm.refused("open", "p")
    assert (code, "serves nothing: it is Failed" in said) == (2, True)
    bad.clear()
    assert "again from where it failed" in steerlm("retry", "p")
    end = pipelines.until(lambda s: s.holds("Complete"))
    assert (end.stages["train-steer"]["attempt"], end.stages["annotate"]["attempt"]) == (2, 1)
    steerlm("retry", "p", "--from", "evaluate")
    pipelines.until(lambda s: s.holds("Complete") and s.stages["evaluate"]["attempt"] == 2)
    assert "should match" in steerlm.refused("retry", "p", "--from", "anotate")[1]
    assert '"absent" not found' in steerlm.refused("status", "absent")[1]
