"""kill -9 of the real program: nothing half-made is listed, live data is wholly old or wholly new."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from demo.compare import ServerState, diff, fingerprint
from demo.compare_files import tree_listing
from demo.postgresql_server import PostgresqlServer
from service.journal import journals
from tests.recipes import Installation
from tests.scoreboard import counted

ROOT = Path(__file__).parents[2]

SAMPLE = """
    CREATE TABLE things AS SELECT n AS id, md5(n::text) || md5((-n)::text) AS text FROM generate_series(1, 150000) AS n;
    CREATE TABLE others AS SELECT n AS id FROM generate_series(1, 20000) AS n;
    ALTER TABLE things ADD PRIMARY KEY (id);
"""


@pytest.fixture
async def installation(own_postgresql: PostgresqlServer, workspace: Path) -> Installation:
    tree = workspace / "etc"
    (tree / "certificates").mkdir(parents=True)
    (tree / "Server_Config.xml").write_text("<server/>")
    (tree / "certificates" / "key.pem").write_bytes(b"k" * 100_000)
    await own_postgresql.execute("CREATE DATABASE app")
    await own_postgresql.execute(SAMPLE, database="app")
    await own_postgresql.execute("CREATE ROLE worker LOGIN PASSWORD 'first'")
    installation = Installation(own_postgresql, workspace, more_sources=[{"type": "tree", "path": str(tree)}])
    (workspace / "config.yaml").write_text(
        yaml.safe_dump(installation.config.model_dump(mode="json", exclude_none=True))
    )
    return installation


async def program(installation: Installation, *arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "service", "--config", str(installation.root / "config.yaml"), *arguments),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )


async def killed_after(process: asyncio.subprocess.Process, sentence: str, delay: float) -> bool:
    """Kill the program `delay` seconds after it said `sentence`, which it has to; False when it had ended before."""
    assert process.stdout is not None
    while not (line := await process.stdout.readline()).decode().startswith(sentence):
        assert line, f"it never said {sentence!r}"
    await asyncio.sleep(delay)
    alive = process.returncode is None
    if alive:
        process.kill()
    await process.communicate()
    return alive and process.returncode == -9


def told(killed: bool) -> dict[str, Any]:
    return counted(int(killed), killed=int(killed), not_met=int(not killed))


async def state(installation: Installation) -> ServerState:
    databases = sorted(name for name in await installation.databases() if "__old_" not in name)
    tree = tree_listing(installation.root / "etc")
    return await fingerprint(installation.server, databases) | {f"file {name}": what for name, what in tree.items()}


def leftovers(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir() if path.name.startswith(".deviceon-backup")]


@pytest.mark.parametrize(
    ("sentence", "delay"),
    [("Taking", 0.0), ("Writing", 0.0), ("Writing", 0.15), ("Reading", 0.02)],
)
async def test_a_backup_killed_leaves_no_half_made_archive_and_the_next_succeeds(
    installation: Installation, sentence: str, delay: float, record_property: Callable[[str, object], None]
) -> None:
    record_property("counted", told(await killed_after(await program(installation, "backup"), sentence, delay)))
    for archive in await installation.archives():  # published before the kill: then it must be whole
        process = await program(installation, "verify", archive)
        output, _ = await process.communicate()
        assert process.returncode == 0, output.decode()
        (installation.target / archive).unlink()
    assert list(installation.target.iterdir()) == []
    assert (await installation.backup()).rows == 170_000


@pytest.mark.parametrize(
    ("sentence", "delay"),
    [
        ("Checking", 0.0),
        ("Restoring database app", 0.2),
        ("Building indexes", 0.1),
        ("Everything is staged", 0.0),
        ("Everything is staged", 0.02),
        ("Everything is staged", 0.06),
    ],
)
async def test_a_restore_killed_leaves_live_data_wholly_old_or_wholly_new_once_it_is_settled(
    installation: Installation, sentence: str, delay: float, record_property: Callable[[str, object], None]
) -> None:
    archived = await state(installation)
    archive = (await installation.backup()).name
    await installation.server.execute("DELETE FROM things WHERE id > 7; DROP TABLE others", database="app")
    await installation.server.execute("ALTER ROLE worker PASSWORD 'second'")
    (installation.root / "etc" / "Server_Config.xml").write_text("<spoilt/>")
    (installation.root / "etc" / "new").write_text("new")
    spoilt = await state(installation)

    process = await program(installation, "restore", "--yes", archive)
    record_property("counted", told(await killed_after(process, sentence, delay)))

    waiting = journals(installation.config.state_dir)
    if waiting and waiting[0].state == "swapped":
        now = await state(installation)  # but for the list of databases, which has the old ones beside
        assert diff(*({k: v for k, v in facts.items() if "databases" not in k} for facts in (archived, now))) == []
    if waiting:
        process = await program(installation, "rollback", "--yes")
        output, _ = await process.communicate()
        assert process.returncode == 0, output.decode()
    assert diff(spoilt, await state(installation)) == []
    assert leftovers(installation.root) == []
    assert journals(installation.config.state_dir) == []
    await installation.restore(archive)
    await installation.commit()
    assert diff(archived, await state(installation)) == []
