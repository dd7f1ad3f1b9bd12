"""Spans and times of stages: what they tell, what they never tell, and that they can be absent."""

import importlib.util
import sys

import httpx
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from adapter import stages
from adapter.adapter import Adapter
from adapter.service.app import create_app
from tests.support.configured import settings_for
from tests.support.model_server import model_server
from tests.support.scripted import Reply, scripted
from tests.support.sockets import serving
from tests.support.tiny import tiny

PROMPT = "The harbour master canary-7Q"
KEY = "sk-canary-8R"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.fixture
def exported(monkeypatch):
    """Finished spans; OpenTelemetry's provider can be set only once, so the module's is."""
    memory, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(memory))
    monkeypatch.setattr(stages.trace, "get_tracer", provider.get_tracer)
    return memory.get_finished_spans


def ask(address, **more):
    body = {"model": "tiny", "prompt": PROMPT, "max_tokens": 3, "temperature": 0} | more
    headers = {"authorization": f"Bearer {KEY}", "traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}
    return httpx.post(f"{address}/v1/completions", json=body, headers=headers, timeout=60)


@pytest.mark.parametrize("lookahead", [1, "stream"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_request_is_one_trace_without_anybodys_words(exported, stream, lookahead):
    with model_server(tiny().upstream) as upstream:
        settings = settings_for(upstream.base_url)
        with serving(create_app(Adapter.from_settings(settings), settings)) as address:
            got = ask(address, stream=stream, steering={"lookahead": lookahead})
    spans = exported()
    assert {f"{span.context.trace_id:032x}" for span in spans} == {TRACE}
    (request,) = (span for span in spans if span.kind is trace.SpanKind.SERVER)
    assert request.name == "text_completion tiny"
    assert request.attributes["gen_ai.operation.name"] == "text_completion"
    assert request.attributes["gen_ai.request.model"] == "tiny"
    assert request.attributes["adapter.request_id"] == got.headers["x-request-id"]
    inner = [span for span in spans if span is not request]
    assert {span.parent.span_id for span in inner} == {request.context.span_id}
    calls = [span for span in inner if span.kind is trace.SpanKind.CLIENT]
    assert len(calls) == len(upstream.requests)
    assert calls[0].attributes["server.address"] == "127.0.0.1"
    assert calls[0].attributes["gen_ai.request.max_tokens"] >= 1
    assert request.attributes["gen_ai.usage.input_tokens"] > 0
    if lookahead == 1:
        assert request.attributes["gen_ai.usage.output_tokens"] == len(calls)
    assert [span.name for span in inner].count("pair forward") >= 1
    assert not any("error.type" in span.attributes for span in spans)  # not even of cut streams
    told = "".join(span.to_json() for span in spans)
    assert "canary" not in told


def test_a_failed_call_is_told_by_its_kind_alone(exported):
    with scripted(Reply(400, {"error": {"message": f"bad {PROMPT}"}})) as upstream:
        settings = settings_for(upstream.base_url)
        with serving(create_app(Adapter.from_settings(settings), settings)) as address:
            assert ask(address).status_code == 502
    (call,) = (span for span in exported() if span.kind is trace.SpanKind.CLIENT)
    assert call.attributes["error.type"] == "UpstreamRefused"
    (request,) = (span for span in exported() if span.kind is trace.SpanKind.SERVER)
    assert request.attributes["error.type"] == "failed"
    assert "canary" not in "".join(span.to_json() for span in exported())


def test_without_opentelemetry_stages_are_timed_all_the_same(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    spec = importlib.util.find_spec("adapter.stages")
    bare = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bare)
    seen = []
    bare.observe.set(lambda name, seconds: seen.append((name, seconds)))
    with bare.stage("upstream", "t", {}) as span, bare.current(span):
        assert span is None
    ((name, seconds),) = seen
    assert name == "upstream"
    assert seconds >= 0
    with pytest.raises(KeyError), bare.stage("pair", "t", {}):
        raise KeyError("x")
    assert [name for name, _ in seen] == ["upstream", "pair"]
