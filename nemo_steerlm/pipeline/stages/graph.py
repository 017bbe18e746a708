"""Which stages a pipeline has: those of the registry, and those of its rounds once per round."""

from __future__ import annotations

import itertools
import pkgutil

from nemo_steerlm.core.errors import UsageError, nearest, shown
from nemo_steerlm.pipeline.manifest import SteerLMPipeline
from nemo_steerlm.pipeline.registry import STAGES
from nemo_steerlm.pipeline.stages.stage import Place, Stage


def stages(manifest: SteerLMPipeline) -> tuple[Stage, ...]:
    """Every stage of a pipeline in the order they run, without ``serve`` (it is no work that ends)."""
    spec = manifest.spec
    graph: list[Stage] = []
    for each_round, group in itertools.groupby(STAGES, key=lambda entry: entry.each_round):
        entries = tuple(group)
        for number in range(1, spec.bootstrap.rounds + 1) if each_round else (None,):
            for entry in entries:
                place = Place(name=entry.named(number), round=number, before=tuple(graph))
                graph.append(pkgutil.resolve_name(entry.describe)(spec, place))
    return tuple(graph)


def find(graph: tuple[Stage, ...], name: str) -> Stage:
    """The stage called ``name``. Raises UsageError listing those there are."""
    for stage in graph:
        if stage.name == name:
            return stage
    known = [stage.name for stage in graph]
    raise UsageError(f"unknown stage {shown(name)}: {nearest(name, known)}known: {', '.join(known)}")
