"""Whether trying a stage again makes sense: how far it has got, how long to wait, when to give up. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from nemo_steerlm.pipeline.cluster_status import StageStatus
from nemo_steerlm.pipeline.stages import Stage
from steerlm_operator.config import DISRUPTION_LIMIT
from steerlm_operator.draft import Draft
from steerlm_operator.readings import Reading, shorten

LONGEST_RETRY_SECONDS = 600.0
SAVED = "saved"
"""Of a training's progress: the step of its last checkpoint, which is how far the next attempt starts from."""
USUAL_DISRUPTIONS = 2
"""So many disruptions in a row are normal life; more become a condition."""


def note_progress(draft: Draft, stage: Stage, entry: StageStatus, progress: Mapping[str, Any]) -> None:
    """A stage that got further than any attempt before is forgiven what failed until then."""
    reached = progress.get(SAVED if stage.training else "done")
    if not isinstance(reached, int) or reached <= entry.furthest:
        return
    entry.furthest = reached
    entry.progress_attempt = entry.attempt
    entry.counted_failures = entry.disruptions = 0
    draft.drop_condition("Advancing")


def count(draft: Draft, entry: StageStatus, reading: Reading) -> Reading:
    """Count one failed attempt. Returns the failure, made permanent where disruptions have gone on for too long without progress."""
    if reading.counted:
        entry.counted_failures += 1
        return reading
    entry.disruptions += 1
    given = draft.pipeline.run_policy.disruption_limit
    limit = DISRUPTION_LIMIT if given is None else given
    if reading.permanent or entry.disruptions <= limit:
        return reading
    message = f"{_since(entry)}: {entry.disruptions} disruptions in a row; the last one: {reading.message}"
    return dataclasses.replace(reading, reason="NoProgress", message=shorten(message), permanent=True)


def delay(draft: Draft, entry: StageStatus, *, counted: bool) -> float:
    """Seconds until the next attempt: doubled with every failure of that sort."""
    before = max((entry.counted_failures if counted else entry.disruptions) - 1, 0)
    # 2**10 is beyond the longest wait for any setting that makes sense.
    return min(draft.pipeline.config.retry_seconds * 2.0 ** min(before, 10), LONGEST_RETRY_SECONDS)


def report_no_progress(draft: Draft, entry: StageStatus, reading: Reading) -> None:
    """A condition for a stage that is disrupted again and again and gets no further."""
    if entry.disruptions > USUAL_DISRUPTIONS:
        message = f"{entry.name}: {_since(entry)}, attempt {entry.attempt} was the last one; it ended: {reading.message}"
        draft.condition("Advancing", False, "NoProgress", message)


def _since(entry: StageStatus) -> str:
    return f"no progress since attempt {entry.progress_attempt}" if entry.progress_attempt else "no progress in any attempt"
