"""An upstream that breaks off or never ends: the client always sees an end, and calls are few."""

import json
import random
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from adapter.adapter import Adapter
from adapter.service.app import create_app
from tests.conftest import Measured
from tests.support.configured import settings_for
from tests.support.counts import count
from tests.support.scripted import Reply, Scripted, classic, events, scripted
from tests.support.sockets import serving

TOKENS = 6
PIECES = [
    classic({f"token_id:{50 + i}": -0.1, "token_id:40": -3.0}, finish="") | {"usage": None}
    for i in range(TOKENS - 1)
]
LAST = classic({"token_id:60": -0.1, "token_id:40": -3.0}) | {"usage": None}
SPENT = {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": TOKENS}}
WHOLE = events(*PIECES, LAST, SPENT)


@pytest.fixture(scope="module")
def script() -> Iterator[Scripted]:
    with scripted(WHOLE) as script:
        yield script


@pytest.fixture(scope="module")
def client(script: Scripted) -> Iterator[openai.OpenAI]:
    settings = settings_for(script.base_url, cache={"url": "none"}, limits={"max_tokens": 50})
    with (
        serving(create_app(Adapter.from_settings(settings), settings)) as address,
        openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client,
    ):
        yield client


def ask(client: openai.OpenAI, **more: Any) -> tuple[int, str | None]:
    """How many chunks came, and why the stream says that it ended."""
    steering = {"alpha": 0, "lookahead": more.pop("lookahead", "stream")}
    fields = {"max_tokens": TOKENS, "temperature": 0, "stream": True} | more
    stream = client.completions.create(
        model="tiny", prompt="The harbour", extra_body={"steering": steering}, **fields
    )
    chunks, finish = 0, None
    for chunk in stream:
        chunks += 1
        finish = chunk.choices[0].finish_reason or finish
    return chunks, finish


def cuts(count: int) -> Iterator[tuple[int, bool]]:
    """Bytes after which the upstream is cut, and whether it has said all of its tokens by then.

    About every border between events first, then anywhere.
    """
    luck, at, all_said = random.Random(1), 0, 0
    borders = []
    for number, body in enumerate([*PIECES, LAST, SPENT]):
        all_said = at if number == TOKENS else all_said
        borders += [at, at + 1, at + 5]
        at += len(b"data: %b\n\n" % json.dumps(body).encode())
    anywhere = (luck.randrange(at) for _ in range(count - len(borders)))
    for place in (*borders, *anywhere):
        yield place, place >= all_said


def test_whole(client: openai.OpenAI, script: Scripted) -> None:
    script.replies[:] = [WHOLE]
    assert ask(client)[1] == "length"


@pytest.mark.reliability("E1")
@pytest.mark.parametrize("promised", [True, False], ids=["cut", "clean close"])
def test_no_cut_is_silent(
    client: openai.OpenAI, script: Scripted, promised: bool, measured: Measured
) -> None:
    raised = ended = 0
    for at, all_said in cuts(count(1000)):
        whole = {"body": WHOLE.body, "cut": at} if promised else {"body": WHOLE.body[:at]}
        script.replies[:] = [Reply(headers=WHOLE.headers, **whole)]
        script.requests.clear()
        try:
            _, finish = ask(client)
        except openai.APIError:
            raised += 1
        else:
            ended += 1
            assert (finish, all_said) == ("length", True), at
        assert script.calls <= 3
        script.replies[:] = [WHOLE]
        assert ask(client)[1] == "length"  # it answers again, and the breaker stays closed
    assert raised + ended == count(1000)
    assert raised >= 3 * TOKENS
    assert ended > 0
    kind = "in the middle" if promised else "as if it were the end"
    measured(f"{count(1000):,} cuts {kind}", f"{raised} raised, {ended} had all been said")


@pytest.mark.reliability("C2")
@pytest.mark.parametrize("lookahead", [1, 4, "stream"])
def test_a_loop_that_never_ends_makes_no_more_calls_than_tokens(
    client: openai.OpenAI, script: Scripted, lookahead: Any, measured: Measured
) -> None:
    """One token again and again, without a finish reason, however many were asked for."""
    body = classic({"token_id:50": -0.1, "token_id:40": -3.0}, finish="")
    streams = [events(body)] * 19 if lookahead == "stream" else []  # one token is no stream
    script.replies[:] = [*streams, Reply(body=body)]
    script.requests.clear()
    _, finish = ask(client, max_tokens=20, lookahead=lookahead)
    assert (finish, script.calls) == ("length", 20)
    measured(f"20 tokens, lookahead {lookahead}", f"{script.calls} calls")


@pytest.mark.reliability("C2")
@pytest.mark.parametrize("lookahead", [1, "stream"])
def test_an_upstream_that_gives_nothing_is_asked_once(
    client: openai.OpenAI, script: Scripted, lookahead: Any, measured: Measured
) -> None:
    body = classic(finish="")
    script.replies[:] = [events(body) if lookahead == "stream" else Reply(body=body)]
    script.requests.clear()
    with pytest.raises(openai.APIStatusError) as caught:
        ask(client, lookahead=lookahead)
    assert (caught.value.status_code, script.calls) == (502, 1)
    measured(f"no token at all, lookahead {lookahead}", f"{script.calls} call, then an error")
