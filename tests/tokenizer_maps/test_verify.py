"""Checks of a map on text: a sound map passes, and every kind of fault is found."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.tokenizer_maps import worlds
from tokenizer_maps import TokenizerMapError, TokenMap, Vocabulary
from tokenizer_maps.verify import Check, read_corpus, running, steps, verify

TEXTS = {"prose": worlds.PROSE.encode(), "other scripts": worlds.WORLD.encode()}


def failing(token_map: TokenMap) -> list[str]:
    return [check.name for check in verify(token_map, TEXTS, samples=40) if check.failed]


def test_a_sound_map_passes(token_map: TokenMap) -> None:
    calls: list[None] = []
    checks = list(verify(token_map, TEXTS, samples=40, progress=lambda: calls.append(None)))
    assert [check.failed for check in checks] == [0] * len(checks)
    assert [check.tested for check in checks[:3]] == [40, 40, 4]
    assert len(calls) == steps(TEXTS) == len(checks)


def test_a_wrong_encoder_is_found(token_map: TokenMap, digits: Vocabulary) -> None:
    def forgetful(data: bytes) -> tuple[int, ...]:
        return digits.encode(data.replace(b"the", b""))

    faulty = replace(token_map, pair=replace(digits, encoder=forgetful))
    assert "pair gives back prose" in failing(faulty)


def test_special_tokens_in_text_are_found(token_map: TokenMap, digits: Vocabulary) -> None:
    faulty = replace(
        token_map, pair=replace(digits, encoder=lambda data: (0, *digits.encode(data)))
    )
    assert "pair gives back prose" in failing(faulty)


def test_wrong_arrays_are_found(token_map: TokenMap) -> None:
    swapped = token_map.order.copy()
    swapped[[100, 300]] = swapped[[300, 100]]
    assert failing(replace(token_map, order=swapped)) == ["ranges agree with a scan"]
    rows = replace(token_map, frt_ids=token_map.frt_ids[::-1])
    assert failing(rows) == ["rows agree with the upstream's encoding"]
    first = replace(token_map, first=token_map.first[::-1])
    assert failing(first) == ["first tokens agree with the pair's encoding"]


def test_examples_name_what_failed(token_map: TokenMap, digits: Vocabulary) -> None:
    faulty = replace(token_map, pair=replace(digits, encoder=lambda _: ()))
    (found,) = (c for c in verify(faulty, TEXTS, 40) if c.name == "pair gives back prose")
    assert isinstance(found, Check)
    assert found.failed == found.tested == 40
    assert len(found.examples) == 3


def test_running_text_by_hand(gpt: Vocabulary) -> None:
    lines = list(running(TokenMap.build(gpt, gpt), TEXTS))
    assert [line.kind for line in lines] == ["prose", "other scripts"]
    for line in lines:
        assert line.known == line.aligned == line.first == 1.0
        assert line.size == len(TEXTS[line.kind])
        assert line.tokens == len(gpt.encode(TEXTS[line.kind]))


def test_bytes_that_no_token_spells_are_left_out(gpt: Vocabulary) -> None:
    tokens = tuple(token.replace(b"\xff", b"") for token in gpt.tokens)
    lacking = replace(
        gpt, tokens=tokens, encoder=lambda data: gpt.encode(data.replace(b"\xff", b""))
    )
    made = TokenMap.build(gpt, lacking)
    (line,) = running(made, {"prose": b"the \xfffox " * 20})
    assert line.known == line.aligned == line.first == 1.0
    assert line.size == 180
    assert [c for c in verify(made, {"prose": b"the \xfffox " * 20}, samples=20) if c.failed] == []


def test_digits_show_in_running_text(token_map: TokenMap) -> None:
    (line,) = running(token_map, {"numbers": b"1999 2024 " * 50})
    assert line.known < 1
    assert line.first < 1
    assert line.aligned == 1


def test_corpus(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.py").write_text("x = 1\n")
    (tmp_path / "b.md").write_text("# B\n")
    (tmp_path / "c.bin").write_bytes(b"\0")
    (tmp_path / "d.txt").write_text("漢字とかな " * 20)
    (tmp_path / "e.txt").write_text("plain words")
    (tmp_path / "f.txt").write_text("")
    found = read_corpus([tmp_path])
    assert list(found) == ["Markdown", "Python", "other scripts", "prose"]
    assert found["Python"] == b"x = 1\n"
    assert read_corpus([tmp_path / "c.bin"]) == {"prose": b"\0"}
    for nothing in ([], [tmp_path / "f.txt"], [tmp_path / "none"]):
        with pytest.raises(TokenizerMapError, match="corpus"):
            read_corpus(nothing)
