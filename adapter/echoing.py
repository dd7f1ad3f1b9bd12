"""Echoing: a prompt given back, and how likely each of its tokens was as adapted."""

from collections.abc import Iterator, Mapping, Sequence

from adapter.budget import Budget
from adapter.candidates import Candidate, Echo, Position, Step, Usage
from adapter.decoding import Frozen, Generation, Stride, given
from adapter.errors import BadRequest, UnsupportedParameter, UpstreamMalformed
from adapter.model import Model
from adapter.prefix import Prefix
from adapter.request import Sampling


def check_scorable(model: Model, forced: bool) -> None:
    """Refuse what cannot be scored, before any paid call; `forced`: a call a token is allowed.

    Raises BadRequest and UnsupportedParameter.
    """
    if model.templates.expert is not None or model.templates.antiexpert is not None:
        raise BadRequest(
            "echo with logprobs scores a text as it stands, and this model's templates make it a "
            "part of another one; leave echo out",
            param="echo",
        )
    known = model.upstream.capabilities
    if known.text_scoring == "echo" or (forced and known.scoring is not None):
        return
    able = known.scoring is not None and known.continues != "none"
    raise UnsupportedParameter(
        "echo with logprobs is not supported: this upstream cannot score a text in one call; "
        + (
            "limits.forced_scoring: true allows a call for each token"
            if able
            else "choose a model whose upstream can, such as vLLM, or score labels by "
            "steering.choices"
        ),
        param="echo",
    )


class Echoing:
    """Scores one prompt behind `upstream`, steered with each of `alphas`, and with `weights`."""

    def __init__(
        self,
        model: Model,
        upstream: Frozen,
        alphas: Sequence[float],
        weights: Mapping[str, float] | None,
    ) -> None:
        """`weights` None: no offset is needed."""
        self._model = model
        self._upstream = upstream
        self._alphas = alphas
        self._weights = weights

    def text(self, prefix: Prefix) -> Echo:
        """The prompt alone; one of text as it stands, whatever its tokens are."""
        if isinstance(prefix.prompt, str):
            return Echo(Candidate(b"", 0.0), (), prefix.prompt)
        first, *_ = tokens = self._model.lexicon.of_ids(prefix.ids)
        return Echo(first, (), _spelt(tokens))

    async def scores(
        self, prefix: Prefix, shown: int, budget: Budget, start: int = 1
    ) -> list[Echo]:
        """The prompt with a Step for each token from `start` on, once for every strength.

        The upstream is asked once, and the pair reads once. Raises what upstreams raise.
        """
        tokens = self._model.lexicon.of_ids(prefix.ids)
        positions, usage = await self._positions(prefix, tokens, budget, start)
        steps: list[list[Step]] = [[] for _ in self._alphas]
        for at, end in _stretches(tokens, start):
            found = positions[at - start : end - start]
            for its, more in zip(
                steps, await self._steps(prefix.ids[:at], found, shown, budget), strict=True
            ):
                its += more
        return [Echo(tokens[0], tuple(its), _spelt(tokens), usage) for its in steps]

    async def _positions(
        self, prefix: Prefix, tokens: Sequence[Candidate], budget: Budget, start: int
    ) -> tuple[Sequence[Position], Usage]:
        """Where the tokens from `start` on stand."""
        rest = tokens[start:]
        if not rest:
            return (), Usage()
        found, usage = await self._upstream.given(Prefix.of(prefix.ids[:start]), rest, budget)
        if len(found) < len(rest) or any(position.drafted is None for position in found):
            raise UpstreamMalformed("the upstream does not tell how likely each token of a text is")
        return found, usage

    async def _steps(
        self, head: tuple[int, ...], positions: Sequence[Position], shown: int, budget: Budget
    ) -> list[list[Step]]:
        """The steps of positions behind a head, once for every strength."""
        generation = self._generation(head, shown)
        try:
            return await given(self._upstream, generation, positions, budget, self._alphas)
        finally:
            if generation.influence.reader is not None:
                generation.influence.reader.close()

    def _generation(self, head: tuple[int, ...], shown: int) -> Generation:
        model, weights, reader = self._model, self._weights, None
        if weights is not None:
            reader = model.reader(model.contexts(head, tuple(weights)), weights)
        return Generation(
            prefix=Prefix.of(head),
            sampling=Sampling(),
            influence=model.influence(0.0, reader),  # a strength is given with each reading
            stride=Stride(model.pace, 1),
            seed=0,
            choice=0,
            shown=shown,
        )


def _stretches(tokens: Sequence[Candidate], start: int) -> Iterator[tuple[int, int]]:
    """Where each stretch of tokens begins and ends that the pair reads as one text.

    A special token is the last of one stretch, and the next stretch stands behind it.
    """
    for at in range(start, len(tokens)):
        if tokens[at].special is not None or at == len(tokens) - 1:
            yield start, at + 1
            start = at + 1


def _spelt(tokens: Sequence[Candidate]) -> str:
    return b"".join(token.token for token in tokens).decode("utf-8", "replace")
