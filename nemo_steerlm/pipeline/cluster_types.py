"""Names, quantities and small parts that several of the cluster's fields share, as Kubernetes writes them."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Literal

from pydantic import Field, model_validator

from nemo_steerlm.pipeline.sources import Spec

WORD_PATTERN = "[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?"
DOMAIN_PATTERN = "[a-z0-9]([-a-z0-9.]*[a-z0-9])?"
ObjectName = Annotated[str, Field(min_length=1, max_length=253, pattern=f"^{DOMAIN_PATTERN}$")]
NamespaceName = Annotated[str, Field(min_length=1, max_length=63, pattern="^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
LabelKey = Annotated[str, Field(min_length=1, max_length=316, pattern=f"^({DOMAIN_PATTERN}/)?{WORD_PATTERN}$")]
LabelValue = Annotated[str, Field(max_length=63, pattern=f"^({WORD_PATTERN})?$")]
QualifiedName = Annotated[str, Field(max_length=63, pattern=f"^{DOMAIN_PATTERN}/{WORD_PATTERN}$")]
Quantity = Annotated[str, Field(min_length=1, max_length=32, pattern=r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$")]
"""An amount as Kubernetes writes it, as text: ``500m``, ``16``, ``64Gi``."""
_SUFFIXES = {"m": Decimal("0.001"), **{s: Decimal(1000) ** i for i, s in enumerate("kMGTP", 1)}}
_SUFFIXES |= {f"{s}i": Decimal(1024) ** i for i, s in enumerate("KMGTP", 1)}
ImageReference = Annotated[str, Field(min_length=1, max_length=512, pattern=r"^[^\s]+$")]
SEGMENT_PATTERN = "[A-Za-z0-9_-][A-Za-z0-9._-]*"
RelativePath = Annotated[str, Field(min_length=1, max_length=253, pattern=f"^{SEGMENT_PATTERN}(/{SEGMENT_PATTERN})*$")]
"""A path below something, without ``.`` and ``..`` segments."""
Seconds = Annotated[int, Field(ge=1, le=31_536_000)]


def amount(quantity: str) -> Decimal:
    """A ``Quantity`` as a number."""
    number = quantity.rstrip("mkMGTPKi")
    return Decimal(number) * _SUFFIXES.get(quantity[len(number) :], Decimal(1))


class TolerationSpec(Spec):
    """A taint that the pods may be scheduled on."""

    key: LabelKey | None = None
    """The taint's key; every key where absent, with operator Exists."""
    operator: Literal["Exists", "Equal"] = "Equal"
    """Exists matches any value."""
    value: LabelValue | None = None
    """The taint's value."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Which effect; every one by default."""

    @model_validator(mode="after")
    def _matches_something(self) -> TolerationSpec:
        if not self.key and self.operator != "Exists":
            raise ValueError("a toleration without key needs operator Exists")
        return self


class SecretKeySpec(Spec):
    """One key of a Secret in this namespace; the operator itself never reads it."""

    name: ObjectName
    """The Secret."""
    key: Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[-._a-zA-Z0-9]+$")]
    """Its key."""
