"""llama.cpp's own server, through its /v1/completions."""

from collections.abc import Mapping
from typing import Any

from adapter.candidates import Candidate, Draft, Position, make_position
from adapter.errors import SettingsError, UpstreamMalformed
from adapter.prefix import Prefix
from adapter.upstream.answers import finish_of, logprobs_of, nats, only_choice, usable, usage_of
from adapter.upstream.capabilities import LLAMACPP
from adapter.upstream.tokens import WRONG_TOKENIZER, TokenNames
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


class LlamaCppUpstream:
    """A model on llama.cpp's server; it takes ids, and shows ids and bytes of every candidate.

    The server shows nothing for a token that ends inside a character. So a single position is
    asked for with another token forced: the log-probabilities shown are those before the bias.
    """

    capabilities = LLAMACPP

    def __init__(self, endpoint: Endpoint, vocabulary: Vocabulary, top_logprobs: int) -> None:
        self._transport = Transport(endpoint)
        self._names = TokenNames(vocabulary)
        self._k = top_logprobs
        self._forced = {"logit_bias": {str(_letter(vocabulary)): _FORCE}}
        where = (endpoint.base_url, endpoint.model, vocabulary.fingerprint)
        self.identity: tuple[str, ...] = ("llama.cpp", *where, str(top_logprobs))

    async def draft(self, prefix: Prefix, n: int, budget: Allowance) -> Draft:
        """A run of 1 to n positions, greedy; of one position without a drafted token.

        A run whose first position is lost costs a second call, for that position alone.
        """
        if n == 1:
            return await self._single(prefix, budget)
        run = await self._run(prefix, n, budget)
        if run.positions:
            return run
        single = await self._single(prefix, budget)
        return Draft(single.positions, None, run.usage + single.usage)

    async def close(self) -> None:
        """Close all connections."""
        await self._transport.close()

    async def _single(self, prefix: Prefix, budget: Allowance) -> Draft:
        fields = _PLAIN | self._forced | {"max_tokens": 1, "logprobs": self._k}
        answer = await self._transport.complete(prefix.ids, fields, budget)
        position = read_forced(answer.body, self._names)
        return Draft((position,), None, usage_of(answer.body, answer.calls))

    async def _run(self, prefix: Prefix, n: int, budget: Allowance) -> Draft:
        fields = _PLAIN | {"max_tokens": n, "logprobs": self._k}
        answer = await self._transport.complete(prefix.ids, fields, budget)
        usage = usage_of(answer.body, answer.calls)
        positions = read_run(answer.body, self._names)[:n]
        whole = len(positions) == usage.completion_tokens
        return Draft(positions, finish_of(only_choice(answer.body)) if whole else None, usage)


def read_forced(body: Mapping[str, Any], names: TokenNames) -> Position:
    """The position behind the prompt, from an answer whose one token was forced.

    Raises UpstreamMalformed.
    """
    entries = _entries(logprobs_of(only_choice(body)))
    if not entries:
        raise UpstreamMalformed("the upstream's answer shows no token")
    return make_position(_candidates(entries[0], names), None, names.size)


def read_run(body: Mapping[str, Any], names: TokenNames) -> tuple[Position, ...]:
    """The positions up to the first one that the server did not show; maybe none.

    Behind a loss the next entry spells the lost tokens as well: its bytes are more than its
    own. Raises UpstreamMalformed.
    """
    choice = only_choice(body)
    if choice.get("logprobs") is None:
        return ()
    positions: list[Position] = []
    for entry in _entries(logprobs_of(choice)):
        candidates = _candidates(entry, names)
        drafted = _named(entry, names)
        if drafted is None:
            raise UpstreamMalformed(WRONG_TOKENIZER)
        if drafted.special is None and _spelling(entry) != drafted.token:
            break
        positions.append(make_position(candidates, usable(drafted), names.size))
        if positions[-1].drafted is None:
            break
    return tuple(positions)


def _entries(logprobs: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    entries = logprobs.get("content")
    if isinstance(entries, list) and all(isinstance(entry, dict) for entry in entries):
        return entries
    raise UpstreamMalformed(
        "the upstream's log-probabilities are not in llama.cpp's shape: set `api` to completions"
    )


def _candidates(entry: Mapping[str, Any], names: TokenNames) -> list[Candidate]:
    listed = entry.get("top_logprobs")
    if not isinstance(listed, list) or not all(isinstance(item, dict) for item in listed):
        raise UpstreamMalformed("the upstream gives no top_logprobs for a token")
    found = [(item, _named(item, names)) for item in listed]
    for item, candidate in found:
        if candidate is not None:
            names.check(candidate, _spelling(item))
    return [candidate for _, candidate in found if candidate is not None]


def _named(entry: Mapping[str, Any], names: TokenNames) -> Candidate | None:
    token = entry.get("id")
    if type(token) is not int:
        raise UpstreamMalformed("the upstream names a token without an id: is it llama.cpp?")
    return names.of_id(token, nats(entry.get("logprob")))


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
