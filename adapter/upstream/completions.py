"""Classic /v1/completions, in the shape vLLM serves it."""

import math
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from adapter.candidates import Candidate, Draft, Position, Usage, make_position
from adapter.errors import UpstreamMalformed
from adapter.prefix import Prefix, prompt_length
from adapter.upstream.answers import (
    choices_of,
    finish_of,
    logprobs_of,
    nats,
    only_choice,
    top,
    usable,
    usage_of,
)
from adapter.upstream.capabilities import COMPLETIONS, Capabilities
from adapter.upstream.names import Names, model_of, names_of
from adapter.upstream.pieces import is_over, pieces
from adapter.upstream.printed import LONGEST, Printed, bare, beginning
from adapter.upstream.speaker import Prompted
from adapter.upstream.tokens import NOT_SPELT, WRONG_TOKENIZER, is_id
from adapter.upstream.transport import Endpoint, Transport
from adapter.upstream.upstream import Allowance
from tokenizer_maps.vocabulary import Vocabulary

EVERY = 1 << 24
"""A top_k that no vocabulary has: some servers refuse 0 where others refuse -1."""

# vLLM fills what is left out from the model's generation_config, so everything is said.
_PLAIN = {
    "temperature": 0,
    "top_p": 1,
    "top_k": EVERY,
    "min_p": 0,
    "repetition_penalty": 1,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "n": 1,
    "stream": False,
    "echo": False,
    "return_tokens_as_token_ids": True,
}


_SAMPLED = _PLAIN | {"temperature": 1}
_SCORED = 128
"""Tokens whose log-probabilities may be asked for at a time."""


class NamedByText(UpstreamMalformed):
    """Tokens are named by their text, which many share: a sampled one cannot be told from others.

    That is so for every answer, whatever was sampled, so asking again favours no sample.
    """

    def __init__(self) -> None:
        super().__init__(
            "the upstream names the tokens it samples by their text, and many share one"
        )


class CompletionsUpstream(Prompted):
    """A hosted model behind /v1/completions that takes ids and returns top-k log-probabilities.

    `run` and `run_stream` take a text as well: see `PromptSpeaker`. Without a vocabulary tokens are
    named by their text.
    """

    def __init__(
        self, endpoint: Endpoint, vocabulary: Vocabulary | None, top_logprobs: int
    ) -> None:
        self._transport = Transport(endpoint)
        self._names = names_of(vocabulary)
        self._k = top_logprobs
        self._own = {} if vocabulary is not None else {"return_tokens_as_token_ids": False}
        self.capabilities: Capabilities = COMPLETIONS
        model = model_of(endpoint, vocabulary)
        self.identity: tuple[str, ...] = ("completions", *model, str(top_logprobs))

    async def run(
        self, prompt: Sequence[int] | str, n: int, budget: Allowance, sampled: bool = False
    ) -> Draft:
        """A run of up to n positions; a greedy one where samples turn out to be of no use."""
        return (await self._runs(prompt, n, budget, sampled, 1))[0]

    async def draws(
        self, prefix: Prefix, n: int, budget: Allowance, choices: int
    ) -> tuple[Draft, ...]:
        """Sampled runs from one request; a greedy one where samples turn out to be of no use."""
        return await self._runs(prefix.ids, n, budget, True, choices)

    async def _runs(
        self, prompt: Sequence[int] | str, n: int, budget: Allowance, sampled: bool, choices: int
    ) -> tuple[Draft, ...]:
        fields = self._fields(n, sampled) | {"n": choices}
        answer = await self._transport.complete(prompt, fields, budget)
        usage = usage_of(answer.body, answer.calls)
        try:
            runs = read_runs(answer.body, self._names, self._k, n, sampled, choices)
        except NamedByText:
            self._sample_no_more()
            greedy = await self.run(prompt, n, budget)
            return (replace(greedy, usage=usage + greedy.usage),)
        first, *others = (Draft(positions, finish, Usage()) for positions, finish in runs)
        return (replace(first, usage=usage), *others)

    async def run_stream(
        self, prompt: Sequence[int] | str, n: int, budget: Allowance, sampled: bool = False
    ) -> AsyncGenerator[Draft, None]:
        """The run behind a prompt in pieces; a whole one where none of the stream is of use."""
        events = self._transport.stream(prompt, self._fields(n, sampled), budget)
        run = CompletionsRun(self._names, self._k, n, sampled)
        # A prompt of ids may end inside a character, and what is then printed is the server's whim.
        printed = Printed(run, holds=not sampled) if isinstance(prompt, str) else None
        came = False
        try:
            async with aclosing(pieces(events, run, prompt_length(prompt), printed)) as found:
                async for piece in found:
                    came = came or bool(piece.positions) or piece.finish_reason is not None
                    yield piece
            if printed is not None and not came:
                yield beginning(await self.run(prompt, min(n, LONGEST), budget))
        except NamedByText:
            self._sample_no_more()
            yield Draft((), None, Usage(calls=1, prompt_tokens=prompt_length(prompt)))
            async with aclosing(self.run_stream(prompt, n, budget)) as found:
                async for piece in found:
                    yield piece

    async def score(
        self, prefix: Prefix, ids: Sequence[int], budget: Allowance
    ) -> tuple[dict[int, float], Usage]:
        """Log-probabilities of chosen tokens, up to 128 a call."""
        scores: dict[int, float] = {}
        usage = Usage()
        named = [i for i in dict.fromkeys(ids) if self._names.of_id(i, 0.0) is not None]
        for at in range(0, len(named), _SCORED):
            chosen = named[at : at + _SCORED]
            fields = _PLAIN | {"max_tokens": 1, "logprobs": 1, "logprob_token_ids": chosen}
            answer = await self._transport.complete(prefix.ids, fields, budget)
            scores |= read_scores(answer.body, chosen)
            usage += usage_of(answer.body, answer.calls)
        return scores, usage

    async def positions(self, ids: Sequence[int], budget: Allowance) -> Draft:
        """The text echoed with its log-probabilities, and one token more."""
        fields = _PLAIN | {"echo": True, "max_tokens": 1, "logprobs": self._k}
        answer = await self._transport.complete(ids, fields, budget)
        positions = read_text(answer.body, ids, self._names, self._k)
        return Draft(positions, None, usage_of(answer.body, answer.calls))

    async def close(self) -> None:
        """Close all connections."""
        await self._transport.close()

    def _sample_no_more(self) -> None:
        """From now on every run is greedy."""
        self.capabilities = replace(self.capabilities, rejection=False)

    def _fields(self, n: int, sampled: bool) -> dict[str, Any]:
        fields = (_SAMPLED if sampled else _PLAIN) | self._own
        return fields | {"max_tokens": n, "logprobs": self._k}


def read_runs(
    body: Mapping[str, Any], names: Names, k: int, n: int, sampled: bool = False, choices: int = 1
) -> list[tuple[tuple[Position, ...], str | None]]:
    """For each choice up to n positions of an answer to `logprobs: k`, and why the run ended.

    A run is cut behind a token that cannot be named; it is empty where the upstream stopped at
    once and did not show END. Raises UpstreamMalformed.
    """
    runs = [(CompletionsRun(names, k, n, sampled), c) for c in choices_of(body, choices)]
    return [(run.read(choice), run.finish()) for run, choice in runs]


def read_text(
    body: Mapping[str, Any], ids: Sequence[int], names: Names, k: int
) -> tuple[Position, ...]:
    """The positions behind each of the ids that were echoed. Raises UpstreamMalformed."""
    choice = only_choice(body)
    logprobs = logprobs_of(choice)
    # Nothing predicts the first token: its entries are null on all servers.
    behind = {name: column[1:] for name, column in logprobs.items() if isinstance(column, list)}
    steps = list(_steps(dict(logprobs) | behind))
    given, own = steps[: len(ids) - 1], steps[len(ids) - 1 :]
    if len(given) < len(ids) - 1 or len(own) > 1:
        raise UpstreamMalformed(
            f"the upstream shows {len(steps)} positions for a text of {len(ids)} tokens: "
            "it cannot echo log-probabilities"
        )
    for token, (echoed, _, _) in zip(ids[1:], given, strict=True):
        if is_id(echoed) and echoed != f"token_id:{token}":
            raise UpstreamMalformed("the upstream echoes another text than was sent")
    taken = [names.of_id(token, value) for token, (_, value, _) in zip(ids[1:], given, strict=True)]
    taken += [names.of_key(key, value) for key, value, _ in own]
    return tuple(
        _position(key, token, shown, names, k)
        for (key, _, shown), token in zip(steps, taken, strict=True)
    )


def read_scores(body: Mapping[str, Any], ids: Sequence[int]) -> dict[int, float]:
    """The log-probabilities of those ids that an answer shows. Raises UpstreamMalformed."""
    shown = next((shown for _, _, shown in _steps(logprobs_of(only_choice(body)))), {})
    found = {i: nats(shown.get(f"token_id:{i}")) for i in ids}
    return {i: min(value, 0.0) for i, value in found.items() if math.isfinite(value)}


class CompletionsRun:
    """Reads a run from a whole answer or from the chunks of one."""

    def __init__(self, names: Names, k: int, n: int, sampled: bool) -> None:
        self.cut = False
        self._names = names
        self._k = k
        self._n = n
        self._sampled = sampled
        self._drafted: list[Candidate | None] = []
        self._text = ""
        self._finish: str | None = None

    @property
    def text(self) -> str:
        """What is printed so far."""
        return self._text

    def read(self, choice: Mapping[str, Any]) -> tuple[Position, ...]:
        """The next positions; what comes behind the last one wanted cuts the run."""
        self._finish = finish_of(choice) or self._finish
        text = choice.get("text")
        if not text and not _shows_tokens(choice):
            return ()
        self._text += text if isinstance(text, str) else ""
        positions: list[Position] = []
        for key, logprob, shown in _steps(logprobs_of(choice)):
            self.cut = self.cut or is_over(self._drafted, self._n)
            if not self.cut:
                positions.append(self._position(key, logprob, shown))
                self._drafted.append(positions[-1].drafted)
        return tuple(positions)

    def finish(self, _: int = 0) -> str | None:
        """Why the upstream stopped, None where the run was cut."""
        if self.cut:
            return None
        if not self._drafted and (self._finish != "stop" or self._text):
            raise UpstreamMalformed("the upstream's answer has no token")
        check_text(self._text, self._drafted, exact=self._names.size is None)
        return self._finish

    def _position(self, key: str, logprob: float, shown: Mapping[str, Any]) -> Position:
        if self._sampled and not is_id(key):
            raise NamedByText
        taken = self._names.of_key(key, logprob)
        return _position(key, taken, shown, self._names, self._k)


def _position(
    key: str, taken: Candidate | None, shown: Mapping[str, Any], names: Names, k: int
) -> Position:
    """The position at which a token was taken that goes by a key."""
    values = {name: nats(value) for name, value in shown.items()}
    listed = top(values, k, values.__getitem__, lambda name: name == key)
    found = [names.of_key(name, values[name]) for name in listed]
    if names.size is None and len(listed) < k:
        found.append(None)  # tokens that are printed alike have become one
    return make_position(found, usable(taken), names.size)


def _shows_tokens(choice: Mapping[str, Any]) -> bool:
    logprobs = choice.get("logprobs")
    return isinstance(logprobs, dict) and bool(logprobs.get("tokens") or logprobs.get("content"))


def _steps(logprobs: Mapping[str, Any]) -> Iterator[tuple[str, float, dict[str, Any]]]:
    if "content" in logprobs:
        raise UpstreamMalformed("the upstream answers in llama.cpp's shape: set `api` to llama.cpp")
    columns = [logprobs.get(name) for name in ("tokens", "token_logprobs", "top_logprobs")]
    if not all(isinstance(c, list) and len(c) == len(columns[0] or []) for c in columns):
        raise UpstreamMalformed("the upstream's log-probabilities lack top_logprobs or are uneven")
    for key, logprob, shown in zip(*(c or [] for c in columns), strict=True):
        if not isinstance(key, str) or not isinstance(shown, dict):
            raise UpstreamMalformed("the upstream gives no top_logprobs for a token")
        yield key, nats(logprob), shown


def check_text(text: str, drafted: list[Candidate | None], exact: bool) -> None:
    """Ids name no bytes, so the text has to agree with what the vocabulary makes of them.

    `exact`: tokens are known by what is printed of them alone, so each space counts.
    """
    expected = _spelling(drafted)
    if exact and expected and text.lstrip() != expected.lstrip():
        raise UpstreamMalformed(NOT_SPELT)
    # Some servers tidy spaces; a prompt cut inside a character is repeated before the text.
    if text and not bare(text).endswith(bare(expected)):
        raise UpstreamMalformed(WRONG_TOKENIZER)


def _spelling(drafted: list[Candidate | None]) -> str:
    """The text of a run; "" where it cannot be told: unnamed, special or half characters."""
    spelt = [token.token for token in drafted if token is not None and token.special is None]
    if len(spelt) < len(drafted):
        return ""
    try:
        return b"".join(spelt).decode()
    except UnicodeDecodeError:
        return ""
