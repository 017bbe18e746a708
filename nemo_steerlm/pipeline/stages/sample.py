"""``bootstrap-N-sample``: the SteerLM model answers training prompts under good labels, and the value model reads the answers."""

from __future__ import annotations

from nemo_steerlm.pipeline import names
from nemo_steerlm.pipeline.manifest import PipelineSpec
from nemo_steerlm.pipeline.stages.annotate import LABELLING, steer_server, value_servers
from nemo_steerlm.pipeline.stages.prepare import RECORDS_TO_LABEL, TOKENIZER
from nemo_steerlm.pipeline.stages.stage import MODEL_FOLDER, Stage, changed_fields, record_files

FORMAT = 2

EVALUATION = "evaluation.json"
"""How the model that a round samples from answers what the evaluation asks: its servers run at that time. It decides no training, so the
fields of ``evaluate`` are not in the stage's hash; answers to other questions are not compared."""


def sample(spec: PipelineSpec, number: int, prepared: Stage, value_model: Stage, annotated: Stage, previous: Stage) -> Stage:
    """The stage of round ``number``, which samples from the model that ``previous`` trained."""
    _, questions = RECORDS_TO_LABEL
    return Stage(
        name=names.sampling(number),
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
        fields={"round": number, **changed_fields(spec, *LABELLING, "bootstrap", leave_out=("bootstrap.rounds", "bootstrap.train"))},
        outputs=(*record_files(), EVALUATION),
        round=number,
        servers=(value_servers(spec, value_model), steer_server(spec, previous)),
        resources="annotate",
    )
