"""docs/RUNBOOKS.md has every alert and every code of an error, with something to do, and `explain` prints it."""

from __future__ import annotations

import importlib
import json
import pkgutil
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import yaml
from click.testing import CliRunner

import service
import storage_backends
from service.cli.app import command_line
from service.cli.runbooks import PARTS, sections
from service.errors import ServiceError
from service.failure import as_json
from service.rpc.codec import Code
from storage_backends.base import StorageError
from tests.unit.test_restore_codes import made

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs/RUNBOOKS.md"
TEXT = DOCUMENT.read_text()
NEEDS_MORE = {"service.__main__", "service.cli.__main__"}
"""Modules that run when they are imported."""


def errors() -> Iterator[type[ServiceError | StorageError]]:
    for package in (service, storage_backends):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if module.name not in NEEDS_MORE:
                importlib.import_module(module.name)
    pending: list[type[ServiceError | StorageError]] = [ServiceError, StorageError]
    while pending:
        error = pending.pop()
        yield error
        pending += [each for each in error.__subclasses__() if each.__module__.startswith(("service", "storage_back"))]


def codes() -> set[str]:
    found = {error.code for error in errors()} | {code.name for code in Code}
    found |= set(made("Obstacle", "_obstacle", "Attention"))
    return found | {as_json(ValueError())["code"]}


def alerts() -> set[str]:
    rules = yaml.safe_load((ROOT / "helm/deviceon-backup/files/alerts.yaml").read_text())
    return {rule["alert"] for group in rules["groups"] for rule in group["rules"]}


def commands() -> list[str]:
    text = re.sub(r"`[^`]*\.\.\.[^`]*`", "", TEXT)
    block = re.findall(r"^(deviceon-backup .+?)(?: *#.*)?$", text, re.M)
    return sorted({*block, *re.findall(r"`(deviceon-backup [^`]+)`", text)})


def test_every_alert_and_every_code_has_a_section_and_every_section_has_one_of_them() -> None:
    assert set(sections()) == alerts() | codes()


def test_every_section_says_what_it_means_how_bad_it_is_where_to_look_what_to_do_and_when_it_is_over() -> None:
    headings = re.findall(r"^### (\w+)$", TEXT, re.M)
    assert len(headings) == len(set(headings)) == len(sections())
    for name, parts in sections().items():
        assert tuple(parts) == PARTS, name
        assert all(len(text) > 2 for text in parts.values()), name


def test_every_alert_is_among_the_alerts_and_every_section_it_sends_to_exists() -> None:
    before, _, _ = TEXT.partition("\n# Error codes\n")
    assert set(re.findall(r"^### (\w+)$", before, re.M)) == alerts()
    for parts in sections().values():
        sent = {name for text in parts.values() for name in re.findall(r"\bDeviceOnBackup\w+", text)}
        assert sent <= set(sections())


@pytest.mark.parametrize("line", commands())
def test_every_command_that_a_run_book_names_exists_with_its_options(line: str) -> None:
    words = shlex.split(line)[1:]
    command: click.Command = command_line
    path = []
    while words and isinstance(command, click.Group) and words[0] in command.commands:
        path.append(words[0])
        command = command.commands[words.pop(0)]
    assert path, line
    options = {option for param in command.params for option in (*param.opts, *param.secondary_opts)}
    assert {word for word in words if word.startswith("-")} <= options | {"--help", "--debug", "--socket"}
    assert CliRunner().invoke(command_line, [*path, "--help"]).exit_code == 0


def test_what_is_shipped_is_the_document() -> None:
    """After a change: cp docs/RUNBOOKS.md service/cli/runbooks.md"""
    assert (ROOT / "service/cli/runbooks.md").read_text() == TEXT


def test_links_of_the_document_lead_somewhere() -> None:
    for file, anchor in re.findall(r"\]\(([A-Z_]+\.md)(?:#([\w-]+))?\)", TEXT):
        target = (DOCUMENT.parent / file).read_text()
        headings = {
            re.sub(r"[^\w -]", "", line).lower().replace(" ", "-") for line in re.findall(r"^#+ (.+)$", target, re.M)
        }
        assert not anchor or anchor in headings, (file, anchor)


def test_explain_prints_a_section_whatever_the_case_of_its_name() -> None:
    told = CliRunner().invoke(command_line, ["explain", "tpm_lockout"])
    assert told.exit_code == 0
    assert told.stdout.startswith("TPM_LOCKOUT\n  Means:")
    assert "  Over when: " in told.stdout
    answer = json.loads(CliRunner().invoke(command_line, ["explain", "DeviceOnBackupTooOld", "--json"]).stdout)
    assert set(answer) == {"name", "means", "how_bad", "look", "do", "over_when"}
    assert CliRunner().invoke(command_line, ["explain"]).stdout.split() == sorted(sections())
    assert CliRunner().invoke(command_line, ["explain", "NOTHING"]).exit_code == 8
