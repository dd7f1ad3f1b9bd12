"""Rounds: what waits is read together, what is cancelled is not, and the event loop goes on."""

import asyncio
import threading

import pytest

from adapter.pair.pair import Pair
from adapter.pair.reader import ANTIEXPERT
from tests.adapter.pair.networks import counted
from tests.support.tiny import tiny
from tokenizer_maps import Context, IdentityBridge

GUARD = 60  # seconds


@pytest.fixture
def pair():
    loaded = Pair.load({"tuned": str(tiny().expert)}, str(tiny().antiexpert), "cpu")
    yield loaded
    loaded.close()


def reader(pair, *ids):
    context = Context((1, *ids), b"", ())
    contexts = {"tuned": context, ANTIEXPERT: context}
    return pair.reader(IdentityBridge(pair.vocabulary), contexts, {"tuned": 1.0}, None)


class Gate:
    """Holds a network's next forward up until it is opened."""

    def __init__(self, network):
        self.opened, self.reached = threading.Event(), threading.Event()
        self._network, self._forward = network, network.forward
        network.forward = self

    def __call__(self, parts):
        self.reached.set()
        assert self.opened.wait(GUARD)
        self._network.forward = self._forward
        return self._forward(parts)


async def reached(gate):
    """The event loop goes on while a forward runs."""
    while not gate.reached.is_set():  # noqa: ASYNC110  # it is set on another thread
        await asyncio.sleep(0)


async def test_what_came_during_a_round_is_one_forward(pair):
    network = pair._networks["tuned"]
    gate, others = Gate(network), [reader(pair, 2, 3, n) for n in range(10, 15)]
    first = reader(pair, 7, 8, 9)
    with counted(network) as lengths:
        task = asyncio.create_task(first.read(()))
        await reached(gate)
        tasks = [asyncio.create_task(other.read((4,) * n)) for n, other in enumerate(others)]
        await asyncio.sleep(0)
        gate.opened.set()
        await asyncio.gather(task, *tasks)
    # The start is the first reader's; 2 and 3 are read once.
    assert lengths == [4, 2 + 1 + (1 + 1) + (1 + 2) + (1 + 3) + (1 + 4)]


async def test_what_was_cancelled_is_not_read_and_frees_its_slots(pair):
    network = pair._networks["tuned"]
    gate, first = Gate(network), reader(pair, 7, 8, 9)
    half, waits, last = (reader(pair, *range(n, n + 30)) for n in (20, 60, 100))
    task = asyncio.create_task(first.read(()))
    await reached(gate)
    with counted(network) as lengths:
        tasks = [asyncio.create_task(r.read(())) for r in (half, waits, last)]
        await asyncio.sleep(0)
        tasks[1].cancel()
        await asyncio.sleep(0)
        gate.opened.set()
        await asyncio.gather(task, tasks[0], tasks[2])
    assert tasks[1].cancelled()
    assert lengths[1:] == [30 + 30]  # the start is shared
    assert network.pool.used == 4 + 30 + 30


async def test_a_prompt_that_is_cancelled_half_way_frees_its_slots(pair):
    """Chunks: one forward has been made, the next one never is."""
    network = pair._networks["tuned"]
    network._chunk = 8
    gate, long = Gate(network), reader(pair, *range(20, 60))
    with counted(network) as lengths:
        task = asyncio.create_task(long.read(()))
        await reached(gate)
        task.cancel()
        await asyncio.sleep(0)
        gate.opened.set()
        await reader(pair).read(())
    assert lengths[0] == 8
    assert sum(lengths) < 8 + 3
    assert network.pool.used == 1
