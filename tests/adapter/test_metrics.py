"""What is counted, as a scrape sees it."""

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from adapter.candidates import Ending, Usage
from adapter.cli.serve import _serve_metrics
from adapter.decoding import Pace
from adapter.errors import SettingsError
from adapter.metrics import Metrics
from adapter.settings import ServiceSettings
from tests.support.scripted_adapter import step
from tests.support.sockets import free_port


@pytest.fixture
def served():
    """Metrics of one model on a port of their own: the counters, the pace, a scrape."""
    pace, port = Pace(), free_port()
    metrics = Metrics({"news": pace})
    _serve_metrics(ServiceSettings(metrics_port=port), metrics.registry)

    def scrape():
        text = httpx.get(f"http://127.0.0.1:{port}/metrics").text
        families = text_string_to_metric_families(text)
        samples = (sample for family in families for sample in family.samples)
        return {(s.name, *sorted(s.labels.values())): s.value for s in samples}

    return metrics, pace, scrape


def test_steps_and_costs_are_counted_by_model(served):
    metrics, _, scrape = served
    metrics.count("news", step("a", status="certified"))
    metrics.count("news", step("b", status="truncated", flags=frozenset({"imputed", "multi"})))
    metrics.count("news", step("c", status="truncated", source="cache"))
    metrics.count("news", Ending("stop", "", Usage(2, 30, 10, 5)))
    metrics.count("news", Ending("length", "", Usage(1, 7, 0, 1)))
    seen = scrape()
    assert seen["adapter_steps_total", "certified", "news", "upstream"] == 1
    assert seen["adapter_steps_total", "news", "truncated", "upstream"] == 1
    assert seen["adapter_steps_total", "cache", "news", "truncated"] == 1
    assert seen["adapter_step_flags_total", "imputed", "news"] == 1
    assert seen["adapter_upstream_calls_total", "news"] == 3
    assert seen["adapter_upstream_tokens_total", "news", "prompt"] == 37
    assert seen["adapter_upstream_tokens_total", "cached", "news"] == 10
    assert seen["adapter_answers_total", "news", "stop"] == 1


def test_what_the_lookahead_has_learnt_is_there_to_see(served):
    _, pace, scrape = served
    before = scrape()
    for _ in range(200):
        pace.walked(kept=False)
        pace.called(tokens=8, seconds=1.0)
        pace.billed(prompt=100, cached=50)
    after = scrape()
    assert after["adapter_lookahead_acceptance", "news"] == pytest.approx(pace.acceptance)
    assert after["adapter_lookahead_acceptance", "news"] < 0.1
    assert before["adapter_lookahead_acceptance", "news"] > 0.5
    assert after["adapter_lookahead_cached", "news"] == pytest.approx(0.5, abs=0.02)
    seconds = ("adapter_lookahead_call_seconds", "news")
    assert after[seconds] > before[seconds]
    assert ("adapter_lookahead_token_seconds", "news") in after


def test_a_port_in_use_is_a_settings_error(served):
    port = free_port()
    service = ServiceSettings(metrics_port=port)
    _serve_metrics(service, served[0].registry)
    with pytest.raises(SettingsError, match=r"service\.metrics_port"):
        _serve_metrics(service, served[0].registry)
