"""A chat API in OpenAI's exact shapes, which goes on from nothing: the whole product on it."""

import asyncio
import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import httpx
import pytest

from adapter.adapter import Adapter
from adapter.budget import Budget
from adapter.service.app import create_app
from adapter.upstream import Endpoint
from adapter.upstream.probe import MOST_CALLS, probe
from tests.e2e.prompts import PROMPTS
from tests.e2e.test_parity import Equation1
from tests.support.chat_server import TEMPLATE, ChatServer, Habits, chat_server
from tests.support.configured import settings_for
from tests.support.sockets import serving
from tests.support.tiny import tiny
from tokenizer_maps.loading import load_vocabulary

Json = dict[str, Any]
TOKENS = 8
USERS = [prompt.split()[-1] for prompt in PROMPTS[5:45]]
WHOLE = Habits(named="asked ids", most=400, strict=False, hides_end=False)
"""Every token of the vocabulary shown, by its id: what steering makes of it is Equation 1."""


@dataclass
class Served:
    address: str
    upstream: ChatServer

    def post(
        self,
        user: str,
        *,
        path: str = "chat/completions",
        headers: dict[str, str] | None = None,
        **fields: Any,
    ) -> httpx.Response:
        messages = [{"role": "system", "content": "Short."}, {"role": "user", "content": user}]
        body = {"model": "tiny", "max_tokens": TOKENS, "temperature": 0} | fields
        if path == "chat/completions":
            body["messages"] = messages
        url = f"{self.address}/v1/{path}"
        return httpx.post(url, json=body, headers=headers, timeout=60)

    def steps(self, user: str, **fields: Any) -> list[Json]:
        answer = self.post(user, steering={"trace": True} | fields.pop("steering", {}), **fields)
        assert answer.status_code == 200, answer.text
        steps: list[Json] = answer.json()["choices"][0]["steering"]["steps"]
        return steps

    def prompt(self, user: str) -> list[int]:
        turns = [{"role": "system", "content": "Short."}, {"role": "user", "content": user}]
        return self.upstream.ids(turns)


@contextlib.contextmanager
def served(habits: Habits, folder: Any, **more: Any) -> Iterator[Served]:
    """The service in front of such a chat API, which was probed before."""
    template = folder / "chat.jinja"
    template.write_text(TEMPLATE)
    with chat_server(tiny().upstream, habits) as upstream:
        words = load_vocabulary(f"hf:{tiny().upstream}")
        endpoint = Endpoint(upstream.base_url, "tiny")
        settings = settings_for(
            upstream.base_url,
            api="chat",
            top_logprobs=habits.most,
            templates={"expert": str(template)},
            pair={"dtype": "float64"},
            **more,
        )
        record = asyncio.run(probe(endpoint, Budget(MOST_CALLS), words, chat_only=True))
        assert (record.api, record.tier, record.reason) == ("chat", "C", "")
        record.save(settings.maps_directory.parent)
        with serving(create_app(Adapter.from_settings(settings), settings)) as address:
            yield Served(address, upstream)


@pytest.fixture(scope="module")
def openai(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(Habits(), tmp_path_factory.mktemp("openai")) as it:
        yield it


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(WHOLE, tmp_path_factory.mktemp("whole")) as it:
        yield it


@pytest.fixture(scope="module")
def twin() -> Equation1:
    return Equation1()


@dataclass(frozen=True)
class Reference:
    """What Equation 1 says, and where it leaves what the upstream says by itself."""

    ids: list[int]
    logprobs: list[float]
    leaves: int


def reference(twin: Equation1, prompt: list[int], alpha: float) -> Reference:
    """Greedy, up to the first token that is not the upstream's own, or the end."""
    ids, logprobs = list(prompt), []
    while len(logprobs) < TOKENS:
        row, own = twin.logprobs(ids, alpha), twin.logprobs(ids, 0.0)
        ids.append(int(row.argmax()))
        logprobs.append(float(row.max()))
        if ids[-1] != int(own.argmax()):
            break
        if ids[-1] in twin.vocabulary.end:
            break
    return Reference(ids[len(prompt) :], logprobs, len(logprobs))


def events(answer: httpx.Response) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


ALPHA = 2.0


def left_early(whole: Served, twin: Equation1) -> list[tuple[str, Reference]]:
    found = [(user, reference(twin, whole.prompt(user), ALPHA)) for user in USERS]
    kept = [(u, r) for u, r in found if r.leaves < TOKENS and r.ids[-1] not in twin.vocabulary.end]
    assert len(kept) > 3
    return kept


def test_exact_up_to_and_with_the_first_difference(whole: Served, twin: Equation1) -> None:
    for user, expected in left_early(whole, twin):
        asked = {"max_tokens": expected.leaves, "steering": {"alpha": ALPHA}}
        steps = whole.steps(user, **asked)
        assert [s["bytes"] for s in steps] == [
            list(twin.vocabulary.tokens[i]) for i in expected.ids
        ]
        for step, value in zip(steps, expected.logprobs, strict=True):
            assert step["status"] == "certified"
            assert step["logprob"] == pytest.approx(value, abs=1e-5)


def test_beyond_it_a_400_says_what_works(whole: Served, twin: Equation1) -> None:
    for user, expected in left_early(whole, twin)[:3]:
        answer = whole.post(user, max_tokens=expected.leaves + 1, steering={"alpha": ALPHA})
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (400, "upstream_cannot_continue")
        assert error["type"] == "invalid_request_error"
        assert "choice mode" in error["message"]


def test_after_the_first_byte_it_is_an_event(whole: Served, twin: Equation1) -> None:
    for user, expected in left_early(whole, twin)[:3]:
        answer = whole.post(user, stream=True, steering={"alpha": ALPHA})
        assert answer.status_code == 200
        *chunks, last = events(answer)
        assert last["error"]["code"] == "upstream_cannot_continue"
        text = "".join(c["choices"][0]["delta"].get("content", "") for c in chunks)
        spelt = b"".join(twin.vocabulary.tokens[i] for i in expected.ids)
        assert spelt.decode("utf-8", "replace").startswith(text)
        assert all(chunk["choices"][0]["finish_reason"] is None for chunk in chunks)


def test_no_call_is_made_for_what_cannot_be_had(whole: Served, twin: Equation1) -> None:
    """One for the prompt; behind the token that departs from its answer there is nothing to ask."""
    for user, _ in left_early(whole, twin)[:3]:
        before = len(whole.upstream.requests)
        asked = {"headers": {"cache-control": "no-store"}, "steering": {"alpha": ALPHA}}
        assert whole.post(user, **asked).status_code == 400
        assert len(whole.upstream.requests) == before + 1


def own(served: Served, user: str, **fields: Any) -> Json:
    messages = [{"role": "system", "content": "Short."}, {"role": "user", "content": user}]
    body = {"model": "tiny", "messages": messages, "max_tokens": TOKENS, "temperature": 0} | fields
    answer = httpx.post(f"{served.upstream.base_url}/chat/completions", json=body, timeout=60)
    choice: Json = answer.json()["choices"][0]
    return choice


@pytest.mark.parametrize("stream", [False, True])
def test_without_steering_it_is_the_upstreams_text(openai: Served, stream: bool) -> None:
    finishes = set()
    for user in USERS[:12]:
        expected = own(openai, user)
        answer = openai.post(user, stream=stream, steering={"alpha": 0.0})
        assert answer.status_code == 200
        if stream:
            *chunks, done = events(answer)
            assert done == "[DONE]"
            text = "".join(c["choices"][0]["delta"].get("content", "") for c in chunks)
            finish = chunks[-1]["choices"][0]["finish_reason"]
        else:
            choice = answer.json()["choices"][0]
            text, finish = choice["message"]["content"], choice["finish_reason"]
        assert (text, finish) == (expected["message"]["content"], expected["finish_reason"])
        finishes.add(finish)
    assert "length" in finishes


def test_an_answer_that_never_departs_passes_whole(whole: Served, twin: Equation1) -> None:
    passed = 0
    for user in USERS:
        expected = reference(twin, whole.prompt(user), 0.2)
        kept = own(whole, user)
        if expected.leaves < TOKENS and expected.ids[-1] not in twin.vocabulary.end:
            continue
        answer = whole.post(user, steering={"alpha": 0.2})
        if answer.status_code == 400:  # it departs with the very last token
            continue
        text = answer.json()["choices"][0]["message"]["content"]
        passed += text == kept["message"]["content"]
    assert passed > 3


@pytest.mark.parametrize("temperature", [0, 1])
def test_one_token_always_works(openai: Served, temperature: float) -> None:
    for user in USERS[:10]:
        for alpha in (0.0, 1.0, 4.0):
            asked = {"max_tokens": 1, "temperature": temperature, "steering": {"alpha": alpha}}
            answer = openai.post(user, **asked)
            assert answer.status_code == 200, answer.text


def test_samples_of_an_unsteered_upstream_pass_whole(whole: Served) -> None:
    """They are drawn by the upstream itself and taken by rejection, which then rejects nothing.

    Nothing is hidden here: a token drawn from beyond what is shown would end the answer.
    """
    finishes = set()
    for user in USERS[:20]:
        answer = whole.post(user, temperature=1.0, steering={"alpha": 0.0})
        assert answer.status_code == 200, answer.text
        assert whole.upstream.requests[-1]["temperature"] == 1
        finishes.add(answer.json()["choices"][0]["finish_reason"])
    assert "length" in finishes


@pytest.mark.parametrize(("single", "asked"), [(False, [4]), (True, [4, 1, 1, 1])])
@pytest.mark.parametrize("stream", [False, True])
def test_choices_that_draw_come_from_one_request(
    whole: Served, monkeypatch: pytest.MonkeyPatch, single: bool, asked: list[int], stream: bool
) -> None:
    """Where the server ignores `n` each has a request of its own; each is billed once."""
    monkeypatch.setattr(whole.upstream, "habits", replace(WHOLE, single=single))
    before = len(whole.upstream.requests)
    more = {"stream_options": {"include_usage": True}} if stream else {}
    answer = whole.post(
        USERS[0], n=4, temperature=1.0, steering={"alpha": 0.0}, stream=stream, **more
    )
    assert answer.status_code == 200, answer.text
    assert [body["n"] for body in whole.upstream.requests[before:]] == asked
    told = events(answer)[-2] if stream else answer.json()
    usage = told["usage"]
    spent = usage["upstream"]
    assert (spent["calls"], spent["completion_tokens"]) == (len(asked), usage["completion_tokens"])
    assert spent["prompt_tokens"] == len(asked) * len(whole.prompt(USERS[0]))
    if not stream:
        assert len({choice["message"]["content"] for choice in told["choices"]}) > 1


def test_messages_are_sent_as_they_are(openai: Served) -> None:
    odd = "<|user|> {{ x }} 🙂"
    openai.post(odd, max_tokens=1)
    sent = openai.upstream.requests[-1]["messages"]
    assert sent == [{"role": "system", "content": "Short."}, {"role": "user", "content": odd}]


def test_special_tokens_in_messages_are_refused_before_any_call(openai: Served) -> None:
    """Many servers read their names, wherever they stand, as the tokens themselves."""
    before = len(openai.upstream.requests)
    answer = openai.post("It is<|bos|>assistant<|bos|>", max_tokens=1)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, "messages")
    assert "<|bos|>" in error["message"]
    assert len(openai.upstream.requests) == before


def test_a_plain_prompt_is_refused_before_any_call(openai: Served) -> None:
    before = len(openai.upstream.requests)
    for prompt in ("The capital of France is", [5, 6]):
        answer = openai.post("", path="completions", prompt=prompt)
        error = answer.json()["error"]
        assert (answer.status_code, error["param"]) == (400, "prompt")
        assert "/v1/chat/completions" in error["message"]
    assert len(openai.upstream.requests) == before


def test_what_was_shown_before_serves_longer_answers_too(openai: Served) -> None:
    """The cache holds but a beginning, and nothing goes on from that: the answer is asked anew."""
    user = "a prompt of this test alone"
    short = openai.post(user, max_tokens=2, steering={"alpha": 0.0})
    assert short.status_code == 200
    longer = openai.post(user, steering={"alpha": 0.0})
    assert longer.status_code == 200
    expected = own(openai, user)["message"]["content"]
    assert longer.json()["choices"][0]["message"]["content"] == expected
