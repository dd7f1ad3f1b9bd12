"""Records: what they say of steering, and how they are kept."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from adapter.errors import UpstreamMalformed
from adapter.upstream import Endpoint
from adapter.upstream.capabilities import COMPLETIONS, LLAMACPP
from adapter.upstream.dialects import Form, connect_known
from adapter.upstream.records import UNTRIED, Finding, Record, load
from adapter.upstream.texts import TextUpstream
from tests.support.synthetic import vocabulary_of_size

RECORD = Record(
    base_url="http://127.0.0.1:8000/v1",
    model="tiny",
    api="completions",
    reason="",
    calls=18,
    profile="vLLM",
    findings={
        "continues": Finding("ids", "measured"),
        "scoring": Finding("chosen", "measured"),
        "k_limit": Finding(20, "profile", "vLLM"),
        "end_visible": Finding(False, "unverified"),
    },
)


def found(**values: object) -> Record:
    measured = {name: Finding(value, "measured") for name, value in values.items()}
    return replace(RECORD, findings={**RECORD.findings, **measured})


@pytest.mark.parametrize(
    ("values", "tier"),
    [
        ({}, "A"),
        ({"continues": "text"}, "B"),
        ({"continues": "none"}, "C"),
        ({"logprobs": False}, "D"),
        ({"continues": None}, None),
    ],
)
def test_tiers(values: dict[str, object], tier: str | None) -> None:
    assert found(**values).tier == tier


def test_what_is_not_verified_is_not_known() -> None:
    assert RECORD.value("end_visible") is None
    assert RECORD.value("k_limit") == 20
    assert RECORD.value("context") is None


@pytest.mark.parametrize(
    ("values", "changed"),
    [
        ({"end_visible": False}, {"end_visible": False}),
        ({"every_step_shown": False}, {"every_step_shown": False, "rejection": False}),
        ({"before_temperature": False}, {"rejection": False}),
        ({"named_by": "text"}, {"rejection": False}),
        ({"streamed_logprobs": False}, {"streams": False}),
        ({"scoring": "forced"}, {"scoring": None}),
        ({"scoring": None}, {"scoring": None}),
        ({"text_scoring": "none"}, {"text_scoring": "none"}),
        ({"text_scoring": "forced"}, {"text_scoring": "forced"}),
        ({"text_scoring": "echo"}, {}),
    ],
)
def test_a_dialect_keeps_what_was_not_found_missing(
    values: dict[str, object], changed: dict[str, object]
) -> None:
    facts = {k: v for k, v in values.items() if k not in ("end_visible", "scoring")}
    narrowed = found(**values).narrow(COMPLETIONS)
    assert narrowed == replace(COMPLETIONS, **(facts | changed))


def test_an_echo_that_a_dialect_cannot_ask_for_is_not_added() -> None:
    assert found(text_scoring="echo").narrow(LLAMACPP).text_scoring == "forced"


def test_nothing_a_dialect_cannot_do_is_added() -> None:
    many = found(every_step_shown=True, before_temperature=True, scoring="forced")
    assert (many.narrow(LLAMACPP).rejection, many.narrow(LLAMACPP).every_step_shown) == (False,) * 2


def test_a_record_is_kept_by_url_and_model(tmp_path: Path) -> None:
    path = RECORD.save(tmp_path)
    assert load(tmp_path, RECORD.base_url, "tiny") == RECORD
    assert load(tmp_path, RECORD.base_url, "other") is None
    assert load(tmp_path, "http://127.0.0.1:8001/v1", "tiny") is None
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    "damage",
    [
        lambda told: told[: len(told) // 2],
        lambda told: "[]",
        lambda told: told.replace('"version": 1', '"version": 2'),
        lambda told: told.replace('"tiny"', '"another"'),
        lambda told: json.dumps(json.loads(told) | {"more": 1}),
    ],
)
def test_what_cannot_be_read_is_not_there(tmp_path: Path, damage) -> None:
    path = RECORD.save(tmp_path)
    path.write_text(damage(path.read_text()))
    assert load(tmp_path, RECORD.base_url, "tiny") is None


@pytest.mark.parametrize(
    ("finding", "asked"),
    [
        (Finding(7, "measured"), 7),
        (Finding(7, "profile"), 7),
        (Finding(256, "measured", UNTRIED), 500),
        (Finding(100, "unverified"), 500),
        (Finding(1000, "measured"), 500),
    ],
)
def test_no_more_is_asked_for_than_is_granted(finding: Finding, asked: int) -> None:
    assert replace(RECORD, findings={"k_limit": finding}).granted(500) == asked


def test_the_reason_is_told() -> None:
    with pytest.raises(UpstreamMalformed, match=r"tiny at .*: no logprobs .*adapter probe"):
        replace(RECORD, api=None, reason="no logprobs").usable()
    assert RECORD.usable() == "completions"


@pytest.mark.parametrize(
    ("taken", "form", "known", "sent"),
    [
        ("ids", None, True, "ids"),
        ("ids", None, False, "text"),
        ("ids", "text", True, "text"),
        ("text", None, True, "text"),
        ("text", None, False, "text"),
        ("text", "ids", True, "ids"),
    ],
)
def test_prefixes_go_as_the_record_says_unless_told_otherwise(
    taken: str, form: Form | None, known: bool, sent: Form
) -> None:
    endpoint = Endpoint(RECORD.base_url, RECORD.model)
    words = vocabulary_of_size(40) if known else None
    one = connect_known(endpoint, found(continues=taken), vocabulary=words, form=form)
    assert isinstance(one, TextUpstream) == (sent == "text")
    assert one.capabilities.continues == sent
    assert (one.capabilities.scoring, one.capabilities.rejection) == (
        ("chosen", True) if sent == "ids" else (None, False)
    )
