"""Make a fixture of an earlier version's state, by running that version: `python -m tests.vectors.state NUMBER COMMIT`.

NUMBER is the version of the state (`PRAGMA user_version`; 0 is the time before there was a service), COMMIT one that
writes it. What it leaves in `state-NUMBER/` is committed and never made again: the state directory, the TPM that has
the keys (a software TPM's state), and the archive. docs/UPGRADING.md says what is promised of them.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from demo.software_tpm import SoftwareTpm

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PLACE = Path("/tmp/deviceon-backup-vector")
IDENTITY = "AGE-SECRET-KEY-16HWR4UZW6WUR9A6XT2CGPHV2Z6Y6RY530T9JH27Y8X86YJZWH5PQAZ57LD"
RECOVERY = "age1kwgme7k9skl5qqvpl0ehgph5qeeu9prjnjghy8ceefsx4llp6vxq7jqz6p"
"""A key for these fixtures alone."""
FILES = {"Server_Config.xml": "<config>port 80</config>\n" * 20, "keys/licence.txt": "a licence\n"}
SETTINGS = {
    "schedule": {"frequency": "daily", "at": "02:00", "timezone": "Europe/Berlin"},
    "retention": {"keep_last": 7},
}


def main() -> None:
    """Check the commit out, have it work, keep what it leaves."""
    number, commit = int(sys.argv[1]), sys.argv[2]
    shutil.rmtree(PLACE, ignore_errors=True)
    for name, text in FILES.items():
        (PLACE / "etc" / name).parent.mkdir(parents=True, exist_ok=True)
        (PLACE / "etc" / name).write_text(text)
    (PLACE / "archives").mkdir()
    with sqlite3.connect(PLACE / "grafana.db") as database:
        database.execute("CREATE TABLE dashboard (id INTEGER PRIMARY KEY, title TEXT)")
        database.execute("INSERT INTO dashboard VALUES (1, 'devices')")
    database.close()
    tree = PLACE / "code"
    tree.mkdir()
    exported = subprocess.Popen(["git", "archive", commit], cwd=ROOT, stdout=subprocess.PIPE)
    subprocess.run(["tar", "--extract", "--directory", tree], stdin=exported.stdout, check=True)
    if not (tree / "service" / "__main__.py").exists():
        raise SystemExit("without the old code, the present one would run and nobody would see it")
    with SoftwareTpm(PLACE / "tpm") as tpm:
        said = _story(number, tree, tpm.tcti)
    _keep(number, commit, said)
    shutil.rmtree(PLACE)


def _story(number: int, tree: Path, tcti: str) -> list[Any]:
    config = PLACE / "config.yaml"
    document: dict[str, Any] = {
        "server": {"version": "5.3.12"},
        "target": {"url": f"file://{PLACE}/archives"},
        "state_dir": str(PLACE / "state"),
        "sealing": {"mode": "tpm", "tcti": tcti},
        "sources": [
            {"type": "tree", "path": str(PLACE / "etc")},
            {"type": "sqlite", "path": str(PLACE / "grafana.db")},
        ],
    }
    if number:
        document["service"] = {"socket": str(PLACE / "run" / "service.sock")}
    if number >= 2:
        document["sealing"]["recovery"] = [RECOVERY]
    config.write_text(yaml.safe_dump(document))
    (PLACE / "settings.yaml").write_text(yaml.safe_dump(SETTINGS))

    def run(*words: str) -> Any:
        command = [sys.executable, "-P", "-m", "service", "--config", str(config), *words]
        return subprocess.run(command, cwd=tree, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout

    environment = os.environ | {"PYTHONPATH": str(tree)}
    steps: list[list[str]] = [["backup", "--json"]]
    if number:
        steps += [["verify", "ARCHIVE", "--json"], ["settings", "set", str(PLACE / "settings.yaml")]]
        steps += [["hold", "ARCHIVE", "--reason", "a vector"]]
    if number >= 2:
        steps += [["drill", "--json"], ["selftest"]]
    service = None
    if number:
        service = subprocess.Popen(
            [sys.executable, "-P", "-m", "service", "--config", str(config), "serve"], cwd=tree, env=environment
        )
        while not (PLACE / "run" / "service.sock").exists():
            time.sleep(0.2)
    done = []
    for step in steps:
        name = next((path.name for path in (PLACE / "archives").glob("Backup_*.zip")), "ARCHIVE")
        run(*(name if word == "ARCHIVE" else word for word in step))
        done.append(" ".join(word.replace(str(PLACE), ".") for word in step))
    if service is not None:
        service.terminate()
        service.wait()
    return done


def _keep(number: int, commit: str, said: list[Any]) -> None:
    kept = HERE / f"state-{number}"
    shutil.rmtree(kept, ignore_errors=True)
    shutil.copytree(PLACE / "state", kept / "state", ignore=shutil.ignore_patterns("*.lock"))
    shutil.copytree(PLACE / "tpm" / "state", kept / "tpm", ignore=shutil.ignore_patterns(".lock"))
    shutil.copytree(PLACE / "archives", kept / "archives")
    commit = subprocess.check_output(["git", "rev-parse", commit], cwd=HERE, text=True).strip()
    made = {"commit": commit, "python": sys.version.split()[0], "commands": said}
    (kept / "made.json").write_text(json.dumps(made, indent=2) + "\n")


if __name__ == "__main__":
    main()
