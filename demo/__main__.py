"""The whole story in plain words: a real server is backed up, destroyed, restored and compared by content.

    python -m demo [--scale 0.02] [--keep] [--target file|smb|s3|URL]

The last line is `Restore successfully` (exit 0), or it says what differs or failed (exit 1).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demo import config_files, sample
from demo.compare import diff, fingerprint, sqlite_dump
from demo.postgresql_server import PostgresqlMissing, PostgresqlServer
from demo.software_tpm import SoftwareTpm, SoftwareTpmMissing
from demo.targets import running_target

PROGRAM = [sys.executable, "-m", "service"]
SUCCESS = "Restore successfully"
_REFUSED_BY_SEAL = 5  # the exit code that docs/CLI.md gives to sealing and the TPM
_LONGEST_LIST = 25  # differences


class Unexpected(Exception):
    """The story did not go as told; the message says where."""


@dataclass(frozen=True, slots=True)
class World:
    """Everything that a restore has to bring back, and the program's view of it."""

    server: PostgresqlServer
    files: config_files.ServerFiles
    directory: Path

    async def state(self) -> dict[str, str]:
        """Return what there is, by content."""
        state = await fingerprint(self.server, (*sample.DATABASES, "postgres"))
        state |= {f"configuration {name}": value for name, value in self.files.config_listing().items()}
        state |= {f"Grafana {name}": value for name, value in sqlite_dump(self.files.grafana).items()}
        return state

    def write_configuration(self, name: str, tpm: SoftwareTpm, target: dict[str, Any]) -> Path:
        """Write a configuration file of the service as it would be on the machine that has this TPM."""
        content = {
            "server": {"product": "DeviceOn", "version": "5.3.12"},
            "target": target,
            "retention": {"keep_last": 7},
            "state_dir": str(self.directory / f"{name}-state"),
            "sealing": {"mode": "tpm", "tcti": tpm.tcti},
            "sources": [
                self.server.source_settings(),
                {"type": "tree", "name": "config", "path": str(self.files.config)},
                {"type": "sqlite", "name": "grafana", "path": str(self.files.grafana)},
            ],
        }
        path = self.directory / f"{name}.yaml"
        path.write_text(json.dumps(content, indent=2))  # JSON is YAML
        return path


class Story:
    """Says what is done, and how long it took."""

    def __init__(self) -> None:
        self._number = 0
        self._began = time.monotonic()

    @contextmanager
    def step(self, sentence: str) -> Iterator[None]:
        self._number += 1
        print(f"\n{self._number}. {sentence}", flush=True)
        began = time.monotonic()
        yield
        print(f"   ({time.monotonic() - began:.1f} s)", flush=True)

    def say(self, sentence: str) -> None:
        print(f"   {sentence}", flush=True)

    def run(
        self, *arguments: str, configuration: Path | None = None, expect: int = 0, program: Sequence[str] = PROGRAM
    ) -> str:
        """Run the real program as a person would, show what it prints, and return that."""
        shown = " ".join(f"'{word}'" if " " in word else word for word in arguments)
        print(f"   $ deviceon-backup {shown}", flush=True)
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "DEVICEON_"))}
        environment |= {"COLUMNS": "110", "PYTHONUNBUFFERED": "1"}
        if configuration:
            environment["DEVICEON_BACKUP_CONFIG"] = str(configuration)
        with subprocess.Popen(
            [*program, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=Path(__file__).parent.parent,
            text=True,
        ) as process:
            assert process.stdout
            lines = []
            for line in process.stdout:
                print(f"     {line.rstrip()}", flush=True)
                lines.append(line)
        if process.returncode != expect:
            raise Unexpected(f"`deviceon-backup {shown}` ended with exit code {process.returncode}, not {expect}")
        return "".join(lines)

    def end(self) -> None:
        print(f"\nAll of this took {time.monotonic() - self._began:.0f} s.", flush=True)


async def tell(story: Story, directory: Path, *, scale: float, target: dict[str, Any]) -> None:
    """Tell the whole story; raises Unexpected when it goes another way."""
    with ExitStack() as running:
        with story.step("Start a PostgreSQL server and a TPM, as they are on the server's machine"):
            server = running.enter_context(PostgresqlServer(directory / "postgresql"))
            tpm = running.enter_context(SoftwareTpm(directory / "tpm"))
            story.say(f"PostgreSQL on port {server.port}; the TPM is swtpm, a complete TPM 2.0 in software")
        with story.step(f"Fill it with what a device-management server has (scale {scale:g})"):
            files = config_files.write(directory / "deviceon")
            await _create_sample(story, server, scale)
            grafana = config_files.GrafanaRunning(files.grafana)
            running.callback(grafana.close)
            grafana.annotate("a note that is only in the write-ahead log so far")
            world = World(server, files, directory)
            configuration = world.write_configuration("service", tpm, target)
            await _describe(story, world)
        with story.step("Note what there is: every row, right, role, file and attribute"):
            before = await world.state()
            story.say(f"{len(before)} facts")

        archive = _back_up(story, configuration)

        with story.step("Disaster: drop the databases and roles, delete the configuration, damage Grafana's database"):
            grafana.close()
            await sample.destroy(server)
            config_files.destroy(files)
            lost = diff(before, await fingerprint(server, ("postgres",)))
            story.say(f"{len(lost)} of {len(before)} facts are lost or changed")
        with story.step("Try the archive on another machine: the same software, another TPM"):
            other = running.enter_context(SoftwareTpm(directory / "other-tpm"))
            elsewhere = world.write_configuration("elsewhere", other, target)
            story.run("restore", "--yes", archive, configuration=elsewhere, expect=_REFUSED_BY_SEAL)
            story.say("Refused before anything was touched, as it should be")
        with story.step("Restore on the machine with the right TPM"):
            said = story.run("restore", "--yes", archive, configuration=configuration)
            if said.strip().splitlines()[-1] != SUCCESS:
                raise Unexpected(f"`restore` did not end with {SUCCESS!r}")
        with story.step("Keep what was restored"):
            story.run("commit", "--yes", configuration=configuration)
        with story.step("Compare with what there was, by content"):
            differences = diff(before, await world.state())
            if differences:
                raise Unexpected("\n".join([f"{len(differences)} differences:", *differences[:_LONGEST_LIST]]))
            story.say(f"All {len(before)} facts are as they were")


def _back_up(story: Story, configuration: Path) -> str:
    with story.step("Ask whether everything is in order"):
        story.run("doctor", configuration=configuration)
    with story.step("Back up"):
        story.run("backup", configuration=configuration)
    with story.step("List the archives, ask what retention keeps, and check every byte of the new one"):
        story.run("list", configuration=configuration)
        story.run("prune", configuration=configuration)
        listed = subprocess.run(
            [*PROGRAM, "-c", str(configuration), "list", "--json"],
            capture_output=True,
            check=True,
            cwd=Path(__file__).parent.parent,
        )
        archive = str(json.loads(listed.stdout)["archives"][-1]["name"])
        story.run("verify", archive, configuration=configuration)
    return archive


async def _create_sample(story: Story, server: PostgresqlServer, scale: float) -> None:
    try:
        await sample.create(server, scale=scale)
    except sample.ExtensionNotInstallable as problem:
        story.say(f"Without the extension with tables of its own: {problem}")
        await sample.destroy(server)
        await sample.create(server, scale=scale, extension=False)


async def _describe(story: Story, world: World) -> None:
    rows = await world.server.fetch(
        "SELECT (SELECT count(*) FROM pg_class WHERE relkind IN ('r', 'p') AND oid >= 16384) AS tables, "
        "(SELECT count(*) FROM telemetry.events) AS events, (SELECT count(*) FROM inventory.devices) AS devices, "
        "(SELECT count(*) FROM pg_largeobject_metadata) AS large, pg_size_pretty(sum(pg_database_size(oid))) AS size "
        "FROM pg_database",
        database=sample.MAIN,
    )
    facts = rows[0]
    story.say(
        f"{len(sample.DATABASES)} databases, {len(sample.ROLES)} roles; in {sample.MAIN}: {facts['tables']} tables, "
        f"{facts['events']:,} events, {facts['devices']:,} devices, {facts['large']} large objects; {facts['size']}"
    )
    story.say(f"Configuration in {world.files.config}, with MongoDB's sensor data below it (never backed up)")
    story.say(f"Grafana's SQLite database in {world.files.grafana}, in use")


def told_in_a_directory(prefix: str, tell: Callable[[Story, Path], Coroutine[Any, Any, None]]) -> int:
    """Tell a story that needs a directory for a while, and how it ended; return the exit code."""
    story = Story()
    with tempfile.TemporaryDirectory(prefix=prefix) as directory:
        Path(directory).chmod(0o755)
        try:
            asyncio.run(tell(story, Path(directory)))
        except Unexpected as problem:
            print(f"\nFAILED: {problem}", flush=True)
            return 1
    story.end()
    print(SUCCESS, flush=True)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m demo", description="Back up a real server, destroy and restore it."
    )
    parser.add_argument("--scale", type=float, default=0.02, help="1.0 is about 2 GB of rows (default: %(default)s)")
    parser.add_argument("--keep", action="store_true", help="keep the directory with the archive, logs and files")
    parser.add_argument(
        "--target",
        default="file",
        help="where the archive is kept: file, smb or s3 (a real server of the demo's own), or a URL (default: file)",
    )
    options = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="deviceon-backup-demo-"))
    directory.chmod(0o755)
    story = Story()
    try:
        with running_target(options.target, directory) as target:
            asyncio.run(tell(story, directory, scale=options.scale, target=target))
    except (Unexpected, PostgresqlMissing, SoftwareTpmMissing) as problem:
        print(f"\nThe demo failed: {problem}", flush=True)
        return 1
    finally:
        if options.keep:
            print(f"\nKept: {directory}", flush=True)
        else:
            shutil.rmtree(directory, ignore_errors=True)
    story.end()
    print(SUCCESS, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
