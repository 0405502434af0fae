"""Restore, Reset to Default and drills by the portal's own forms: a real service, PostgreSQL and TPM, no browser."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from demo.postgresql_server import PostgresqlServer
from demo.software_tpm import SoftwareTpm
from service.app import opened
from service.client import Client
from service.config import ConfigFile
from service.drill_report import check
from service.progress import Progress
from tests.browser.machine import PortalProcess
from tests.integration.portal.visitor import Page, Visitor, job_of, visiting
from tests.service_process import ServiceProcess, ended, idle

NOW = datetime.now(UTC).replace(second=0, microsecond=0)
HOST = socket.gethostname()
PIN = "a pin of the tests 4711"


@dataclass
class Home:
    """A server with a database and a tree, its service with a baseline and a backup, and the portal before it."""

    server: PostgresqlServer
    tree: Path
    service: ServiceProcess
    portal: PortalProcess
    baseline: str
    archive: str

    async def words(self) -> set[str]:
        return {row[0] for row in await self.server.fetch("SELECT DISTINCT word FROM item", database="app")}

    async def change(self, word: str) -> None:
        await self.server.execute(f"UPDATE item SET word = '{word}'", database="app")
        (self.tree / "server.xml").write_text(word)


async def _past(service: ServiceProcess, server: PostgresqlServer, tree: Path) -> tuple[str, str]:
    """Let the service have taken a baseline ten days ago and a backup three days ago; return their names."""
    await server.execute("CREATE DATABASE app")
    await server.execute("CREATE DATABASE reports")
    await server.execute("CREATE TABLE item AS SELECT 'default' AS word", database="app")
    await server.execute("CREATE TABLE page AS SELECT 1 AS n", database="reports")
    (tree / "server.xml").write_text("default")
    names, shown = [], NOW
    file = ConfigFile.model_validate(service.complete_document, strict=False)
    async with opened(file, clock=lambda: shown) as app:
        for kind, days, word in (("baseline", 10, "archived"), ("backup", 3, "live")):
            shown = NOW - timedelta(days=days)
            job = await app.jobs.run_now(kind, {}, Progress())  # type: ignore[arg-type]
            assert job.result is not None, job.error
            names.append(job.result["name"])
            await server.execute(f"UPDATE item SET word = '{word}'", database="app")
            (tree / "server.xml").write_text(word)
    return names[0], names[1]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    root = tmp_path_factory.mktemp("home")
    for part in (root, *root.parents[:2]):
        part.chmod(0o755)
    tree, target = root / "etc", root / "archives"
    tree.mkdir()
    target.mkdir()
    with PostgresqlServer(fsync=False) as server, SoftwareTpm() as tpm:
        document = {
            "server": {"version": "5.4.1"},
            "target": {"url": f"file://{target}"},
            "sealing": {"mode": "tpm", "tcti": tpm.tcti, "recovery": "none"},
            "compression": {"chunk_bytes": 256 * 1024},
            "sources": [
                server.source_settings(include=["app", "reports", "made_*"]),
                {"type": "tree", "path": str(tree)},
            ],
        }
        service = ServiceProcess(root, document)
        baseline, archive = asyncio.run(_past(service, server, tree))
        with service, PortalProcess(service) as portal:
            yield Home(server, tree, service, portal, baseline, archive)


@pytest.fixture
async def client(home: Home) -> AsyncIterator[Client]:
    async with home.service.client() as client:
        await idle(client)
        yield client
        if await client.call("restore.pending") is not None:  # a test that failed leaves none to the others
            await ended(client, await client.call("restore.rollback"))


@pytest.fixture
async def admin(home: Home, client: Client) -> AsyncIterator[Visitor]:
    async with visiting(home.portal.origin) as visitor:
        yield visitor


async def restores(client: Client) -> int:
    return len((await client.call("job.list", kinds=["restore", "reset", "tables"], limit=500))["jobs"])


async def plan_of(admin: Visitor, name: str) -> Page:
    return await admin.follow(await admin.get("/restore"), f"Look at the plan of {name}")


async def test_a_restore_goes_from_the_choice_to_the_commit(home: Home, admin: Visitor, client: Client) -> None:
    await home.change("lost")
    page = await plan_of(admin, home.archive)
    assert page.status == 200
    assert "app" in page.text and "Replaced" in page.text and str(home.tree) in page.text
    assert "needed" in page.text and "free" in page.text
    form = page.form("/start")
    before = await restores(client)
    wrong = await admin.send(form, confirm="another-machine")
    assert (wrong.status, "not this server's name" in wrong.text) == (422, True)
    assert (await restores(client), await home.words()) == (before, {"lost"})
    form = wrong.form("/start")
    first, second = await asyncio.gather(admin.send(form, confirm=HOST), admin.send(form, confirm=HOST))
    job = await job_of(client, first)
    assert job["state"] == "succeeded", job["error"]
    assert (await job_of(client, second))["id"] == job["id"], "sent twice, it is one job"
    assert await restores(client) == before + 1
    assert (await home.words(), (home.tree / "server.xml").read_text()) == ({"archived"}, "archived")

    page = await plan_of(admin, home.archive)
    assert "RESTORE_PENDING" in page.text
    assert all(not each.action.endswith("/start") for each in page.forms), "what is in the way cannot be allowed"
    refused = await admin.send(form, confirm=HOST, idempotency_key="another")
    assert refused.status == 422
    page = await admin.follow(page, "Look again")
    page = await admin.follow(await admin.get("/restore"), "Keep it or go back")
    assert "What needs attention" in page.text and home.archive in page.text
    assert "Look before you decide" in page.text
    assert (await admin.send(page.form("/commit"))).status == 422, "the box was not ticked"
    assert await client.call("restore.pending") is not None
    form = page.form("/commit")
    assert (await admin.send(form, tick=["sure"], id="another")).status == 422
    assert await client.call("restore.pending") is not None
    job = await job_of(client, await admin.send(form, tick=["sure"]))
    assert (job["kind"], job["state"]) == ("commit", "succeeded"), job["error"]
    assert await home.words() == {"archived"}
    assert (await job_of(client, await admin.send(form, tick=["sure"])))["id"] == job["id"]
    page = await admin.send(form, tick=["sure"], idempotency_key="another")
    assert (page.status, "does not wait any more" in page.text) == (422, True)
    assert "No restore waits" in (await admin.get("/restore/pending")).text


async def test_a_restore_can_be_gone_back_on(home: Home, admin: Visitor, client: Client) -> None:
    await home.change("precious")
    page = await plan_of(admin, home.archive)
    job = await job_of(client, await admin.send(page.form("/start"), confirm=HOST.upper()))
    assert (job["state"], await home.words()) == ("succeeded", {"archived"})
    page = await admin.get("/restore/pending")
    job = await job_of(client, await admin.send(page.form("/rollback"), tick=["sure"]))
    assert (job["kind"], job["state"]) == ("rollback", "succeeded"), job["error"]
    assert (await home.words(), (home.tree / "server.xml").read_text()) == ({"precious"}, "precious")


async def test_sessions_are_told_and_have_to_be_consented_to(home: Home, admin: Visitor, client: Client) -> None:
    connection = await home.server.connect(database="app")
    try:
        page = await plan_of(admin, home.archive)
        assert "LIVE_CONNECTIONS" in page.text and "Go ahead in spite of" in page.text
        form = page.form("/start")
        assert "allow" in form.required
        before = await restores(client)
        page = await admin.send(form, confirm=HOST)
        assert (page.status, "tick the box" in page.text) == (422, True)
        assert await restores(client) == before
        job = await job_of(client, await admin.send(page.form("/start"), tick=["allow"], confirm=HOST))
        assert (job["state"], job["params"]["allow"]) == ("succeeded", ["LIVE_CONNECTIONS"]), job["error"]
    finally:
        await connection.close()
    await ended(client, await client.call("restore.rollback"))


async def test_a_plan_that_is_not_true_any_more_begins_nothing(home: Home, admin: Visitor, client: Client) -> None:
    page = await plan_of(admin, home.archive)
    form = page.form("/start")
    await home.server.execute("DROP DATABASE reports")
    before = await restores(client)
    page = await admin.send(form, confirm=HOST)
    assert (page.status, "has changed since you looked" in page.text) == (422, True)
    assert await restores(client) == before
    assert dict(page.form("/start").fields)["token"] != dict(form.fields)["token"]
    job = await job_of(client, await admin.send(page.form("/start"), confirm=HOST))
    assert job["state"] == "succeeded", job["error"]
    assert await home.server.fetch("SELECT n FROM page", database="reports")
    await ended(client, await client.call("restore.commit"))


async def test_only_the_configuration_is_restored_when_that_is_chosen(
    home: Home, admin: Visitor, client: Client
) -> None:
    await home.change("changed")
    page = await plan_of(admin, home.archive)
    page = await admin.send(page.form(home.archive), only="config")
    assert page.status == 200
    assert "Only configuration" in page.text
    job = await job_of(client, await admin.send(page.form("/start"), confirm=HOST))
    assert (job["state"], job["params"]["only"]) == ("succeeded", "config"), job["error"]
    assert (await home.words(), (home.tree / "server.xml").read_text()) == ({"changed"}, "archived")
    await ended(client, await client.call("restore.commit"))
    page = await admin.get(f"/restore/{home.archive}?databases=reports")
    assert "reports" in page.text
    assert dict(page.form("/start").fields)["databases"] == "reports"
    page = await admin.get(f"/restore/{home.archive}?databases=reports&only=config")
    assert (page.status, "databases are named, but only config wanted" in page.text) == (422, True)
    assert "databases" not in dict(page.form("/start").fields), "this is the plan of everything"


async def test_tables_come_into_a_database_of_their_own(home: Home, admin: Visitor, client: Client) -> None:
    await home.change("changed")
    page = await plan_of(admin, home.archive)
    page = await admin.send(page.form("/tables"), database="app", tables="item", into="item_of_the_archive")
    job = await job_of(client, page)
    assert job["state"] == "succeeded", job["error"]
    rows = await home.server.fetch("SELECT word FROM item", database="item_of_the_archive")
    assert [row[0] for row in rows] == ["archived"]
    assert await home.words() == {"changed"}
    await home.server.execute("DROP DATABASE item_of_the_archive")


async def test_a_restore_that_failed_is_told_where_the_next_one_begins(
    home: Home, admin: Visitor, client: Client
) -> None:
    job = await ended(client, await client.call("restore.start", archive=home.archive, token="0" * 32))
    assert job["state"] == "failed"
    page = await admin.get("/restore")
    assert "The last restore did not succeed" in page.text and "is as it was" in page.text
    assert (await admin.follow(page, "What happened")).url.path == f"/jobs/{job['id']}"


async def test_the_server_returns_to_its_baseline(home: Home, admin: Visitor, client: Client) -> None:
    await home.change("changed")
    await home.server.execute("CREATE DATABASE made_since")
    page = await admin.get("/reset")
    assert home.baseline in page.text
    page = await admin.send(page.form("/reset/plan"), tick=["remove_new"])
    assert "made_since" in page.text and "Taken away" in page.text
    before = await restores(client)
    wrong = await admin.send(page.form("/reset/start"), confirm="elsewhere")
    assert (wrong.status, await restores(client)) == (422, before)
    form = wrong.form("/reset/start")
    first, second = await asyncio.gather(admin.send(form, confirm=HOST), admin.send(form, confirm=HOST))
    job = await job_of(client, first)
    assert (job["kind"], job["state"]) == ("reset", "succeeded"), job["error"]
    assert (await job_of(client, second))["id"] == job["id"]
    again = await job_of(client, await admin.send(form, confirm=HOST))
    assert again["id"] == job["id"], "what its own job changed is no reason to refuse it"
    assert await home.words() == {"default"}
    names = {row[0] for row in await home.server.fetch("SELECT datname FROM pg_database")}
    assert "made_since" not in names
    page = await admin.get("/reset")
    assert "A restore waits for you" in page.text
    job = await job_of(client, await admin.send((await admin.get("/restore/pending")).form("/rollback"), tick=["sure"]))
    assert (job["state"], await home.words()) == ("succeeded", {"changed"})
    await home.server.execute("DROP DATABASE made_since")


async def test_a_baseline_is_replaced_only_when_that_is_said(home: Home, admin: Visitor, client: Client) -> None:
    page = await admin.get("/reset")
    before = (await client.call("job.list", kinds=["baseline"]))["jobs"]
    page = await admin.send(page.form("/reset/baseline"))
    assert (page.status, "tick the box" in page.text) == (422, True)
    assert (await client.call("job.list", kinds=["baseline"]))["jobs"] == before


async def test_a_drill_is_begun_and_its_signed_report_can_be_taken_away(
    home: Home, admin: Visitor, client: Client
) -> None:
    page = await admin.follow(await admin.get(f"/archives/{home.archive}"), "Drill")
    job = await job_of(client, await admin.send(page.form("/drills")))
    assert (job["kind"], job["state"]) == ("drill", "succeeded"), job["error"]
    page = await admin.get("/drills")
    assert "Passed" in page.text
    page = await admin.follow(page, f"Report of {home.archive}")
    assert "The archive was restored, compared and removed again" in page.text
    assert "CR 7.4" in page.text and "has signed" in page.text
    labels = [" ".join(each.split()) for each in re.findall(r"<dt>(.*?)</dt>", page.content)]
    assert "Size in the target" in labels and "TPM that sealed it" in labels
    assert not [each for each in labels if "_" in each or each in ("Etag", "Tpm", "Raw bytes", "Bytes")]
    assert re.search(r"Data in files [\d.]+ k?B [\d,]+ bytes", page.text), page.text
    chinese = await admin.get(page.url.path, **{"Accept-Language": "zh-TW"})
    assert "在儲存目標中的大小" in chinese.content and "Size in the target" not in chinese.content
    async with admin.session.get(f"{admin.origin}{page.links['Download JSON']}") as answer:
        content = await answer.read()
    report = json.loads(content)
    assert check(content).report == report
    assert content == (home.service.state_dir / "drills" / f"{report['id']}.json").read_bytes()
    assert "Restorable" in (await admin.get("/archives")).text


async def test_a_pin_opens_the_plan_and_is_kept_nowhere(home: Home, admin: Visitor, client: Client) -> None:
    await client.call("pin.set", new=PIN)
    made = await ended(client, await client.call("backup.start"))
    await client.call("pin.remove", pin=PIN)
    assert made["state"] == "succeeded", made["error"]
    name, words = made["result"]["name"], await home.words()
    await home.change("lost")

    page = await plan_of(admin, name)
    assert "PIN_REQUIRED" in page.text and "Type it below" in page.text and "--pin-file" not in page.text
    assert all(not each.action.endswith("/start") for each in page.forms)
    page = await admin.send(page.form(name), pin="not the pin 0000")
    assert (page.url.query_string, "PIN_WRONG" in page.text) == ("", True)
    page = await admin.send(page.form(name), pin=PIN)
    assert "What would happen" in page.text
    assert PIN not in page.content and PIN not in str(page.url)
    form = page.form("/start")
    assert dict(form.fields)["pin"] == "", "it is asked for again, for it was not kept"
    before = await restores(client)
    wrong = await admin.send(form, confirm=HOST)
    assert (wrong.status, "does not open with what was given" in wrong.text) == (422, True)
    assert (await restores(client), await home.words()) == (before, {"lost"})
    job = await job_of(client, await admin.send(form, confirm=HOST, pin=PIN))
    assert (job["state"], await home.words()) == ("succeeded", words), job["error"]
    assert PIN not in json.dumps(job)
    await ended(client, await client.call("restore.rollback"))
    for kept in (home.portal.log, home.service.log):
        assert PIN not in kept
    assert all(PIN.encode() not in path.read_bytes() for path in _files(home.service.state_dir))


async def test_a_recovery_key_can_be_tried_where_the_tpm_does_not_open(home: Home, admin: Visitor) -> None:
    secret: dict[str, Any] = {"identity": "AGE-SECRET-KEY-1QQQ"}
    form = (await admin.get(f"/restore/{home.archive}")).form("/start")
    assert "identity" not in dict(form.fields), "nobody is asked for what is not needed"
    fields = [("csrf", dict(form.fields)["csrf"]), *secret.items()]
    headers = {"Origin": admin.origin}
    url = f"{admin.origin}/restore/{home.archive}"
    async with admin.session.post(url, data=fields, headers=headers) as answer:
        page = Page(answer.status, answer.url, await answer.text())
    assert "recovery" in page.text.lower()
    assert "AGE-SECRET-KEY-1QQQ" not in page.content


def _files(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file()]
