"""The alert rules and the dashboard, read and evaluated by a real Prometheus that scrapes the real service."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.metrics import Metrics
from tests.alert_cases import CASES, NOT_OF_AN_INSTANCE, as_promtool
from tests.integration.test_notify import free_port
from tests.service_parts import Place
from tests.service_process import ServiceProcess, ended

ROOT = Path(__file__).parents[2]
FILES = ROOT / "helm/deviceon-backup/files"
RULES = FILES / "alerts.yaml"
DASHBOARD = json.loads((FILES / "dashboard.json").read_text())
VARIABLES = {"$instance": ".*", "$__rate_interval": "1m", "${datasource}": "the-datasource"}
SOMETIMES = {"deviceon_backup_last_missed_timestamp_seconds", "deviceon_backup_target_free_bytes"}
"""Metrics without a sample in a service that missed nothing, or whose targets cannot tell."""


def alerts() -> dict[str, dict[str, Any]]:
    document = yaml.safe_load(RULES.read_text())
    return {rule["alert"]: rule for group in document["groups"] for rule in group["rules"]}


def panels() -> list[dict[str, Any]]:
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def expressions() -> Iterator[tuple[str, str]]:
    """Every expression, as it is sent to Prometheus, with where it is from."""
    for name, rule in alerts().items():
        yield name, rule["expr"]
    for panel in panels():
        for target in panel["targets"]:
            text = target["expr"]
            for variable, value in VARIABLES.items():
                text = text.replace(variable, value)
            yield panel["title"], text


def promtool(*arguments: str) -> str:
    done = subprocess.run(["promtool", *arguments], check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, (done.stdout + done.stderr)[-8000:]
    return done.stdout


def test_promtool_takes_the_rules_and_their_names_do_not_repeat() -> None:
    assert f"{len(alerts())} rules found" in promtool("check", "rules", str(RULES))


def test_each_alert_fires_when_it_should_and_not_at_its_edge_in_a_fleet_of_servers(
    tmp_path: Path, record_property: Any
) -> None:
    cases = tmp_path / "cases.yaml"
    cases.write_text(yaml.safe_dump(as_promtool(str(RULES)), sort_keys=False))
    assert "SUCCESS" in promtool("test", "rules", str(cases))
    record_property("counted", f"{len(CASES)} states of servers, each with exactly the alerts that belong to it")


def test_each_alert_has_a_case_in_which_it_fires_and_one_at_its_edge() -> None:
    for fires in (True, False):
        assert {f"DeviceOnBackup{case.of}" for case in CASES if case.fires is fires} == set(alerts())


def test_each_alert_says_who_is_concerned_how_bad_it_is_and_where_its_run_book_is() -> None:
    for name, rule in alerts().items():
        assert rule["labels"]["severity"] in {"critical", "warning"}
        notes = rule["annotations"]
        assert notes["runbook_url"] == f"docs/RUNBOOKS.md#{name.lower()}"
        assert notes["description"].endswith(".") and not notes["summary"].endswith(".")
        assert "$labels.instance" in notes["summary"] or name.removeprefix("DeviceOnBackup") in NOT_OF_AN_INSTANCE


def test_every_metric_of_the_rules_and_the_dashboard_is_the_services() -> None:
    known = {sample.name for family in Metrics().registry.collect() for sample in family.samples}
    known |= {family.name for family in Metrics().registry.collect()}
    used = {name for _, text in expressions() for name in re.findall(r"\b(?:deviceon_backup|process)_\w+", text)}
    assert used <= known


def test_the_panels_say_what_they_show_and_do_not_overlap() -> None:
    assert DASHBOARD["uid"] == "deviceon-backup"
    assert [variable["name"] for variable in DASHBOARD["templating"]["list"]] == ["datasource", "instance"]
    identifiers = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(identifiers)) == len(identifiers)
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken and max(x for x, _ in cells) < 24
        taken |= cells
    for panel in panels():
        assert panel["description"] and panel["datasource"]["uid"] == "${datasource}"
        for target in panel["targets"]:
            assert 'instance=~"$instance"' in target["expr"]
            assert target["datasource"]["uid"] == "${datasource}"


@contextlib.asynccontextmanager
async def prometheus(directory: Path, scraped: str) -> AsyncIterator[str]:
    """A Prometheus that scrapes one address every second and evaluates the rules as often; give its URL."""
    directory.mkdir()
    config = (ROOT / "examples/prometheus.yml").read_text()
    document = yaml.safe_load(config)
    document["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    document["rule_files"] = [str(RULES)]
    document.pop("alerting")
    (job,) = document["scrape_configs"]
    job["static_configs"] = [{"targets": [scraped]}]
    (directory / "prometheus.yml").write_text(yaml.safe_dump(document))
    address = f"127.0.0.1:{free_port()}"
    arguments = (f"--config.file={directory}/prometheus.yml", f"--storage.tsdb.path={directory}/data")
    process = await asyncio.create_subprocess_exec(
        "prometheus", *arguments, f"--web.listen-address={address}", stderr=asyncio.subprocess.DEVNULL
    )
    try:
        yield f"http://{address}"
    finally:
        process.terminate()
        await process.wait()


async def ask(url: str, path: str, **parameters: str) -> Any:
    def answer() -> Any:
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"{url}/api/v1/{path}?{query}", timeout=10) as response:
            return json.load(response)["data"]

    return await asyncio.to_thread(answer)


async def until_known(url: str, metric: str) -> None:
    deadline = time.monotonic() + 60
    while True:
        with contextlib.suppress(OSError):
            if (await ask(url, "query", query=metric))["result"]:
                return
        assert time.monotonic() < deadline, f"{metric} does not appear"
        await asyncio.sleep(0.2)


@pytest.fixture
def service(tmp_path: Path) -> ServiceProcess:
    document = Place(tmp_path).document
    document |= {
        "schedule": {"frequency": "daily", "at": "02:00"},
        "drill": {"schedule": {"frequency": "weekly", "at": "04:00", "weekdays": ["sunday"]}},
        "http": {"listen": f"127.0.0.1:{free_port()}"},
    }
    return ServiceProcess(tmp_path, document)


async def test_a_real_prometheus_scrapes_the_service_and_evaluates_every_expression(service: ServiceProcess) -> None:
    with service:
        async with prometheus(service.directory / "prometheus", service.document["http"]["listen"]) as url:
            async with service.client() as portal:
                for method in ("backup.start", "drill.start"):
                    assert (await ended(portal, await portal.call(method)))["state"] == "succeeded"
            await until_known(url, "deviceon_backup_newest_restorable_archive_timestamp_seconds > 0")
            names = set(await ask(url, "label/__name__/values"))
            for where, text in expressions():
                await ask(url, "query", query=text)  # an error is no answer
                used = set(re.findall(r"\b(?:deviceon_backup|process)_\w+", text))
                assert used - SOMETIMES <= names, where
            rules = [rule for group in (await ask(url, "rules"))["groups"] for rule in group["rules"]]
            assert {rule["health"] for rule in rules} == {"ok"}
            assert len(rules) == len(alerts())
            protected = next(text for title, text in expressions() if title == "Protected")
            (sample,) = (await ask(url, "query", query=protected))["result"]
            assert sample["value"][1] == "2"
            assert [rule["name"] for rule in rules if rule["state"] == "firing"] == []
            panes = {title: text for title, text in expressions() if title in SHOWN}
            for title, text in panes.items():
                assert (await ask(url, "query", query=text))["result"], f"{title} is empty"


SHOWN = {
    "Protected",
    "Last successful backup",
    "Newest restorable archive",
    "Alerts",
    "Next backup",
    "Damaged archives",
    "Recovery key",
    "Clock",
    "Size of the last backup",
    "How long backups take",
    "Stages of the last backup",
    "Last jobs",
    "State of each target",
    "Archives by evidence",
    "Room in the targets",
    "Memory",
    "Room of the state directory",
    "Version and start",
}
"""Panels that show something on a server with one backup and one drill."""
