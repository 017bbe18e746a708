"""What is said of a claim, and that one grows with its template."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from steerlm_operator.config import OperatorConfig

from nemo_steerlm.pipeline.cluster_types import amount
from tests.operator.lifetime import Lifetime
from tests.operator.world import NAME

NO_CLASS = "no persistent volumes available for this claim and no storage class is set"


@pytest.fixture
def life():
    made = Lifetime()
    made.begin(shards=1, rounds=0, nodes=1, done=0)
    made.controller.config = OperatorConfig.model_validate({"storage": {"claimTemplate": {"size": "100Gi"}}})
    made.settle()
    yield made
    made.loop.close()


def looked_at(life):
    """The condition after somebody has looked at the claim."""
    memory = life.controller._memory[NAME]
    memory.look_at_claim = True
    life.settle()
    found = {c["type"]: c for c in life.status()["conditions"]}["StorageReady"]
    return found["status"], found["reason"], found["message"]


def template(life, **fields):
    life.edit(storage={"claimTemplate": {"size": "100Gi"} | fields})
    return looked_at(life)


def test_a_claim_grows_with_its_template(life):
    assert looked_at(life)[:2] == ("True", "ClaimFound")
    assert template(life, size="1Ti")[:2] == ("True", "ClaimExpanding")
    assert life.world.claim["spec"]["resources"]["requests"]["storage"] == "1Ti"
    assert template(life, size="1024Gi")[1] == "ClaimFound"


def test_a_class_that_does_not_expand_stops_nothing(life):
    life.world.refusal_of_claim = "only dynamically provisioned pvc can be resized and the storageclass must support resize"
    status, reason, message = template(life, size="1Ti")
    assert (status, reason) == ("True", "ClaimDiffers")
    assert "must support resize" in message
    life.reach_the_end()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"size": "1Gi"}, "has 100Gi, not 1Gi: claims do not shrink"),
        ({"accessMode": "ReadWriteOnce"}, "has accessMode ReadWriteMany, not ReadWriteOnce, which never changes"),
        ({"storageClassName": "fast"}, "has storageClassName none, not fast, which never changes"),
    ],
)
def test_what_cannot_change_is_said(life, fields, words):
    life.edit(storage={"claimTemplate": {"size": "100Gi"} | fields})
    status, reason, message = looked_at(life)
    assert (status, reason) == ("True", "ClaimDiffers")
    assert words in message


def test_a_claim_without_a_volume_says_why_and_what_to_name(life):
    life.world.claim["status"]["phase"] = "Pending"
    assert looked_at(life)[:2] == ("True", "ClaimPending")
    life.world.said_of_claim = NO_CLASS
    status, reason, message = looked_at(life)
    assert (status, reason) == ("False", "ClaimUnbound")
    assert NO_CLASS in message
    assert "no default storage class" in message
    life.world.claim["spec"]["storageClassName"] = "gp3"
    assert "gp3 may have no ReadWriteMany" in looked_at(life)[2]
    assert life.world.jobs(), "a volume may come with the first pod"
    life.world.claim["status"]["phase"] = "Bound"
    assert looked_at(life)[:2] == ("True", "ClaimFound")


@given(st.integers(1, 10**6), st.sampled_from(["", "k", "Ki", "M", "Mi", "G", "Gi", "T", "Ti", "P", "Pi"]))
def test_quantities_are_numbers(number, suffix):
    expected = number * (1024 if suffix.endswith("i") else 1000) ** (" kMGTP".index(suffix[0].replace("K", "k")) if suffix else 0)
    assert amount(f"{number}{suffix}") == expected
