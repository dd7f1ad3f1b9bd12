"""Token maps: the arrays against direct encoding and linear scans, the file against damage."""

import hashlib
import json
import logging
import random
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tokenizer_maps import Kind, MapError, TokenMap, Vocabulary, open_map
from tokenizer_maps.coverage import shape
from tokenizer_maps.map import HEADER, read_facts

ARRAYS = ("order", "frt_ptr", "frt_ids", "first")


def assert_same(left: TokenMap, right: TokenMap) -> None:
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name))


def test_order_is_by_bytes_then_id(token_map: TokenMap, digits: Vocabulary) -> None:
    texts = [i for i in range(len(digits.tokens)) if digits.spells(i)]
    expected = sorted(texts, key=lambda i: (digits.tokens[i], i))
    assert token_map.order.tolist() == expected


def test_rows_hold_the_tokens_that_start_with_the_upstream_token(
    token_map: TokenMap, gpt: Vocabulary, digits: Vocabulary
) -> None:
    begun: dict[int, list[int]] = {}
    for t in token_map.order.tolist():
        begun.setdefault(gpt.encode(digits.tokens[t])[0], []).append(t)
    for c in range(len(gpt.tokens)):
        row = token_map.frt_ids[token_map.frt_ptr[c] : token_map.frt_ptr[c + 1]]
        assert row.tolist() == begun.get(c, [])
        assert all(digits.tokens[t].startswith(gpt.tokens[c]) for t in row)
    assert len(token_map.frt_ids) == len(token_map.order)


def test_first_is_the_first_canonical_token(
    token_map: TokenMap, gpt: Vocabulary, digits: Vocabulary
) -> None:
    for c, token in enumerate(gpt.tokens):
        assert token_map.first[c] == (digits.encode(token)[0] if gpt.spells(c) else -1)


def test_a_token_whose_bytes_the_other_side_lacks_has_no_place(gpt: Vocabulary) -> None:
    def without_x(data: bytes) -> tuple[int, ...]:
        return gpt.encode(data.replace(b"x", b""))

    lacking = replace(gpt, encoder=without_x)
    made = TokenMap.build(lacking, lacking)
    starting = [i for i, token in enumerate(gpt.tokens) if token.startswith(b"x")]
    assert (made.first[starting] == -1).all()
    assert not set(starting) & set(made.frt_ids.tolist())
    assert made.frt_ptr[-1] == len(made.frt_ids) == len(made.order) - len(starting)


def test_ranges_against_a_linear_scan(token_map: TokenMap, digits: Vocabulary) -> None:
    rng = random.Random(3)
    tokens = [digits.tokens[i] for i in token_map.order]
    prefixes = [t[: rng.randint(0, len(t))] for t in rng.choices(tokens, k=800)]
    prefixes += [rng.randbytes(rng.randint(0, 3)) for _ in range(200)]
    prefixes += [p + b"\xff" for p in prefixes[:50]] + [b"", b"\xff", b"\xff\xff", b"\x00"]
    for prefix in prefixes:
        ranks = [n for n, token in enumerate(tokens) if token.startswith(prefix)]
        assert list(range(*token_map.span(prefix))) == ranks
        longer = [n for n in ranks if tokens[n] != prefix]
        assert list(range(*token_map.beyond(prefix))) == longer


def test_equal_bytes_stay_together(gpt: Vocabulary) -> None:
    twice = replace(gpt, tokens=(*gpt.tokens, b" the"), kinds=(*gpt.kinds, gpt.kinds[-1]))
    made = TokenMap.build(gpt, twice)
    low, high = made.span(b" the")
    same = [i for i in made.order[low:high].tolist() if twice.tokens[i] == b" the"]
    assert same == [gpt.id_of(b" the"), len(gpt.tokens)]
    assert made.beyond(b" the") == (low + 2, high)
    assert made.longest == max(map(len, gpt.tokens))


def test_saved_and_loaded(
    tmp_path: Path, token_map: TokenMap, gpt: Vocabulary, digits: Vocabulary
) -> None:
    token_map.save(tmp_path / "a.tkmap")
    loaded = TokenMap.load(tmp_path / "a.tkmap", gpt, digits)
    assert_same(loaded, token_map)
    assert not loaded.order.flags.writeable
    assert loaded.span(b" t") == token_map.span(b" t")
    assert [path.name for path in tmp_path.iterdir()] == ["a.tkmap"]


def test_equal_maps_are_equal_files(
    tmp_path: Path, token_map: TokenMap, gpt: Vocabulary, digits: Vocabulary
) -> None:
    token_map.save(tmp_path / "a")
    TokenMap.build(gpt, digits).save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_every_flipped_byte_is_noticed(
    tmp_path: Path, token_map: TokenMap, gpt: Vocabulary, digits: Vocabulary
) -> None:
    path = tmp_path / "a"
    token_map.save(path)
    whole = path.read_bytes()
    for at in [*range(120), *range(120, len(whole), 97), *range(len(whole) - 32, len(whole))]:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x40]) + whole[at + 1 :])
        with pytest.raises(MapError):
            TokenMap.load(path, gpt, digits)


@pytest.mark.parametrize("keep", [0, 1, 50, 130, -1, -40])
def test_cut_files_are_noticed(
    tmp_path: Path, token_map: TokenMap, gpt: Vocabulary, digits: Vocabulary, keep: int
) -> None:
    path = tmp_path / "a"
    token_map.save(path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(MapError):
        TokenMap.load(path, gpt, digits)


def test_a_file_of_the_wrong_size_is_noticed(
    tmp_path: Path, token_map: TokenMap, gpt: Vocabulary, digits: Vocabulary
) -> None:
    for wrong in (token_map.first[:-1], np.append(token_map.frt_ptr, 0)):
        name = "first" if len(wrong) < len(token_map.frt_ptr) else "frt_ptr"
        replace(token_map, **{name: wrong}).save(tmp_path / "a")
        with pytest.raises(MapError, match="length"):
            TokenMap.load(tmp_path / "a", gpt, digits)


def test_no_file(tmp_path: Path, gpt: Vocabulary, digits: Vocabulary) -> None:
    with pytest.raises(MapError, match="cannot be read"):
        TokenMap.load(tmp_path / "a", gpt, digits)


def test_other_vocabularies_are_refused(
    tmp_path: Path, token_map: TokenMap, gpt: Vocabulary, digits: Vocabulary
) -> None:
    token_map.save(tmp_path / "a")
    for upstream, pair in ((digits, gpt), (gpt, gpt), (digits, digits)):
        with pytest.raises(MapError, match="other vocabularies"):
            TokenMap.load(tmp_path / "a", upstream, pair)


def test_opened_twice_built_once(
    tmp_path: Path, gpt: Vocabulary, digits: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = open_map(tmp_path / "new" / "maps", gpt, digits)
    monkeypatch.delattr(TokenMap, "build")
    assert_same(open_map(tmp_path / "new" / "maps", gpt, digits), built)
    (file,) = (tmp_path / "new" / "maps").iterdir()
    assert file.suffix == ".tkmap"
    assert gpt.fingerprint[:16] in file.name
    assert digits.fingerprint[:16] in file.name


def test_a_damaged_map_is_built_anew_with_a_warning(
    tmp_path: Path, gpt: Vocabulary, digits: Vocabulary, caplog: pytest.LogCaptureFixture
) -> None:
    built = open_map(tmp_path, gpt, digits)
    (file,) = tmp_path.iterdir()
    file.write_bytes(b"nonsense")
    with caplog.at_level(logging.WARNING):
        assert_same(open_map(tmp_path, gpt, digits), built)
    assert "anew" in caplog.text
    assert_same(TokenMap.load(file, gpt, digits), built)


def test_a_directory_that_cannot_be_written(
    tmp_path: Path, token_map: TokenMap, gpt: Vocabulary, digits: Vocabulary
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MapError, match="another directory"):
        open_map(tmp_path / "file", gpt, digits)
    with pytest.raises(MapError, match="cannot be written"):
        token_map.save(tmp_path / "missing" / "a")


def test_facts_are_read_without_the_vocabularies(tmp_path: Path, token_map: TokenMap) -> None:
    token_map.save(tmp_path / "a")
    facts = read_facts(tmp_path / "a")
    assert facts["upstream"] == token_map.upstream.fingerprint
    assert facts["pair"] == token_map.pair.fingerprint
    assert facts["coverage"] == asdict(token_map.coverage)
    assert facts["order"] == len(token_map.order)


def test_coverage_against_counting(
    token_map: TokenMap, gpt: Vocabulary, digits: Vocabulary
) -> None:
    own = [t for t, kind in zip(gpt.tokens, gpt.kinds, strict=True) if kind is Kind.BYTE]
    texts = [digits.tokens[i] for i in range(len(digits.tokens)) if digits.spells(i)]
    coverage = token_map.coverage
    assert coverage.exact == sum(token in texts for token in own)
    assert coverage.uncovered == sum(not any(t.startswith(c) for t in texts) for c in own)
    assert not coverage.nested
    assert not coverage.identical
    assert (coverage.upstream, coverage.pair) == (shape(gpt), shape(digits))
    assert coverage.pair.added == 1  # <tool>
    same = TokenMap.build(gpt, gpt)
    assert same.coverage.exact == len(own)
    assert same.nested
    assert same.identical
    assert not token_map.nested
    assert not token_map.identical


def test_shapes(gpt: Vocabulary) -> None:
    byte = Kind.BYTE
    tokens = (b"a", b"\xff", b"a", b"long" * 5, b"", b"added")
    made = replace(gpt, tokens=tokens, kinds=(byte, byte, byte, byte, Kind.NONE, Kind.ADDED))
    found = shape(made)
    assert (found.tokens, found.added, found.duplicates) == (4, 1, 1)
    assert (found.mean, found.p99, found.longest) == (5.75, 20, 20)
    assert (found.long, found.invalid) == (1, 1)
    assert shape(replace(gpt, tokens=(), kinds=())).tokens == 0


def sealed(body: bytes) -> bytes:
    """A file with the right checksum, whatever it holds."""
    return body + hashlib.sha256(body).digest()


def test_nonsense_with_the_right_checksum_is_refused(
    tmp_path: Path, token_map: TokenMap, gpt: Vocabulary, digits: Vocabulary
) -> None:
    token_map.save(tmp_path / "a")
    facts = read_facts(tmp_path / "a")
    whole = (tmp_path / "a").read_bytes()
    magic, version, size = HEADER.unpack_from(whole)
    arrays = whole[HEADER.size + size : -32]
    wrong = [facts | {"order": -1}, facts | {"first": 1.5}, facts | {"frt_ids": True}, {}, []]
    for text in [*map(json.dumps, wrong), "nonsense", ""]:
        head = HEADER.pack(magic, version, len(text)) + text.encode()
        (tmp_path / "a").write_bytes(sealed(head + arrays))
        with pytest.raises(MapError, match="damaged"):
            TokenMap.load(tmp_path / "a", gpt, digits)
    (tmp_path / "a").write_bytes(sealed(whole[: HEADER.size]))
    with pytest.raises(MapError):
        TokenMap.load(tmp_path / "a", gpt, digits)


def test_entries_that_point_nowhere_are_refused(
    tmp_path: Path, token_map: TokenMap, gpt: Vocabulary, digits: Vocabulary
) -> None:
    ptr = token_map.frt_ptr.copy()
    ptr[1], ptr[2] = 9, 1
    wrong = [("frt_ids", token_map.frt_ids + 10_000), ("first", token_map.first - 5)]
    for name, array in [*wrong, ("frt_ids", token_map.frt_ids - 10), ("frt_ptr", ptr)]:
        replace(token_map, **{name: array}).save(tmp_path / "a")
        with pytest.raises(MapError, match="no map of its vocabularies"):
            TokenMap.load(tmp_path / "a", gpt, digits)


def test_files_of_the_version_before_are_refused(
    tmp_path: Path, token_map: TokenMap, gpt: Vocabulary, digits: Vocabulary
) -> None:
    token_map.save(tmp_path / "a")
    whole = bytearray((tmp_path / "a").read_bytes()[:-32])
    whole[8] = 1
    (tmp_path / "a").write_bytes(sealed(bytes(whole)))
    with pytest.raises(MapError, match="another version"):
        TokenMap.load(tmp_path / "a", gpt, digits)


def refuse_damage(folder: Path, token_map: TokenMap, data: st.DataObject) -> None:
    path, whole = folder / "whole", folder / "damaged"
    if not path.exists():
        token_map.save(path)
    sound = path.read_bytes()
    match data.draw(st.sampled_from(["flip", "cut", "extend", "insert", "remove"])):
        case "flip":
            changed = bytearray(sound)
            for at in data.draw(st.sets(st.integers(0, 8 * len(sound) - 1), min_size=1)):
                changed[at // 8] ^= 1 << at % 8
            damaged = bytes(changed)
        case "cut":
            damaged = sound[: data.draw(st.integers(0, len(sound) - 1))]
        case "extend":
            damaged = sound + data.draw(st.binary(min_size=1, max_size=200))
        case "insert":
            at = data.draw(st.integers(0, len(sound)))
            damaged = sound[:at] + data.draw(st.binary(min_size=1, max_size=8)) + sound[at:]
        case _:
            at = data.draw(st.integers(0, len(sound) - 1))
            damaged = sound[:at] + sound[at + data.draw(st.integers(1, 8)) :]
    whole.write_bytes(damaged)
    with pytest.raises(MapError):
        TokenMap.load(whole, token_map.upstream, token_map.pair)
    with pytest.raises(MapError):
        read_facts(whole)


once = settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@once
@given(data=st.data())
def test_no_damage_is_accepted(tmp_path: Path, token_map: TokenMap, data: st.DataObject) -> None:
    refuse_damage(tmp_path, token_map, data)


@pytest.mark.full
@settings(once, max_examples=3000)
@given(data=st.data())
def test_no_damage_is_accepted_at_length(
    tmp_path: Path, token_map: TokenMap, data: st.DataObject
) -> None:
    refuse_damage(tmp_path, token_map, data)
