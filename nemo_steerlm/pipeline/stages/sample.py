"""``bootstrap-N-sample``: the SteerLM model answers training prompts under good labels, and the value model reads the answers."""

from __future__ import annotations

from nemo_steerlm.pipeline.manifest import PipelineSpec
from nemo_steerlm.pipeline.stages.annotate import LABELLING, steer_server, value_servers
from nemo_steerlm.pipeline.stages.prepare import RECORDS_TO_LABEL, TOKENIZER
from nemo_steerlm.pipeline.stages.stage import MODEL_FOLDER, Place, Stage, changed_fields, record_files

FORMAT = 2

EVALUATION = "evaluation.json"
"""How the model that a round samples from answers what the evaluation asks: its servers run at that time. It decides no training, so the
fields of ``evaluate`` are not in the stage's hash; answers to other questions are not compared."""


def sample(spec: PipelineSpec, place: Place) -> Stage:
    """The stage of a round, which samples from the SteerLM model that was trained last."""
    prepared, annotated = place.last("prepare"), place.last("annotate")
    value_model, previous = place.trained("value"), place.trained("steer")
    _, questions = RECORDS_TO_LABEL
    return Stage(
        name=place.name,
        kind="sample",
        format=FORMAT,
        run="nemo_steerlm.pipeline.steps.sample:sample",
        inputs={
            prepared.name: (questions, TOKENIZER),
            annotated.name: record_files(),
            value_model.name: (MODEL_FOLDER,),
            previous.name: (MODEL_FOLDER,),
        },
        # The round seeds the draw. How many rounds there are changes none of them.
        fields={"round": place.round, **changed_fields(spec, *LABELLING, "bootstrap", leave_out=("bootstrap.rounds", "bootstrap.train"))},
        outputs=(*record_files(), EVALUATION),
        round=place.round,
        servers=(value_servers(spec, value_model), steer_server(spec, previous)),
        resources="annotate",
    )
