"""Metrics and dashboard against a service under a small load."""

import json
import math
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client import start_http_server
from prometheus_client.parser import text_string_to_metric_families

from adapter.adapter import Adapter
from adapter.service.app import create_app
from tests.support.configured import settings_for
from tests.support.model_server import model_server
from tests.support.sockets import free_port, serving
from tests.support.tiny import tiny

DASHBOARD = Path(__file__).parents[2] / "deploy/grafana/dashboards/adapter.json"
CANARY = "canary-7Q"
WAIT = 60.0
LABELS = {
    "model": {"tiny", ""},
    "operation": {"text_completion", "chat"},
    "outcome": {"ok", "refused", "failed", "gone"},
    "status": {"certified", "expanded", "truncated"},
    "source": {"upstream", "cache"},
    "stage": {"request", "first_token", "upstream", "pair"},
    "kind": {"prompt", "cached", "completion"},
    "result": {"hit", "partial", "miss"},
    "finish_reason": {"stop", "length"},
    "cap": {"limits.calls_per_request", "limits.money_per_request", "limits.money_per_day"},
}
FLAGS = {"unscored", "imputed", "multi", "capped", "clamped", "context_cut", "retokenised"}


def queries() -> list[str]:
    """Every query of the dashboard, its variables replaced."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    found = [target["expr"] for panel in panels for target in panel["targets"]]
    return [q.replace("$__rate_interval", "1m").replace("$model", ".*") for q in found]


class Service:
    """A service and its metrics; `ask` puts a little of everything through it."""

    def __init__(self, address: str, metrics: str) -> None:
        self.address = address
        self.metrics = metrics

    def ask(self, number: int) -> None:
        body = {"model": "tiny", "prompt": f"{CANARY} {number}", "max_tokens": 6}
        key = {"authorization": f"Bearer sk-{CANARY}"}
        post = f"{self.address}/v1/completions"
        for more in ({}, {"stream": True}, {"n": 3, "seed": 1}, {"model": CANARY}, {"n": CANARY}):
            httpx.post(post, json=body | more, headers=key, timeout=WAIT)
        httpx.get(f"{self.address}/{CANARY}")

    def scrape(self) -> str:
        return httpx.get(f"{self.metrics}/metrics").text


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with model_server(tiny().upstream) as upstream:
        price = {"input": 1.0, "output": 4.0}
        settings = settings_for(upstream.base_url, upstream={"price": price})
        adapter, port = Adapter.from_settings(settings), free_port()
        server, thread = start_http_server(port, "127.0.0.1", adapter.metrics.registry)
        with serving(create_app(adapter, settings)) as address:
            running = Service(address, f"http://127.0.0.1:{port}")
            running.ask(0)
            while adapter.metrics.registry.get_sample_value("adapter_requests_running"):
                time.sleep(0.01)
            yield running
        server.shutdown()
        server.server_close()
        thread.join(10)


def test_the_metrics_are_prometheus_own_form_with_few_labels(service: Service) -> None:
    text = service.scrape()
    assert CANARY not in text
    families = {f.name: f for f in text_string_to_metric_families(text)}
    assert all(family.documentation for family in families.values())
    known = LABELS | {"flag": FLAGS}
    for family in families.values():
        for sample in family.samples:
            for name, value in sample.labels.items():
                assert name == "le" or value in known[name], (sample.name, name, value)
    counts = {
        (s.labels["model"], s.labels["outcome"]): s.value
        for s in families["adapter_requests"].samples
        if s.name.endswith("_total")
    }
    assert counts == {("tiny", "ok"): 3, ("", "refused"): 2}
    (running,) = families["adapter_requests_running"].samples
    assert running.value == 0
    stages = {
        s.labels["stage"]: s.value
        for s in families["adapter_stage_seconds"].samples
        if s.name.endswith("_count")
    }
    calls = sum(s.value for s in families["adapter_upstream_calls"].samples if "_total" in s.name)
    assert stages["request"] == 3
    assert stages["first_token"] == 1
    assert stages["upstream"] == calls
    assert stages["pair"] > 0
    batches = {s.name: s.value for s in families["adapter_pair_batch_texts"].samples}
    assert batches["adapter_pair_batch_texts_count"] > 0


def test_every_metric_of_the_dashboard_is_exposed_and_every_metric_is_on_it(
    service: Service,
) -> None:
    on_it = set(re.findall(r"adapter_\w+", " ".join(queries())))
    suffix = re.compile(r"_(total|bucket|sum|count)$")
    families = text_string_to_metric_families(service.scrape())
    exposed = {f.name for f in families if not f.name.endswith("_created")}
    assert {suffix.sub("", name) for name in on_it} == exposed


@pytest.mark.full
@pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("promtool")),
    reason="there is no prometheus: apt-get install prometheus",
)
def test_every_query_gives_numbers_in_a_real_prometheus(service: Service, tmp_path: Path) -> None:
    checked = subprocess.run(
        ["promtool", "check", "metrics"],
        input=service.scrape(),
        text=True,
        capture_output=True,
        check=False,
    )
    assert (checked.returncode, checked.stderr) == (0, "")
    port, target = free_port(), service.metrics.removeprefix("http://")
    config = {
        "global": {"scrape_interval": "1s"},
        "scrape_configs": [{"job_name": "adapter", "static_configs": [{"targets": [target]}]}],
    }
    (tmp_path / "prometheus.yml").write_text(json.dumps(config))
    command = ["prometheus", "--config.file=prometheus.yml", "--storage.tsdb.path=data"]
    command.append(f"--web.listen-address=127.0.0.1:{port}")
    with (
        (tmp_path / "log").open("w") as log,
        subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log) as process,
    ):
        try:
            answers = _answered(service, f"http://127.0.0.1:{port}/api/v1/query")
        finally:
            process.terminate()
    for query, values in answers.items():
        print(f"{values} {query}")  # noqa: T201 - with -s
    assert set(answers) == set(queries())
    assert [query for query, values in answers.items() if not _numbers(values)] == []


def _numbers(values: list[float]) -> bool:
    """Whether there is something, and none of it a share of nothing."""
    return bool(values) and not any(map(math.isnan, values))


def _answered(service: Service, url: str) -> dict[str, list[float]]:
    """What each query gives; asked again, under load, until each gives numbers."""
    answers: dict[str, list[float]] = {}
    end = time.monotonic() + WAIT
    number = 0
    while time.monotonic() < end and not (answers and all(map(_numbers, answers.values()))):
        number += 1
        service.ask(number)
        try:
            for query in queries():
                got = httpx.get(url, params={"query": query}).json()["data"]["result"]
                answers[query] = [float(one["value"][1]) for one in got]
        except (httpx.TransportError, KeyError):  # not up yet
            time.sleep(0.2)
    return answers
