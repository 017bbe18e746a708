"""``evaluate``: the value model against people, the SteerLM model against what was asked of it, and the report of both."""

from __future__ import annotations

from nemo_steerlm.pipeline.manifest import PipelineSpec
from nemo_steerlm.pipeline.stages.annotate import steer_server, value_servers
from nemo_steerlm.pipeline.stages.prepare import RECORDS_TO_LABEL, TOKENIZER, VALUE_RECORDS
from nemo_steerlm.pipeline.stages.sample import EVALUATION
from nemo_steerlm.pipeline.stages.stage import MODEL_FOLDER, Place, Stage, changed_fields, record_files

FORMAT = 3


def evaluate(spec: PipelineSpec, place: Place) -> Stage:
    """The stage of a pipeline. The rounds' samplings evaluated the SteerLM models before the last one."""
    how = spec.evaluate
    prepared, annotated = place.last("prepare"), place.last("annotate")
    value_model, steer_model = place.trained("value"), place.trained("steer")
    taught, _ = VALUE_RECORDS
    _, questions = RECORDS_TO_LABEL
    return Stage(
        name=place.name,
        kind="evaluate",
        format=FORMAT,
        run="nemo_steerlm.pipeline.steps.evaluate:evaluate",
        inputs={
            prepared.name: (taught, questions, TOKENIZER),
            value_model.name: (MODEL_FOLDER,),
            annotated.name: record_files(),
            **{stage.name: (EVALUATION,) for stage in place.all("sample")},
            steer_model.name: (MODEL_FOLDER,),
        },
        fields=changed_fields(spec, "attributes", "evaluate", "model.max_sequence_length", "model.chat_tokens", "model.layout"),
        files=(*([spec.model.base] if how.needs_base else []), *([how.pairs.path] if how.pairs else [])),
        outputs=("metrics.json", "samples.jsonl", "report.html"),
        servers=(value_servers(spec, value_model), steer_server(spec, steer_model)),
        resources="evaluate",
        credentials=("hugging_face",) if how.needs_base else (),
    )
