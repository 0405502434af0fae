"""Measure ours and the peers on the same bytes; the last line is one JSON object of the ratios.

    python -m benchmarks [--size GB] [--rounds N] [--only SECTION ...] [--keep DIR] [--publish]
    python -m benchmarks --report

A run with a size or rounds of its own is a short round: its results and document go to build/benchmarks, unless
--publish. Others go to docs/performance.json and docs/PERFORMANCE.md. Sections that are run one by one are merged.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

from benchmarks import report
from benchmarks.facts import cores, facts
from benchmarks.machine import Machines
from benchmarks.measure import CommandFailed
from benchmarks.results import Results, ratios
from benchmarks.sections import GROWTH, SECTIONS, Bench, run_section
from demo.postgresql_server import PostgresqlFailed, find_programs

SIZE = 2.0
ROUNDS = 3
_QUIET = 0.7  # load average
_PROJECT = Path(__file__).parent.parent


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=float, help=f"GB of what pg_dump -Fp writes (default: {SIZE:g})")
    parser.add_argument("--rounds", type=int, help=f"rounds of the comparisons (default: {ROUNDS})")
    parser.add_argument("--only", action="append", choices=SECTIONS, help="this section only; may be repeated")
    parser.add_argument(
        "--growth",
        type=float,
        nargs="+",
        metavar="MULTIPLE",
        help="sizes of the section growth, as multiples of --size (default: "
        f"{' '.join(f'{size:g}' for size in GROWTH)}; the first three when --size is below {SIZE:g})",
    )
    parser.add_argument("--append", action="store_true", help="add to what a section measured before")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="make datasets in DIR and leave them for the next run")
    parser.add_argument("--publish", action="store_true", help="write docs/PERFORMANCE.md in spite of --size, --rounds")
    parser.add_argument("--report", action="store_true", help="measure nothing; write the document anew")
    return parser.parse_args()


def main() -> int:
    """Run what was asked for."""
    options = _options()
    short = options.size is not None or options.rounds is not None
    place = _PROJECT / ("build/benchmarks" if short and not options.publish else "docs")
    results = Results.load(place / "performance.json")
    chosen = [] if options.report else options.only or list(SECTIONS)
    if options.report and not results.sections:
        sys.exit(f"Nothing was measured yet: there is no {place / 'performance.json'}")
    failed = _measure(options, chosen, results, place) if chosen else None
    report.write_document(results, place)
    report.print_overview(results, chosen or list(SECTIONS))
    print(f"\n{place / 'PERFORMANCE.md'}", flush=True)
    if failed:
        print(f"\nFAILED: {failed}", file=sys.stderr, flush=True)
    print(json.dumps(ratios(results)), flush=True)
    return 1 if failed else 0


def _measure(options: argparse.Namespace, chosen: list[str], results: Results, place: Path) -> str | None:
    """Run the sections; return what failed, if something did."""
    directory = (options.keep or Path(tempfile.mkdtemp(prefix="benchmarks-"))).resolve()
    directory.mkdir(parents=True, exist_ok=True)
    directory.chmod(0o755)  # the server may run as another user
    size = options.size or SIZE
    bench = Bench(
        machines=Machines(directory),
        results=results,
        size=size,
        rounds=options.rounds or ROUNDS,
        keep=options.keep is not None,
        growth=options.growth or (GROWTH if size >= SIZE else GROWTH[:3]),
        path=place / "performance.json",
    )
    results.cores = cores()
    results.facts = facts(find_programs())
    if os.getloadavg()[0] > _QUIET:
        print(f"The machine is busy (load {os.getloadavg()[0]:.1f}): what is measured now is worth little", flush=True)
    try:
        for name in chosen:
            run_section(bench, name, append=options.append)
            results.save(place / "performance.json")
    except (CommandFailed, PostgresqlFailed) as problem:
        return str(problem)
    finally:
        if options.keep is None:
            shutil.rmtree(directory, ignore_errors=True)
    return None


if __name__ == "__main__":
    sys.exit(main())
