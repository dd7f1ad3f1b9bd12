"""Answers made of mistakes: each is a sound run or a typed error, and nothing else."""

import random
from typing import Any

import pytest

from adapter.errors import UpstreamError, UpstreamMalformed
from adapter.upstream.answers import consumed, only_choice, parsed, tokens_shown, usage_of
from adapter.upstream.completions import read_runs
from adapter.upstream.llamacpp import LlamaCppRun
from adapter.upstream.tokens import TokenNames
from tests.adapter.upstream.test_completions import sound
from tests.adapter.upstream.vocabularies import BYTES
from tests.conftest import Measured
from tests.support.counts import count

NAMES = TokenNames(BYTES)

NUMBERS = (
    *("NaN", "Infinity", "-Infinity", "1e999", "-1e999", "-9999.0", "null", '"x"', "true", "[]"),
    *("0", "-0.0", "0.3", "-0.1", "-0.5", "-2", "-5.5", "-1e-9", "-745.2", "9" * 400),
)
KEYS = (
    *(f"token_id:{i}" for i in (0, 1, 2, 99, 100, 101, 258, 259, 10**9, -1)),
    *("a", "", "token_id:", "token_id:x", "token_id:99 ", "bytes:\\\\xe3", "\\ud800", "\\u0000"),
)


def junk(luck: random.Random, api: str) -> bytes:
    """An answer in the shape of a dialect, or now and then of the other, with mistakes in it."""
    classic = (api == "completions") == (luck.random() < 0.95)
    shape = _classic(luck) if classic else _native(luck)
    body = f'{{"choices":[{shape}],"usage":{luck.choice(_USAGES)}}}'
    if luck.random() < 0.1:
        body = body.replace("[{", luck.choice(('[{"index":1},{', "[[{", "[null,{")), 1)
    raw = body.encode()
    if luck.random() < 0.1:
        at = luck.randrange(len(raw))
        raw = raw[:at] + luck.randbytes(luck.randrange(3)) + raw[at + luck.randrange(9) :]
    return raw


_USAGES = ("null", "{}", '{"prompt_tokens":3,"completion_tokens":1}', '{"prompt_tokens":NaN}', "7")


def _top(luck: random.Random) -> str:
    names = luck.choices(KEYS, k=luck.randrange(9))
    return "{" + ",".join(f'"{name}":{luck.choice(NUMBERS)}' for name in names) + "}"


def _classic(luck: random.Random) -> str:
    steps = luck.randrange(4)
    columns = {
        "tokens": ",".join(f'"{luck.choice(KEYS)}"' for _ in range(steps)),
        "token_logprobs": ",".join(luck.choice(NUMBERS) for _ in range(steps)),
        "top_logprobs": ",".join(
            luck.choice(("null", "[]", "5")) if luck.random() < 0.05 else _top(luck)
            for _ in range(steps + (luck.random() < 0.05))
        ),
    }
    inner = ",".join(f'"{name}":[{row}]' for name, row in columns.items() if luck.random() < 0.97)
    finish = luck.choice(('"length"', '"stop"', "null", "3", '"content_filter"'))
    text = luck.choice(("", "a", "b", "\\ud800", "\\u0000"))
    return f'{{"text":"{text}","finish_reason":{finish},"logprobs":{{{inner}}}}}'


def _native(luck: random.Random) -> str:
    def one() -> str:
        token = luck.choice((99, 100, 101, 197, 0, -1, 10**9, '"x"', "null", "1.5"))
        spelt = luck.choice(("[97]", "[98]", "[195]", "[256]", "[-1]", "null", '["x"]', "[]", "5"))
        return f'{{"id":{token},"token":"a","bytes":{spelt},"logprob":{luck.choice(NUMBERS)}'

    def step() -> str:
        top = ",".join(one() + "}" for _ in range(luck.randrange(6)))
        return one() + f',"top_logprobs":[{top}]}}'

    content = ",".join(step() for _ in range(luck.randrange(4)))
    return f'{{"text":"a","finish_reason":"length","logprobs":{{"content":[{content}]}}}}'


@pytest.mark.reliability("D1")
@pytest.mark.parametrize("api", ["completions", "llama.cpp"])
def test_any_of_very_many_answers_is_sound_or_a_typed_error(api: str, measured: Measured) -> None:
    """Read as the transport reads them; single ones over sockets, 10 MB and deep: test_faults."""
    luck, outcomes = random.Random(7), {"sound": 0, "refused": 0}
    many = count(50_000)
    for _ in range(many):
        raw = junk(luck, api)
        try:
            positions = read(raw, api)
        except UpstreamError:
            outcomes["refused"] += 1
        else:
            assert all(map(sound, positions)), raw
            outcomes["sound"] += 1
    assert min(outcomes.values()) > many / 50
    measured(f"{many:,} answers as {api}", f"{outcomes['sound']:,} sound, the rest typed errors")


def read(raw: bytes, api: str) -> tuple[Any, ...]:
    """The positions of a run of three, as a dialect and its transport read them."""
    body = parsed(raw)
    if not isinstance(body, dict):
        raise UpstreamMalformed("no JSON object")
    for usage in (consumed(body), usage_of(body, 1)):
        assert usage is None or min(usage.prompt_tokens, usage.completion_tokens) >= 0
    assert tokens_shown(body) >= 0
    if api == "completions":
        return read_runs(body, NAMES, 5, 3)[0][0]
    run = LlamaCppRun(NAMES, 3)
    positions = run.read(only_choice(body))
    run.finish(len(positions))
    return positions
