"""Run experiments, print their counts and seeds, keep the results, and write docs/RELIABILITY.md.

    python -m scoreboard [--tier ci|nightly] [--only R5 ...] [--seed N] [--hours H] [--jobs N] [--resume] [--publish]
    python -m scoreboard --list | --report

The tier `nightly` goes to docs/reliability.json and docs/RELIABILITY.md, each result when it is there, so that a run
can be ended at any time and gone on with by --resume, and several can run at once. The tier `ci` (the sizes of
`make test`) goes to build/scoreboard, unless --publish. R25, the soak, runs only when it is named.
"""

from __future__ import annotations

import argparse
import random
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from scoreboard import report
from scoreboard.experiments import EXPERIMENTS, Experiment, by_id, by_name_only
from scoreboard.results import Result, keep, load
from scoreboard.running import run, version

_PROJECT = Path(__file__).parent.parent
CI_SEED = 20261128
"""The seed of the small tier when none is given: the same as in `make test`."""
_print_alone = threading.Lock()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m scoreboard", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tier", choices=("ci", "nightly"), default="ci", help="the sizes (default: ci)")
    parser.add_argument("--only", nargs="+", metavar="ID", help="these experiments only")
    parser.add_argument("--seed", type=int, help="of all dice (default: a fixed one for ci, a new one for nightly)")
    parser.add_argument("--hours", type=float, default=2.0, help="how long the soak R25 lasts (default: 2)")
    parser.add_argument("--jobs", type=int, default=1, help="so many experiments at once (default: 1)")
    parser.add_argument("--resume", action="store_true", help="leave out what passed already at this commit and tier")
    parser.add_argument("--publish", action="store_true", help="write docs/RELIABILITY.md for the tier ci, too")
    parser.add_argument("--list", action="store_true", help="list the experiments with their sizes; run nothing")
    parser.add_argument("--report", action="store_true", help="run nothing; write the document anew")
    return parser.parse_args()


def main() -> int:
    """Run what was asked for."""
    options = _options()
    if options.list:
        print("\n".join(_described(one) for one in EXPERIMENTS))
        return 0
    if options.only and all(by_name_only(each) for each in options.only):
        options.tier = "nightly"  # it has one size: its hours
    published = options.tier == "nightly" or options.publish or options.report
    kept = _PROJECT / ("docs/reliability.json" if published else "build/scoreboard/reliability.json")
    failed = 0
    if not options.report:
        chosen = _chosen(options, load(kept))
        seed = options.seed if options.seed is not None else _new_seed(options.tier)
        minutes = sum(one.minutes for one in chosen)
        if options.tier == "nightly":
            print(f"{len(chosen)} experiments, about {minutes:.0f} minutes of one core; seed {seed}", flush=True)
        with ThreadPoolExecutor(options.jobs) as pool:
            failed = sum(pool.map(lambda one: _run(one, options, seed, kept), chosen))
    if published:
        report.write(_PROJECT / "docs/RELIABILITY.md", load(kept))
        print(_PROJECT / "docs/RELIABILITY.md", flush=True)
    if not options.report:
        print(f"{failed} experiments failed" if failed else "every invariant held", flush=True)
    return 1 if failed else 0


def _chosen(options: argparse.Namespace, kept: dict[str, Result]) -> list[Experiment]:
    if options.only:
        try:
            chosen = [by_id(identifier) for identifier in options.only]
        except KeyError as unknown:
            sys.exit(f"There is no experiment {unknown}: `python -m scoreboard --list` names them")
    else:
        chosen = [one for one in EXPERIMENTS if not one.by_name_only]
    if options.resume:
        if version().endswith("+"):
            sys.exit("--resume goes by the commit that was tried, and files differ from it: commit first")
        done = {one.id for one in kept.values() if one.passed and one.tier == options.tier and one.version == version()}
        chosen = [one for one in chosen if one.id not in done]
    return chosen


def _run(one: Experiment, options: argparse.Namespace, seed: int, kept: Path) -> bool:
    """Run one experiment and keep what it came to; return whether it failed."""
    _say(f"{one.id} begins: {one.claim}")
    result = run(one, tier=options.tier, seed=seed, hours=options.hours)
    keep(kept, result)
    said = ", ".join(f"{number} {name.replace('_', ' ')}" for name, number in result.outcomes.items())
    _say(
        f"{one.id} {'passed' if result.passed else 'FAILED'}: {result.tried} tried in {result.tests} tests"
        f"{f' ({said})' if said else ''}, seed {seed}, {result.seconds:.0f} s",
        *(f"    {line}" for line in (*result.told, *result.failures)),
    )
    return not result.passed


def _say(*lines: str) -> None:
    with _print_alone:
        print("\n".join(lines), flush=True)


def _new_seed(tier: str) -> int:
    return CI_SEED if tier == "ci" else random.SystemRandom().randrange(1, 2**31)


def _described(one: Experiment) -> str:
    sizes = " ".join(f"{name.removeprefix('DEVICEON_BACKUP_')}={value}" for name, value in one.nightly.items())
    return f"{one.id:4} {one.minutes:5.1f} min  {one.claim}{f' [{sizes}]' if sizes else ''}"


if __name__ == "__main__":
    sys.exit(main())
