"""What bounds an upstream that fails: attempts, waits, deadlines, probes; on real sockets."""

import asyncio
import email.utils
import socket
import time
from contextlib import suppress
from typing import Any

import pytest

from adapter.budget import Budget, RequestTotal
from adapter.errors import AdapterError, UpstreamTimeout, UpstreamUnavailable
from adapter.price import Price
from adapter.upstream.transport import Endpoint, Transport
from tests.adapter.upstream.test_retries import Naps
from tests.adapter.upstream.vocabularies import Allowed
from tests.conftest import Measured
from tests.support.counts import count
from tests.support.scripted import Reply, classic, events, scripted

PROMPT = [5, 6, 7]
STEP = {"token_id:99": -0.1, "token_id:100": -3.0}
GOOD = Reply(body=classic(STEP))
STREAM = events(*[classic(STEP, finish="") | {"usage": None}] * 3)
FIRST = len(events(classic(STEP, finish="") | {"usage": None}, done=False).body)
PRICE = Price(input=1.0, output=4.0, cached=1.0)


def transport(url: str, timeout: float = 30.0, naps: Naps | None = None, **more: Any) -> Transport:
    sleep = Naps() if naps is None else naps
    return Transport(Endpoint(url, "m", timeout=timeout), sleep=sleep, **more)


@pytest.mark.reliability("C3")
async def test_an_answer_after_our_timeout_is_counted_and_charged(measured: Measured) -> None:
    cap = 10**9
    many = count(100)
    budget = Budget(many, PRICE, {"limits.money_per_day": RequestTotal(cap)})
    with scripted(Reply(body=GOOD.body, late=2.0)) as script:

        async def ask() -> None:
            sender = transport(script.base_url, 1.0)  # each with a breaker of its own
            with pytest.raises(UpstreamTimeout):
                await sender.complete(PROMPT, {"max_tokens": 2}, budget)
            await sender.close()

        for _ in range(0, many, 5):
            await asyncio.gather(*(ask() for _ in range(5)))
        made = script.calls
        assert made <= many  # one whose connection came too late was never asked
        with pytest.raises(AdapterError, match=f"cap of {many} upstream calls"):
            await transport(script.base_url).complete(PROMPT, {}, budget)
    assert budget.bill.estimated
    assert made * 11_000 <= (budget.bill.nanos or 0) <= many * 11_000
    measured(f"{many} answers too late", "all counted, and charged as reserved")


@pytest.mark.reliability("D3")
async def test_a_minute_of_503(measured: Measured) -> None:
    """As many requests as 60 s of 50 a second, against a breaker that never opens, and with it."""
    requests, made = count(3000), {}
    for breaker in ("no breaker", "breaker"):
        with scripted(Reply(503)) as script:
            sender = transport(script.base_url)
            for _ in range(requests):
                before = script.calls
                with pytest.raises(UpstreamUnavailable):
                    await sender.complete(PROMPT, {"max_tokens": 1}, Allowed())
                assert script.calls - before <= 3
                if breaker == "no breaker":
                    sender._breaker._failures = 0
            await sender.close()
            made[breaker] = script.calls
    assert requests <= made["no breaker"] <= 1.2 * requests + 3
    assert made["breaker"] < made["no breaker"]
    seen = f"{made['no breaker']:,} calls with the breaker held shut, {made['breaker']} with it"
    measured(f"{requests:,} requests", seen)


DATES = {"a minute ago": -60.0, "tomorrow": 86_400.0}


@pytest.mark.reliability("D4")
@pytest.mark.parametrize(
    ("name", "value", "asked"),
    [
        ("retry-after", "0", 0),
        ("retry-after", "1", 1),
        ("retry-after", "9", 9),
        ("retry-after", "119", None),
        ("retry-after", "120", None),
        ("retry-after", "121", None),
        ("retry-after", "-1", 0),
        ("retry-after", "inf", None),
        ("retry-after", "soon", 0),
        ("retry-after", "a minute ago", 0),
        ("retry-after", "tomorrow", None),
        ("retry-after-ms", "20", 0.02),
        ("retry-after-ms", "9000", 9),
        ("retry-after-ms", "120001", None),
    ],
)
async def test_no_retry_comes_earlier_than_it_is_asked_for(
    name: str, value: str, asked: float | None, measured: Measured
) -> None:
    """None: it is not waited for at all."""
    waits, header = [], f"{name}: {value}"
    if value in DATES:
        value = email.utils.formatdate(time.time() + DATES[value], usegmt=True)
    for status in (429, 503):
        naps = Naps()
        with scripted(Reply(status, headers={name: value}), GOOD) as script:
            sender = transport(script.base_url, naps=naps)
            with suppress(UpstreamUnavailable):
                await sender.complete(PROMPT, {"max_tokens": 1}, Allowed())
            await sender.close()
        assert script.calls == (1 if asked is None else 2)
        assert [nap >= asked for nap in naps] == [True] if asked is not None else naps == []
        waits += naps
    measured(header, f"asked again after {min(waits):.2f} s" if waits else "not asked again")


SLOW = {
    "silent": Reply(silent=True),
    "head alone": Reply(body=GOOD.payload, stall=0),
    "semi-silent": Reply(body=GOOD.payload, stall=40),
    "a byte now and then": Reply(body=GOOD.payload, drip=0.05),
    "silent stream": Reply(silent=True),
    "stalled stream": Reply(body=STREAM.body, headers=STREAM.headers, stall=FIRST),
    "dripping stream": Reply(body=STREAM.body, headers=STREAM.headers, drip=0.05),
}


class Lateness:
    """How late errors come after their deadline, and bare timers that were set beside them.

    A machine that is busy makes both late, our own work only the errors.
    """

    def __init__(self, deadline: float) -> None:
        self._deadline = deadline
        self._begun = 0.0
        self._beside: asyncio.Task[float] | None = None
        self.errors: list[float] = []
        self.timers: list[float] = []

    def begin(self) -> None:
        """Set the clock, or set it anew."""
        if self._beside is not None:
            self._beside.cancel()
        self._begun = time.monotonic()
        self._beside = asyncio.create_task(self._timer())

    async def end(self) -> None:
        """The error has come."""
        self.errors.append(self._late())
        if self._beside is not None:
            self.timers.append(await self._beside)
            self._beside = None

    async def _timer(self) -> float:
        await asyncio.sleep(self._deadline)
        return self._late()

    def _late(self) -> float:
        """In milliseconds."""
        return 1e3 * (time.monotonic() - self._begun - self._deadline)

    def tell(self, kind: str, measured: Measured) -> None:
        most = max(self.errors)
        assert most < 1e4
        seen = f"{most:.0f} ms at most, a bare timer {max(self.timers):.0f}"
        measured(f"{kind}, {len(self.errors)} times", seen, met=most <= 100)


@pytest.mark.reliability("D6")
@pytest.mark.parametrize("kind", SLOW)
async def test_how_late_the_error_is(kind: str, measured: Measured) -> None:
    """First byte, stall and whole answer; a stream's clock begins anew with each event."""
    late = Lateness(0.5)
    with scripted(SLOW[kind]) as script:
        for _ in range(count(20)):
            sender = transport(script.base_url, 0.5)
            late.begin()
            with pytest.raises(UpstreamTimeout):  # noqa: PT012 - the last event's time counts
                if "stream" in kind:
                    fields = {"max_tokens": 9}
                    async for _ in sender.stream(PROMPT, fields, Allowed()):
                        late.begin()
                else:
                    await sender.complete(PROMPT, {"max_tokens": 1}, Allowed())
            await late.end()
            await sender.close()
    late.tell(kind, measured)


@pytest.mark.reliability("D6")
async def test_how_late_the_error_is_where_nobody_accepts(measured: Measured) -> None:
    """Three attempts at a connection, each with a deadline of its own."""
    late = Lateness(3 * 0.2)
    with (
        socket.create_server(("127.0.0.1", 0), backlog=0) as full,
        socket.create_connection(full.getsockname()),
    ):
        url = f"http://127.0.0.1:{full.getsockname()[1]}/v1"
        for _ in range(count(20)):
            sender, budget = transport(url, connect=0.2), Allowed()
            late.begin()
            with pytest.raises(UpstreamUnavailable):
                await sender.complete(PROMPT, {}, budget)
            assert budget.taken == 3
            await late.end()
            await sender.close()
    late.tell("no connection", measured)


@pytest.mark.reliability("D6")
async def test_how_late_the_error_is_of_a_stream_that_goes_on_for_ever(
    measured: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Events come in time, each alone; all waits together are bounded."""
    monkeypatch.setattr("adapter.upstream.transport.LONGEST_STREAM", 0.4)
    many = events(*[classic(STEP, finish="") | {"usage": None}] * 200)
    slow = Reply(body=many.body, headers=many.headers, drip=0.25 / FIRST)
    with scripted(slow) as script:
        sender, begun, first = transport(script.base_url, 5.0), time.monotonic(), 0.0
        with pytest.raises(UpstreamTimeout):  # noqa: PT012 - the first event's time counts
            async for _ in sender.stream(PROMPT, {"max_tokens": 200}, Allowed()):
                first = first or time.monotonic()
        late = 1e3 * (time.monotonic() - first - 2.0)
        await sender.close()
    assert (late < 2e4, time.monotonic() - begun > 2) == (True, True)
    measured("a stream without end", f"{late:.0f} ms after its last deadline", met=late <= 100)


@pytest.mark.reliability("D9")
async def test_left_alone_while_it_fails_and_used_again_when_it_is_well(measured: Measured) -> None:
    seconds = count(30)
    with scripted(Reply(503)) as script:
        sender = transport(script.base_url)
        begun = time.monotonic()
        while time.monotonic() - begun < seconds:
            with pytest.raises(UpstreamUnavailable):
                await sender.complete(PROMPT, {"max_tokens": 1}, Allowed())
            await asyncio.sleep(0.01)
        down = time.monotonic() - begun
        probes = script.calls - 5
        assert 0 <= probes <= down + 1
        script.replies[:] = [GOOD]
        well = time.monotonic()
        for _ in range(50):  # in a row
            while time.monotonic() - well < 50:
                with suppress(UpstreamUnavailable):
                    await sender.complete(PROMPT, {"max_tokens": 1}, Allowed())
                    break
                await asyncio.sleep(0.01)
        took = time.monotonic() - well
        await sender.close()
    assert script.calls == 5 + probes + 50
    run = f"{seconds} s down, a request every 10 ms"
    measured(run, f"{probes} probes, well after {took:.1f} s", met=took <= 5)
