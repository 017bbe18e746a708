"""``prepare``: rated data to cleaned records, and the base model's tokenizer with the control tokens in it."""

from __future__ import annotations

from nemo_steerlm.pipeline.manifest import PipelineSpec
from nemo_steerlm.pipeline.stages.stage import Place, Stage, changed_fields, record_files

FORMAT = 2

VALUE_RECORDS = record_files("value_")
"""Labelled by people: the value model learns from these."""
RECORDS_TO_LABEL = record_files("annotate_")
"""To be labelled by the value model."""
TOKENIZER = "tokenizer"


def prepare(spec: PipelineSpec, place: Place) -> Stage:
    """The stage of a pipeline."""
    return Stage(
        name=place.name,
        kind="prepare",
        format=FORMAT,
        run="nemo_steerlm.pipeline.steps.prepare:prepare",
        fields=changed_fields(spec, "attributes", "data", "model", "annotate.turns"),
        files=(*spec.data.references(), spec.model.base),
        outputs=(*VALUE_RECORDS, *RECORDS_TO_LABEL, TOKENIZER),
        resources="prepare",
        credentials=("hugging_face",),
    )
