"""The claim: found, made, expanded, and what is wrong with one that has no volume. Pure."""

from __future__ import annotations

from decimal import Decimal

from nemo_steerlm.pipeline.cluster_spec import ClaimTemplateSpec
from nemo_steerlm.pipeline.cluster_types import amount
from steerlm_operator.draft import Draft, Refusal, find_condition
from steerlm_operator.models import Object
from steerlm_operator.readings import shorten
from steerlm_operator.resources import surroundings

MISSING_SECONDS = 15
"""Between two looks at a claim that is absent, or has no volume yet."""
USABLE = ("ClaimFound", "ClaimPending", "ClaimUnbound", "ClaimExpanding", "ClaimDiffers")
"""Reasons with which pods are made: one that has no volume may get it when the first of them is scheduled."""
UNSETTLED = ("ClaimPending", "ClaimUnbound")
LONGEST_REFUSAL_SECONDS = 300.0


def ready(draft: Draft) -> bool:
    """Whether pods can name the claim. Says in conditions what there is to say of it."""
    claim = draft.observed.claim
    refusal = draft.observed.refusals.get(("PersistentVolumeClaim", draft.pipeline.storage.claim_name))
    if claim is None:  # nobody looked: nothing new, but for what the API server said since
        known = find_condition(draft.status, "StorageReady")
        usable = known is not None and known.reason in USABLE
        if usable and refusal:
            draft.condition("StorageReady", True, "ClaimDiffers", f"{_name(draft)} cannot be changed: {refusal.message}")
        if known and known.reason in UNSETTLED:
            draft.look_again(MISSING_SECONDS)
        return usable
    if not claim:
        _make(draft, refusal)
        return False
    phase = claim.get("status", {}).get("phase", "Pending")
    if phase == "Lost" or claim["metadata"].get("deletionTimestamp"):
        message = f"{_name(draft)} is lost or being deleted"
        draft.condition("StorageReady", False, "ClaimLost", message)
        draft.condition("Progressing", False, "ClaimLost", message)
        draft.look_again(MISSING_SECONDS)
        return False
    if phase == "Pending":
        _tell_why_unbound(draft, claim)
        draft.look_again(MISSING_SECONDS)
    else:
        _compare(draft, claim, refusal)
    return True


def wait(refusal: Refusal | None) -> float:
    """Seconds until something refused is tried again, or something new is looked for."""
    return min(5.0 * 2 ** min(refusal.count, 10), LONGEST_REFUSAL_SECONDS) if refusal else 2.0


def _make(draft: Draft, refusal: Refusal | None) -> None:
    made = surroundings.claim(draft.pipeline)
    reason, message = "ClaimNotFound", f"there is no {_name(draft)} in namespace {draft.pipeline.namespace}: make it"
    if made:
        draft.apply.append(made)
        reason, message = (refusal.reason, refusal.message) if refusal else ("ClaimCreating", f"making {_name(draft)}")
    draft.condition("StorageReady", False, reason, message)
    draft.condition("Progressing", made is not None and refusal is None, reason, message)
    draft.look_again(wait(refusal) if made else MISSING_SECONDS)


def _tell_why_unbound(draft: Draft, claim: Object) -> None:
    event = draft.observed.claim_event
    if not event:
        draft.condition("StorageReady", True, "ClaimPending", f"{_name(draft)} has no volume yet")
        return
    spec = claim.get("spec", {})
    advice = []
    if not spec.get("storageClassName"):
        advice.append("this cluster has no default storage class: name one in storage.claimTemplate.storageClassName")
    elif "ReadWriteMany" in spec.get("accessModes", ()):
        advice.append(
            f"storage class {spec['storageClassName']} may have no ReadWriteMany: name one of a shared file system (EFS, Filestore, Azure "
            "Files, NFS, CephFS, Lustre) in storage.claimTemplate.storageClassName; accessMode ReadWriteOnce does for a single node"
        )
    draft.condition("StorageReady", False, "ClaimUnbound", "; ".join((f"{_name(draft)} gets no volume: {event}", *advice)))


def _compare(draft: Draft, claim: Object, refusal: Refusal | None) -> None:
    """Expand a claim whose template has grown; say what else of it has changed in vain."""
    template = draft.pipeline.storage.template
    wanted, held = _terms(template, claim) if template else ({}, {})
    fixed = [f"{key} {held[key]}, not {wanted[key]}" for key in wanted if key != "size" and wanted[key] != held.get(key)]
    if fixed:
        message = f"{_name(draft)} has {' and '.join(fixed)}, which never changes: delete it once its data is elsewhere, or name another"
        draft.condition("StorageReady", True, "ClaimDiffers", message)
        return
    more = amount(wanted["size"]) - amount(held["size"]) if wanted and held.get("size") else Decimal(0)
    if more > 0 and (made := surroundings.claim(draft.pipeline)):
        draft.last.append(made)
        message = f"{_name(draft)} grows from {held['size']} to {wanted['size']}"
        draft.condition(
            "StorageReady", True, *(("ClaimDiffers", f"{message}: {refusal.message}") if refusal else ("ClaimExpanding", message))
        )
    elif more < 0:
        message = f"{_name(draft)} has {held['size']}, not {wanted['size']}: claims do not shrink"
        draft.condition("StorageReady", True, "ClaimDiffers", message)
    else:
        draft.condition("StorageReady", True, "ClaimFound", _name(draft))


def _terms(template: ClaimTemplateSpec, claim: Object) -> tuple[dict[str, str], dict[str, str]]:
    """What the template wants and what the claim has, under the template's names."""
    spec = claim.get("spec", {})
    wanted = {"size": template.size, "accessMode": template.access_mode}
    if template.storage_class_name:
        wanted["storageClassName"] = template.storage_class_name
    modes = spec.get("accessModes") or ()
    held = {
        "size": (spec.get("resources") or {}).get("requests", {}).get("storage", ""),
        "accessMode": template.access_mode if template.access_mode in modes else ", ".join(modes),
        "storageClassName": spec.get("storageClassName") or "none",
    }
    return wanted, held


def _name(draft: Draft) -> str:
    return shorten(f"PersistentVolumeClaim {draft.pipeline.storage.claim_name}")
