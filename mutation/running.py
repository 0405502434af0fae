"""Run tests of a module in processes of their own: first on the module as it is, then on each mutant.

This process imports what tests need of other people's libraries, and nothing of the project. A mutant is a fork of it
that imports the project with one module changed, so it costs a fraction of a second, and what it breaks dies with it.
It runs the tests that reach the changed lines, quickest first, up to the first that fails.
"""

from __future__ import annotations

import ast
import importlib
import importlib.abc
import importlib.util
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, Final

import coverage
import pytest

from mutation.mutants import Mutant

PROJECT: Final = Path(__file__).parent.parent
_PATIENCE: Final = 15.0
"""Seconds that a test may take on a mutant, and six times as long as it took before: then the mutant hangs."""
_SLOW: Final = 12.0
"""Tests that take longer, in seconds, are left out: they repeat what smaller ones do."""
_MEMORY: Final = 12 << 30
_OPTIONS: Final = (
    *("-q", "-x", "--no-header", "--tb=no", "-p", "no:cacheprovider", "-o", "timeout=0", "--hypothesis-seed=0"),
    *("-W", "ignore::pytest.PytestAssertRewriteWarning"),
)
_LOADED_ANEW: Final = ("pytest_asyncio", "xdist", "_hypothesis_pytestplugin", "pytest_timeout", "coverage")


@dataclass(frozen=True, slots=True)
class Baseline:
    """What the tests did on the module as it is."""

    seconds: dict[str, float]
    """How long each test took."""
    reached: dict[int, set[str]]
    """By line: the tests that ran it; the empty name is what runs while tests are imported."""
    missing_lines: list[int]
    missing_branches: list[list[int]]
    imported: list[str]
    """Other people's modules."""

    killers: Counter[tuple[int, str]] = field(default_factory=Counter)
    """How many mutants of a line a test has noticed so far."""

    def tests_for(self, mutant: Mutant) -> list[str]:
        """Return the tests that may notice: those that noticed another mutant of the line, then the quickest.

        Those that reach the lines go before others.
        """
        reaching = set().union(*(self.reached.get(line, set()) for line in mutant.lines))
        everywhere = mutant.imported or "" in reaching
        quick = sorted(self.seconds, key=lambda test: (-self.killers[mutant.line, test], self.seconds[test]))
        quick = [test for test in quick if self.seconds[test] <= _SLOW]
        return [test for test in quick if test in reaching] + [
            test for test in quick if everywhere and test not in reaching
        ]


class BaselineFailed(Exception):
    """The tests do not pass on the module as it is."""


def baseline(path: str, tests: Sequence[str]) -> Baseline:
    """Run all tests on the module at `path`, and see which of them reach which of its lines."""
    with tempfile.TemporaryDirectory(prefix="mutation-") as work:
        result = Path(work, "result")
        pid = _forked(lambda: _measure(path, tests, result), log=Path(work, "log"))
        _, status = os.waitpid(pid, 0)
        _end_group(pid)
        if status or not result.exists():
            raise BaselineFailed(Path(work, "log").read_text()[-4000:])
        told = json.loads(result.read_text())
    reached = {int(line): set(names) for line, names in told.pop("reached").items()}
    found = Baseline(reached=reached, **told)
    for name in found.imported:
        with suppress(ImportError):
            importlib.import_module(name)
    return found


def outcomes(
    path: str, tree: ast.Module, mutants: Sequence[Mutant], tests: Sequence[str], measured: Baseline, *, jobs: int
) -> Iterator[tuple[Mutant, str]]:
    """Yield each mutant with what became of it, as they end: "killed", "hangs" or "survives"."""
    running: dict[int, Mutant] = {}
    waiting = list(reversed(mutants))
    while waiting or running:
        while waiting and len(running) < jobs:
            mutant = waiting.pop()
            chosen = measured.tests_for(mutant)
            if not chosen:
                yield mutant, "survives"
                continue
            work = partial(_try, path, tree, mutant, tests, chosen, measured.seconds)
            running[_forked(work)] = mutant
        if not running:
            continue
        pid, status = os.wait()
        _end_group(pid)
        mutant = running.pop(pid)
        noticed = _noticed(pid)
        if noticed.exists():
            measured.killers[mutant.line, noticed.read_text()] += 1
            noticed.unlink()
        shutil.rmtree(_base(pid), ignore_errors=True)
        yield mutant, _outcome(status, mutant.name)


def _outcome(status: int, name: str) -> str:
    """Tell what became of a mutant. Raises RuntimeError when that is not known, since its tests were not run."""
    if os.WIFSIGNALED(status):
        return "hangs" if os.WTERMSIG(status) == signal.SIGALRM else "killed"
    match os.WEXITSTATUS(status):
        case pytest.ExitCode.OK:
            return "survives"
        case pytest.ExitCode.TESTS_FAILED | pytest.ExitCode.INTERRUPTED:  # interrupted: it could not be imported
            return "killed"
        case code:
            raise RuntimeError(f"{name}: its tests were not run, the process ended with {code}")


# In the fork


def _forked(work: Callable[[], int], *, log: Path | None = None) -> int:
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        os.setsid()
        out = os.open(log or os.devnull, os.O_WRONLY | os.O_CREAT, 0o600)
        os.dup2(out, 1)
        os.dup2(out, 2)
        code = work()
        sys.stdout.flush()
    finally:
        os._exit(code)


def _end_group(pid: int) -> None:
    """End what a fork has left running."""
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def _base(pid: int) -> Path:
    return Path(tempfile.gettempdir(), f"mutation-{pid}")


def _noticed(pid: int) -> Path:
    """Return where a fork tells which test has failed."""
    return Path(tempfile.gettempdir(), f"mutation-{pid}.noticed")


def _pytest(tests: Sequence[str], *plugins: object) -> int:
    from hypothesis import HealthCheck, Phase, settings  # noqa: PLC0415  (not imported before the first fork)

    settings.register_profile(
        "mutation",
        max_examples=30,
        database=None,
        deadline=None,
        phases=(Phase.explicit, Phase.generate),
        suppress_health_check=tuple(HealthCheck),
    )
    settings.load_profile("mutation")
    return int(pytest.main([*_OPTIONS, f"--basetemp={_base(os.getpid())}", *tests], plugins=list(plugins)))


def _measure(path: str, tests: Sequence[str], result: Path) -> int:
    measuring = coverage.Coverage(
        data_file=str(result.with_suffix(".coverage")), include=[str(PROJECT / path)], branch=True, config_file=False
    )
    watch = _Watch(measuring)
    measuring.start()
    code = _pytest(tests, watch)
    measuring.stop()
    shutil.rmtree(_base(os.getpid()), ignore_errors=True)
    if code:
        return code
    report = result.with_suffix(".json")
    measuring.json_report(outfile=str(report))
    told = next(iter(json.loads(report.read_text())["files"].values()))
    result.write_text(
        json.dumps(
            {
                "seconds": watch.seconds,
                "reached": measuring.get_data().contexts_by_lineno(str(PROJECT / path)),
                "missing_lines": told["missing_lines"],
                "missing_branches": told["missing_branches"],
                "imported": [name for name, module in sys.modules.items() if _is_of_others(name, module)],
            }
        )
    )
    return 0


def _is_of_others(name: str, module: ModuleType) -> bool:
    if name.partition(".")[0] in _LOADED_ANEW or name == "__main__":
        return False
    place = getattr(module, "__file__", None) or ""
    return not place.startswith(str(PROJECT)) or place.startswith(str(PROJECT / ".venv"))


def _try(
    path: str,
    tree: ast.Module,
    mutant: Mutant,
    tests: Sequence[str],
    chosen: Sequence[str],
    seconds: dict[str, float],
) -> int:
    """Run the chosen tests on a mutant."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    mutant.swap()
    code = compile(ast.fix_missing_locations(tree), str(PROJECT / path), "exec", dont_inherit=True)
    sys.meta_path.insert(0, _Mutated(path, code))
    files = {name.partition("::")[0] for name in chosen}
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, 4 * _PATIENCE)  # for the import
    return _pytest([test for test in tests if test in files], _Chosen(chosen, seconds))


class _Mutated(importlib.abc.MetaPathFinder):
    """Imports one module from given code."""

    def __init__(self, path: str, code: CodeType) -> None:
        self._name = path.removesuffix(".py").replace("/", ".")
        self._path = str(PROJECT / path)
        self._code = code

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != self._name:
            return None
        loader = _Loader(name, self._path)
        loader.code = self._code
        return importlib.util.spec_from_file_location(name, self._path, loader=loader)


class _Loader(SourceFileLoader):
    code: CodeType

    def get_code(self, fullname: str) -> CodeType:
        return self.code


class _Chosen:
    """Runs the chosen tests in their order; one that takes much longer than before ends the process."""

    def __init__(self, chosen: Sequence[str], seconds: dict[str, float]) -> None:
        self._rank = {name: rank for rank, name in enumerate(chosen)}
        self._seconds = seconds

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = sorted(
            (item for item in items if item.nodeid in self._rank), key=lambda each: self._rank[each.nodeid]
        )

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        signal.setitimer(signal.ITIMER_REAL, _PATIENCE + 6 * self._seconds[nodeid])

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            _noticed(os.getpid()).write_text(report.nodeid)


class _Watch:
    """Tells coverage which test runs, and takes the time."""

    def __init__(self, measuring: coverage.Coverage) -> None:
        self._measuring = measuring
        self.seconds: dict[str, float] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        self._measuring.switch_context(item.nodeid)
        begun = time.monotonic()
        try:
            return (yield)
        finally:
            self.seconds[item.nodeid] = time.monotonic() - begun
            self._measuring.switch_context("")
