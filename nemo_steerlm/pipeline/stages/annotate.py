"""``annotate``: the value model labels the conversations that the SteerLM model will train on."""

from __future__ import annotations

import dataclasses

from nemo_steerlm.pipeline.engine_spec import EngineSpec
from nemo_steerlm.pipeline.manifest import PipelineSpec
from nemo_steerlm.pipeline.stages.prepare import RECORDS_TO_LABEL, TOKENIZER
from nemo_steerlm.pipeline.stages.stage import MODEL_FOLDER, Place, ServerNeed, Stage, changed_fields, record_files

FORMAT = 1

LABELLING = ("attributes", "model.max_sequence_length", "model.chat_tokens", "model.layout", "annotate.turns")
"""What decides the labels besides records and model, and what of the labelled records is kept."""


def annotate(spec: PipelineSpec, place: Place) -> Stage:
    """The stage of a pipeline."""
    prepared, value_model = place.last("prepare"), place.trained("value")
    return Stage(
        name=place.name,
        kind="annotate",
        format=FORMAT,
        run="nemo_steerlm.pipeline.steps.annotate:annotate",
        inputs={prepared.name: (*RECORDS_TO_LABEL, TOKENIZER), value_model.name: (MODEL_FOLDER,)},
        fields=changed_fields(spec, *LABELLING),
        outputs=(*record_files(), "summary.json"),
        servers=(value_servers(spec, value_model),),
        shards=spec.annotate.shards,
        resources="annotate",
    )


def value_servers(spec: PipelineSpec, model: Stage) -> ServerNeed:
    """Servers of the value model: there is much to read, so there may be several."""
    wanted = spec.annotate.servers
    return ServerNeed(
        role="value",
        stage=model.name,
        replicas=wanted.replicas,
        devices=wanted.devices,
        startup_timeout_seconds=wanted.startup_timeout_seconds,
        engine=wanted.engine,
    )


def steer_server(spec: PipelineSpec, model: Stage) -> ServerNeed:
    """Servers of the SteerLM model, as many as of the value model, in the same engine. A server elsewhere has one model, the other one."""
    engine = EngineSpec() if spec.annotate.servers.engine.external else spec.annotate.servers.engine
    return dataclasses.replace(value_servers(spec, model), role="steer", engine=engine)
