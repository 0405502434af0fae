"""Drills as people and portals see them: the real service, its socket and command line, a real server and TPM."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from click.testing import CliRunner, Result

from demo.postgresql_server import PostgresqlServer
from demo.software_tpm import SoftwareTpm
from service.api.schema import schema
from service.cli.app import command_line
from service.client import Client
from tests.service_process import ServiceProcess, ended, idle

SAMPLE = """
    CREATE TABLE things AS SELECT n AS id, md5(n::text) AS text FROM generate_series(1, 40000) AS n;
    ALTER TABLE things ADD PRIMARY KEY (id);
"""


@pytest.fixture
async def service(workspace: Path, own_postgresql: PostgresqlServer, software_tpm: SoftwareTpm) -> ServiceProcess:
    """Give a service that is not started, for one small database and a directory."""
    await own_postgresql.execute("CREATE DATABASE app")
    await own_postgresql.execute(SAMPLE, database="app")
    (workspace / "archives").mkdir(exist_ok=True)
    (workspace / "etc").mkdir()
    (workspace / "etc" / "Server_Config.xml").write_text("<config/>")
    return ServiceProcess(
        workspace,
        {
            "server": {"version": "5.4.1"},
            "target": {"url": f"file://{workspace}/archives"},
            "sealing": {"mode": "tpm", "tcti": software_tpm.tcti},
            "sources": [
                own_postgresql.source_settings(include=["app"]),
                {"type": "tree", "path": str(workspace / "etc")},
            ],
            "drill": {"schedule": {"frequency": "weekly", "weekdays": ["sunday"], "at": "04:00"}, "min_free_share": 0},
        },
    )


def command(*arguments: str | Path, config: Path) -> Result:
    """Run a command in this process: it takes a second less than in its own."""
    return CliRunner().invoke(command_line, ["--config", str(config), *map(str, arguments)])


async def databases(server: PostgresqlServer) -> set[str]:
    return {row[0] for row in await server.fetch("SELECT datname FROM pg_database WHERE NOT datistemplate")}


async def evidence(portal: Client) -> list[str]:
    return [entry["evidence"] for entry in (await portal.call("archive.list"))["archives"]]


async def answer(portal: Client, method: str, **params: Any) -> Any:
    found = await portal.call(method, **params)
    jsonschema.validate(found, schema()["methods"][method]["result"])
    return found


async def test_drills_over_the_socket_and_on_the_command_line(
    service: ServiceProcess, own_postgresql: PostgresqlServer
) -> None:
    config = service.config_file
    with service:
        async with service.client() as portal:
            archive = (await ended(portal, await portal.call("backup.start")))["result"]["name"]
            assert (await answer(portal, "system.info"))["next_drill"] is not None
            assert await answer(portal, "drill.list") == {"drills": [], "more": False}
            job = await portal.call("drill.start", idempotency_key="one")
            assert (await portal.call("drill.start", idempotency_key="one"))["id"] == job["id"]
            done = await ended(portal, job)
            assert (done["state"], done["result"]["archive"]) == ("succeeded", archive), done
            assert await evidence(portal) == ["restorable"]
            [listed] = (await answer(portal, "drill.list"))["drills"]
            assert (listed["id"], listed["result"], listed["signed"]) == (done["result"]["id"], "passed", True)
            report = await answer(portal, "drill.report", id=listed["id"])
            assert report["counts"]["rows"] == 40_000
            assert (await portal.call("system.info"))["last_drill"]["id"] == job["id"]
            told = await asyncio.to_thread(command, "drill", archive, "--quiet", config=config)
            assert told.exit_code == 0, told.stderr
            assert told.stdout.splitlines()[-1] == f"{archive} is restorable"
            assert len((await portal.call("drill.list"))["drills"]) == 2
            shown = await asyncio.to_thread(command, "drill", "--list", config=config)
            assert shown.stdout.count("passed") == 2
            status = await asyncio.to_thread(command, "status", config=config)
            assert f"succeeded: {archive}" in next(
                line for line in status.stdout.splitlines() if line.startswith("last drill")
            )
        assert service.stop() == 0
    assert await databases(own_postgresql) == {"app", "postgres"}
    assert "Traceback" not in service.log
    _checks(service, Path(done["result"]["report"]))


def _checks(service: ServiceProcess, report: Path) -> None:
    """A report is checked here, and on a machine that has nothing but the file and the key."""
    config = service.config_file
    good = command("drill", "--check", report, config=config)
    assert (good.exit_code, good.stderr) == (0, ""), good
    key = service.directory / "key.pem"
    key.write_text(command("drill", "--public-key", config=config).stdout)
    subprocess.run(["openssl", "pkey", "-pubin", "-in", key, "-noout"], check=True)
    elsewhere = service.directory / "no-configuration.yaml"
    assert command("drill", "--check", report, "--key", key, config=elsewhere).exit_code == 0
    nobody = command("drill", "--check", report, config=elsewhere)
    assert nobody.exit_code == 5 and "nobody vouches" in nobody.stdout
    forged = service.directory / "forged.json"
    forged.write_text(json.dumps(json.loads(report.read_text()) | {"seconds": 0.1}))
    for where in (config, elsewhere):
        refused = command("drill", "--check", forged, "--json", config=where)
        assert refused.exit_code == 6
        assert json.loads(refused.stdout)["error"]["code"] == "SEAL_NOT_AUTHENTIC"


async def test_a_service_that_is_killed_in_a_drill_tidies_up_when_it_starts_and_makes_up_for_nothing_by_hand(
    service: ServiceProcess, own_postgresql: PostgresqlServer
) -> None:
    with service:
        async with service.client() as portal:
            await ended(portal, await portal.call("backup.start"))
            job = await portal.call("drill.start")
            deadline = time.monotonic() + 60
            while len(await databases(own_postgresql)) < 3:
                assert time.monotonic() < deadline
        service.kill()
        assert await databases(own_postgresql) > {"app", "postgres"}
        service.start()
        async with service.client() as portal:
            await idle(portal)
            assert (await portal.call("job.get", id=job["id"]))["state"] == "interrupted"
            [settled] = (await portal.call("job.list", kinds=["settle"], limit=1))["jobs"]
            assert len(settled["result"]["drills"]) == 1
            assert await evidence(portal) == ["verified"]
            assert await portal.call("drill.list") == {"drills": [], "more": False}
    assert await databases(own_postgresql) == {"app", "postgres"}
    scratch = service.state_dir / "drills" / "scratch"
    assert not scratch.exists() or list(scratch.iterdir()) == []


async def test_a_cancelled_drill_of_the_command_line_leaves_nothing(
    service: ServiceProcess, own_postgresql: PostgresqlServer
) -> None:
    service.write_config()
    made = await asyncio.to_thread(command, "backup", "--quiet", config=service.config_file)
    assert made.exit_code == 0, made.stderr
    process = subprocess.Popen(
        [sys.executable, "-m", "service", "--config", service.config_file, "drill"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if line.startswith("Restoring database app"):
            process.terminate()
            break
    rest = process.stderr.read()
    assert process.wait(60) == 130, (said, rest)
    process.stderr.close()
    assert await databases(own_postgresql) == {"app", "postgres"}
    assert list((service.state_dir / "drills").glob("*.json")) == []
