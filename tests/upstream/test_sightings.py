"""The probe's readers on recorded answers of real servers."""

import json
import math
from pathlib import Path

import pytest

from adapter.upstream.sightings import Seen, apart, see, see_stream

SAMPLES = json.loads((Path(__file__).parent / "samples" / "answers.json").read_text("utf-8"))


def seen(name: str) -> Seen:
    return see(SAMPLES[name]["status"], SAMPLES[name]["response"])


@pytest.mark.parametrize(
    ("name", "shape", "steps", "first"),
    [
        ("vllm basic_lp5", "classic", 3, " not"),
        ("vllm ret_tokens_as_ids", "classic", 3, 200),
        ("vllm chat_lp5", "content", 2, None),
        ("llamacpp lp1", "content", 2, 345),
        ("llamacpp_python basic_lp5", "classic", 3, " not"),
        ("smollm2 partial_next_1tok", None, 0, None),
        ("transformers basic_lp5", None, 0, None),
    ],
)
def test_shapes(name: str, shape: str | None, steps: int, first: int | str | None) -> None:
    found = seen(name)
    assert found.ok
    assert (found.shape, len(found.steps)) == (shape, steps)
    if first is not None:
        assert found.steps[0].taken.name == first
        assert found.steps[0].of(first) == found.steps[0].taken.logprob


def test_refusals_keep_their_words() -> None:
    over = seen("vllm lp101")
    assert (over.ok, over.status, over.shape) == (False, 400, None)
    assert "max allowed: 100" in str(over.error)
    assert seen("llamacpp_python lp5_token_ids").status == 500
    assert seen("transformers lp5_token_ids").status == 400


def test_a_lost_step_is_fewer_entries_than_tokens() -> None:
    lost = seen("smollm2 partial_next_2tok")
    assert lost.completion_tokens is not None
    assert len(lost.steps) < lost.completion_tokens


def test_parts_of_characters_collapse_into_one_key() -> None:
    assert [e.text for e in seen("smollm2_vllm collision_k5_text").steps[0].listed].count("") == 1


def test_the_token_taken_is_listed_beyond_k() -> None:
    step = seen("vllm logit_bias").steps[0]
    assert len(step.listed) == 6
    base = seen("vllm basic_lp5").steps[0]
    assert apart(step, base) == 0.0


def test_an_echo_may_leave_out_the_generated_token() -> None:
    found = seen("llamacpp_python lp5_echo_mt1")
    assert len(found.steps) == found.prompt_tokens
    assert math.isnan(found.steps[0].taken.logprob)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("vllm lp5_stream", True),
        ("llamacpp lp5_stream", True),
        ("llamacpp_python lp5_stream", True),
        ("litellm lp5_stream", False),
    ],
)
def test_streams_with_and_without(name: str, shown: bool) -> None:
    lines = (line.encode() for line in SAMPLES[name]["response"])
    events = see_stream(line.removeprefix(b"data:") for line in lines if line[:5] == b"data:")
    assert len(events) > 3
    assert any(event.shape is not None for event in events) is shown


@pytest.mark.parametrize(
    "body",
    [None, [], {"choices": {}}, {"choices": [3]}, {"choices": [{"logprobs": {"content": [1]}}]},
     {"choices": [{"logprobs": {"tokens": ["a"], "token_logprobs": [1], "top_logprobs": "x"}}]},
     {"choices": [{"logprobs": {"content": [{"bytes": [999], "top_logprobs": 3}]}}]},
     {"choices": [{"message": 3}], "usage": [], "usage2": {}}],
)  # fmt: skip
def test_nothing_is_seen_in_junk(body: object) -> None:
    assert see(200, body).shape is None
