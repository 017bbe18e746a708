"""Prometheus metrics of one server."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """What ``/metrics`` shows. Each server has its own registry, so two in one process do not mix."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.waiting = Gauge("steerlm_waiting", "Rows and conversations that wait for the engine", registry=registry)
        self.running = Gauge("steerlm_running", "Rows being generated", registry=registry)
        self.generate_batch = Histogram("steerlm_generate_batch_rows", "Rows of a decoding step", buckets=_ROWS, registry=registry)
        self.score_batch = Histogram("steerlm_score_batch_rows", "Conversations of a scoring batch", buckets=_ROWS, registry=registry)
        self.prompt_tokens = Counter("steerlm_prompt_tokens", "Prompt tokens read for generation", registry=registry)
        self.reused_tokens = Counter(
            "steerlm_prefix_cache_tokens", "Tokens that were not read because something that begins alike had been", registry=registry
        )
        self.generated_tokens = Counter("steerlm_generated_tokens", "Tokens generated", registry=registry)
        self.scored_turns = Counter("steerlm_scored_turns", "Turns labelled", registry=registry)
        self.first_token = Histogram("steerlm_first_token_seconds", "From arrival to the first token", buckets=_SECONDS, registry=registry)
        self.latency = Histogram(
            "steerlm_request_seconds", "From request to the end of its answer", ["path", "status"], buckets=_SECONDS, registry=registry
        )

    def text(self, *others: Metrics) -> bytes:
        """The exposition format: what this model did, and with it the ``others`` of its process, added up."""
        sums = CollectorRegistry()
        sums.register(_Sums([self.registry, *(other.registry for other in others)]))
        return generate_latest(sums)


class _Sums(Collector):
    """The metrics of several registries, equal ones added up."""

    def __init__(self, registries: Sequence[CollectorRegistry]) -> None:
        self._registries = registries

    def collect(self) -> Iterator[Metric]:
        """See Collector. A counter was created when the first of its parts was."""
        families: dict[str, Metric] = {}
        samples: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], Sample]] = {}
        for family in (family for registry in self._registries for family in registry.collect()):
            families.setdefault(family.name, family)
            found = samples.setdefault(family.name, {})
            for sample in family.samples:
                key = (sample.name, tuple(sample.labels.items()))
                if key not in found:
                    found[key] = sample
                elif not sample.name.endswith("_created"):
                    found[key] = sample._replace(value=sample.value + found[key].value)
        for name, family in families.items():
            family.samples = list(samples[name].values())
            yield family
