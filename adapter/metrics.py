"""Metrics: what steering does and costs, counted for Prometheus."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from adapter import stages
from adapter.candidates import Ending, Step
from adapter.decoding import Pace
from adapter.errors import AdapterError
from adapter.price import NANO
from adapter.stages import Stage
from adapter.upstream.lookups import Lookups, outcome
from cache import Cache

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_BATCHES = (1, 2, 4, 8, 16, 32, 64)

_PACE = {
    "acceptance": "Share of drafted tokens kept, the recent ones weighing most.",
    "cached": "Share of prompt tokens that the upstream billed as cached.",
    "call_seconds": "What an upstream call takes whatever it brings, as fitted.",
    "token_seconds": "What each token adds to a call, the pair's reading included, as fitted.",
}
"""What the best length of a draft is chosen by."""


class Metrics:
    """Counters of one process, by model; `registry` is what a scrape reads."""

    def __init__(self, paces: Mapping[str, Pace], cache: Cache | None = None) -> None:
        self.registry = CollectorRegistry()
        self._steps = self._counter("steps", "Tokens emitted.", "status", "source")
        self._flags = self._counter("step_flags", "Tokens emitted with a flag.", "flag")
        self._calls = self._counter("upstream_calls", "Calls made to the upstream.")
        self._tokens = self._counter("upstream_tokens", "Tokens the upstream billed.", "kind")
        self._endings = self._counter("answers", "Choices finished.", "finish_reason")
        self._results = self._counter(
            "cache_results", "Choices by what the cache had of them.", "result"
        )
        if cache is not None:
            self.registry.register(_Failures(cache))
        self._money = self._counter("upstream_money", "Money spent, in the prices' currency.")
        self._refusals = self._counter("budget_refusals", "Calls no cap allowed.", "cap")
        self._requests = self._counter(
            "requests", "Requests for tokens, by how they came out.", "operation", "outcome"
        )
        self.running = Gauge(
            "adapter_requests_running", "Requests being answered.", registry=self.registry
        )
        self._stages = Histogram(
            "adapter_stage_seconds",
            "What the stages of requests took; see adapter/stages.py.",
            ["model", "stage"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.batches = Histogram(
            "adapter_pair_batch_texts",
            "Texts that one forward of a pair's model read for all requests.",
            buckets=_BATCHES,
            registry=self.registry,
        )
        self._turned_away = Counter(
            "adapter_refusals",
            "Requests without a known key or beyond a limit, by the error's code.",
            ["code"],
            registry=self.registry,
        )
        for name, text in _PACE.items():
            gauge = Gauge(f"adapter_lookahead_{name}", text, ["model"], registry=self.registry)
            for model, pace in paces.items():
                gauge.labels(model).set_function(partial(getattr, pace, name))

    def count(self, model: str, event: Step | Ending) -> None:
        """A token was emitted, or a choice is finished."""
        if isinstance(event, Step):
            self._step(model, event)
        else:
            self._ended(model, event)

    def looked_up(self, model: str, lookups: Lookups) -> None:
        """A choice is finished; one that had all from its request's others counts nowhere."""
        if lookups.hits or lookups.misses:
            self._results.labels(model, outcome([lookups])).inc()

    def asked(self, model: str, operation: str, outcome: str) -> None:
        """A request is over; `model` is empty where it named none of ours."""
        self._requests.labels(model, operation, outcome).inc()

    def took(self, model: str, stage: Stage, seconds: float) -> None:
        """A stage of a request is over."""
        self._stages.labels(model, stage).observe(seconds)

    def refused(self, error: AdapterError) -> None:
        """A request got no further than the door."""
        self._turned_away.labels(error.code).inc()

    def ledger(self, model: str) -> "ModelLedger":
        """Where a request's budget reports to."""
        return ModelLedger(self._money.labels(model), partial(self._refusals.labels, model))

    def _step(self, model: str, step: Step) -> None:
        self._steps.labels(model, step.status, step.source).inc()
        for flag in step.flags:
            self._flags.labels(model, flag).inc()

    def _ended(self, model: str, ending: Ending) -> None:
        self._endings.labels(model, ending.finish_reason).inc()
        usage = ending.usage
        billed = stages.billed.get()
        if billed is not None:
            billed.append((usage.prompt_tokens, usage.completion_tokens))
        self._calls.labels(model).inc(usage.calls)
        self._tokens.labels(model, "prompt").inc(usage.prompt_tokens)
        self._tokens.labels(model, "cached").inc(usage.cached_tokens)
        self._tokens.labels(model, "completion").inc(usage.completion_tokens)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"adapter_{name}", text, ["model", *labels], registry=self.registry)


class _Failures(Collector):
    """Counts what the cache's store could not serve; requests then did without."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache

    def collect(self) -> Iterator[CounterMetricFamily]:
        text = "Calls that the cache's store could not serve."
        yield CounterMetricFamily("adapter_cache_failures", text, value=self._cache.failures)


@dataclass(frozen=True, slots=True)
class ModelLedger:
    """Money spent on one model, and calls that no cap allowed."""

    money: Counter
    refusals: Callable[[str], Counter]

    def spent(self, nanos: int) -> None:
        """So many nano-units were spent."""
        self.money.inc(nanos / NANO)

    def refused(self, cap: str) -> None:
        """A cap, named by its setting, did not allow a call."""
        self.refusals(cap).inc()
