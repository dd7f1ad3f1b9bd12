"""An upstream that goes on from nothing: it answers a prompt at once, or not at all."""

from collections import OrderedDict
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace

from adapter.candidates import Draft, Position, Usage
from adapter.errors import UpstreamCannotContinue
from adapter.prefix import Prefix
from adapter.request import Chat
from adapter.upstream.capabilities import Capabilities
from adapter.upstream.speaker import Drawing
from adapter.upstream.upstream import Allowance

_REMEMBERED = 1024
"""Prompts whose answers are remembered as far as they are known."""

Ids = tuple[int, ...]


class OnceUpstream:
    """A speaker whose `capabilities.continues` is "none", as an Upstream.

    Only a prompt can be asked with. A prefix that the upstream's own greedy answer begins with is
    come to by asking for that answer again, and more of it; any other one is
    UpstreamCannotContinue, without a call where the answer is remembered.
    """

    def __init__(self, speaker: Drawing) -> None:
        self._speaker = speaker
        self._greedy = _Answers()
        self._drawn = _Answers()
        self.capabilities: Capabilities = replace(speaker.capabilities, scoring=None)
        self.identity: tuple[str, ...] = ("once", *speaker.identity)

    async def draft(
        self, prefix: Prefix, n: int, budget: Allowance, sampled: bool = False
    ) -> Draft:
        """The answer up to n positions behind the prefix."""
        prompt, own = self._sent(prefix), sampled and not prefix.generated
        asked = n + len(prefix.generated)
        draft = await self._speaker.ask(prompt, "", asked, budget, own)
        self._remember(prompt, own, _path(draft.positions))
        return replace(draft, positions=_behind(prefix, draft))

    async def draws(
        self, prefix: Prefix, n: int, budget: Allowance, choices: int
    ) -> tuple[Draft, ...]:
        """The answers of several choices up to n positions."""
        prompt = self._sent(prefix)
        drafts = await self._speaker.draws(prompt, n, budget, choices)
        self._remember(prompt, True, *(_path(draft.positions) for draft in drafts))
        return drafts

    async def stream(
        self, prefix: Prefix, n: int, budget: Allowance, sampled: bool = False
    ) -> AsyncGenerator[Draft, None]:
        """The same in pieces as they come; behind a prefix in one piece."""
        if prefix.generated:
            yield await self.draft(prefix, n, budget)
            return
        prompt, path = self._sent(prefix), Ids()
        async with aclosing(self._speaker.stream(prompt, "", n, budget, sampled)) as pieces:
            async for piece in pieces:
                path += _path(piece.positions)
                self._remember(prompt, sampled, path)
                yield piece

    async def score(
        self, prefix: Prefix, ids: Sequence[int], budget: Allowance
    ) -> tuple[dict[int, float], Usage]:
        """Nothing: chosen tokens cannot be had."""
        return {}, Usage()

    async def positions(self, ids: Sequence[int], budget: Allowance) -> Draft:
        """Not to be had: it is asked about its own answer only."""
        raise ValueError("an upstream that goes on from nothing does not score a text")

    async def close(self) -> None:
        """Let go of connections."""
        await self._speaker.close()

    def _sent(self, prefix: Prefix) -> str | Chat:
        """What to ask with. Raises UpstreamCannotContinue where the prefix left the answer."""
        if isinstance(prefix.prompt, tuple):
            raise ValueError("a prefix of ids cannot be sent as text")
        digest, said = Prefix.of(prefix.prompt).digest, prefix.generated
        greedy, drawn = self._greedy.of(digest), self._drawn.of(digest)
        left_greedy = any(path[: len(said)] != said[: len(path)] for path in greedy)
        left_drawn = any(path and path[: len(said) - 1] == said[:-1] for path in drawn)
        if said and (left_greedy or (left_drawn and not any(greedy))):
            raise UpstreamCannotContinue
        return prefix.prompt

    def _remember(self, prompt: str | Chat, drawn: bool, *paths: Ids) -> None:
        (self._drawn if drawn else self._greedy).put(Prefix.of(prompt).digest, paths)


class _Answers:
    """The beginnings of the latest answers, as far as they are known: those of one request."""

    def __init__(self) -> None:
        self._paths: OrderedDict[bytes, tuple[Ids, ...]] = OrderedDict()

    def of(self, prompt: bytes) -> tuple[Ids, ...]:
        return self._paths.get(prompt, ())

    def put(self, prompt: bytes, paths: tuple[Ids, ...]) -> None:
        """Take up answers; shorter parts of those that are known tell nothing."""
        known = self._paths.pop(prompt, ())
        told = tuple(path[: len(part)] for path, part in zip(known, paths, strict=False))
        self._paths[prompt] = known if told == paths else paths
        while len(self._paths) > _REMEMBERED:
            self._paths.popitem(last=False)


def _path(positions: Sequence[Position]) -> Ids:
    """The drafted tokens' ids, up to the first without one."""
    path: list[int] = []
    for position in positions:
        if position.drafted is None or position.drafted.id is None:
            break
        path.append(position.drafted.id)
    return tuple(path)


def _behind(prefix: Prefix, draft: Draft) -> tuple[Position, ...]:
    """The positions behind a prefix. Raises UpstreamCannotContinue where the answer is another."""
    said = len(prefix.generated)
    if _path(draft.positions)[:said] != prefix.generated:
        raise UpstreamCannotContinue
    return draft.positions[said:]
