"""llama.cpp's own server, through its /v1/completions."""

import math
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from adapter.candidates import Candidate, Draft, Position, Usage, make_position
from adapter.errors import SettingsError, UpstreamMalformed
from adapter.prefix import Prefix, prompt_length
from adapter.upstream.answers import finish_of, logprobs_of, nats, only_choice, usable, usage_of
from adapter.upstream.capabilities import LLAMACPP, Capabilities
from adapter.upstream.names import Names, model_of, names_of
from adapter.upstream.pieces import pieces
from adapter.upstream.speaker import Prompted
from adapter.upstream.tokens import WRONG_TOKENIZER
from adapter.upstream.transport import Endpoint, Transport
from adapter.upstream.upstream import Allowance
from tokenizer_maps.vocabulary import Vocabulary

# Whatever the server was started with counts where nothing is said: penalties, DRY, XTC and a
# dynamic temperature change the drafted token even at temperature 0.
_PLAIN = {
    "samplers": ["temperature"],
    "temperature": 0,
    "dynatemp_range": 0,
    "top_k": 0,
    "top_p": 1,
    "min_p": 0,
    "typical_p": 1,
    "top_n_sigma": -1,
    "xtc_probability": 0,
    "mirostat": 0,
    "repeat_penalty": 1,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "dry_multiplier": 0,
    "ignore_eos": False,
    "post_sampling_probs": False,
    "cache_prompt": True,
    "n": 1,
    "stream": False,
}
_FORCE = 100
_GREEDY = "llama.cpp's server does not show every step of a sampled run"
_A = "a"
"""A text that the server itself makes the token to force of."""


class LlamaCppUpstream(Prompted):
    """A model on llama.cpp's server; it takes ids, and shows ids and bytes of every candidate.

    The server shows nothing for a token that ends inside a character. So a single position is
    asked for with another token forced: the log-probabilities shown are those before the bias.
    `run` and `run_stream` take a text as well: see `PromptSpeaker`. Without a vocabulary tokens are
    named by their bytes, and END is hidden: all tokens that end a text are shown as nothing.
    """

    def __init__(
        self, endpoint: Endpoint, vocabulary: Vocabulary | None, top_logprobs: int
    ) -> None:
        self._transport = Transport(endpoint)
        self._names = names_of(vocabulary)
        self._k = top_logprobs
        letter = _A if vocabulary is None else str(_letter(vocabulary))
        self._forced = {"logit_bias": {letter: _FORCE}}
        known = vocabulary is not None
        self.capabilities: Capabilities = (
            LLAMACPP if known else replace(LLAMACPP, end_visible=False)
        )
        model = model_of(endpoint, vocabulary)
        self.identity: tuple[str, ...] = ("llama.cpp", *model, str(top_logprobs))

    async def run(
        self, prompt: Sequence[int] | str, n: int, budget: Allowance, sampled: bool = False
    ) -> Draft:
        """A run of 1 to n positions, greedy; of one position without a drafted token.

        A run whose first position is lost costs a second call, for that position alone.
        """
        _refuse(sampled)
        if n == 1:
            return await self._single(prompt, budget)
        run = await self._run(prompt, n, budget)
        if run.positions or run.finish_reason is not None:
            return run
        single = await self._single(prompt, budget)
        return Draft(single.positions, None, run.usage + single.usage)

    async def draws(
        self, prefix: Prefix, n: int, budget: Allowance, choices: int
    ) -> tuple[Draft, ...]:
        """Not to be had: every run is greedy."""
        raise ValueError(_GREEDY)

    async def run_stream(
        self, prompt: Sequence[int] | str, n: int, budget: Allowance, sampled: bool = False
    ) -> AsyncGenerator[Draft, None]:
        """The run behind a prompt in pieces."""
        _refuse(sampled)
        found = False
        if n > 1:
            fields = _PLAIN | {"max_tokens": n, "logprobs": self._k}
            events, run = (
                self._transport.stream(prompt, fields, budget),
                LlamaCppRun(self._names, n),
            )
            async with aclosing(pieces(events, run, prompt_length(prompt))) as those:
                async for piece in those:
                    found = found or bool(piece.positions) or piece.finish_reason is not None
                    yield piece
        if not found:
            yield await self._single(prompt, budget)

    async def score(
        self, prefix: Prefix, ids: Sequence[int], budget: Allowance
    ) -> tuple[dict[int, float], Usage]:
        """Log-probabilities of chosen tokens, each forced by a call of its own.

        One that ends inside a character is not shown, and so left out.
        """
        scores: dict[int, float] = {}
        usage = Usage()
        for i in dict.fromkeys(ids):
            if self._names.of_id(i, 0.0) is None:
                continue
            fields = _PLAIN | {"logit_bias": {str(i): _FORCE}, "max_tokens": 1, "logprobs": 1}
            answer = await self._transport.complete(prefix.ids, fields, budget)
            scores |= read_score(answer.body, i)
            usage += usage_of(answer.body, answer.calls)
        return scores, usage

    async def positions(self, ids: Sequence[int], budget: Allowance) -> Draft:
        """Not to be had: the server echoes nothing."""
        raise ValueError("llama.cpp's server does not score a text in one call")

    async def close(self) -> None:
        """Close all connections."""
        await self._transport.close()

    async def _single(self, prompt: Sequence[int] | str, budget: Allowance) -> Draft:
        fields = _PLAIN | self._forced | {"max_tokens": 1, "logprobs": self._k}
        answer = await self._transport.complete(prompt, fields, budget)
        position = read_forced(answer.body, self._names)
        return Draft((position,), None, usage_of(answer.body, answer.calls))

    async def _run(self, prompt: Sequence[int] | str, n: int, budget: Allowance) -> Draft:
        fields = _PLAIN | {"max_tokens": n, "logprobs": self._k}
        answer = await self._transport.complete(prompt, fields, budget)
        run, usage = LlamaCppRun(self._names, n), usage_of(answer.body, answer.calls)
        positions = run.read(only_choice(answer.body))
        return Draft(positions, run.finish(usage.completion_tokens), usage)


def read_forced(body: Mapping[str, Any], names: Names) -> Position:
    """The position behind the prompt, from an answer whose one token was forced.

    Raises UpstreamMalformed.
    """
    entries = _entries(logprobs_of(only_choice(body)))
    if not entries:
        raise UpstreamMalformed("the upstream's answer shows no token")
    return make_position(_candidates(entries[0], names), None, names.size)


def read_run(body: Mapping[str, Any], names: Names) -> tuple[Position, ...]:
    """The positions up to the first one that the server did not show; maybe none.

    Raises UpstreamMalformed.
    """
    return LlamaCppRun(names).read(only_choice(body))


def read_score(body: Mapping[str, Any], token: int) -> dict[int, float]:
    """The log-probability of a forced token, nothing where it is not shown.

    Raises UpstreamMalformed.
    """
    choice = only_choice(body)
    entries = [] if choice.get("logprobs") is None else _entries(logprobs_of(choice))
    if not entries or entries[0].get("id") != token:
        return {}
    value = nats(entries[0].get("logprob"))
    return {token: min(value, 0.0)} if math.isfinite(value) else {}


class LlamaCppRun:
    """Reads a run from a whole answer or from the chunks of one, withheld until they are text."""

    def __init__(self, names: Names, n: int | None = None) -> None:
        self.cut = False
        self._names = names
        self._n = n
        self._count = 0
        self._ended = False
        self._finish: str | None = None

    def read(self, choice: Mapping[str, Any]) -> tuple[Position, ...]:
        """The next positions, up to the first that was not shown.

        Behind a loss the next entry spells the lost tokens as well: its bytes are more than its
        own.
        """
        self._finish = finish_of(choice) or self._finish
        if choice.get("logprobs") is None:
            return ()
        positions: list[Position] = []
        for entry in _entries(logprobs_of(choice)):
            if self._names.size is None and not _spelling(entry) and not self._ended:
                self._ended = True  # shown as nothing: END, if the server stops here
                continue
            self.cut = self.cut or self._ended
            position = None if self.cut or self._count == self._n else _position(entry, self._names)
            if position is None:
                self.cut = True
                break
            positions.append(position)
            self._count += 1
            self.cut = position.drafted is None
        return tuple(positions)

    def finish(self, completion_tokens: int) -> str | None:
        """Why the server stopped, None where a position was lost."""
        if self._ended and self._finish == "stop":
            return self._finish
        whole = not self.cut and 0 < self._count == completion_tokens
        return self._finish if whole else None


def _position(entry: Mapping[str, Any], names: Names) -> Position | None:
    """An entry's position, None where the server lost the ones before it."""
    candidates = _candidates(entry, names)
    drafted = _named(_own(entry), names)
    if drafted is None:
        raise UpstreamMalformed(WRONG_TOKENIZER)
    if drafted.special is None and _spelling(entry) != drafted.token:
        return None
    return make_position(candidates, usable(drafted), names.size)


def _refuse(sampled: bool) -> None:
    if sampled:
        raise ValueError(_GREEDY)


def _entries(logprobs: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    entries = logprobs.get("content")
    if isinstance(entries, list) and all(isinstance(entry, dict) for entry in entries):
        return entries
    raise UpstreamMalformed(
        "the upstream's log-probabilities are not in llama.cpp's shape: set `api` to completions"
    )


def _candidates(entry: Mapping[str, Any], names: Names) -> list[Candidate | None]:
    listed = entry.get("top_logprobs")
    if not isinstance(listed, list) or not all(isinstance(item, dict) for item in listed):
        raise UpstreamMalformed("the upstream gives no top_logprobs for a token")
    found = [(item, _named(item, names)) for item in listed]
    for item, candidate in found:
        if candidate is not None:
            names.check(candidate, _spelling(item))
    return [candidate for _, candidate in found]


def _named(entry: Mapping[str, Any], names: Names) -> Candidate | None:
    token = entry.get("id")
    if type(token) is not int:
        raise UpstreamMalformed("the upstream names a token without an id: is it llama.cpp?")
    return names.of_entry(entry)


def _own(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    """An entry with the bytes of its token alone: it may spell those lost before it as well."""
    listed = entry.get("top_logprobs")
    same = (item for item in (listed or ()) if item.get("id") == entry.get("id"))
    return {**entry, "bytes": next(same, entry).get("bytes")}


def _spelling(entry: Mapping[str, Any]) -> bytes:
    spelt = entry.get("bytes")
    try:
        return bytes(spelt) if isinstance(spelt, list) else b""
    except (TypeError, ValueError):
        raise UpstreamMalformed("the upstream spells a token with what are no bytes") from None


def _letter(vocabulary: Vocabulary) -> int:
    """The lowest token that is one ASCII letter, hence always a whole character."""
    for token, spelt in enumerate(vocabulary.tokens):
        if spelt.isalpha() and len(spelt) == 1 and token not in vocabulary.end:
            return token
    raise SettingsError("tokenizer: it has no token of one letter, which llama.cpp's server needs")
