"""Classic /v1/completions, in the shape vLLM serves it."""

from collections.abc import Iterator, Mapping
from typing import Any

from adapter.candidates import END, Candidate, Draft, Position, make_position
from adapter.errors import UpstreamMalformed
from adapter.prefix import Prefix
from adapter.upstream.answers import finish_of, logprobs_of, nats, only_choice, usable, usage_of
from adapter.upstream.capabilities import COMPLETIONS
from adapter.upstream.tokens import WRONG_TOKENIZER, TokenNames
from adapter.upstream.transport import Endpoint, Transport
from adapter.upstream.upstream import Allowance
from tokenizer_maps.vocabulary import Vocabulary

# vLLM fills what is left out from the model's generation_config, so everything is said.
_PLAIN = {
    "temperature": 0,
    "top_p": 1,
    "top_k": -1,
    "min_p": 0,
    "repetition_penalty": 1,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "n": 1,
    "stream": False,
    "echo": False,
    "return_tokens_as_token_ids": True,
}


class CompletionsUpstream:
    """A hosted model behind /v1/completions that takes ids and returns top-k log-probabilities."""

    capabilities = COMPLETIONS

    def __init__(self, endpoint: Endpoint, vocabulary: Vocabulary, top_logprobs: int) -> None:
        self._transport = Transport(endpoint)
        self._names = TokenNames(vocabulary)
        self._k = top_logprobs
        where = (endpoint.base_url, endpoint.model, vocabulary.fingerprint)
        self.identity: tuple[str, ...] = ("completions", *where, str(top_logprobs))

    async def draft(self, prefix: Prefix, n: int, budget: Allowance) -> Draft:
        """A run of up to n positions, greedy."""
        fields = _PLAIN | {"max_tokens": n, "logprobs": self._k}
        answer = await self._transport.complete(prefix.ids, fields, budget)
        positions, finish = read_run(answer.body, self._names, self._k, n)
        return Draft(positions, finish, usage_of(answer.body, answer.calls))

    async def close(self) -> None:
        """Close all connections."""
        await self._transport.close()


def read_run(
    body: Mapping[str, Any], names: TokenNames, k: int, n: int
) -> tuple[tuple[Position, ...], str | None]:
    """Up to n positions of an answer to `logprobs: k`, and why the run ended.

    A run is cut behind a token that cannot be named; it is empty where the upstream stopped at
    once and did not show END. Raises UpstreamMalformed.
    """
    choice = only_choice(body)
    finish = finish_of(choice)
    if finish == "stop" and not choice.get("text") and not _shows_tokens(choice):
        return (), finish
    steps = list(_steps(logprobs_of(choice)))
    positions: list[Position] = []
    for key, logprob, shown in steps[:n]:
        positions.append(_position(names, key, logprob, shown, k))
        drafted = positions[-1].drafted
        if drafted is None or drafted.special == END:
            break
    if not positions:
        raise UpstreamMalformed("the upstream's answer has no token")
    whole = len(positions) == len(steps)
    if whole:
        _check_text(choice.get("text"), positions)
    return tuple(positions), finish if whole else None


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


def _position(
    names: TokenNames, key: str, logprob: float, shown: Mapping[str, Any], k: int
) -> Position:
    listed = {name: nats(value) for name, value in shown.items()}
    if _appended(key, listed, k):
        del listed[key]
    found = (names.of_key(name, value) for name, value in listed.items())
    drafted = usable(names.of_key(key, logprob))
    return make_position([c for c in found if c is not None], drafted, names.size)


def _appended(key: str, listed: Mapping[str, float], k: int) -> bool:
    """Whether the sampled token is listed beyond the k asked for: drafted, but no candidate.

    Counting it as one would favour tokens for having been sampled.
    """
    if len(listed) <= k or key not in listed:
        return False
    return not any(value < listed[key] for value in listed.values())


def _check_text(text: Any, positions: list[Position]) -> None:
    """Ids name no bytes, so the text has to agree with what the vocabulary makes of them."""
    expected = _spelling([p.drafted for p in positions])
    # Some servers tidy spaces; a prompt cut inside a character is repeated before the text.
    if isinstance(text, str) and text and not _bare(text).endswith(_bare(expected)):
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


def _bare(text: str) -> str:
    return "".join(text.split())
