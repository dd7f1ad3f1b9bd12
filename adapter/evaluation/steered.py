"""Steered: the hosted model behind an Adapter, alone and adapted at every strength."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace

from adapter.adapter import Adapter, Job
from adapter.candidates import Ending, Step
from adapter.echoing import check_scorable
from adapter.errors import BadRequest, BudgetExceeded, SettingsError
from adapter.evaluation.replies import Reply, Scored, Spent, Strength, Tally
from adapter.evaluation.suite import Task
from adapter.evaluation.together import together
from adapter.model import Model
from adapter.price import NANO
from adapter.request import Chat, Message, Request, Sampling
from tokenizer_maps.vocabulary import Vocabulary

MOST = 8
"""Items under way at most; the upstream's own bound holds for their calls."""

_NOTHING = Sampling(max_tokens=0, temperature=0.0)


class Steered:
    """One model of an adapter: `alone` is its name unsteered, `mixtures` are weights by name.

    Every text is asked of the upstream once for all strengths, and read by the pair once for all
    strengths of a mixture.
    """

    def __init__(
        self,
        adapter: Adapter,
        model: str,
        alone: str,
        mixtures: Mapping[str, Mapping[str, float]],
        alphas: Sequence[float],
    ) -> None:
        self._adapter = adapter
        self._name = model
        self._model = adapter.model(model)
        self._mixtures = dict(mixtures)
        self.at_once = min(MOST, self._model.settings.upstream.max_concurrency)
        adapted = (Strength(name, alpha) for name in mixtures for alpha in alphas)
        self.strengths = (Strength(alone), *adapted)
        self._check_limits()

    def check(self, task: Task) -> None:
        """Refuse what this model's upstream cannot do, before any paid call.

        Raises SettingsError.
        """
        if task.kind not in ("answers", "text"):
            return
        try:
            check_scorable(self._model, self._adapter.limits.forced_scoring)
        except BadRequest as error:
            raise SettingsError(f"tasks.{task.name} ({self._name}): {error}") from error

    def fits(self, text: str, window: int) -> bool:
        """Whether upstream and pair can read a text of so many tokens at once."""
        room = min(window, self._adapter.limits.echo_tokens)
        vocabularies = (self._words, self._model.pair.vocabulary)
        longest = max(len(words.start) + len(words.encode(text.encode())) for words in vocabularies)
        return longest < min(room + 1, self._model.pair.window)  # a call is for a token more

    async def scored(
        self, prompt: str, answers: Sequence[str], wanted: Sequence[Strength]
    ) -> list[Reply]:
        """Each answer's own tokens: those that end behind the prompt, one across the border too.

        Prompt and answer are tokenised as one text. The answers are asked for at once, and what
        the pair has read of the prompt they share.
        """
        async with self._reading(prompt, answers, wanted):
            found = await together(self._answer(prompt, answer, wanted) for answer in answers)
        return [_joined([its[strength] for its in found]) for strength in wanted]

    async def chosen(
        self, prompt: str, labels: Sequence[str], wanted: Sequence[Strength]
    ) -> list[Reply]:
        """In choice mode; no label where the upstream shows none of them."""
        request = Request(self._name, asked_with(self._model, prompt), choices=tuple(labels))
        return [reply async for reply in self._runs(request, wanted)]

    async def written(self, prompt: str, task: Task, wanted: Sequence[Strength]) -> list[Reply]:
        """With a trace, so that it is known what steering changed."""
        sampling = Sampling(max_tokens=task.max_tokens, temperature=0.0, stop=task.stop)
        request = Request(self._name, asked_with(self._model, prompt), sampling)
        return [reply async for reply in self._runs(request, wanted)]

    async def _answer(
        self, prompt: str, answer: str, wanted: Sequence[Strength]
    ) -> dict[Strength, Reply]:
        """An answer at every strength; what it took stands with the first.

        The strengths of one mixture come of one reading, all of them of one call.
        """
        request = Request(self._name, prompt + answer, _NOTHING, echo="scores")
        found: dict[Strength, Reply] = {}
        first: Job | None = None
        for weights, some in self._by_mixture(wanted):
            job = self._job(request, max((s.alpha or 0.0 for s in some), key=abs), weights)
            job = job if first is None else replace(job, upstream=first.upstream)
            first = first or job
            start = self._start(job, answer) if prompt else 1
            echoes = await self._adapter.scores(job, [s.alpha or 0.0 for s in some], start)
            for strength, echo in zip(some, echoes, strict=True):
                spent = _spent(job) if strength is some[0] else _nothing(job)
                tally = Tally() if strength.alpha is None else Tally.given(echo.steps)
                found[strength] = Reply((_text(echo.steps),), "", (), tally, spent)
        return found

    def _start(self, job: Job, answer: str) -> int:
        return max(1, behind(job.prefix.ids, answer, self._words))

    @asynccontextmanager
    async def _reading(
        self, prompt: str, answers: Sequence[str], wanted: Sequence[Strength]
    ) -> AsyncGenerator[None, None]:
        """Has the pair keep what it reads of the prompt while its answers are scored."""
        if len(answers) < 2 or not prompt or not any(strength.alpha for strength in wanted):
            yield
            return
        readers = []
        for weights, _ in self._by_mixture([s for s in wanted if s.alpha]):
            contexts = self._model.contexts(prompt, tuple(weights))
            readers.append(self._model.reader(contexts, weights))
        try:
            for reader in readers:
                await reader.read(())
            yield
        finally:
            for reader in readers:
                reader.close()

    def _by_mixture(
        self, wanted: Sequence[Strength]
    ) -> list[tuple[Mapping[str, float], list[Strength]]]:
        """The strengths wanted by the weights that they are of; what is unsteered goes with any."""
        own = self._model.settings.weights
        steered = {name: [s for s in wanted if s.system == name] for name in self._mixtures}
        groups = [(self._mixtures[name], some) for name, some in steered.items() if some]
        plain = [s for s in wanted if s.alpha is None]
        if not groups:
            return [(own, plain)] if plain else []
        (weights, some), *rest = groups
        return [(weights, [*plain, *some]), *rest]

    async def _runs(
        self, request: Request, wanted: Sequence[Strength]
    ) -> AsyncGenerator[Reply, None]:
        """A request at one strength after another: each pays what no other was shown."""
        first: Job | None = None
        for strength in wanted:
            weights = self._mixtures.get(strength.system, self._model.settings.weights)
            asked = replace(request, trace="steps" if strength.alpha else "off")
            job = self._job(asked, strength.alpha or 0.0, weights)
            job = job if first is None else replace(job, upstream=first.upstream)
            first = first or job
            reply = await self._run(job)
            yield reply if strength.alpha is not None else replace(reply, tally=Tally())

    async def _run(self, job: Job) -> Reply:
        try:
            return await self._ran(job)
        except BadRequest:
            if not job.labels:
                raise
            return Reply(spent=_spent(job))  # the upstream shows none of the labels

    async def _ran(self, job: Job) -> Reply:
        steps: list[Step] = []
        ending: Ending | None = None
        async with aclosing(self._adapter.run(job)) as events:
            async for event in events:
                if isinstance(event, Step):
                    steps.append(event)
                elif isinstance(event, Ending):
                    ending = event
        if ending is None or ending.out_of_budget:
            raise BudgetExceeded(
                f"an answer of {job.request.model} took more than the limits allow: raise "
                "limits.calls_per_request, or lower max_tokens"
            )
        verdict = ending.verdict
        return Reply(
            answer="".join(step.text for step in steps) + ending.text,
            weights=() if verdict is None else tuple(label.logprob for label in verdict.labels),
            tally=Tally.drawn(steps) if verdict is None else Tally.chosen(verdict),
            spent=_spent(job),
        )

    def _job(self, request: Request, alpha: float, weights: Mapping[str, float]) -> Job:
        return self._adapter.prepare(replace(request, alpha=alpha, weights=weights))

    @property
    def _words(self) -> Vocabulary:
        return self._adapter.vocabulary(self._name)

    def _check_limits(self) -> None:
        """Raises SettingsError where the settings do not allow a strength or weight."""
        low, high = self._adapter.limits.alpha
        alphas = {f"alphas: {s.alpha}": s.alpha for s in self.strengths if s.alpha is not None}
        for name, weights in self._mixtures.items():
            alphas |= {f"weights ({name}) of {key}: {w}": w for key, w in weights.items()}
            unknown = set(weights) - set(self._model.settings.weights)
            if unknown:
                raise SettingsError(f"weights: there is no expert '{unknown.pop()}'")
        for name, value in alphas.items():
            if not low <= value <= high:
                raise SettingsError(
                    f"{name} is outside limits.alpha of the settings, {low} to {high}"
                )


def asked_with(model: Model, prompt: str) -> str | Chat:
    """A prompt as a model is asked with it: a user's turn where the upstream takes only chats."""
    return Chat((Message("user", prompt),)) if model.upstream.capabilities.chats else prompt


def behind(ids: Sequence[int], answer: str, vocabulary: Vocabulary) -> int:
    """Which of a text's tokens is the first that ends within the answer at the text's end."""
    sizes = [len(vocabulary.tokens[i]) if vocabulary.spells(i) else 0 for i in ids]
    left = sum(sizes) - len(answer.encode())
    for at, size in enumerate(sizes):
        left -= size
        if left < 0:
            return at
    return len(ids)


def _joined(replies: Sequence[Reply]) -> Reply:
    """Of several answers one reply."""
    first, *rest = replies
    for reply in rest:
        scored, tally = first.scored + reply.scored, first.tally + reply.tally
        first = Reply(scored, "", (), tally, first.spent + reply.spent)
    return first


def _text(steps: Sequence[Step]) -> Scored:
    size = sum(len(step.token) for step in steps)
    return Scored(sum(step.logprob for step in steps), len(steps), size)


def _spent(job: Job) -> Spent:
    nanos = job.budget.bill.nanos
    return Spent(job.budget.calls, None if nanos is None else nanos / NANO)


def _nothing(job: Job) -> Spent:
    return Spent(0, None if job.budget.bill.nanos is None else 0.0)
