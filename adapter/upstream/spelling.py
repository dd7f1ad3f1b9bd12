"""What can be sent as text: whole characters, and nothing that is read as a special token."""

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property, lru_cache

import numpy as np

from adapter.candidates import END, Candidate, Position
from adapter.errors import BadRequest
from adapter.prefix import Prefix, Segment, Special, pending
from adapter.steering import Flags, Ints
from tokenizer_maps.canonical import Encoder
from tokenizer_maps.vocabulary import Vocabulary


class Spelling:
    """What a text may grow by, for an upstream that is sent text; `vocabulary` None: unknown.

    A token may come out where the text then ends with a whole character and spells no special
    token; and where it is the drafted one, as a drafted token is only left in its position where
    its run goes on to finish the character (`TextUpstream`). All depends on the text and on what
    the upstream showed there, never on how many tokens it was asked for. For one thread.
    """

    def __init__(self, vocabulary: Vocabulary | None) -> None:
        self._vocabulary = vocabulary
        self._encoder = None if vocabulary is None else Encoder(vocabulary)
        specials = vocabulary.specials if vocabulary is not None else ()
        self._specials = tuple(name.encode() for name in specials if name)
        self._tail = max(map(len, self._specials), default=1) - 1
        names = b"|".join(map(re.escape, self._specials))
        self._any = re.compile(names) if names else None
        self._free = lru_cache(64)(self._free_now)
        self._behind_specials = lru_cache(64)(self._behind_specials_now)

    @property
    def knows(self) -> bool:
        """Whether the upstream's tokenizer is known, so that a text's own tokens can be told."""
        return self._encoder is not None

    def allows(self, before: bytes, token: Candidate) -> bool:
        """Whether a text stays one that can be sent."""
        unfinished = pending(before)
        if token.special is not None:
            return token.special == END and not unfinished
        return _is_whole(unfinished + token.token) and not self.spells(before, token.token)

    def spells(self, before: bytes, token: bytes) -> bool:
        """Whether a token completes the name of a special token; those before it are read."""
        tail = self._end(before)
        text = tail + token
        if self._any is None or not self._any.search(text):
            return False
        return any(text.find(n, max(0, len(tail) - len(n) + 1)) >= 0 for n in self._specials)

    def barred(self, prefix: Prefix, position: Position, ids: Ints) -> Flags:
        """Which entries may not come out: the position's candidates, then hidden tokens by id."""
        before, shown = opening_of(prefix) + prefix.text, position.candidates
        drafted = None if position.drafted is None else position.drafted.identity
        named = [c.identity != drafted and not self.allows(before, c) for c in shown]
        hidden = ids[len(shown) :]
        if not len(hidden):
            return np.array(named, np.bool_)
        free = self._free(pending(before), tuple(sorted(set(self._rests(before)))))
        return np.concatenate([np.array(named, np.bool_), ~free[hidden]])

    def drifted(self, prefix: Prefix) -> bool:
        """Whether the upstream reads other tokens than were generated; True where it may be so."""
        if self._vocabulary is None or self._encoder is None:
            return bool(prefix.generated)
        ids, left = prefix.generated, len(prefix.open)
        while left > 0:
            left -= len(self._vocabulary.tokens[ids[-1]])
            ids = ids[:-1]
        start, whole = opening_of(prefix), prefix.text[: len(prefix.text) - len(prefix.open)]
        return self.canonical(start, whole) != self.canonical(start, b"") + ids

    def canonical(self, start: bytes, text: bytes) -> tuple[int, ...]:
        """The tokens the upstream reads in an opening and a text, behind the last special token.

        Raises ValueError where they are not known.
        """
        if self._encoder is None:
            raise ValueError("the tokens of an unknown vocabulary are not known")
        return self._encoder.encode(start[self._behind_specials(start) :] + text).ids

    def _behind_specials_now(self, start: bytes) -> int:
        """Where the special tokens of an opening end; generated text spells none."""
        ends = (start.rfind(name) + len(name) for name in self._specials if name in start)
        return max(ends, default=0)

    def _end(self, before: bytes) -> bytes:
        """As much of a text as the name of a special token may begin in."""
        return before[-self._tail :] if self._tail else b""

    def _rests(self, before: bytes) -> Iterable[bytes]:
        """What would complete a special token whose name has begun."""
        tail = self._end(before)
        for name in self._specials:
            for cut in range(1, len(name)):
                if tail.endswith(name[:cut]):
                    yield name[cut:]

    def _free_now(self, unfinished: bytes, rests: tuple[bytes, ...]) -> Flags:
        """Of all ids, the tokens that may come out behind such a text."""
        tokens = () if self._vocabulary is None else self._vocabulary.tokens
        free = np.zeros(len(tokens), np.bool_)
        if unfinished:
            able = [i for i in self._inner if _is_whole(unfinished + tokens[i])]
        else:
            able = [i for i in self._outer if not rests or not tokens[i].startswith(rests)]
        free[able] = True
        return free

    @cached_property
    def _outer(self) -> tuple[int, ...]:
        """The tokens of whole characters, and the ends."""
        ends = () if self._vocabulary is None else self._vocabulary.end
        return (*(i for i, token in self._clean() if _is_whole(token)), *ends)

    @cached_property
    def _inner(self) -> tuple[int, ...]:
        """The tokens that begin inside a character."""
        return tuple(i for i, token in self._clean() if token and token[0] & 0xC0 == 0x80)

    def _clean(self) -> Iterator[tuple[int, bytes]]:
        """The tokens of text that hold no special token's name."""
        vocabulary = self._vocabulary
        for i, token in enumerate(() if vocabulary is None else vocabulary.tokens):
            if vocabulary is not None and vocabulary.spells(i) and not self.spells(b"", token):
                yield i, token


def opening_of(prefix: Prefix) -> bytes:
    """The prompt that stands in front of the generated text; of a chat nobody knows it."""
    return prefix.prompt.encode() if isinstance(prefix.prompt, str) else b""


def check_text(text: str, vocabulary: Vocabulary | None, param: str = "prompt") -> None:
    """Raises BadRequest for a user's text that a server would read a special token in.

    Servers parse special tokens in prompts of text, and many in what a chat's messages say; with
    an unknown vocabulary nobody can tell.
    """
    specials = () if vocabulary is None else vocabulary.specials
    found = next((name for name in specials if name and name in text), None)
    if found is not None:
        raise BadRequest(
            f"the text holds {found}, which this upstream may read as its special token: it is "
            "sent text and no ids; leave it out",
            param=param,
        )


def opening(segments: Sequence[Segment], vocabulary: Vocabulary | None) -> str:
    """A rendered prompt as one text; only a template's special tokens are spelt in it.

    Raises BadRequest as `check_text`.
    """
    words = []
    for segment in segments:
        if isinstance(segment, Special):
            words.append(segment.name)
        else:
            words.append(segment.decode())
            check_text(words[-1], vocabulary)
    return "".join(words)


def _is_whole(text: bytes) -> bool:
    """Whether bytes are whole characters."""
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True
