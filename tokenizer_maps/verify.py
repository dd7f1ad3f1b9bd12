"""Whether a map and its vocabularies hold on real text: checks, and what running text shows."""

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TypeVar

from tokenizer_maps.errors import TokenizerMapError
from tokenizer_maps.map import TokenMap
from tokenizer_maps.vocabulary import Vocabulary

KIND_BYTES = 1_000_000  # of each kind of text, at most
LONGEST = 200  # bytes of a random substring
_KINDS = {".py": "Python", ".pyi": "Python", ".md": "Markdown", ".rst": "Markdown"}
_SUFFIXES = {*_KINDS, ".txt"}
_SHOWN = 3  # failures named in a report

Texts = Mapping[str, bytes]  # by kind of text
T = TypeVar("T")


@dataclass(frozen=True)
class Check:
    """What was tested how often, how often it failed, and the first failures."""

    name: str
    tested: int
    failed: int
    examples: tuple[str, ...]


@dataclass(frozen=True)
class Running:
    """One kind of running text, encoded with both vocabularies; shares of upstream tokens.

    ``known``: are one pair token; ``aligned``: end where a pair token ends; ``first``: where both
    begin at one place, the map names it as the first upstream token of the pair's.
    """

    kind: str
    size: int
    tokens: int
    known: float
    aligned: float
    first: float


def read_corpus(paths: list[Path]) -> dict[str, bytes]:
    """Text by kind from files, and from folders their .py, .md, .rst and .txt files, in order.

    What is mostly no Latin script counts as its own kind. Raises TokenizerMapError where a path
    cannot be read or nothing is found.
    """
    texts: dict[str, bytes] = {}
    try:
        for file in (file for path in paths for file in _files(path)):
            data = file.read_bytes()
            kind = _kind(file, data)
            texts[kind] = (texts.get(kind, b"") + data)[:KIND_BYTES]
    except OSError as error:
        raise TokenizerMapError(f"the corpus cannot be read: {error}") from error
    found = {kind: data for kind, data in sorted(texts.items()) if data}
    if not found:
        raise TokenizerMapError("the corpus holds no text: name files, or folders with .txt files")
    return found


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    return sorted(file for file in path.rglob("*") if file.suffix in _SUFFIXES and file.is_file())


def _kind(file: Path, data: bytes) -> str:
    text = data[:20_000].decode("utf-8", "replace")
    letters = [char for char in text if char.isalpha()]
    foreign = sum(char > "\u024f" for char in letters)
    if foreign > 0.3 * len(letters):
        return "other scripts"
    return _KINDS.get(file.suffix, "prose")


def running(token_map: TokenMap, texts: Texts) -> Iterator[Running]:
    """What the map says about texts, kind by kind; bytes that no token spells are left out."""
    begun, gaps = _begun(token_map), _gaps(token_map.upstream, token_map.pair)
    for kind, whole in texts.items():
        data = whole.translate(None, gaps)
        theirs, ours = token_map.upstream.encode(data), token_map.pair.encode(data)
        upstream, pair = token_map.upstream.tokens, token_map.pair.tokens
        ends = list(accumulate(len(upstream[i]) for i in theirs))
        at = dict(zip(accumulate((len(pair[i]) for i in ours), initial=0), ours, strict=False))
        begins = zip(theirs, [0, *ends], strict=False)
        places = [(i, at[begin]) for i, begin in begins if begin in at]
        boundaries = at.keys() | {len(data)}
        count = max(1, len(theirs))
        yield Running(
            kind=kind,
            size=len(whole),
            tokens=len(theirs),
            known=sum(token_map.pair.id_of(upstream[i]) is not None for i in theirs) / count,
            aligned=sum(end in boundaries for end in ends) / count,
            first=sum(begun.get(t) == i for i, t in places) / max(1, len(places)),
        )


def _begun(token_map: TokenMap) -> dict[int, int]:
    """Pair token -> the first upstream token of its bytes, out of the map's rows."""
    pointers = token_map.frt_ptr.tolist()
    ids = token_map.frt_ids.tolist()
    rows = pairwise(pointers)
    return {t: c for c, (low, high) in enumerate(rows) for t in ids[low:high]}


def verify(
    token_map: TokenMap,
    texts: Texts,
    samples: int,
    seed: int = 0,
    progress: Callable[[], None] = lambda: None,
) -> Iterator[Check]:
    """All checks; ``samples`` random substrings a vocabulary and kind of text.

    ``progress`` is called after each check, ``steps`` times in all.
    """
    rng = random.Random(seed)  # noqa: S311 - a sample, no secret
    for name, vocabulary in (("upstream", token_map.upstream), ("pair", token_map.pair)):
        for kind, data in texts.items():
            cases = _substrings(data, samples, rng)
            yield _check(f"{name} gives back {kind}", cases, _spells(vocabulary))
            progress()
        noise = [rng.randbytes(rng.randint(0, 12)) for _ in range(samples // 10)]
        yield _check(f"{name} gives back random bytes", noise, _spells(vocabulary))
        progress()
    yield _check("ranges agree with a scan", _prefixes(token_map, rng), _scans(token_map))
    progress()
    tokens = range(len(token_map.pair.tokens))
    picked = rng.sample(tokens, min(len(tokens), 10 * samples))
    yield _check("rows agree with the upstream's encoding", picked, _begins(token_map))
    progress()
    ids = range(len(token_map.upstream.tokens))
    picked = rng.sample(ids, min(len(ids), 10 * samples))
    yield _check("first tokens agree with the pair's encoding", picked, _starts(token_map))
    progress()


def steps(texts: Texts) -> int:
    """How often ``verify`` calls its ``progress``."""
    return 2 * (len(texts) + 1) + 3


def _check(name: str, cases: list[T], holds: Callable[[T], bool]) -> Check:
    failed = [case for case in cases if not holds(case)]
    return Check(name, len(cases), len(failed), tuple(map(repr, failed[:_SHOWN])))


def _substrings(data: bytes, count: int, rng: random.Random) -> list[bytes]:
    begins = [rng.randrange(len(data)) for _ in range(count)]
    return [data[begin : begin + rng.randint(1, LONGEST)] for begin in begins]


def _spells(vocabulary: Vocabulary) -> Callable[[bytes], bool]:
    """Whether the tokens of a text spell it, without bytes that no token spells."""
    gaps = _gaps(vocabulary)

    def holds(data: bytes) -> bool:
        ids = vocabulary.encode(data)
        text = all(vocabulary.spells(i) for i in ids)
        return text and vocabulary.decode(ids) == data.translate(None, gaps)

    return holds


def _gaps(*vocabularies: Vocabulary) -> bytes:
    """The bytes that occur in no token of one of them, and so are lost in encoding."""
    lost: set[int] = set()
    for vocabulary in vocabularies:
        lost |= {*range(256)} - {*b"".join(vocabulary.tokens)}
    return bytes(lost)


def _prefixes(token_map: TokenMap, rng: random.Random) -> list[bytes]:
    tokens = [token_map.pair.tokens[i] for i in rng.choices(token_map.order.tolist(), k=100)]
    cut = [token[: rng.randint(0, len(token))] for token in tokens]
    return [*cut, *(prefix + b"\xff" for prefix in cut[:20]), b"", b"\xff", b"\xff\xff"]


def _scans(token_map: TokenMap) -> Callable[[bytes], bool]:
    tokens = [token_map.pair.tokens[i] for i in token_map.order.tolist()]

    def holds(prefix: bytes) -> bool:
        ranks = [n for n, token in enumerate(tokens) if token.startswith(prefix)]
        longer = [n for n in ranks if tokens[n] != prefix]
        span, beyond = token_map.span(prefix), token_map.beyond(prefix)
        return [*range(*span)] == ranks and [*range(*beyond)] == longer

    return holds


def _begins(token_map: TokenMap) -> Callable[[int], bool]:
    begun = _begun(token_map)

    def holds(token: int) -> bool:
        return begun.get(token, -1) == _first(token_map.upstream, token_map.pair.tokens[token])

    return holds


def _starts(token_map: TokenMap) -> Callable[[int], bool]:
    def holds(token: int) -> bool:
        expected = _first(token_map.pair, token_map.upstream.tokens[token])
        return int(token_map.first[token]) == expected

    return holds


def _first(vocabulary: Vocabulary, token: bytes) -> int:
    ids = vocabulary.encode(token)
    return ids[0] if ids and token.startswith(vocabulary.tokens[ids[0]]) else -1
