"""A run in pieces, from the events of a streamed completion."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Protocol

from adapter.candidates import END, Candidate, Draft, Position, Usage
from adapter.upstream.answers import only_choice, usage_of
from adapter.upstream.printed import Printed
from adapter.upstream.transport import Answer


class Run(Protocol):
    """Reads one run: from a whole answer, or chunk by chunk with the same result."""

    @property
    def cut(self) -> bool:
        """Whether something came that cannot be read on, or was not asked for."""
        ...

    def read(self, choice: Mapping[str, Any]) -> tuple[Position, ...]:
        """The next positions. Raises UpstreamMalformed."""
        ...

    def finish(self, completion_tokens: int) -> str | None:
        """Why the upstream stopped, None where the run was cut. Raises UpstreamMalformed."""
        ...


async def pieces(
    events: AsyncGenerator[Answer, None],
    run: Run,
    prompt_tokens: int,
    printed: Printed | None = None,
) -> AsyncGenerator[Draft, None]:
    """What comes of a run, as it comes; a cut run closes the connection.

    `printed` holds back what the text does not bear out; the run is cut where it never does. Until
    the upstream says what it consumed, usage is `prompt_tokens` and one token a position.
    """
    told = owed = Usage()
    said: Usage | None = None
    async with aclosing(events):
        async for event in events:
            positions = run.read(_choice(event.body))
            asked = prompt_tokens if event.calls else 0
            owed += Usage(event.calls, asked, 0, len(positions))
            if event.body.get("usage"):
                said = usage_of(event.body, (told + owed).calls)
            settled = positions if printed is None else printed.through(positions)
            if settled:
                yield Draft(settled, None, owed)
                told, owed = told + owed, Usage()
            if run.cut or (printed is not None and printed.parted):
                said = None
                break
    total = told + owed if said is None else said
    rest: tuple[Position, ...] = ()
    if printed is not None:
        rest = printed.rest(None if said is None else said.completion_tokens)
    lost = printed is not None and printed.parted
    finish = None if lost else run.finish(total.completion_tokens)
    if rest or finish is not None or total != told:
        yield Draft(rest, finish, total - told)


def is_over(drafted: Sequence[Candidate | None], n: int) -> bool:
    """Whether what was drafted is all that is wanted: n tokens, an END, or one without a name."""
    if not drafted:
        return False
    last = drafted[-1]
    return last is None or last.special == END or len(drafted) >= n


def _choice(body: Mapping[str, Any]) -> Mapping[str, Any]:
    """The event's choice; {} in the one that only tells the usage."""
    return only_choice(body) if body.get("choices") != [] else {}
