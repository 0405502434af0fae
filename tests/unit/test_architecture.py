"""The rules that keep the structure: who may import whom, how long a file may be, who may print.

Each rule is a function from a module's name and text to what is wrong with it, and each is shown a violation first.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# From the bottom up. A unit (a module, or a package with all that is in it) imports itself and rows below its own;
# units of one row are siblings, and siblings do not import each other.
LAYERS: list[tuple[str, ...]] = [
    ("storage_backends",),
    (
        "service.errors",
        "service.allocator",
        "service.blocking",
        "service.outbox",
        "service.notify_send",
        "service.processors",
    ),
    ("service.secret",),
    ("service.recovery",),
    (
        "service.progress",
        "service.finding",
        "service.strict_json",
        "service.strict_yaml",
        "service.config_problems",
        "service.config_types",
        "service.state_directory",
        "service.job",
        "service.opening",
        "service.recovery_kit",
        "service.ledger",
        "service.events",
        "service.client",
        "service.supervisor",
    ),
    (
        "service.config_file",
        "service.passfile",
        "service.targets_at_hand",
        "service.failure",
        "service.terminal",
        "service.watchdog",
        "service.schedule",
        "service.retention",
        "service.rpc",
        "service.log",
        "service.metrics",
        "service.config_monitoring",
        "service.state",
    ),
    ("service.config_sources", "service.config_restore", "service.object_lock", "service.job_log", "service.timeline"),
    ("service.config_drill",),
    ("service.config", "service.clock_guard", "service.announcer", "service.http", "service.notify_message"),
    (
        "service.settings",
        "service.pending_copies",
        "service.config_reference",
        "service.target_test",
        "service.notify",
        "service.recovery_choice",
    ),
    ("service.config_for_archive",),
    ("service.archive", "service.sealing", "service.sources.base"),
    ("service.health",),
    (
        "service.selection",
        "service.sources",
        "service.pipeline",
        "service.keys",
        "service.journal",
        "service.server_version",
        "service.hooks",
    ),
    ("service.headroom", "service.drill_page", "service.drill_requirements"),
    ("service.reset_keep",),
    ("service.catalog", "service.exclusive", "service.drill_report"),
    ("service.targets",),
    ("service.key_slots", "service.provisioning"),
    (
        "service.backup",
        "service.prune",
        "service.holding",
        "service.copying",
        "service.restore_pin",
        "service.selftest",
        "service.verification",
    ),
    ("service.doctor_tpm", "service.baseline", "service.restore_estimate", "service.size_trend"),
    ("service.at_baseline",),
    ("service.restore_plan",),
    ("service.restore_report",),
    ("service.drill_choice", "service.drill_seen"),
    ("service.extract", "service.doctor", "service.drill"),
    ("service.restore",),
    ("service.reset",),
    ("service.settle", "service.jobs"),
    ("service.key_jobs",),
    ("service.restore_table",),
    ("service.old_state",),
    ("service.work", "service.scheduler"),
    ("service.api",),
    ("service.app",),
    ("service.measuring",),
    ("service.serve", "service.portal"),
    ("service.cli",),
    ("service.__main__",),
]

# What one source may not know of another.
SOURCES: dict[str, tuple[str, ...]] = {
    "postgresql": ("service.sources.postgresql",),
    "tree": ("service.sources.config_tree", "service.sources.tree_walk", "service.sources.tree_extract"),
    "sqlite": ("service.sources.sqlite",),
}

# The portal is a client of the socket: what it may know of the rest.
PORTAL_KNOWS = (
    "service.client",
    "service.config_file",
    "service.config_monitoring",
    "service.config_types",
    "service.errors",
    "service.job",
    "service.log",
    "service.portal",
    "service.rpc.peers",
    "service.rpc.unix_socket",
    "service.secret",
    "service.strict_yaml",
)

# Third-party libraries and the only units that import them; an empty tuple is everybody.
LIBRARIES: dict[str, tuple[str, ...]] = {
    "aiobotocore": ("storage_backends.s3",),
    "paramiko": ("storage_backends.generic_sftp",),
    "aiofiles": (),
    "aiohttp": ("service.http", "service.portal", "storage_backends.s3"),
    "apprise": ("service.notify_send",),
    "asyncpg": ("service.sources.postgresql",),
    "babel": ("service.portal",),
    "botocore": ("storage_backends.s3",),
    "click": ("service.cli",),
    "cronsim": ("service.schedule",),
    "cryptography": ("service.sealing", "service.rpc.tls"),
    "fsspec": ("storage_backends",),
    "httpx": ("service.portal.oidc",),
    "isal": ("service.archive.chunk",),
    "jinja2": ("service.portal.rendering", "service.portal.portal"),
    "joserfc": ("service.portal.oidc",),
    "markupsafe": ("service.portal",),
    "prometheus_client": ("service.metrics",),
    "pydantic": (),
    "pydantic_core": ("service.config_problems",),
    "pyrage": ("service.sealing.age", "service.sealing.age_apart"),
    "smbclient": ("storage_backends.smb",),
    "smbprotocol": ("storage_backends.smb",),
    "rich": ("service.terminal",),
    "tpm2_pytss": ("service.sealing.tpm",),
    "uvloop": ("service.cli",),
    "yaml": ("service.strict_yaml", "service.cli"),
    "zstandard": ("service.archive.chunk",),
}

MAY_PRINT = (
    "service.cli",
    "service.terminal",
    "demo",
    "benchmarks",
    "release",
    "scoreboard",
    "mutation",
    "tests",
    "tools",
)
MOST_LINES = 450


def modules(*packages: str) -> dict[str, str]:
    """Return the text of every module below `packages`, by its dotted name."""
    found = {}
    for package in packages:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text()
    return found


PROJECT = modules("storage_backends", "service", "demo", "benchmarks", "release", "scoreboard", "mutation", "tests")
SHIPPED = {name: text for name, text in PROJECT.items() if name.startswith(("service", "storage_backends"))}


def below(name: str, unit: str) -> bool:
    """Say whether `name` is `unit` or in it."""
    return name == unit or name.startswith(f"{unit}.")


def imports(text: str) -> Iterator[str]:
    """Yield every module that `text` imports, wherever in it; what is no module is yielded as its module."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                yield whole if whole in PROJECT else base


def unit_of(name: str) -> tuple[int, str] | None:
    """Return the row and the unit that `name` belongs to: the longest that fits."""
    fitting = [(len(unit), row, unit) for row, units in enumerate(LAYERS) for unit in units if below(name, unit)]
    if not fitting:
        return None
    _, row, unit = max(fitting)
    return row, unit


def wrong_layers(name: str, text: str) -> list[str]:
    """Imports point down, and not to siblings."""
    if name == "service":
        return [f"service imports {found}" for found in imports(text) if found.split(".")[0] in {"service", "demo"}]
    mine = unit_of(name)
    if mine is None:
        return [f"{name} is in no row of LAYERS: say where it belongs"]
    problems = []
    for found in imports(text):
        top = found.partition(".")[0]
        if top in {"demo", "benchmarks", "tests", "tools"}:
            problems.append(f"{name} imports {found}, which is not shipped")
        if top not in {"service", "storage_backends"} or found == "service":
            continue
        other = unit_of(found)
        if other is None:
            problems.append(f"{name} imports {found}, which is in no row of LAYERS")
        elif other[1] != mine[1] and other[0] >= mine[0]:
            problems.append(f"{name} imports {found}, which is not below it")
    return problems


def sources_that_know_each_other(name: str, text: str) -> list[str]:
    """One source does not import another."""
    mine = [source for source, units in SOURCES.items() if any(below(name, unit) for unit in units)]
    return [
        f"{name} imports {found}, which belongs to the source {source}"
        for found in imports(text)
        for source, units in SOURCES.items()
        if mine and source not in mine and any(below(found, unit) for unit in units)
    ]


def portal_that_knows_the_recipes(name: str, text: str) -> list[str]:
    """The portal can do what the socket allows, and nothing past it."""
    if not below(name, "service.portal"):
        return []
    return [
        f"{name} imports {found}, which is no business of the portal's"
        for found in imports(text)
        if found.partition(".")[0] in {"service", "storage_backends"} and found not in {"service"}
        if not any(below(found, known) for known in PORTAL_KNOWS)
    ]


def wrong_libraries(name: str, text: str) -> list[str]:
    """A library has one importer, so that it can be replaced, and be imported late."""
    problems = []
    for found in imports(text):
        library = found.partition(".")[0]
        if library in sys.stdlib_module_names or library in {"service", "storage_backends"}:
            continue
        if library not in LIBRARIES:
            problems.append(f"{name} imports {library}: say in LIBRARIES who may")
        elif LIBRARIES[library] and not any(below(name, unit) for unit in LIBRARIES[library]):
            problems.append(f"{name} imports {library}, which only {' and '.join(LIBRARIES[library])} may")
    return problems


def too_long(name: str, text: str) -> list[str]:
    """A file that outgrows its limit holds two ideas."""
    lines = 0 if below(name, "tests") else text.count("\n")
    return [f"{name} has {lines} lines, {MOST_LINES} are the limit"] if lines >= MOST_LINES else []


def star_imports(name: str, text: str) -> list[str]:
    """Names come from somewhere that can be read."""
    return [
        f"{name} imports everything of {node.module}"
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names)
    ]


def prints(name: str, text: str) -> list[str]:
    """What is said goes through `Progress` or an exception; only the outermost layer talks to people."""
    if any(below(name, unit) for unit in MAY_PRINT):
        return []
    return [
        f"{name} prints in line {node.lineno}"
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]


def no_docstring(name: str, text: str) -> list[str]:
    """A module says what it is for."""
    public = not name.rpartition(".")[2].startswith("_")
    return [f"{name} has no docstring"] if public and text.strip() and not ast.get_docstring(ast.parse(text)) else []


Rule = Callable[[str, str], list[str]]

VIOLATIONS: list[tuple[Rule, str, str]] = [
    (wrong_layers, "storage_backends.local", "from service.errors import ServiceError"),
    (wrong_layers, "service.errors", "import service.config"),
    (wrong_layers, "service.config", "from service import catalog"),
    (wrong_layers, "service.archive.zip64", "from service.sealing.suite import ArchiveKeys"),
    (wrong_layers, "service.sealing.suite", "def f():\n    import service.archive.parts"),
    (wrong_layers, "service.sources.base", "from service.sources import config_tree"),
    (wrong_layers, "service.pipeline.pack", "from service.sources.config_tree import TreeSource"),
    (wrong_layers, "service.sources.sqlite", "from service.pipeline import pack"),
    (wrong_layers, "service.catalog", "from service.backup import backup"),
    (wrong_layers, "service.restore", "from service.cli.app import main"),
    (wrong_layers, "service.backup", "from demo.sample import fill"),
    (wrong_layers, "service.backup", "from tests.unit import test_names"),
    (wrong_layers, "service.backup", "from benchmarks.measure import measure"),
    (wrong_layers, "service.not_in_the_table", "import os"),
    (wrong_layers, "service", "from service.errors import ServiceError"),
    (sources_that_know_each_other, "service.sources.sqlite", "from service.sources.postgresql import PostgresqlSource"),
    (sources_that_know_each_other, "service.sources.postgresql.dump", "from service.sources import config_tree"),
    (sources_that_know_each_other, "service.sources.config_tree", "import service.sources.sqlite"),
    (portal_that_knows_the_recipes, "service.portal.jobs", "from service.restore import restore"),
    (portal_that_knows_the_recipes, "service.portal.jobs", "import service.rpc.server"),
    (wrong_libraries, "service.catalog", "import asyncpg"),
    (wrong_libraries, "service.sources.sqlite", "from asyncpg import connect"),
    (wrong_libraries, "service.keys", "import tpm2_pytss.ESAPI"),
    (wrong_libraries, "service.archive.parts", "from cryptography.hazmat.primitives import hashes"),
    (wrong_libraries, "storage_backends.local", "import click"),
    (wrong_libraries, "storage_backends.local", "from aiobotocore.session import AioSession"),
    (wrong_libraries, "service.catalog", "import requests"),
    (too_long, "service.catalog", "x = 1\n" * MOST_LINES),
    (star_imports, "service.catalog", "from service.errors import *"),
    (prints, "service.catalog", "def f():\n    print('x')"),
    (prints, "storage_backends.local", "print()"),
    (no_docstring, "service.catalog", "import os"),
]

FINE: list[tuple[Rule, str, str]] = [
    (
        wrong_layers,
        "service.backup",
        "from service.pipeline.pack import pack\nfrom storage_backends import open_target",
    ),
    (wrong_layers, "service.pipeline.pack", "from service.sources.base import Snapshot"),
    (wrong_layers, "service.sources.sqlite", "from service.sources import attributes"),
    (wrong_libraries, "service.sources.postgresql.dump", "import asyncpg\nimport os.path"),
    (portal_that_knows_the_recipes, "service.portal.gateway", "from service.client import Client"),
    (too_long, "service.catalog", "x = 1\n" * (MOST_LINES - 1)),
    (prints, "service.cli.app", "print()"),
    (prints, "service.catalog", "console.print()"),
    (no_docstring, "service.catalog", '"""Lists."""'),
]


@pytest.mark.parametrize(("rule", "name", "text"), VIOLATIONS)
def test_a_rule_finds_its_violation(rule: Rule, name: str, text: str) -> None:
    assert rule(name, text) != []


@pytest.mark.parametrize(("rule", "name", "text"), FINE)
def test_a_rule_lets_pass_what_keeps_it(rule: Rule, name: str, text: str) -> None:
    assert rule(name, text) == []


@pytest.mark.parametrize(
    "rule", [wrong_layers, sources_that_know_each_other, portal_that_knows_the_recipes, wrong_libraries]
)
def test_the_shipped_code_keeps_the_import_rules(rule: Rule) -> None:
    assert [problem for name, text in SHIPPED.items() for problem in rule(name, text)] == []


@pytest.mark.parametrize("rule", [too_long, star_imports, prints, no_docstring])
def test_all_code_keeps_the_rules_of_style(rule: Rule) -> None:
    assert [problem for name, text in PROJECT.items() for problem in rule(name, text)] == []


def test_every_unit_of_the_table_is_there() -> None:
    """A table that names what is gone holds nothing."""
    units = [unit for row in LAYERS for unit in row] + [unit for units in SOURCES.values() for unit in units]
    units += [unit for importers in LIBRARIES.values() for unit in importers]
    assert [unit for unit in units if unit not in PROJECT] == []


def test_the_tools_stand_alone() -> None:
    """The reader of archives works on a machine that has nothing of this project."""
    for path in sorted((ROOT / "tools").rglob("*.py")):
        own = [
            found for found in imports(path.read_text()) if found.partition(".")[0] in {"service", "storage_backends"}
        ]
        assert own == [], path
