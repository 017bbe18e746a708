"""The stages, one file each: what a stage reads, writes and needs, as explicit fields. Executors only decide where a stage runs.

What a stage does is in ``pipeline/steps``, and named by its description: the operator imports these files and none of those.
"""

from __future__ import annotations

from nemo_steerlm.pipeline.stages.graph import find, stages
from nemo_steerlm.pipeline.stages.stage import CHECKPOINT, MODEL_FOLDER, ServerNeed, Stage

__all__ = ["CHECKPOINT", "MODEL_FOLDER", "ServerNeed", "Stage", "find", "stages"]
