"""Adapter: puts the parts together from settings; what the service and the demo run on."""

import secrets
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from adapter.budget import Budget, RequestTotal
from adapter.candidates import Echo, Ending, Step, Usage
from adapter.decoding import Frozen, Generation, Labels, Stride, choose, decode
from adapter.echoing import Echoing, check_scorable
from adapter.errors import BadRequest, ModelNotFound, SettingsError
from adapter.metrics import Metrics
from adapter.model import Model, load_models, open_prefix_cache
from adapter.prefix import Prefix
from adapter.price import nanos
from adapter.request import Chat, Request, Sampling
from adapter.settings import KeySettings, LimitSettings, Settings, load_settings
from adapter.upstream.lookups import Lookups
from cache import Cache, CacheError, Total, Totals, open_totals
from tokenizer_maps.bridge import Context
from tokenizer_maps.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True)
class Job:
    """A request that was found to be in order, rendered for every model that reads it.

    `contexts` is empty where no offset is needed; all choices share seed, budget and what the
    upstream has shown. `prompt_tokens` are the upstream's; `rough`: no more than so many.
    """

    request: Request
    model: Model
    alpha: float
    weights: Mapping[str, float]
    prefix: Prefix
    contexts: Mapping[str, Context]
    seed: int
    budget: Budget
    upstream: Frozen
    lookups: Lookups
    prompt_tokens: int
    rough: bool
    labels: Labels


class Adapter:
    """The configured models, ready to generate; `metrics` counts what they do.

    It closes the models, the cache they share and the day's totals.
    """

    def __init__(
        self,
        models: Mapping[str, Model],
        limits: LimitSettings,
        cache: Cache | None = None,
        totals: Totals | None = None,
    ) -> None:
        self._models = dict(models)
        self.limits = limits
        self._cache = cache
        self._totals = open_totals("memory://") if totals is None else totals
        self.metrics = Metrics({name: model.pace for name, model in models.items()}, cache)
        for model in models.values():
            model.pair.watch(self.metrics.batches.observe)

    @classmethod
    def from_settings(cls, settings: Settings | Path) -> Self:
        """Load every pair, vocabulary and map the settings name; no upstream call is made.

        Raises SettingsError or PairError.
        """
        if isinstance(settings, Path):
            settings = load_settings(settings)
        cache = open_prefix_cache(settings)
        models = load_models(settings, cache)
        return cls(models, settings.limits, cache, _open_totals(settings))

    @property
    def models(self) -> tuple[str, ...]:
        """The names clients may ask for."""
        return tuple(self._models)

    def vocabulary(self, model: str) -> Vocabulary:
        """The tokens of a model's upstream. Raises ModelNotFound, BadRequest where unknown."""
        vocabulary = self.model(model).vocabulary
        if vocabulary is None:
            raise BadRequest(f"the tokenizer of '{model}' is unknown", param="model")
        return vocabulary

    def budget(self, model: str, prompts: int = 1, key: KeySettings | None = None) -> Budget:
        """What a request of so many prompts may spend on a model, asked for with a key.

        Raises ModelNotFound.
        """
        calls, price = self.limits.calls_per_request * prompts, self.model(model).price
        return Budget(calls, price, dict(self._caps(key)), self.metrics.ledger(model))

    def prepare(self, request: Request, budget: Budget | None = None) -> Job:
        """Check a request against the limits and render it; without a budget it has its own.

        Raises BadRequest and its kinds.
        """
        model = self.model(request.model)
        own = model.settings
        alpha = own.alpha if request.alpha is None else request.alpha
        weights = own.weights if request.weights is None else dict(request.weights)
        self._check(request, model, alpha, weights)
        labels = model.labels(request.choices)
        most = max((len(path) for paths in labels.values() for path in paths), default=0)
        if labels:
            request = replace(request, sampling=Sampling(max_tokens=most, temperature=0.0))
        if request.echo == "scores":
            check_scorable(model, self.limits.forced_scoring)
        prefix = model.prefix(request.prompt)
        steered = alpha != 0.0 or request.trace != "off"
        if request.echo == "scores" and steered:
            self._check_echo(prefix)
        contexts = model.contexts(request.prompt, tuple(weights)) if steered else {}
        model.check_window(contexts, request.sampling.max_tokens)
        seed = request.sampling.seed
        upstream = model.upstream.for_request(request.cache, request.tenant)
        return Job(
            request=request,
            model=model,
            alpha=alpha,
            weights=weights,
            prefix=prefix,
            contexts=contexts,
            seed=secrets.randbits(63) if seed is None else seed,
            budget=self.budget(request.model) if budget is None else budget,
            upstream=Frozen(upstream),
            lookups=upstream.lookups,
            prompt_tokens=model.prompt_tokens(request.prompt, prefix),
            rough=model.vocabulary is None or isinstance(prefix.prompt, Chat),
            labels=labels,
        )

    async def run(self, job: Job, choice: int = 0) -> AsyncGenerator[Step | Echo | Ending, None]:
        """The steps of one choice, then its Ending; in front an Echo of the prompt if asked for.

        With labels to choose from there is only an Ending. Raises AdapterError kinds.
        """
        before, spent = replace(job.lookups), Usage()
        if job.request.echo != "off":
            echo = await self._echo(job)
            spent = echo.usage
            yield echo
        async with aclosing(self._generated(job, choice)) as events:
            async for event in events:
                if isinstance(event, Ending):
                    event = replace(event, usage=spent + event.usage)
                self.metrics.count(job.request.model, event)
                yield event
        self.metrics.looked_up(job.request.model, job.lookups.since(before))

    async def _echo(self, job: Job) -> Echo:
        if job.request.echo == "text":
            return _echoing(job, ()).text(job.prefix)
        return (await self.scores(job, (job.alpha,)))[0]

    async def _generated(self, job: Job, choice: int) -> AsyncGenerator[Step | Ending, None]:
        model, request = job.model, job.request
        if not request.sampling.max_tokens:
            yield Ending("length", "", Usage())
            return
        reader = model.reader(job.contexts, job.weights) if job.contexts else None
        lookahead = request.lookahead or model.settings.lookahead.n
        generation = Generation(
            prefix=job.prefix,
            sampling=request.sampling,
            influence=model.influence(job.alpha, reader),
            stride=Stride(model.pace, lookahead),
            seed=job.seed,
            choice=choice,
            choices=request.n,
            shown=request.shown,
        )
        try:
            if job.labels:
                yield await choose(job.upstream, generation, job.labels, job.budget)
                return
            async with aclosing(decode(job.upstream, generation, job.budget)) as events:
                async for event in events:
                    yield event
        finally:
            if reader is not None:
                reader.close()

    async def scores(self, job: Job, alphas: Sequence[float], start: int = 1) -> list[Echo]:
        """The prompt of a job with `echo: scores`, from its token `start` on, at each strength.

        The upstream is asked once for all of them, and the pair reads every place once; a job
        without contexts can only be scored with 0. Raises AdapterError kinds.
        """
        echoing = _echoing(job, alphas)
        return await echoing.scores(job.prefix, job.request.shown, job.budget, start)

    async def close(self) -> None:
        """Close every upstream connection, end the pairs' workers, let go of the cache."""
        for model in self._models.values():
            await model.close()
        if self._cache is not None:
            await self._cache.close()
        await self._totals.close()

    def model(self, name: str) -> Model:
        """The parts behind a name. Raises ModelNotFound."""
        model = self._models.get(name)
        if model is None:
            names = ", ".join(sorted(self._models))
            raise ModelNotFound(f"no model '{name}' here; there is {names}", param="model")
        return model

    def _caps(self, key: KeySettings | None) -> Iterator[tuple[str, Total]]:
        """Every total a request spends from, by the setting that caps it."""
        if self.limits.money_per_request is not None:
            yield "limits.money_per_request", RequestTotal(nanos(self.limits.money_per_request))
        if self.limits.money_per_day is not None:
            day = self._totals.of("deployment", nanos(self.limits.money_per_day))
            yield "limits.money_per_day", day
        if key is not None and key.money_per_day is not None:
            own = self._totals.of(f"key {key.name}", nanos(key.money_per_day))
            yield "keys.money_per_day", own

    def _check_echo(self, prefix: Prefix) -> None:
        if len(prefix.ids) > self.limits.echo_tokens:
            raise BadRequest(
                f"the prompt has {len(prefix.ids)} tokens, and with echo and logprobs up to "
                f"{self.limits.echo_tokens} can be scored as steered (limits.echo_tokens); send a "
                "shorter one, or score it with steering.alpha 0",
                param="prompt",
            )

    def _check(
        self, request: Request, model: Model, alpha: float, weights: Mapping[str, float]
    ) -> None:
        low, high = self.limits.alpha
        for name, value in (("alpha", alpha), *((f"weights.{k}", v) for k, v in weights.items())):
            if not low <= value <= high:
                raise BadRequest(
                    f"steering.{name} is {value}, allowed is {low} to {high} (limits.alpha)",
                    param=f"steering.{name}",
                )
        unknown = set(weights) - set(model.settings.weights)
        if unknown or not weights:
            experts = ", ".join(model.settings.weights)
            raise BadRequest(
                f"steering.weights names {', '.join(sorted(unknown)) or 'no expert'}; "
                f"this model has {experts}",
                param="steering.weights",
            )
        model.check_bias(request.sampling.logit_bias)
        if request.sampling.max_tokens > self.limits.max_tokens:
            raise BadRequest(
                f"max_tokens is {request.sampling.max_tokens}, allowed is up to "
                f"{self.limits.max_tokens} (limits.max_tokens)",
                param="max_tokens",
            )


def _echoing(job: Job, alphas: Sequence[float]) -> Echoing:
    return Echoing(job.model, job.upstream, alphas, job.weights if job.contexts else None)


def _open_totals(settings: Settings) -> Totals:
    """The day's totals; shared by leases where the cache is a Redis. Raises SettingsError."""
    try:
        return open_totals(settings.cache.url if settings.daily_money else "memory://")
    except CacheError as error:
        raise SettingsError(f"cache.url: {error}") from error
