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
    """Scores one prompt behind `upstream`, steered with `alpha` and `weights`."""

    def __init__(
        self, model: Model, upstream: Frozen, alpha: float, weights: Mapping[str, float] | None
    ) -> None:
        """`weights` None: no offset is needed."""
        self._model = model
        self._upstream = upstream
        self._alpha = alpha
        self._weights = weights

    def text(self, prefix: Prefix) -> Echo:
        """The prompt alone; one of text as it stands, whatever its tokens are."""
        if isinstance(prefix.prompt, str):
            return Echo(Candidate(b"", 0.0), (), prefix.prompt)
        first, *_ = tokens = self._model.lexicon.of_ids(prefix.ids)
        return Echo(first, (), _spelt(tokens))

    async def scores(self, prefix: Prefix, shown: int, budget: Budget) -> Echo:
        """The prompt with a Step for each token but the first. Raises what upstreams raise."""
        first, *rest = tokens = self._model.lexicon.of_ids(prefix.ids)
        positions: Sequence[Position] = ()
        usage = Usage()
        if rest:
            positions, usage = await self._upstream.given(Prefix.of(prefix.ids[:1]), rest, budget)
        if len(positions) < len(rest) or any(p.drafted is None for p in positions):
            raise UpstreamMalformed("the upstream does not tell how likely each token of a text is")
        steps: list[Step] = []
        for at, end in _stretches(tokens):
            generation = self._generation(prefix.ids[:at], shown)
            try:
                steps += await given(
                    self._upstream, generation, positions[at - 1 : end - 1], budget
                )
            finally:
                if generation.influence.reader is not None:
                    generation.influence.reader.close()
        return Echo(first, tuple(steps), _spelt(tokens), usage)

    def _generation(self, head: tuple[int, ...], shown: int) -> Generation:
        model, weights, reader = self._model, self._weights, None
        if weights is not None:
            reader = model.reader(model.contexts(head, tuple(weights)), weights)
        return Generation(
            prefix=Prefix.of(head),
            sampling=Sampling(),
            influence=model.influence(self._alpha, reader),
            stride=Stride(model.pace, 1),
            seed=0,
            choice=0,
            shown=shown,
        )


def _stretches(tokens: Sequence[Candidate]) -> Iterator[tuple[int, int]]:
    """Where each stretch of tokens begins and ends that the pair reads as one text.

    A special token is the last of one stretch, and the next stretch stands behind it.
    """
    start = 1
    for at in range(1, len(tokens)):
        if tokens[at].special is not None or at == len(tokens) - 1:
            yield start, at + 1
            start = at + 1


def _spelt(tokens: Sequence[Candidate]) -> str:
    return b"".join(token.token for token in tokens).decode("utf-8", "replace")
