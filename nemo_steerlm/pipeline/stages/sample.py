"""``bootstrap-N-sample``: the SteerLM model answers training prompts under good labels, and the value model reads the answers."""

from __future__ import annotations

from nemo_steerlm.pipeline import names
from nemo_steerlm.pipeline.manifest import PipelineSpec
from nemo_steerlm.pipeline.stages.annotate import LABELLING, steer_server, value_servers
from nemo_steerlm.pipeline.stages.prepare import TOKENIZER
from nemo_steerlm.pipeline.stages.stage import MODEL_FOLDER, Stage, changed_fields, record_files

FORMAT = 1


def sample(spec: PipelineSpec, number: int, prepared: Stage, value_model: Stage, annotated: Stage, previous: Stage) -> Stage:
    """The stage of round ``number``, which samples from the model that ``previous`` trained."""
    return Stage(
        name=names.sampling(number),
        kind="sample",
        format=FORMAT,
        run="nemo_steerlm.pipeline.steps.sample:sample",
        inputs={
            prepared.name: (TOKENIZER,),
            annotated.name: record_files(),
            value_model.name: (MODEL_FOLDER,),
            previous.name: (MODEL_FOLDER,),
        },
        # The round seeds the draw. How many rounds there are changes none of them.
        fields={"round": number, **changed_fields(spec, *LABELLING, "bootstrap", leave_out=("bootstrap.rounds",))},
        outputs=record_files(),
        round=number,
        servers=(value_servers(spec, value_model), steer_server(spec, previous)),
        resources="annotate",
    )
