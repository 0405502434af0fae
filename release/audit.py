"""Known vulnerabilities of what the locks pin, as the Python Package Index or OSV tells them: `make audit`.

Exit code 0 when every library was asked about and none is known to be vulnerable, 1 when one is, and 3 when the
database could not be asked about some of them: "nothing found" is not said of what nobody looked up.

    python -m release.audit
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Literal

from release.bill import pins

Outcome = Literal["clean", "vulnerable", "not asked"]
CODES: dict[Outcome, int] = {"clean": 0, "vulnerable": 1, "not asked": 3}


def judge(answer: dict[str, Any] | None) -> tuple[Outcome, list[str]]:
    """Judge what pip-audit told as JSON, None when it told nothing; return the outcome and what there is to say."""
    if answer is None:
        return "not asked", ["the database of vulnerabilities could not be reached: nothing was looked up"]
    libraries = answer["dependencies"]
    bad = [
        f"{library['name']} {library['version']}: {found['id']}, mended in {_versions(found)}"
        for library in libraries
        for found in library.get("vulns", [])
    ]
    skipped = [library["name"] for library in libraries if "skip_reason" in library]
    said = list(bad)
    if skipped or not libraries:
        said.append(
            f"the database knows nothing of {len(skipped)} of {len(libraries)} libraries: they were NOT looked up"
        )
    if bad:
        return "vulnerable", said
    return ("not asked", said) if skipped or not libraries else ("clean", [f"{len(libraries)} libraries, none known"])


def _versions(found: dict[str, Any]) -> str:
    return ", ".join(found["fix_versions"]) or "no version yet"


def audit() -> tuple[Outcome, list[str]]:
    """Ask about everything that is pinned for running."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as merged:
        merged.write("\n".join(pins().values()) + "\n")
        merged.flush()
        command = [str(Path(sys.executable).parent / "pip-audit"), "--requirement", merged.name, "--disable-pip"]
        command += ["--no-deps", "--format", "json", "--progress-spinner", "off", "--timeout", "15"]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
    try:
        return judge(json.loads(done.stdout))
    except json.JSONDecodeError:
        return judge(None)


def main() -> None:
    """Ask, and say what came of it."""
    outcome, said = audit()
    print("\n".join(f"audit: {line}" for line in said))
    raise SystemExit(CODES[outcome])


if __name__ == "__main__":
    main()
