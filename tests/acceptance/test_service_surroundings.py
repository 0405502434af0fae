"""The real service and what is around it: monitoring, messages, TLS, a second replica, what hangs, a lost memory."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from demo.postgresql_server import PostgresqlServer
from service.client import Client, ConnectionLost, RemoteError
from tests.integration.network_sinks import http_sink
from tests.integration.rpc.certificates import LOCALHOST, Authority
from tests.integration.test_notify import free_port
from tests.service_process import ServiceProcess, ended, idle

CANARY = "canary-hunter2-Zx81"


@pytest.fixture
async def service(workspace: Path, own_postgresql: PostgresqlServer) -> ServiceProcess:
    """Give a service that is not started, for a server with a table of 20 MiB, unsealed."""
    rows = "SELECT n, repeat(md5(n::text), 20) AS t FROM generate_series(1, 30000) AS n"
    await own_postgresql.execute(f"CREATE TABLE things AS {rows}")
    (workspace / "archives").mkdir()
    return ServiceProcess(
        workspace,
        {
            "server": {"version": "5.4.1", "product": "Edge"},
            "target": {"url": f"file://{workspace / 'archives'}"},
            "sealing": {"mode": "off"},
            "sources": [own_postgresql.source_settings()],
        },
    )


async def until(condition: Callable[[], Awaitable[object]], *, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not await condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.05)


async def test_monitoring_and_messages_tell_how_backups_go(service: ServiceProcess) -> None:
    listen = f"127.0.0.1:{free_port()}"
    async with http_sink() as sink, aiohttp.ClientSession() as http:
        (service.directory / "urls").write_text(f"json://me:{CANARY}@{sink.url}/hook\n")
        service.document |= {
            "http": {"listen": listen},
            "notifications": {"urls_file": str(service.directory / "urls"), "events": ["failure", "recovery"]},
            "dead_man": {"url_env": "PING_URL"},
            "schedule": {"frequency": "daily", "at": "02:00"},
        }
        service.environment["PING_URL"] = f"http://{sink.url}/ping-{CANARY}"

        async def metric(name: str) -> float:
            async with http.get(f"http://{listen}/metrics") as answer:
                text = await answer.text()
            assert CANARY not in text
            found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.M)
            return float(found[1]) if found else -1.0

        async def paths() -> list[str]:
            return [path for _, path, _ in sink.seen]

        archives = service.directory / "archives"
        with service:
            async with service.client() as portal:
                for page in ("healthz", "readyz"):
                    async with http.get(f"http://{listen}/{page}") as answer:
                        assert answer.status == 200
                assert await metric("deviceon_backup_last_success_timestamp_seconds") == 0
                assert await metric("deviceon_backup_next_run_timestamp_seconds") > time.time()
                archives.rename(archives.with_name("away"))
                failed = await ended(portal, await portal.call("backup.start"))
                assert (failed["state"], failed["error"]["code"][:6]) == ("failed", "TARGET")
                await until(lambda: _equal(metric(f'deviceon_backup_target_up{{target="file://{archives}"}}'), 0))
                archives.with_name("away").rename(archives)
                good = await ended(portal, await portal.call("backup.start"))
                assert good["state"] == "succeeded"
                await until(lambda: _equal(metric('deviceon_backup_runs_total{kind="backup",result="succeeded"}'), 1))
                verified = f'deviceon_backup_archives{{evidence="verified",target="file://{archives}"}}'
                await until(lambda: _equal(metric(verified), 1))
                success = await metric("deviceon_backup_last_success_timestamp_seconds")
                assert time.time() - success < 120
                await until(lambda: _contains(paths(), [f"/ping-{CANARY}", f"/ping-{CANARY}/fail", "/hook"]))
                await until(lambda: _equal(_count(paths(), "/hook"), 2))
            assert service.stop() == 0
            service.start()
            async with service.client():
                assert await metric("deviceon_backup_last_success_timestamp_seconds") == success
            assert service.stop() == 0
        told = [json.loads(body) for _, path, body in sink.seen if path == "/hook"]
        assert ["failed" in each["title"] for each in told] == [True, False]
        records = [json.loads(line) for line in service.log.splitlines()]
        assert {record["job"] for record in records if "job" in record} >= {failed["id"], good["id"]}
        assert CANARY not in service.log
        for path in service.state_dir.rglob("*"):
            assert path.is_dir() or CANARY.encode() not in path.read_bytes(), path


async def _equal(value: Awaitable[object], expected: object) -> bool:
    return await value == expected


async def _contains(value: Awaitable[list[str]], expected: list[str]) -> bool:
    return set(expected) <= set(await value)


async def _count(value: Awaitable[list[str]], what: str) -> int:
    return (await value).count(what)


async def test_clients_over_tls_have_the_role_of_their_certificate(service: ServiceProcess) -> None:
    authority = Authority(service.directory)
    server = authority.sign("server", LOCALHOST, usage=ExtendedKeyUsageOID.SERVER_AUTH)
    port = free_port()
    service.document["service"] = {
        "tls": {
            "listen": f"127.0.0.1:{port}",
            "certificate_file": str(server.certificate),
            "key_file": str(server.key),
            "client_ca_file": str(authority.file),
            "admins": ["portal.example.com"],
            "readers": ["monitoring.example.com"],
        }
    }

    def client(name: str) -> Client:
        files = authority.sign(name, x509.DNSName(name))
        return Client.tls("127.0.0.1", port, certificate=files.certificate, key=files.key, authority=authority.file)

    with service:
        async with service.client():
            pass
        async with client("portal.example.com") as portal:
            assert (await ended(portal, await portal.call("backup.start")))["state"] == "succeeded"
        async with client("monitoring.example.com") as monitoring:
            assert len((await monitoring.call("archive.list"))["archives"]) == 1
            with pytest.raises(RemoteError) as caught:
                await monitoring.call("backup.start")
            assert caught.value.code == "NOT_ALLOWED"
        with pytest.raises((ConnectionLost, RemoteError)):
            async with client("somebody.example.com") as stranger:
                await stranger.call("system.info")


async def test_two_services_of_one_server_never_back_it_up_at_once(service: ServiceProcess, workspace: Path) -> None:
    service.document["sources"][0]["delay"] = 0.3
    other = ServiceProcess(workspace / "other", json.loads(json.dumps(service.document)))
    other.directory.mkdir()
    (other.directory / "archives").mkdir()
    other.document["target"] = {"url": f"file://{other.directory / 'archives'}"}
    with service, other:
        async with service.client() as one, other.client() as two:
            first = await one.call("backup.start")
            await until(lambda: _raw_bytes(one, first))
            second = await ended(two, await two.call("backup.start"))
            assert (second["state"], second["error"]["code"]) == ("failed", "JOB_REFUSED")
            assert "another service" in second["error"]["message"]
            assert (await ended(one, first))["state"] == "succeeded"
            assert (await ended(two, await two.call("backup.start")))["state"] == "succeeded"


async def _raw_bytes(client: Client, job: dict[str, Any]) -> int:
    found = await client.call("job.get", id=job["id"])
    assert found["state"] in ("queued", "running"), found
    progress = found["progress"]
    return int(progress["raw_bytes"]) if progress else 0


@asynccontextmanager
async def _standing_still(postgresql: PostgresqlServer) -> AsyncIterator[None]:
    """Hold every session that the service has with PostgreSQL still, as a server that hangs would."""
    query = "SELECT pid FROM pg_stat_activity WHERE application_name = 'deviceon-backup'"
    backends = [row[0] for row in await postgresql.fetch(query)]
    for backend in backends:
        os.kill(backend, signal.SIGSTOP)
    try:
        yield
    finally:
        for backend in backends:
            os.kill(backend, signal.SIGCONT)


async def test_a_job_that_stands_still_is_given_up_and_the_next_one_runs(
    service: ServiceProcess, own_postgresql: PostgresqlServer
) -> None:
    service.document["service"] = {"no_progress_timeout": 3}
    service.document["sources"][0]["delay"] = 0.05
    with service:
        async with service.client() as portal:
            job = await portal.call("backup.start")
            await until(lambda: _raw_bytes(portal, job))
            async with _standing_still(own_postgresql):
                failed = await ended(portal, job)
            assert (failed["state"], failed["error"]["code"]) == ("failed", "STALLED")
            assert list((service.directory / "archives").iterdir()) == []
            assert (await ended(portal, await portal.call("backup.start")))["state"] == "succeeded"


async def test_a_job_that_does_not_stop_in_time_does_not_keep_the_service_from_ending(
    service: ServiceProcess, own_postgresql: PostgresqlServer
) -> None:
    service.document["service"] = {"stop_timeout": 1}
    service.document["sources"][0]["delay"] = 0.05
    with service:
        async with service.client() as portal:
            job = await portal.call("backup.start")
            await until(lambda: _raw_bytes(portal, job))
        async with _standing_still(own_postgresql):
            assert service.stop() == 70
        assert "did not stop within 1 s" in service.log
        service.start()
        async with service.client() as portal:
            assert (await portal.call("job.get", id=job["id"]))["state"] == "interrupted"
            assert (await ended(portal, await portal.call("backup.start")))["state"] == "succeeded"


async def test_losing_the_memory_loses_history_and_no_archive_and_keeps_the_settings(service: ServiceProcess) -> None:
    target = service.document.pop("target")
    with service:
        async with service.client() as portal:
            await portal.call("settings.update", target=target, retention={"keep_last": 1})
            good = await ended(portal, await portal.call("backup.start"))
            await idle(portal)
        service.kill()
        database = service.state_dir / "state.db"
        database.write_bytes(b"this is no database" * 1000)
        for log in ("state.db-wal", "state.db-shm"):
            (service.state_dir / log).unlink(missing_ok=True)
        service.start()
        async with service.client() as portal:
            await idle(portal)
            settings = (await portal.call("settings.get"))["settings"]
            assert (settings["target"]["url"], settings["retention"]["keep_last"]) == (target["url"], 1)
            (entry,) = (await portal.call("archive.list"))["archives"]
            assert (entry["name"], entry["evidence"]) == (good["result"]["name"], "unknown")
            (verdict,) = (await portal.call("retention.preview"))["targets"][0]["verdicts"]
            assert verdict["keep"]
            verified = await ended(portal, await portal.call("archive.verify", archive=entry["name"]))
            assert verified["state"] == "succeeded"
            (entry,) = (await portal.call("archive.list"))["archives"]
            assert entry["evidence"] == "verified"
        assert list(service.state_dir.glob("state.db.damaged-*"))
        assert service.stop() == 0


async def test_the_command_line_uses_the_service_when_it_runs_and_works_by_itself_when_not(
    service: ServiceProcess,
) -> None:
    async def command(*arguments: str, expect: int = 0) -> str:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "service", "--config", str(service.config_file), *arguments),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            cwd=Path(__file__).parents[2],
        )
        said = (await process.communicate())[0].decode()
        assert process.returncode == expect, said
        return said

    with service:
        async with service.client() as portal:
            assert "The service does this as job" in await command("backup")
            assert (await portal.call("job.list"))["jobs"][0]["origin"] == "socket"
            name = (await portal.call("archive.list"))["archives"][0]["name"]
            assert "is complete" in await command("verify", name)
            assert "is held" in await command("hold", name, "--reason", "an audit")
            assert "held" in await command("list")
            assert "runs since" in await command("status")
            assert "End its hold first" in await command("delete", name, "--yes", "--even-the-last", expect=8)
            assert await command("job", "cancel", "0123456789abcdef", expect=8)
        assert service.stop() == 0
    assert "does not run" in await command("status")
    await command("release", name)
    assert "socket" in await command("job", "list")
    assert "is removed" in await command("delete", name, "--yes", "--even-the-last")
    assert "no archives" in await command("list")
