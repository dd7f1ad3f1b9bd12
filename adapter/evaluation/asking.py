"""Asking: one item of a task put to a system, and the replies judged."""

import math
import time
from collections.abc import Callable, Sequence

from adapter.evaluation.items import Item
from adapter.evaluation.matching import right
from adapter.evaluation.outcomes import Outcome
from adapter.evaluation.replies import Reply, Scored, Strength, System
from adapter.evaluation.suite import Task


async def ask(system: System, task: Task, item: Item, wanted: Sequence[Strength]) -> list[Outcome]:
    """What a system makes of an item at each strength; the time it took stands with the first."""
    began = time.monotonic()
    if task.kind == "answers":
        replies = await system.scored(item.prompt, item.answers, wanted)
    elif task.kind == "text":
        replies = await system.scored("", [item.prompt], wanted)
    elif task.kind == "labels":
        replies = await system.chosen(item.prompt, item.answers, wanted)
    else:
        replies = await system.written(item.prompt, task, wanted)
    took = [time.monotonic() - began, *[0.0] * (len(wanted) - 1)]
    return [
        _outcome(task, item, strength, reply, seconds)
        for strength, reply, seconds in zip(wanted, replies, took, strict=True)
    ]


def _outcome(task: Task, item: Item, strength: Strength, reply: Reply, seconds: float) -> Outcome:
    score, amount, answer, scores = _JUDGES[task.kind](task, item, reply)
    tally, spent = reply.tally, reply.spent
    return Outcome(
        task=task.name,
        system=strength.system,
        alpha=strength.alpha,
        item=item.name,
        score=score,
        amount=amount,
        answer=answer,
        scores=scores,
        tokens=tally.tokens,
        places=tally.places,
        certified=tally.certified,
        expanded=tally.expanded,
        truncated=tally.truncated,
        calls=spent.calls,
        cost=spent.cost,
        seconds=seconds,
    )


_Judged = tuple[float, float, str, tuple[float, ...]]


def _answers(task: Task, item: Item, reply: Reply) -> _Judged:
    """By the likeliest answer; of equals the first."""
    scores = tuple(_normalised(task, one) for one in reply.scored)
    best = max(range(len(scores)), key=lambda place: scores[place])
    return float(best in item.right), 1.0, item.answers[best].strip(), scores


def _labels(task: Task, item: Item, reply: Reply) -> _Judged:
    accepted = {item.answers[place] for place in item.right}
    return float(reply.answer in accepted), 1.0, reply.answer, reply.weights


def _generation(task: Task, item: Item, reply: Reply) -> _Judged:
    said = right(task.match, reply.answer, item.answers)
    return float(said), 1.0, reply.answer.strip(), ()


def _text(task: Task, item: Item, reply: Reply) -> _Judged:
    (one,) = reply.scored
    return -one.logprob / math.log(2), float(one.size), "", ()


def _normalised(task: Task, one: Scored) -> float:
    if task.normalise == "sum":
        return one.logprob
    return one.logprob / max(1, one.tokens if task.normalise == "mean" else one.size)


_JUDGES: dict[str, Callable[[Task, Item, Reply], _Judged]] = {
    "answers": _answers,
    "labels": _labels,
    "generation": _generation,
    "text": _text,
}
