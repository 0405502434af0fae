"""docs/KUBERNETES.md: every command is run here, or says what it would need; what it names is there."""

from __future__ import annotations

import itertools
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import helm_python as helm
import pytest
import yaml
from click.testing import CliRunner

from service.cli.app import command_line
from tests.helm import chart

TEXT = (chart.ROOT / "docs/KUBERNETES.md").read_text()
_PLAIN = re.sub(r"^```yaml.*?^```$", "", TEXT, flags=re.MULTILINE | re.DOTALL)
BLOCKS = re.findall(r"^```\n(.*?)^```$", _PLAIN, flags=re.MULTILINE | re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.splitlines()]
ELSEWHERE = re.compile(r"# \(needs a (cluster|registry)\b[^)]*\)$")


def lint(root: Path, path: str, values: str) -> None:
    report = helm.lint(root / path, yaml.safe_load((root / values).read_text()), strict=True)
    assert report["errors"] == []


def template(root: Path, path: str, values: str | None) -> None:
    given = yaml.safe_load((root / values).read_text()) if values else {}
    assert chart.objects(chart.render(given, path=root / path))


def run(root: Path, line: str) -> None:
    words = shlex.split(line)
    options = dict(itertools.pairwise(words))
    does: dict[tuple[str, ...], Callable[[], object]] = {
        ("cp",): lambda: shutil.copy(root / words[1], root / words[2]),
        ("helm", "lint"): lambda: lint(root, words[2], options["--values"]),
        ("helm", "template"): lambda: template(root, words[3], options.get("--values")),
        ("helm", "dependency"): lambda: helm.dependency_update(root / words[3]),
    }
    next(do for name, do in does.items() if tuple(words[: len(name)]) == name)()


def test_every_command_is_run_or_says_what_it_needs(tmp_path: Path) -> None:
    for name in ("helm", "examples"):
        shutil.copytree(chart.ROOT / name, tmp_path / name)
    here = [line for line in COMMANDS if not ELSEWHERE.search(line) and not line.startswith("alias ")]
    assert len(here) == 5, here
    for line in here:
        run(tmp_path, line)


def test_the_commands_in_pods_are_commands_of_the_program() -> None:
    inside = [line.rpartition("-- deviceon-backup ")[2] for line in COMMANDS if "-- deviceon-backup " in line]
    inside += [line.removeprefix("backup ") for line in COMMANDS if line.startswith("backup ")]
    assert len(inside) >= 11
    for text in inside:
        words = shlex.split(ELSEWHERE.sub("", text).partition("<")[0])
        said = CliRunner().invoke(command_line, [words[0], "--help"])
        assert said.exit_code == 0, text
        for option in [word for word in words if word.startswith("--")]:
            assert option in said.output, text


def test_the_alert_on_cron_jobs_fires_for_one_that_is_late_and_for_one_that_never_succeeded(tmp_path: Path) -> None:
    (rule,) = re.findall(r"^```yaml\n(expr:.*?)^```$", TEXT, flags=re.MULTILINE | re.DOTALL)
    hours = 50
    now = hours * 3600

    def series(metric: str, plant: str, hours_ago: float) -> dict[str, str]:
        labels = f'{{namespace="deviceon",cronjob="backup-deviceon-backup-{plant}"}}'
        return {"series": metric + labels, "values": f"{now - hours_ago * 3600}x{hours}"}

    done, made = "kube_cronjob_status_last_successful_time", "kube_cronjob_created"
    fires = [
        {"labels": f'{{namespace="deviceon", cronjob="backup-deviceon-backup-{plant}"}}', "value": 48 * 3600}
        for plant in ("late", "never")
    ]
    case = {
        "interval": "1h",
        "input_series": [
            *(series(made, plant, 48) for plant in ("well", "late", "never")),
            series(made, "new", 3),
            series(done, "well", 20),
            series(done, "late", 48),
        ],
        "promql_expr_test": [
            {"expr": yaml.safe_load(rule)["expr"], "eval_time": f"{hours}h", "exp_samples": fires},
        ],
    }
    (tmp_path / "case.yaml").write_text(yaml.safe_dump({"tests": [case]}))
    said = subprocess.run(
        ["promtool", "test", "rules", str(tmp_path / "case.yaml")], check=False, capture_output=True, text=True
    )
    assert said.returncode == 0, said.stdout + said.stderr


def test_the_templates_for_other_charts_are_all_told() -> None:
    told = set(re.findall(r"^\| `(deviceon-backup\.\w+)` \|", TEXT, flags=re.MULTILINE))
    text = (chart.CHART / "templates/_sidecar.tpl").read_text()
    assert told == set(re.findall(r'define "(deviceon-backup\.\w+)"', text)) - {
        "deviceon-backup.only",
        "deviceon-backup.unit",
    }
    used = "".join(path.read_text() for path in (chart.UMBRELLA / "templates").iterdir())
    assert told - {"deviceon-backup.egress"} <= set(re.findall(r'include "(deviceon-backup\.\w+)"', used))


@pytest.mark.parametrize("values", [chart.example("umbrella")])
def test_the_egress_of_the_sidecar_is_that_of_its_configuration(values: dict[str, object], tmp_path: Path) -> None:
    with chart.umbrella() as path:
        (path / "templates/policy.yaml").write_text(
            'egress:\n  {{- include "deviceon-backup.egress" (index .Subcharts "deviceon-backup") | nindent 2 }}\n'
        )
        rendered = chart.render({"deviceon-backup": values}, path=path)
    rules = yaml.safe_load(rendered["deviceon/templates/policy.yaml"])["egress"]
    assert [each["port"] for rule in rules for each in rule["ports"]] == [53, 53, 5432, 443]
