"""What a request counts as, and its id in the log."""

import io
import json
import logging
import logging.config
import socket
import time

import httpx
import pytest

from adapter.errors import UpstreamTimeout
from adapter.service.server import log_config
from adapter.settings import LogSettings
from tests.support.scripted_adapter import HANG, ScriptedAdapter, step

BODY = {"model": "m", "prompt": "p"}


def outcomes(adapter: ScriptedAdapter) -> dict[tuple[str, str, str], float]:
    """What is counted once nothing runs any more."""
    end = time.monotonic() + 5
    while adapter.metrics.registry.get_sample_value("adapter_requests_running"):
        assert time.monotonic() < end
        time.sleep(0.01)
    samples = (s for m in adapter.metrics.registry.collect() for s in m.samples)
    return {
        (s.labels["model"], s.labels["operation"], s.labels["outcome"]): s.value
        for s in samples
        if s.name == "adapter_requests_total"
    }


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("script", "outcome"),
    [
        (None, "ok"),
        ((UpstreamTimeout("late"),), "failed"),
        ((step("Hi"), UpstreamTimeout("late")), "failed"),
        ((step("Hi"), ZeroDivisionError("x")), "failed"),
    ],
)
def test_a_request_counts_once_by_how_it_came_out(serve, script, outcome, stream):
    adapter = ScriptedAdapter() if script is None else ScriptedAdapter(script)
    httpx.post(f"{serve(adapter)}/v1/completions", json=BODY | {"stream": stream})
    assert outcomes(adapter) == {("m", "text_completion", outcome): 1}


def test_what_is_refused_is_no_failure_and_its_model_no_label(serve):
    adapter = ScriptedAdapter()
    address = serve(adapter)
    messages = [{"role": "user", "content": "p"}]
    httpx.post(f"{address}/v1/chat/completions", json={"model": "canary", "messages": messages})
    httpx.post(f"{address}/v1/chat/completions", json={"model": "m"})
    httpx.get(f"{address}/v1/models")
    assert outcomes(adapter) == {("", "chat", "refused"): 2}


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_is_gone(serve, stream):
    adapter = ScriptedAdapter((step("Hi"), HANG))
    host, port = serve(adapter).removeprefix("http://").split(":")
    data = json.dumps(BODY | {"stream": stream}).encode()
    with socket.create_connection((host, int(port))) as client:
        head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        client.sendall(head + b"content-length: %d\r\n\r\n%s" % (len(data), data))
        assert adapter.running.wait(5)
        if stream:
            assert client.recv(1)
    assert adapter.cancelled.wait(5)
    assert outcomes(adapter) == {("m", "text_completion", "gone"): 1}


@pytest.fixture
def logged():
    """The lines that the service's own configuration of logging writes as JSON."""
    handlers = logging.getLogger().handlers[:]
    config = log_config(LogSettings(format="json"))
    lines = io.StringIO()
    config["handlers"]["stderr"]["stream"] = lines
    logging.config.dictConfig(config)
    yield lambda: [json.loads(line) for line in lines.getvalue().splitlines()]
    logging.getLogger().handlers[:] = handlers


def test_the_log_names_the_request(serve, logged):
    adapter = ScriptedAdapter((step("Hi"), ZeroDivisionError("x")))
    got = httpx.post(f"{serve(adapter)}/v1/completions", json=BODY | {"stream": True})
    (line,) = (line for line in logged() if "unexpected" in line["message"])
    assert line["request_id"] == got.headers["x-request-id"]
    logging.getLogger("adapter").warning("of nobody's request")
    assert logged()[-1]["request_id"] == "-"
