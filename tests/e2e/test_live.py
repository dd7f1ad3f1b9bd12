"""Servers that are no part of this project, as `make test FULL=1` finds them installed.

A whole run, on a machine that does nothing else, at the root of the project:

    export TEST_VLLM_PYTHON=v/bin/python TEST_LLAMA_CPP_PYTHON=l/bin/python
    export TEST_LITELLM_PYTHON=p/bin/python
    python -m pytest -m full -rs --log-cli-level=INFO tests/e2e/test_live.py

It is green where all 14 have passed and none was skipped; the six lines that say "nats over" are
the table of adapter/upstream/README.md. `tests/support/live.py` and `vllm.py` say how to come by
these interpreters; the servers are started here, LiteLLM in front of vLLM.
"""

import asyncio
import contextlib
import logging
import os
from collections.abc import Iterator
from typing import Any

import pytest

from adapter.adapter import Adapter
from adapter.budget import Budget
from adapter.demo.engine import Engine, EngineOptions
from adapter.request import Chat, Message, Request, Sampling
from adapter.upstream import Endpoint
from adapter.upstream.probe import MOST_CALLS, probe
from adapter.upstream.records import Record
from tests.e2e.prompts import PROMPTS
from tests.e2e.test_parity import Equation1
from tests.support.chat_server import TEMPLATE
from tests.support.configured import settings_for
from tests.support.hosted import hosted
from tests.support.live import litellm, llama_cpp_python
from tests.support.tiny import tiny
from tests.support.vllm import vllm_server
from tokenizer_maps.loading import load_vocabulary

pytestmark = pytest.mark.full

LOG = logging.getLogger(__name__)  # the counts: --log-cli-level=INFO
WORDS = load_vocabulary(f"hf:{tiny().upstream}")
USERS = [prompt + more for prompt in PROMPTS for more in ("", " It")]
SHOWN = len(WORDS.tokens)
TIE = 2e-3
"""Nats within which an engine's rounding may choose another token."""


def interpreter(name: str) -> str:
    python = os.environ.get(name)
    if python is None:
        pytest.skip(f"{name} names no interpreter that has it")
    return python


@pytest.fixture(scope="module")
def vllm() -> Iterator[str]:
    with vllm_server(interpreter("TEST_VLLM_PYTHON")) as url:
        yield url


@pytest.fixture(scope="module")
def proxy(vllm: str) -> Iterator[str]:
    with litellm(interpreter("TEST_LITELLM_PYTHON"), vllm) as url:
        yield url


@pytest.fixture(scope="module")
def engine() -> Iterator[str]:
    options = EngineOptions(alias="tiny", context=512, slots=1, threads=1)
    with Engine(hosted().gguf, options) as engine:
        yield engine.base_url


@pytest.fixture(scope="module")
def bindings() -> Iterator[str]:
    with llama_cpp_python(interpreter("TEST_LLAMA_CPP_PYTHON")) as url:
        yield url


SAME = {"logprobs": True, "k_limit": SHOWN, "before_temperature": True, "before_bias": True}
SAME |= {"unknown_fields": "ignored"}
BY_ID = SAME | {"named_by": "ids", "end_visible": True}
VLLM = BY_ID | {"continues": "ids", "scoring": "chosen", "appends": True, "text_scoring": "echo"}
VLLM |= {"every_step_shown": True, "streamed_logprobs": True, "reports_cached": False}
CHAT = {"continues": "text", "continues_by": "continue_final_message", "appends": False}
CHAT |= BY_ID | {"every_step_shown": True, "streamed_logprobs": True}
LLAMACPP = BY_ID | {"every_step_shown": False, "appends": False, "reports_cached": True}
LLAMACPP |= {"text_scoring": "forced", "scoring": "forced", "streamed_logprobs": True}
BINDINGS = SAME | {"named_by": "text", "streamed_logprobs": True, "appends": True}

PROBED: list[Any] = [
    ("vllm", "tiny", False, "completions", "A", VLLM | {"context": 512}),
    ("vllm", "tiny", True, "chat", "B", CHAT | {"context": 512}),
    ("engine", "tiny", False, "llama.cpp", "A", LLAMACPP | {"continues": "ids"}),
    ("engine", "tiny", True, "chat", "B",
     LLAMACPP | {"continues": "text", "continues_by": "trailing message"}),
    ("bindings", "tiny", False, "completions", "B",
     BINDINGS | {"continues": "text", "text_scoring": "echo"}),
    ("bindings", "tiny", True, "chat", "C", BINDINGS | {"continues": "none"}),
    ("proxy", "tiny", False, "completions", "A", VLLM | {"streamed_logprobs": False}),
    ("proxy", "tiny", True, "chat", "B", CHAT | {"streamed_logprobs": False}),
    ("proxy", "text", False, "completions", "A", VLLM | {"streamed_logprobs": False}),
    ("proxy", "hosted", False, "completions", "B",
     VLLM | {"streamed_logprobs": False, "continues": "text"}),
    ("proxy", "hosted", True, "chat", "B", CHAT | {"streamed_logprobs": False}),
]  # fmt: skip
"""Server, model, chat API or not; the dialect and tier that follow from what it can do."""


@pytest.mark.parametrize("case", PROBED, ids=lambda c: f"{c[0]} {c[1]}{' chat' * c[2]}")
def test_a_probe_finds_every_capability(request: pytest.FixtureRequest, case: Any) -> None:
    server, model, chat, api, tier, expected = case
    record = probed(request.getfixturevalue(server), model, chat)
    assert {field: record.value(field) for field in expected} == expected
    assert (record.api, record.tier, record.reason) == (api, tier, "")
    assert record.calls <= MOST_CALLS


def probed(url: str, model: str, chat: bool) -> Record:
    return asyncio.run(probe(Endpoint(url, model), Budget(MOST_CALLS), WORDS, chat))


@pytest.fixture(scope="module")
def twin() -> Equation1:
    return Equation1(hosted().folder)


@contextlib.contextmanager
def adapted(url: str, api: str, folder: Any, form: str | None = None) -> Iterator[Adapter]:
    """The product, with a pair in float64 that reads chats by the upstream's own template."""
    template = folder / "chat.jinja"
    template.write_text(TEMPLATE)
    more = {"templates": {"expert": str(template)}} if api == "chat" else {}
    upstream = {} if form is None else {"prefix": form}
    settings = settings_for(
        url, api=api, top_logprobs=SHOWN, pair={"dtype": "float64"}, upstream=upstream,
        cache={"url": "none"}, **more,
    )  # fmt: skip
    if api == "chat":
        probed(url, "tiny", True).save(settings.maps_directory.parent)
    yield Adapter.from_settings(settings)


def asked(user: str, chat: bool) -> tuple[Any, str]:
    """A request's prompt, and what a server makes of it."""
    if not chat:
        return user, user
    return Chat((Message("user", user),)), f"<|bos|>user<|bos|>{user}<|bos|>assistant<|bos|>"


def ids_of(text: str) -> list[int]:
    parts = text.split("<|bos|>")
    ids = list(WORDS.encode(parts[0].encode()))
    for part in parts[1:]:
        ids += [WORDS.specials["<|bos|>"], *WORDS.encode(part.encode())]
    return ids


async def worst(
    adapter: Adapter, twin: Equation1, chat: bool, alpha: float
) -> tuple[float, int, int]:
    """The largest difference from Equation 1 of any token at any step, in nats; the steps; and how
    many of them are not its best token by more than an engine's noise.
    """
    found, count, others = 0.0, 0, 0
    for user in USERS:
        prompt, text = asked(user, chat)
        sampling = Sampling(max_tokens=3, temperature=0.0)
        request = Request(
            "tiny", prompt, sampling, alpha=alpha, trace="steps", shown=SHOWN, lookahead=1
        )
        said, by_id = b"", isinstance(adapter.prepare(request).prefix.prompt, tuple)
        path = ids_of(text) if by_id else []
        *steps, _ = [event async for event in adapter.run(adapter.prepare(request))]
        for step in steps:
            # Inside a character, or read as other tokens than the pair's: the twin reads anew.
            if (not by_id and not _is_text(said)) or "retokenised" in step.flags:
                break
            target = twin.logprobs(path or ids_of(text + said.decode()), alpha)
            named = {(a.token, a.special): a.logprob for a in step.shown}
            for token, spelt in enumerate(WORDS.tokens):
                special = next((n for n, i in WORDS.specials.items() if i == token), None)
                name = "end" if token in WORDS.end else special
                value = named.get((spelt, name))
                if value is not None:
                    found = max(found, abs(value - target[token]))
            assert len(named) >= SHOWN - 1
            count += 1
            emitted = next(iter(WORDS.end)) if step.special else WORDS.id_of(step.token)
            others += "masked" not in step.flags and target[emitted] < max(target) - TIE
            said += step.token
            path += [WORDS.id_of(step.token)] if by_id else []
    return found, count, others


def _is_text(said: bytes) -> bool:
    try:
        said.decode()
    except UnicodeDecodeError:
        return False
    return True


@pytest.mark.parametrize("form", ["ids", "text", "chat"])
def test_on_vllm_it_is_equation_1(vllm: str, twin: Equation1, form: str, tmp_path: Any) -> None:
    """One call a step, so that all but the first stand behind what was generated."""
    api, how = ("chat", None) if form == "chat" else ("completions", form)
    with adapted(vllm, api, tmp_path, how) as adapter:
        asyncio.run(compared(adapter, twin, form))


async def compared(adapter: Adapter, twin: Equation1, form: str) -> None:
    for alpha in (0.0, 1.0):
        found, count, others = await worst(adapter, twin, form == "chat", alpha)
        LOG.info("%s, alpha %s: %.1e nats over %s steps", form, alpha, found, count)
        assert count > 200
        assert found <= 1e-4
        assert others == 0
    await adapter.close()
