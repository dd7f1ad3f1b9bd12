"""Engine: one worker that owns the device, and rounds in which all that waits is read at once."""

import asyncio
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import Empty, SimpleQueue
from typing import Any, TypeAlias, TypeVar

from adapter.errors import ContextTooLong
from adapter.pair.attention import Part
from adapter.pair.network import Network, NoRoom
from adapter.pair.text import Text
from adapter.stages import stage
from tokenizer_maps.bridge import Tree

T = TypeVar("T")

Wants: TypeAlias = Mapping[tuple[Network, Text], Tree]
Steps: TypeAlias = Generator[Wants, None, T]
"""Work on the worker: yields what must be read, goes on when it is, returns its result."""


class Engine:
    """Runs steps of many readers; a round reads what is wanted when it begins, and never waits.

    The oldest work goes first: it may take the slots of everything younger, which reads again.
    `batched` is told, on the worker, how many texts each forward reads.
    """

    def __init__(self) -> None:
        self._queue: SimpleQueue[_Job | Sequence[tuple[Network, Text]]] = SimpleQueue()
        self._jobs: list[_Job] = []
        self._rounds = 0
        self._closing = False
        self.batched: Callable[[int], None] = lambda count: None
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="pair")

    async def run(self, steps: Steps[T]) -> T:
        """The steps' result; cancelling drops them, and what they read, at the next round."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        with stage("pair", "pair forward", {}):
            self._queue.put(_Job(steps, future))
            self._worker.submit(self._work)
            return await future

    def release(self, texts: Sequence[tuple[Network, Text]]) -> None:
        """Free texts at the next round; from any thread, and from finalizers: it takes no lock."""
        self._queue.put(texts)

    def wake(self) -> None:
        """A round, even if nothing waits: what was released is freed now."""
        if not self._closing:
            self._worker.submit(self._work)

    def close(self) -> None:
        """Cancel what waits and end the worker; the round that runs finishes first."""
        if self._closing:
            return
        self._closing = True
        self._worker.submit(self._stop)
        self._worker.shutdown()

    def _work(self) -> None:
        """Rounds until nothing waits. Every job brings one call, most find nothing left to do."""
        while self._admit() and not self._closing:
            self._round()

    def _admit(self) -> bool:
        """Take what has come, drop what was cancelled; whether anything waits."""
        while True:
            try:
                item = self._queue.get_nowait()
            except Empty:
                break
            if isinstance(item, _Job):
                item.advance()
                self._jobs.append(item)
            else:
                for network, text in item:
                    text.closed = True
                    network.forget(text)
        for job in self._jobs:
            if job.future.cancelled():
                job.drop()
        self._settle()
        return bool(self._jobs)

    def _settle(self) -> None:
        """Tell all who waited for what is over, at once: they come back in time for one round."""
        over = [job for job in self._jobs if job.over]
        self._jobs = [job for job in self._jobs if not job.over]
        for loop in {job.future.get_loop() for job in over}:
            its = [job for job in over if job.future.get_loop() is loop]
            if not loop.is_closed():
                loop.call_soon_threadsafe(_tell, its)

    def _round(self) -> None:
        self._rounds += 1
        busy = set[Text]()
        parts: dict[Network, list[Part]] = {}
        ready = [job for job in self._jobs if self._prepare(job, busy, parts)]
        for network, some in parts.items():
            self.batched(len(some))
            try:
                network.forward(some)
            except BaseException as error:  # noqa: BLE001  # whoever waits for it gets it
                self._fail(network, some, error)
        for job in ready:
            if not job.over and all(text.holds(tree) for (_, text), tree in job.wants.items()):
                job.advance()
        self._settle()

    def _prepare(self, job: "_Job", busy: set[Text], parts: dict[Network, list[Part]]) -> bool:
        """Lay out a job's next reading; False where it must wait for others."""
        texts = {text for _, text in job.wants}
        if texts & busy:
            return False  # two calls of one reader: one after the other
        first = not busy
        for (network, text), tree in job.wants.items():
            busy.add(text)
            text.used = self._rounds
            try:
                part = network.prepare(text, tree, busy)
            except NoRoom:
                if first:
                    job.fail(_too_long(network.pool.most))
                return False
            except BaseException as error:  # noqa: BLE001  # whoever waits for it gets it
                job.fail(error)
                return False
            if part is not None:
                parts.setdefault(network, []).append(part)
        return True

    def _fail(self, network: Network, parts: Sequence[Part], error: BaseException) -> None:
        """A forward failed: nobody can say which slots hold what they should."""
        for text in list(network.texts):
            network.forget(text)
        texts = {part.text for part in parts}
        for job in self._jobs:
            if any(text in texts for _, text in job.wants):
                job.fail(error)

    def _stop(self) -> None:
        self._admit()
        for job in self._jobs:
            job.fail(asyncio.CancelledError())
        self._settle()


class _Job:
    """Steps on their way, who waits for them, and what came of them."""

    def __init__(self, steps: Steps[Any], future: asyncio.Future[Any]) -> None:
        self.future = future
        self.wants: Wants = {}
        self.over = False
        self.result: object = None
        self.error: BaseException | None = None
        self._steps = steps

    def advance(self) -> None:
        """One step on, or to the end."""
        try:
            self.wants = next(self._steps)
        except StopIteration as end:
            self.over, self.result = True, end.value
        except BaseException as error:  # noqa: BLE001  # whoever waits for it gets it
            self.fail(error)

    def fail(self, error: BaseException) -> None:
        """End with an error."""
        self.over, self.error = True, error
        self._steps.close()

    def drop(self) -> None:
        """Free what was read for it."""
        self.over = True
        self._steps.close()
        for network, text in self.wants:
            network.forget(text)


def _tell(jobs: Sequence[_Job]) -> None:
    """On the event loop: their results to those who still wait."""
    for job in jobs:
        if job.future.done():
            continue
        if isinstance(job.error, asyncio.CancelledError):
            job.future.cancel()
        elif job.error is not None:
            job.future.set_exception(job.error)
        else:
            job.future.set_result(job.result)


def _too_long(room: int) -> ContextTooLong:
    return ContextTooLong(
        f"the pair has memory for {room} tokens and the text needs more; shorten it, or have the "
        "operator raise pair.kv_memory"
    )
