"""Generations for the decoding loop, with everything that a test does not care about filled in."""

import math
from functools import cache

from adapter.budget import Budget
from adapter.candidates import Ending
from adapter.decoding import Frozen, Generation, Influence, Pace, Stride, decode
from adapter.prefix import Prefix
from adapter.request import Sampling
from adapter.upstream.lexicon import Lexicon
from tokenizer_maps.vocabulary import Kind, Vocabulary


@cache
def byte_vocabulary() -> Vocabulary:
    """Every byte is the token of its own number; 0 ends the text."""
    return Vocabulary(
        tokens=(b"", *(bytes([i]) for i in range(1, 256))),
        kinds=(Kind.SPECIAL, *[Kind.BYTE] * 255),
        specials={"<end>": 0},
        start=(),
        end=frozenset({0}),
        fingerprint="bytes",
        chat_template=None,
        encoder=tuple,
    )


@cache
def lexicon(vocabulary: Vocabulary) -> Lexicon:
    return Lexicon(vocabulary)


def generation(prompt=(7, 8), *, vocabulary=None, sampling=None, reader=None, **more) -> Generation:
    """One choice, greedy unless a sampling is given."""
    influence = Influence(
        alpha=more.pop("alpha", 0.0),
        reader=reader,
        lexicon=more.pop("lexicon", None) or lexicon(vocabulary or byte_vocabulary()),
        impute=more.pop("impute", True),
        expand=more.pop("expand", 0),
        limit=more.pop("limit", math.inf),
    )
    stride = Stride(more.pop("pace", None) or Pace(), more.pop("lookahead", 1))
    fields = {"seed": 1, "choice": 0, "shown": 0} | more
    sampling = sampling or Sampling(max_tokens=4, temperature=0.0)
    return Generation(Prefix.of(prompt), sampling, influence, stride, **fields)


async def run(upstream, one: Generation, calls: int = 9999):
    """All steps of a generation, and its ending."""
    frozen = upstream if isinstance(upstream, Frozen) else Frozen(upstream)
    events = [event async for event in decode(frozen, one, Budget(calls))]
    assert isinstance(events[-1], Ending)
    return events[:-1], events[-1]
