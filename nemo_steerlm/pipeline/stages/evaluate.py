"""``evaluate``: the value model against people, the SteerLM model against what was asked of it, and the report of both."""

from __future__ import annotations

from collections.abc import Sequence

from nemo_steerlm.pipeline import names
from nemo_steerlm.pipeline.manifest import PipelineSpec
from nemo_steerlm.pipeline.stages.annotate import steer_server, value_servers
from nemo_steerlm.pipeline.stages.prepare import RECORDS_TO_LABEL, TOKENIZER, VALUE_RECORDS
from nemo_steerlm.pipeline.stages.sample import EVALUATION
from nemo_steerlm.pipeline.stages.stage import MODEL_FOLDER, Stage, changed_fields, record_files

FORMAT = 2


def evaluate(
    spec: PipelineSpec, prepared: Stage, value_model: Stage, annotated: Stage, sampled: Sequence[Stage], steer_model: Stage
) -> Stage:
    """The stage of a pipeline whose last model ``steer_model`` trained. The ``sampled`` rounds evaluated the models before it."""
    how = spec.evaluate
    taught, _ = VALUE_RECORDS
    _, questions = RECORDS_TO_LABEL
    return Stage(
        name=names.EVALUATE,
        kind="evaluate",
        format=FORMAT,
        run="nemo_steerlm.pipeline.steps.evaluate:evaluate",
        inputs={
            prepared.name: (taught, questions, TOKENIZER),
            value_model.name: (MODEL_FOLDER,),
            annotated.name: record_files(),
            **{stage.name: (EVALUATION,) for stage in sampled},
            steer_model.name: (MODEL_FOLDER,),
        },
        fields=changed_fields(spec, "attributes", "evaluate", "model.max_sequence_length", "model.chat_tokens", "model.layout"),
        files=(*([spec.model.base] if how.needs_base else []), *([how.pairs.path] if how.pairs else [])),
        outputs=("metrics.json", "samples.jsonl", "report.html"),
        servers=(value_servers(spec, value_model), steer_server(spec, steer_model)),
        resources="evaluate",
        credentials=("hugging_face",) if how.needs_base else (),
    )
