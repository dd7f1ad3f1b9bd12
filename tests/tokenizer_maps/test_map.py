"""Token maps: the arrays against direct encoding and linear scans, the file against damage."""

import logging
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tokenizer_maps import MapError, TokenMap, Vocabulary, open_map

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
