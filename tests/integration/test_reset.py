"""Reset to Default on a real server: back to the baseline, and what belongs to the installation stays."""

from __future__ import annotations

import os
import socket
import subprocess
import sysconfig
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from demo.postgresql_server import PostgresqlServer
from service.app import opened
from service.backup import utc_now
from service.config import Config, read
from service.errors import NotFound, RestoreRefused, SwapFailed
from service.ledger import NoLedger
from service.progress import Progress
from service.reset import plan_reset, reset
from service.reset_keep import own_files
from service.restore_plan import plan_restore
from service.settings import load
from service.sources.postgresql import roles
from tests.at_terminal import Terminal
from tests.recipes import Installation

TOOL = Path(__file__).parents[2] / "tools/Reset to Default/reset_to_default.sh"
PROGRAMS = sysconfig.get_path("scripts")


@dataclass
class Server(Installation):
    """An installation with a configuration file that lies in the tree that is backed up, and a licence to keep."""

    @property
    def tree(self) -> Path:
        return self.root / "etc"

    @property
    def config_file(self) -> Path:
        return self.tree / "backup.yaml"

    @property
    def config(self) -> Config:
        return load(self.config_file)

    def prepare(self) -> None:
        self.tree.mkdir()
        (self.tree / "server.xml").write_text("default")
        os.utime(self.tree / "server.xml", (1_700_000_000, 1_700_000_000))  # well before the baseline's second
        (self.tree / "licence").mkdir()
        (self.tree / "licence/key").write_text("trial")
        (self.tree / "password").write_text(self.server.password)
        source = self.server.source_settings(include=["app*"])
        source = {key: value for key, value in source.items() if not key.startswith("password")}
        document = {
            "server": {"version": self.version},
            "target": {"url": f"file://{self.target}"},
            "state_dir": str(self.root / "state"),
            "sealing": {"mode": "off"},
            "sources": [
                source | {"password_file": str(self.tree / "password")},
                {"type": "tree", "path": str(self.tree)},
            ],
            "reset": {"keep": ["licence"]},
        }
        self.config_file.write_text(yaml.safe_dump(document))

    async def take_baseline(self) -> None:
        async with opened(read(self.config_file)) as app:
            job = await app.jobs.run_now("baseline", {}, Progress())
            assert job.state == "succeeded", job.error

    async def change_everything(self) -> None:
        """Work on the server for a year."""
        await self.server.execute("UPDATE item SET word = 'changed'", database="app")
        await self.server.execute("CREATE DATABASE app_of_later")
        await self.server.execute("CREATE TABLE precious AS SELECT 1 AS id", database="app_of_later")
        await self.server.execute("CREATE DATABASE elsewhere")
        (self.tree / "server.xml").write_text("changed")
        (self.tree / "rubbish").write_text("x")
        (self.tree / "licence/key").write_text("bought")
        self.config_file.write_text(self.config_file.read_text() + "# changed\n")
        (self.tree / "password").write_text(self.server.password + "\n")
        later = time.time() + 60  # a year is more than the second that the backup took
        for name in ("server.xml", "rubbish", "licence/key", "backup.yaml", "password"):
            os.utime(self.tree / name, (later, later))

    async def words(self) -> set[str]:
        return {row[0] for row in await self.server.fetch("SELECT DISTINCT word FROM item", database="app")}

    def files(self) -> dict[str, str]:
        return {str(path.relative_to(self.tree)): path.read_text() for path in self.tree.rglob("*") if path.is_file()}

    async def reset(self, **options: Any) -> Any:
        return await reset(self.config, ledger=NoLedger(), progress=self.progress(), **options)


@pytest.fixture
async def installed(own_postgresql: PostgresqlServer, workspace: Path) -> AsyncIterator[Server]:
    server = Server(own_postgresql, workspace)
    server.prepare()
    await own_postgresql.execute("CREATE DATABASE app")
    await own_postgresql.execute("CREATE TABLE item AS SELECT 'default' AS word", database="app")
    await server.take_baseline()
    await server.change_everything()
    yield server


async def test_it_returns_to_the_baseline_and_keeps_what_belongs_to_the_installation(installed: Server) -> None:
    before, names = installed.files(), await installed.databases()
    plan = (await plan_reset(installed.config, ledger=NoLedger())).plan
    assert plan.obstacles == []
    told = {item.what: item.action for item in plan.items}
    assert told["database app"] == "replace"
    assert told["database app_of_later"] == told["database elsewhere"] == "keep"
    assert {f"{installed.tree}/{name}" for name in ("licence", "backup.yaml", "password")} <= {
        what for what, action in told.items() if action == "keep"
    }
    assert [warning for warning in plan.warnings if "app_of_later" in warning and "--remove-new" in warning]
    assert not [warning for warning in plan.warnings if "elsewhere" in warning], "it is not this source's"

    await installed.reset()
    assert await installed.words() == {"default"}
    assert installed.files() == {name: before[name] for name in ("licence/key", "backup.yaml", "password")} | {
        "server.xml": "default"
    }
    assert {"app", "app_of_later", "elsewhere"} <= await installed.databases()

    await installed.rollback()
    assert (await installed.words(), installed.files(), await installed.databases()) == ({"changed"}, before, names)


async def test_a_reset_goes_to_the_baseline_that_its_plan_has_shown_or_nowhere(installed: Server) -> None:
    token = (await plan_reset(installed.config, ledger=NoLedger())).plan.token
    in_the_next_minute = utc_now() + timedelta(minutes=1)
    async with opened(read(installed.config_file), clock=lambda: in_the_next_minute) as app:
        job = await app.jobs.run_now("baseline", {"replace": True}, Progress())
        assert job.state == "succeeded", job.error
    with pytest.raises(RestoreRefused, match="not what the plan told"):
        await installed.reset(token=token)
    assert await installed.words() == {"changed"}
    newer = (await plan_reset(installed.config, ledger=NoLedger())).plan.token
    assert newer not in ("", token)
    await installed.reset(token=newer)


async def test_a_plan_says_how_the_server_differs_from_its_baseline(installed: Server) -> None:
    [archive] = await installed.archives()

    async def note() -> str:
        plan = await plan_restore(installed.config, archive)
        return "".join(each.message for each in plan.notes if each.code == "NOT_AT_BASELINE")

    await installed.server.execute("CREATE ROLE newcomer", database="app")
    await installed.server.execute("CREATE VIEW more AS SELECT 1 AS id", database="app")
    told = await note()
    for difference in (
        f"its baseline {archive}",
        "database app_of_later was made since",
        "role newcomer was made since",
        "database app has other objects: 1 view instead of 0",
        f"{installed.tree} has 5 files, 4 in the baseline",
        f"2 files below {installed.tree} were changed since",
    ):
        assert difference in told
    assert "elsewhere" not in told, "the source does not select it"
    (installed.tree / "rubbish").unlink()
    await installed.server.execute("DROP ROLE newcomer")
    await installed.reset(remove_new=True)
    await installed.commit()
    assert await note() == "", "what is kept does not count"
    for path in installed.target.glob("*.hold"):
        path.unlink()
    await installed.server.execute("DROP TABLE item", database="app")
    assert await note() == "", "there is no baseline to be at"


async def test_new_databases_go_with_the_old_state_when_that_is_asked_for(installed: Server) -> None:
    names = await installed.databases()
    plan = (await plan_reset(installed.config, remove_new=True, ledger=NoLedger())).plan
    assert {item.what for item in plan.items if item.action == "remove"} == {"database app_of_later"}
    await installed.reset(remove_new=True)
    now = await installed.databases()
    assert "app_of_later" not in now
    assert "elsewhere" in now, "the source does not select it"
    assert [name for name in now if name.startswith("app_of_later__old_")], "kept until commit"

    await installed.server.execute("CREATE DATABASE app_of_later")
    with pytest.raises(SwapFailed, match="was made since"):
        await installed.rollback()
    assert await installed.words() == {"default"}, "nothing went back by halves"
    await installed.server.execute("DROP DATABASE app_of_later")
    await installed.rollback()
    assert await installed.databases() == names
    assert len(await installed.server.fetch("SELECT * FROM precious", database="app_of_later")) == 1

    await installed.reset(remove_new=True)
    await installed.commit()
    assert await installed.databases() == names - {"app_of_later"}


async def test_when_the_exchange_fails_the_new_databases_are_back_too(
    installed: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = await installed.databases()
    statements = roles.statements
    tried = 0

    def broken(*arguments: Any, **options: Any) -> list[str]:
        nonlocal tried
        tried += 1
        return [*statements(*arguments, **options), "SELECT 1 / 0"] if tried == 1 else statements(*arguments, **options)

    monkeypatch.setattr(roles, "statements", broken)
    with pytest.raises(SwapFailed, match="division by zero"):
        await installed.reset(remove_new=True)
    assert tried > 0
    assert await installed.databases() == names
    assert len(await installed.server.fetch("SELECT * FROM precious", database="app_of_later")) == 1


async def test_without_a_baseline_nothing_is_touched(installed: Server) -> None:
    for path in installed.target.glob("*.hold"):
        path.unlink()
    before = installed.files()
    with pytest.raises(NotFound, match="no baseline"):
        await installed.reset()
    with pytest.raises(NotFound, match="no baseline"):
        await plan_reset(installed.config, ledger=NoLedger())
    assert (await installed.words(), installed.files()) == ({"changed"}, before)


def environment(server: Server) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PG", "DEVICEON_"))}
    return kept | {
        "PATH": f"{PROGRAMS}:/usr/bin:/bin",
        "DEVICEON_BACKUP_CONFIG": str(server.config_file),
        "TERM": "xterm",
        "COLUMNS": "120",
    }


@contextmanager
def at_terminal(server: Server, *arguments: str) -> Iterator[Terminal]:
    terminal = Terminal([str(TOOL), *arguments], environment(server))
    yield terminal
    with terminal.process:
        terminal.process.kill()


async def test_the_script_shows_the_plan_and_has_the_name_of_the_server_typed(installed: Server) -> None:
    with at_terminal(installed) as terminal:
        terminal.answer("Type the name of this server", "yes\n")
        code, stdout = terminal.finish()
    assert code == 130, terminal.shown
    assert "replace database app" in stdout
    assert await installed.words() == {"changed"}
    session = await installed.server.connect(database="app")
    with at_terminal(installed) as terminal:
        terminal.answer("Type the name of this server", f"{socket.gethostname()}\n")
        code, stdout = terminal.finish()
    assert code == 0, terminal.shown
    assert "LIVE_CONNECTIONS" in stdout, "who types the name has seen who is connected"
    assert stdout.endswith("\nReset successfully\n")
    assert await installed.words() == {"default"}
    assert session.is_closed()


async def test_for_scripts_it_asks_nothing_and_its_exit_code_tells(installed: Server) -> None:
    def run(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        surroundings = environment(installed) | more
        return subprocess.run(
            [str(TOOL), *arguments], env=surroundings, capture_output=True, text=True, timeout=120, check=False
        )

    asked = run()
    assert (asked.returncode, asked.stdout) == (2, ""), "nobody is there to be asked"
    assert "--yes" in asked.stderr
    planned = run("--plan", "--json")
    assert planned.returncode == 0
    assert '"possible": true' in planned.stdout
    assert await installed.words() == {"changed"}
    done = run("--yes", "--remove-new-databases")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("\nReset successfully\n")
    assert "app_of_later" not in await installed.databases()


def test_the_scripts_explain_themselves_and_are_clean() -> None:
    told = subprocess.run([str(TOOL), "--help"], capture_output=True, text=True, check=True)
    assert "Usage: reset_to_default.sh" in told.stdout
    subprocess.run(["shellcheck", "--shell=sh", str(TOOL)], check=True)
    content = TOOL.with_suffix(".bat").read_bytes()
    assert content.count(b"\r\n") == content.count(b"\n"), "cmd needs CR LF"
    assert content.count(b" reset-to-default %*") == 3


async def test_own_files_are_the_configuration_and_what_it_names(tmp_path: Path) -> None:
    document = {
        "server": {"version_file": "/opt/server/version"},
        "target": {"url": "s3://b/p", "storage_options": {"key": {"file": "/etc/s3.key"}, "secret": {"env": "S"}}},
        "sources": [{"type": "postgresql", "passfile": "/root/.pgpass"}],
        "notifications": {"urls_file": "/etc/urls"},
        "restore": {
            "hooks": {
                "stop": {"command": ["/opt/hooks/stop", "/opt/server/conf"]},
                "start": {"command": ["start-it"]},
                "health": {"command": ["/opt/hooks/health"]},
            }
        },
        "service": {
            "tls": {"listen": "h:1", "certificate_file": "/c", "key_file": "/k", "client_ca_file": "/ca"},
        },
    }
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(document))
    names = ("/etc/s3.key", "/root/.pgpass", "/etc/urls", "/c", "/k", "/ca", str(file))
    hooks = ("/opt/hooks/stop", "/opt/hooks/health")
    assert own_files(load(file)) == sorted(map(Path, names + hooks)), "not version_file: it is the server's"
