"""Break a module in one place at a time, and list what no test has noticed.

    python -m mutation [--only service/archive/zip64.py ...] [--jobs N] [--again] [--list]

The files mutation/*.toml have the tests of each module, and the mutants that change nothing anybody could notice, each
with its reason; a reason for a mutant that is killed, or that is none any more, is an error.
Writes build/mutation/<module>.json and ends with 1 when a mutant survives.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import sys
import time
import tomllib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mutation.mutants import Mutant, mutants_of
from mutation.running import PROJECT, Baseline, BaselineFailed, baseline, outcomes

_HERE = Path(__file__).parent
_RESULTS = PROJECT / "build/mutation"


@dataclass(frozen=True, slots=True)
class Described:
    """What is known of a module."""

    tests: list[str]
    without: list[str]
    """Of them, those that repeat at length what others do."""
    explained: dict[str, str]
    """Why nobody can notice a mutant, by its name."""


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m mutation", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", metavar="MODULE", help="modules, or folders of them (default: all)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="so many mutants at once")
    parser.add_argument(
        "--again", action="store_true", help="only those mutants that were not killed or not tried the last time"
    )
    parser.add_argument("--list", action="store_true", help="list the mutants; run nothing")
    return parser.parse_args()


def main() -> int:
    """Run what was asked for."""
    options = _options()
    modules = described()
    chosen = [module for module in modules if _is_chosen(module, options.only)]
    if not chosen:
        sys.exit(f"mutation/*.toml have no {' or '.join(options.only)}")
    failed = 0
    for module in chosen:
        if options.list:
            tree = ast.parse((PROJECT / module).read_text())
            print("\n".join(f"{module}:{mutant.line} {mutant.name}" for mutant in mutants_of(tree)))
        else:
            failed += _run(module, modules[module], options)
    return 1 if failed else 0


def described() -> dict[str, Described]:
    """Return what the files beside this one say, by module."""
    return {
        module: Described(
            told["tests"],
            told.get("without", []),
            {name: each["why"] for each in told.get("explained", []) for name in each["mutants"]},
        )
        for file in sorted(_HERE.glob("*.toml"))
        for module, told in tomllib.loads(file.read_text()).items()
    }


def _is_chosen(module: str, only: list[str] | None) -> bool:
    return only is None or any(module == each or module.startswith(each.rstrip("/") + "/") for each in only)


def _run(module: str, known: Described, options: argparse.Namespace) -> bool:
    """Try the mutants of a module; return whether one survives that is not explained."""
    pid = os.fork()  # so that no module finds in memory what another one's tests have imported
    if pid:
        return os.waitpid(pid, 0)[1] != 0
    code = 70
    try:
        code = _in_fork(module, known, options)
        sys.stdout.flush()
    except BaselineFailed as error:
        print(f"{module}: the tests do not pass on the module as it is\n{error}", flush=True)
    finally:
        os._exit(code)


def _in_fork(module: str, known: Described, options: argparse.Namespace) -> int:
    kept = _RESULTS / f"{module.removesuffix('.py').replace('/', '.')}.json"
    kept.parent.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    tree = ast.parse((PROJECT / module).read_text())
    mutants = mutants_of(tree)
    became = _known(kept, mutants, known) if options.again and kept.exists() else {}
    wanted = [mutant for mutant in mutants if mutant.name not in became]
    without = ["-k", f"not ({' or '.join(known.without)})"] if known.without else []
    measured = baseline(module, [*known.tests, *without])
    print(f"{module}: {len(wanted)} mutants, {len(measured.seconds)} tests", flush=True)
    for mutant, outcome in outcomes(module, tree, wanted, known.tests, measured, jobs=options.jobs):
        became[mutant.name] = outcome
        kept.write_text(json.dumps({"outcomes": became}))  # to go on from, should this be ended
        if outcome == "survives" and mutant.name not in known.explained:
            print(f"  {module}:{mutant.line} {mutant.name}", flush=True)
    told = _told(mutants, became, known, measured) | {"seconds": round(time.monotonic() - begun)}
    kept.write_text(json.dumps({"module": module} | told | {"outcomes": became}, indent=1, ensure_ascii=False) + "\n")
    print(
        f"{module}: {told['mutants']} mutants, {told['killed']} killed ({told['of them by time']} of them by time), "
        f"{told['explained']} explained, {len(told['survivors'])} survive; {told['seconds']} s",
        flush=True,
    )
    if measured.missing_lines or measured.missing_branches:
        print(f"  not run by these tests: lines {measured.missing_lines}, branches {measured.missing_branches}")
    for name in told["explained in vain"]:
        print(f"  explained in vain: {name}")
    return 1 if told["survivors"] or told["explained in vain"] else 0


def _known(kept: Path, mutants: list[Mutant], known: Described) -> dict[str, str]:
    """Return what became of mutants the last time, without those that survived and are not explained."""
    before = json.loads(kept.read_text()).get("outcomes", {})
    names = [mutant.name for mutant in mutants if mutant.name in before]
    return {name: before[name] for name in names if before[name] != "survives" or name in known.explained}


def _told(mutants: list[Mutant], became: dict[str, str], known: Described, measured: Baseline) -> dict[str, Any]:
    """Return what the mutants of a module came to."""
    counts = Counter(became.values())
    alive = [mutant for mutant in mutants if became[mutant.name] == "survives"]
    explained = known.explained.keys() & {mutant.name for mutant in alive}
    return {
        "mutants": len(mutants),
        "killed": counts["killed"] + counts["hangs"],
        "of them by time": counts["hangs"],
        "explained": len(explained),
        "survivors": [f"{mutant.line} {mutant.name}" for mutant in alive if mutant.name not in explained],
        "explained in vain": sorted(known.explained.keys() - explained),
        "missing_lines": measured.missing_lines,
        "missing_branches": measured.missing_branches,
    }


if __name__ == "__main__":
    sys.exit(main())
