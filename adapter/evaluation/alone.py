"""By itself: one model of the pair as it stands, asked as the hosted model is."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

import numpy as np

from adapter.choosing import spellings
from adapter.errors import ContextTooLong
from adapter.evaluation.replies import Reply, Scored, Strength
from adapter.evaluation.steered import MOST, asked_with, behind
from adapter.evaluation.suite import Task
from adapter.model import Model
from adapter.pair.alone import Alone, Floats
from adapter.pair.reader import ANTIEXPERT
from adapter.request import Chat
from adapter.steering import log_sum
from adapter.stopping import Release


class ByItself:
    """An expert, or the anti-expert; it reads prompts as it does within the pair.

    Texts are tokenised by the pair's tokenizer; nothing is asked upstream.
    """

    at_once = MOST

    def __init__(self, model: Model, name: str) -> None:
        """`name`: an expert's, or ANTIEXPERT."""
        self._model = model
        self._name = name
        self._words = model.pair.vocabulary
        system = f"expert {name}" if name != ANTIEXPERT else "anti-expert"
        self.strengths = (Strength(system),)

    async def scored(
        self, prompt: str, answers: Sequence[str], wanted: Sequence[Strength]
    ) -> list[Reply]:
        """Each answer's own tokens, as the hosted model's are told; the prompt is read once."""
        texts = [self._ids(prompt + answer) for answer in answers]
        starts = [
            max(1, behind(ids, answer, self._words)) if prompt else 1
            for ids, answer in zip(texts, answers, strict=True)
        ]
        async with self._reading() as alone:
            found = await _chances(alone, texts, min(starts))
        scored = tuple(
            self._scored(ids[start:], float(its[start - 1 :].sum()))
            for ids, start, its in zip(texts, starts, found, strict=True)
        )
        return [Reply(scored) for _ in wanted]

    async def chosen(
        self, prompt: str, labels: Sequence[str], wanted: Sequence[Strength]
    ) -> list[Reply]:
        """The likeliest label, its spellings of one token added up as in choice mode."""
        ids = self._ids(asked_with(self._model, prompt))
        async with self._reading() as alone:
            row = await alone.next(ids)
            weights = []
            for label in labels:
                single = [i for i in map(self._words.id_of, spellings(label)) if i is not None]
                paths = [self._words.encode(spelt) for spelt in spellings(label)]
                found = (
                    row[single]
                    if single
                    else [its.sum() for its in await alone.chances(ids, paths)]
                )
                weights.append(log_sum(np.array(found)))
        total = log_sum(np.array(weights))
        best = max(range(len(labels)), key=lambda place: weights[place])
        told = tuple(weight - total for weight in weights)
        return [Reply(answer=labels[best], weights=told) for _ in wanted]

    async def written(self, prompt: str, task: Task, wanted: Sequence[Strength]) -> list[Reply]:
        """The likeliest token each time, up to the end or a stop string."""
        ids = self._ids(asked_with(self._model, prompt), room=task.max_tokens)
        release, text = Release(task.stop), ""
        async with self._reading() as alone:
            for _ in range(task.max_tokens):
                token = int((await alone.next(ids)).argmax())
                if token in self._model.pair.end:
                    break
                ids = (*ids, token)
                text += release.feed(self._words.decode([token]))
                if release.stopped:
                    break
        return [Reply(answer=text + release.flush()) for _ in wanted]

    def _ids(self, prompt: str | Chat, room: int = 0) -> tuple[int, ...]:
        """A prompt as this model reads it. Raises ContextTooLong."""
        context = self._model.contexts(prompt, (self._name,))[self._name]
        ids = context.fixed + self._words.encode(context.prompt)
        if len(ids) + room > self._model.pair.window:
            raise ContextTooLong(
                f"a prompt has {len(ids)} tokens for {self.strengths[0].system} and {room} may "
                f"follow, but its context window is {self._model.pair.window} tokens"
            )
        return ids

    def _scored(self, ids: Sequence[int], logprob: float) -> Scored:
        return Scored(logprob, len(ids), len(self._words.decode(ids)))

    @asynccontextmanager
    async def _reading(self) -> AsyncGenerator[Alone, None]:
        alone = self._model.pair.alone(self._name)
        try:
            yield alone
        finally:
            alone.close()


async def _chances(alone: Alone, texts: Sequence[tuple[int, ...]], start: int) -> list[Floats]:
    """ln p of each token of some texts but their first ones; NaN before `start`.

    What they have in common there is read once; texts that begin in different ways one by one.
    """
    if any(ids[:start] != texts[0][:start] for ids in texts):
        start = 1
    if any(ids[:start] != texts[0][:start] for ids in texts):
        return [(await alone.chances(ids[:1], [ids[1:]]))[0] for ids in texts]
    found = await alone.chances(texts[0][:start], [ids[start:] for ids in texts])
    return [np.concatenate([np.full(start - 1, np.nan), its]) for its in found]
