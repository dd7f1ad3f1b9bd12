"""Evaluate: all of a suite's items asked of all systems, as far as they were not asked before."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from adapter.adapter import Adapter
from adapter.errors import BadRequest, SettingsError
from adapter.evaluation.alone import ByItself
from adapter.evaluation.asking import ask
from adapter.evaluation.items import Item
from adapter.evaluation.outcomes import Outcome
from adapter.evaluation.readers import read, spaced
from adapter.evaluation.replies import Strength, System
from adapter.evaluation.steered import Steered
from adapter.evaluation.store import Store
from adapter.evaluation.suite import Suite, Task
from adapter.evaluation.together import together
from adapter.pair.reader import ANTIEXPERT

_SEED = 0

Fits = Callable[[str, int], bool]
"""Whether a text can be read in a window of so many tokens."""


@dataclass(frozen=True, slots=True)
class Moment:
    """How far a run is: items asked, of all that are to be, and the task and system at hand."""

    done: int
    total: int
    about: str


Watch = Callable[[Moment], None]


@dataclass(frozen=True, slots=True)
class _Work:
    """An item, and the strengths at which a system was not yet asked it."""

    system: System
    task: Task
    item: Item
    wanted: tuple[Strength, ...]


def systems_of(suite: Suite, adapter: Adapter) -> tuple[list[System], Fits]:
    """Whoever a suite asks, and what they can read at once.

    Raises SettingsError, also where an upstream cannot do what a task needs.
    """
    own = adapter.model(suite.model).settings.weights
    mixtures = {"adapted": own} | {f"adapted {_told(w)}": own | w for w in suite.weights}
    steered = [Steered(adapter, suite.model, "hosted", mixtures, suite.alphas)]
    if suite.tuned is not None:
        steered.append(Steered(adapter, suite.tuned, "tuned", {}, ()))
    for system in steered:
        for task in suite.tasks:
            system.check(task)
    model = adapter.model(suite.model)
    names = [*(own if "expert" in suite.alone else ())]
    names += [ANTIEXPERT] if "antiexpert" in suite.alone else []
    return [*steered, *(ByItself(model, name) for name in names)], steered[0].fits


def items_of(task: Task, fits: Fits, limit: int | None) -> list[Item]:
    """What a task asks: a text in pieces that can be read at once, all by a fixed shuffle.

    Raises SettingsError.
    """
    items = read(task.reader, [Path(path) for path in task.data], task.template, task.kind)
    if task.shots:
        items = _shown(items, task)
    if task.kind == "text":
        several = len(items) > 1
        items = [part for item in items for part in _parts(item, task, fits, several)]
    bounds = [bound for bound in (task.limit, limit) if bound is not None]
    if bounds and min(bounds) < len(items):
        random.Random(_SEED).shuffle(items)  # noqa: S311 - a fixed order, not a secret
        items = items[: min(bounds)]
    return items


async def evaluate(
    systems: Sequence[System],
    asked: Sequence[tuple[Task, Sequence[Item]]],
    store: Store,
    watch: Watch,
) -> None:
    """Ask what the store does not have. Raises AdapterError kinds; what is kept by then stays."""
    work = list(_work(systems, asked, store))
    done = 0
    for system in systems:
        left = iter([one for one in work if one.system is system])

        async def worker(left: Iterator[_Work] = left) -> None:
            nonlocal done
            for one in left:
                watch(Moment(done, len(work), f"{one.task.name}, {one.wanted[0].system}"))
                store.add(await _asked(one))
                done += 1
                watch(Moment(done, len(work), f"{one.task.name}, {one.wanted[0].system}"))

        await together(worker() for _ in range(system.at_once))


async def _asked(one: _Work) -> list[Outcome]:
    """What came of an item; what cannot be asked is named."""
    try:
        return await ask(one.system, one.task, one.item, one.wanted)
    except BadRequest as error:
        raise SettingsError(
            f"tasks.{one.task.name}, item {one.item.name}, {one.wanted[0].system}: {error}"
        ) from error


def _work(
    systems: Sequence[System], asked: Sequence[tuple[Task, Sequence[Item]]], store: Store
) -> Iterator[_Work]:
    for system in systems:
        for task, items in asked:
            for item in items:
                wanted = [s for s in system.strengths if not store.has(task.name, s, item.name)]
                if wanted:
                    yield _Work(system, task, item, tuple(wanted))


def _shown(items: Sequence[Item], task: Task) -> list[Item]:
    """All items but the first ones, which are shown in front of each with their answers."""
    shots, rest = items[: task.shots], items[task.shots :]
    if not rest:
        raise SettingsError(f"tasks.{task.name}: shots takes all {len(items)} items of the data")
    shown = "".join(f"{item.prompt}{spaced(item.prompt, item.answers[0])}\n\n" for item in shots)
    return [replace(item, prompt=shown + item.prompt) for item in rest]


def _parts(item: Item, task: Task, fits: Fits, several: bool) -> Iterator[Item]:
    """A text's pieces, which stay together where there are `several` texts."""
    group = item.name if several else ""
    for at, part in enumerate(_halves(item.prompt, lambda text: fits(text, task.window))):
        yield Item(f"{item.name}#{at}", part, group=group)


def _halves(text: str, fits: Callable[[str], bool]) -> Iterator[str]:
    """A text cut in halves, at white space where there is some, until each part fits."""
    if len(text) < 2 or fits(text):
        yield text
        return
    middle = len(text) // 2
    cut = next((at for at in range(middle, 0, -1) if text[at].isspace()), middle)
    yield from _halves(text[:cut], fits)
    yield from _halves(text[cut:], fits)


def _told(weights: dict[str, float]) -> str:
    return " ".join(f"{name}={weight:g}" for name, weight in weights.items())
