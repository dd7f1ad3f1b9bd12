"""An upstream that is sent text: all the rules of such prefixes, whatever API is asked."""

from codecs import getincrementaldecoder
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace

from adapter.candidates import END, Draft, Position, Usage
from adapter.errors import UpstreamCannotContinue, UpstreamMalformed
from adapter.prefix import Prefix
from adapter.request import Chat
from adapter.upstream.capabilities import Capabilities
from adapter.upstream.printed import LONGEST
from adapter.upstream.speaker import Speaker
from adapter.upstream.spelling import Spelling, opening_of
from adapter.upstream.upstream import Allowance
from tokenizer_maps.vocabulary import Vocabulary


class TextUpstream:
    """A speaker as an Upstream, for prefixes of text or of a chat.

    Half a character cannot be sent, so a run is cut at the last token that leaves none; it is
    always LONGEST tokens long at least. Where the tokenizer is known it is also cut where the
    text, read anew, has other tokens than the run's own: everything behind would be another
    distribution than the one the upstream shows when it is asked there. Where it is not known, only
    what stands behind the prefix itself may be kept for others (`Draft.kept`). Greedy runs only.
    `spelling` are these rules, for whoever draws.
    """

    def __init__(self, speaker: Speaker, vocabulary: Vocabulary | None) -> None:
        self._speaker = speaker
        self.spelling = Spelling(vocabulary)
        self.capabilities: Capabilities = replace(
            speaker.capabilities, rejection=False, scoring=None, text_scoring="none"
        )
        self.identity: tuple[str, ...] = ("text", *speaker.identity)

    async def draft(
        self, prefix: Prefix, n: int, budget: Allowance, sampled: bool = False
    ) -> Draft:
        """A run of n positions, of so many more as finish a character, or of fewer."""
        prompt, said = self._sent(prefix, sampled)
        run = _TextRun(self.spelling, prefix, n)
        draft = await self._speaker.ask(prompt, said, run.asked, budget)
        positions = run.read(draft.positions)
        rest, finish = run.finish(draft.finish_reason)
        return Draft((*positions, *rest), finish, draft.usage, kept=run.kept)

    async def draws(
        self, prefix: Prefix, n: int, budget: Allowance, choices: int
    ) -> tuple[Draft, ...]:
        """Not to be had: behind a text every run is greedy."""
        raise ValueError("behind a text every run is greedy")

    async def stream(
        self, prefix: Prefix, n: int, budget: Allowance, sampled: bool = False
    ) -> AsyncGenerator[Draft, None]:
        """The same run; what may still be cut is held back."""
        prompt, said = self._sent(prefix, sampled)
        run = _TextRun(self.spelling, prefix, n)
        owed, reason, told = Usage(), None, 0
        async with aclosing(self._speaker.stream(prompt, said, run.asked, budget)) as pieces:
            async for piece in pieces:
                owed, reason = owed + piece.usage, piece.finish_reason
                positions = run.read(piece.positions)
                if positions:
                    yield Draft(positions, None, owed, kept=_within(run.kept, told))
                    owed, told = Usage(), told + len(positions)
                if run.over:
                    break
        rest, finish = run.finish(reason)
        if rest or finish is not None or owed != Usage():
            yield Draft(rest, finish, owed, kept=_within(run.kept, told))

    async def score(
        self, prefix: Prefix, ids: Sequence[int], budget: Allowance
    ) -> tuple[dict[int, float], Usage]:
        """Nothing: chosen tokens cannot be had behind a text."""
        return {}, Usage()

    async def positions(self, ids: Sequence[int], budget: Allowance) -> Draft:
        """Not to be had: a text has no ids here."""
        raise ValueError("an upstream that is sent text does not score one")

    async def close(self) -> None:
        """Let go of connections."""
        await self._speaker.close()

    def _sent(self, prefix: Prefix, sampled: bool) -> tuple[str | Chat, str]:
        """What is sent for a prefix, up to its last whole character."""
        if sampled:
            raise ValueError("behind a text every run is greedy")
        if isinstance(prefix.prompt, tuple):
            raise ValueError("a prefix of ids cannot be sent as text")
        if prefix.text and self.capabilities.continues == "none":
            raise UpstreamCannotContinue
        return prefix.prompt, prefix.text[: len(prefix.text) - len(prefix.open)].decode()


class _TextRun:
    """Reads the positions of a run as far as they stand behind texts that can be sent.

    A prefix inside a character was asked about where the character begins: the run has to lead to
    it, and its positions begin there. `kept` as in Draft; `over`: nothing further is of use.
    """

    def __init__(self, spelling: Spelling, prefix: Prefix, n: int) -> None:
        self.over = False
        self._spelling = spelling
        self._left = n
        self._missing = prefix.open
        self._start = opening_of(prefix)
        self._text = prefix.text[: len(prefix.text) - len(prefix.open)]
        self._path = self._own(self._text) if spelling.knows else ()
        self._open: list[Position] = []  # those since the last whole character
        self._first: int | None = None  # the positions of the first character
        # What it takes to come to the prefix is not wanted once more.
        self.asked = max(n + len(prefix.open), LONGEST)

    @property
    def kept(self) -> int | None:
        """How many positions anybody gets at their prefix, None for all."""
        return None if self._spelling.knows else self._first

    def read(self, positions: Sequence[Position]) -> tuple[Position, ...]:
        """Those of all positions so far that are settled and were not yet given."""
        settled: list[Position] = []
        for position in positions:
            if self.over:
                break
            settled += self._one(position)
        return tuple(settled)

    def finish(self, reason: str | None) -> tuple[tuple[Position, ...], str | None]:
        """What is left once no more comes, and why the run ended, None where it was cut.

        Raises UpstreamMalformed where there was nothing.
        """
        if self.over:
            return (), None
        if not self._open:
            if self._missing or (self._first is None and reason != "stop"):
                raise UpstreamMalformed(_NOTHING)
            return (), reason
        # A later one will be asked about on its own; the first has had all that it can get.
        undone = self._first is None or reason == "stop"
        return tuple(self._masked()) if undone else (), None

    def _one(self, position: Position) -> list[Position]:
        """The positions that are settled with this one."""
        begun = b"".join(p.drafted.token for p in self._open if p.drafted is not None)
        self._open.append(position)
        drafted = position.drafted
        if drafted is None or drafted.id is None or drafted.special is not None:
            ends = drafted is not None and drafted.special == END and len(self._open) == 1
            return self._whole(self._text) if ends else self._masked()
        before, character = self._start + self._text + begun, begun + drafted.token
        if self._spelling.allows(before, drafted):
            return self._whole(self._text + character)
        hopeless = not _may_be_whole(character) or self._spelling.spells(before, drafted.token)
        return self._masked() if hopeless or len(self._open) == LONGEST else []

    def _whole(self, text: bytes) -> list[Position]:
        """All positions up to here can be used: the text can be sent."""
        ids = [p.drafted.id for p in self._open if p.drafted and p.drafted.special is None]
        self._path += tuple(i for i in ids if i is not None)
        self._text = text
        settled = self._give(self._open)
        drifted = self._spelling.knows and self._own(text) != self._path
        self.over = self._left <= 0 or drifted
        return settled

    def _own(self, text: bytes) -> tuple[int, ...]:
        return self._spelling.canonical(self._start, text)

    def _masked(self) -> list[Position]:
        """The first position of a character that the run does not finish, and no further."""
        self.over = True
        return self._give([replace(self._open[0], drafted=None)])

    def _give(self, positions: Sequence[Position]) -> list[Position]:
        self._open = []
        given = [position for position in positions if not self._leads(position)]
        if self._first is None:
            self._first = len(given)
        self._left -= len(given)
        return given

    def _leads(self, position: Position) -> bool:
        """Whether a position lies before the prefix; its drafted token then has to lead there."""
        if not self._missing:
            return False
        token = b"" if position.drafted is None else position.drafted.token
        if not token or not self._missing.startswith(token):
            raise UpstreamMalformed(_ANOTHER)
        self._missing = self._missing[len(token) :]
        return True


_NOTHING = "the upstream's answer has no token"
_ANOTHER = "asked twice where a character begins, the upstream drafted two different ones"


def _may_be_whole(text: bytes) -> bool:
    """Whether bytes are the beginning of whole characters."""
    try:
        getincrementaldecoder("utf-8")().decode(text)
    except UnicodeDecodeError:
        return False
    return True


def _within(kept: int | None, told: int) -> int | None:
    """Of the positions of a piece behind so many others, those to be kept."""
    return None if kept is None else max(0, kept - told)
