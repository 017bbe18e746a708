"""Which stages a pipeline has.

``prepare → train-value → annotate → train-steer → [bootstrap-N-sample → bootstrap-N-train]… → evaluate``, and ``serve`` after that.
"""

from __future__ import annotations

from nemo_steerlm.core.errors import UsageError, nearest, shown
from nemo_steerlm.pipeline.manifest import SteerLMPipeline
from nemo_steerlm.pipeline.stages.annotate import annotate
from nemo_steerlm.pipeline.stages.evaluate import evaluate
from nemo_steerlm.pipeline.stages.prepare import prepare
from nemo_steerlm.pipeline.stages.sample import sample
from nemo_steerlm.pipeline.stages.stage import Stage
from nemo_steerlm.pipeline.stages.train import bootstrap_train, train_steer, train_value


def stages(manifest: SteerLMPipeline) -> tuple[Stage, ...]:
    """Every stage of a pipeline in the order they run, without ``serve`` (it is no work that ends)."""
    spec = manifest.spec
    prepared = prepare(spec)
    value_model = train_value(spec, prepared)
    annotated = annotate(spec, prepared, value_model)
    steer_model = train_steer(spec, prepared, value_model, annotated)
    graph = [prepared, value_model, annotated, steer_model]
    rounds: list[Stage] = []
    for number in range(1, spec.bootstrap.rounds + 1):
        sampled = sample(spec, number, prepared, value_model, annotated, steer_model)
        steer_model = bootstrap_train(spec, prepared, value_model, sampled, steer_model)
        graph += [sampled, steer_model]
        rounds.append(sampled)
    return (*graph, evaluate(spec, prepared, value_model, annotated, rounds, steer_model))


def find(graph: tuple[Stage, ...], name: str) -> Stage:
    """The stage called ``name``. Raises UsageError listing those there are."""
    for stage in graph:
        if stage.name == name:
            return stage
    known = [stage.name for stage in graph]
    raise UsageError(f"unknown stage {shown(name)}: {nearest(name, known)}known: {', '.join(known)}")
