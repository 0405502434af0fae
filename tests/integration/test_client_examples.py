"""docs/INTEGRATION.md: its examples are those in examples/clients, and do what the page says, on the real service."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from demo.postgresql_server import PostgresqlServer
from demo.software_tpm import SoftwareTpm
from service.job import ENDED
from tests.conftest import NewDatabase
from tests.integration.rpc.certificates import LOCALHOST, Authority
from tests.integration.test_notify import free_port
from tests.service_process import ServiceProcess, ended

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "INTEGRATION.md").read_text()
CLIENTS = ROOT / "examples" / "clients"
BACKUPS = {
    "Python": [sys.executable, "python/backup.py"],
    "Python with the client": [sys.executable, "python/backup_with_client.py"],
    "Node": ["node", "node/backup.mjs"],
    "Java": ["java", "-XX:TieredStopAtLevel=1", "java/Backup.java"],
}
CUT_AFTER = {b'"type":"job.running"', b'"result":{"id":'}
"""The job has begun, and the client was told which it is; in whatever order."""
LANGUAGES = {".py": "python", ".mjs": "js", ".java": "java"}


@asynccontextmanager
async def cutting(upstream: Path, path: Path) -> AsyncIterator[list[int]]:
    """Listen on `path`, pass all on, and cut the first connection on which all of CUT_AFTER came; give the cuts."""
    cuts: list[int] = []
    tasks: set[asyncio.Task[None]] = set()

    async def carry(source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, cut: bool) -> None:
        missing = set(CUT_AFTER)
        while line := await source.readline():
            sink.write(line)
            await sink.drain()
            missing -= {sign for sign in missing if sign in line}
            if cut and not missing and not cuts:
                cuts.append(1)
                break
        sink.close()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        mine = asyncio.current_task()
        assert mine is not None
        tasks.add(mine)
        far_reader, far_writer = await asyncio.open_unix_connection(str(upstream), limit=1 << 21)
        both = [
            asyncio.create_task(carry(far_reader, writer, cut=True)),
            asyncio.create_task(carry(reader, far_writer, cut=False)),
        ]
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        for task in both:
            task.cancel()
        await asyncio.wait(both)
        for one in (writer, far_writer):
            one.transport.abort()

    server = await asyncio.start_unix_server(accept, str(path), limit=1 << 21)
    async with server:
        yield cuts
        server.close()
        if tasks:
            await asyncio.wait(tasks, timeout=10)


async def run(*command: str | Path, environment: dict[str, str] | None = None) -> tuple[int | None, str, str]:
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=CLIENTS,
        env=os.environ | (environment or {}),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(120):
        out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


def alike(output: str) -> str:
    """Return an output with what differs from run to run made the same."""
    output = re.sub(r"Backup_\d{8}_\d{4}Z", "Backup_DATE", output)
    output = re.sub(r"\b(?!0{16})[0-9a-f]{16}\b", "JOB", output)
    output = re.sub(r"after event \d+", "after event N", output)
    output = output.replace("job.verifying\n", "")  # a quick job is not seen in that state
    return re.sub(r"\d+\.\d+\.\d+", "VERSION", output)


@pytest.mark.parametrize("language", BACKUPS)
async def test_an_example_prints_what_the_page_says_though_its_connection_is_cut(
    language: str, workspace: Path, postgresql: PostgresqlServer, new_database: NewDatabase, software_tpm: SoftwareTpm
) -> None:
    shown = re.search(r"prints\n\n```\n(.*?)```", PAGE, re.DOTALL)
    assert shown is not None
    database = await new_database("CREATE TABLE devices AS SELECT generate_series(1, 1000) AS n")
    (workspace / "archives").mkdir()
    service = ServiceProcess(
        workspace,
        {
            "server": {"version": "5.4.1"},
            "target": {"url": f"file://{workspace / 'archives'}"},
            "sealing": {"mode": "tpm", "tcti": software_tpm.tcti},
            "sources": [postgresql.source_settings(include=[database])],
        },
    )
    through = workspace / "s"
    with service:
        async with service.client() as admin:
            async with cutting(service.socket, through) as cuts:
                code, out, err = await run(*BACKUPS[language], through, environment={"PYTHONPATH": str(ROOT)})
            assert (code, alike(out)) == (0, alike(shown[1])), err
            assert cuts == [1]
            assert "connection lost" in err
            [job] = (await admin.call("job.list", kinds=["backup"]))["jobs"]
            assert out.split()[-1] == job["result"]["name"]
            assert (await admin.call("settings.get"))["settings"]["retention"]["keep_last"] == 14
    assert [path.name for path in (workspace / "archives").iterdir()] == [job["result"]["name"]]


async def test_a_call_over_tcp_is_answered_to_a_certificate_that_is_listed(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    server = authority.sign("server", LOCALHOST, usage=ExtendedKeyUsageOID.SERVER_AUTH)
    portal, other = (authority.sign(name, x509.DNSName(name)) for name in ("portal.example", "other.example"))
    port = str(free_port())
    (tmp_path / "archives").mkdir()
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "server.conf").write_text("port = 80\n")
    document = {
        "server": {"version": "5.4.1"},
        "target": {"url": f"file://{tmp_path / 'archives'}"},
        "sealing": {"mode": "off"},
        "sources": [{"type": "tree", "path": str(tmp_path / "tree")}],
        "service": {
            "tls": {
                "listen": f"127.0.0.1:{port}",
                "certificate_file": str(server.certificate),
                "key_file": str(server.key),
                "client_ca_file": str(authority.file),
                "readers": ["portal.example"],
            }
        },
    }
    program = [sys.executable, "python/over_tls.py", "127.0.0.1", port]
    with ServiceProcess(tmp_path, document) as service:
        async with service.client() as admin:
            job = await ended(admin, await admin.call("backup.start"))
        listed = await run(*program, portal.certificate, portal.key, authority.file)
        refused = await run(*program, other.certificate, other.key, authority.file)
    assert job["state"] == "succeeded", job["error"]
    assert listed == (0, f"{job['result']['name']} verified\n", "")
    assert refused[0] == 1
    assert refused[2].startswith("NOT_ALLOWED: ")


@pytest.mark.parametrize("path", [path for path in sorted(CLIENTS.rglob("*.*")) if path.suffix in LANGUAGES], ids=str)
def test_the_page_has_an_example_as_it_is(path: Path) -> None:
    assert f"```{LANGUAGES[path.suffix]}\n{path.read_text()}```" in PAGE


@pytest.mark.parametrize("name", ["python/backup.py", "python/backup_with_client.py", "node/backup.mjs"])
def test_the_examples_know_every_state_in_which_a_job_has_ended(name: str) -> None:
    listed = re.search(r"ENDED = [^\[{]*[\[{]+([^\]}]*)", (CLIENTS / name).read_text())
    assert listed is not None
    assert set(re.findall(r'"(\w+)"', listed[1])) == ENDED
