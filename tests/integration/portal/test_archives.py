"""The pages of archives, by their own forms and links: a real service and portal, no browser."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp
import pytest

from service.archive.names import archive_name, parse_archive_name
from service.ledger import Known
from service.portal.download import AT_ONCE, CannotSatisfy, asked_range
from service.portal.trend import bars
from service.state import Archives, Database
from storage_backends import open_target
from tests.browser.machine import PortalProcess
from tests.integration.portal.visitor import Visitor, job_of, visiting
from tests.service_parts import Place
from tests.service_process import ServiceProcess, idle

NOW = datetime.now(UTC).replace(second=0, microsecond=0)


@dataclass
class Home:
    """A service with two targets and three archives of the last days, and the portal before it."""

    place: Place
    service: ServiceProcess
    portal: PortalProcess
    names: list[str]
    """The oldest first."""

    @property
    def copies(self) -> Path:
        return self.place.root / "copies"


async def _past(place: Place) -> list[str]:
    async with place.app() as app:
        place.clock.now = NOW - timedelta(days=4)
        return [await place.backup(app.archives) for _ in range(3)]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    root = tmp_path_factory.mktemp("home")
    (root / "copies").mkdir()
    place = Place(root, settings={"copies": [{"url": f"file://{root / 'copies'}"}]})
    (place.tree / "random").write_bytes(os.urandom(3_000_000))
    names = asyncio.run(_past(place))
    with ServiceProcess(root, place.document) as service, PortalProcess(service) as portal:
        yield Home(place, service, portal, names)


@pytest.fixture
async def admin(home: Home) -> AsyncIterator[Visitor]:
    async with home.service.client() as client:
        await idle(client)
    async with visiting(home.portal.origin) as visitor:
        yield visitor


async def test_the_table_tells_of_each_archive_and_leads_to_it(home: Home, admin: Visitor) -> None:
    page = await admin.get("/archives")
    assert page.status == 200
    assert "3 archives" in page.text
    assert page.text.index(home.names[2]) < page.text.index(home.names[0]), "the newest first"
    assert "Verified" in page.text and "5.4.1" in page.text
    assert page.content.count("<rect ") == 3, "a bar for each day with an archive"
    assert "The same as a table" in page.text
    one = await admin.follow(page, home.names[1])
    assert "Every byte was read back" in one.text
    assert "It is not sealed" in one.text or "Not sealed" in one.text
    other = await admin.follow(await admin.get("/archives"), f"file://{home.copies}")
    assert "3 archives" in other.text


async def test_archives_are_shown_by_evidence_and_hold(home: Home, admin: Visitor) -> None:
    page = await admin.get("/archives?show=damaged")
    assert "No archive is like that" in page.text
    assert "3 archives" in (await admin.get("/archives?show=proven")).text
    assert "3 archives" in (await admin.get("/archives?show=nonsense&skip=x&target=nowhere")).text
    assert "There are not so many archives" in (await admin.get("/archives?skip=50")).text


async def test_a_hold_is_placed_told_and_ended(home: Home, admin: Visitor) -> None:
    name = home.names[0]
    page = await admin.get(f"/archives/{name}")
    page = await admin.send(page.form("/hold"), reason="before the update")
    assert (page.status, page.url.path) == (200, f"/archives/{name}")
    assert "The archive is held" in page.text and "before the update" in page.text
    assert (home.copies / f"{name}.hold").exists(), "in every target"
    assert all(not form.action.endswith("/delete") for form in page.forms), "what is held cannot be deleted"
    assert name in (await admin.get("/archives?show=held")).text
    page = await admin.send(page.form("/release"))
    assert "not held any more" in page.text
    assert not (home.copies / f"{name}.hold").exists()


async def test_an_archive_is_verified_by_a_job(home: Home, admin: Visitor) -> None:
    page = await admin.get(f"/archives/{home.names[0]}?target=file://{home.copies}")
    page = await admin.send(page.form("/verify"))
    async with home.service.client() as client:
        job = await job_of(client, page)
    assert (job["kind"], job["state"], job["params"]["target"]) == ("verify", "succeeded", f"file://{home.copies}")


async def test_an_archive_goes_when_its_name_is_typed_once_and_comes_back_as_a_copy(home: Home, admin: Visitor) -> None:
    name, target = home.names[0], f"file://{home.copies}"
    page = await admin.get(f"/archives/{name}?target={target}")
    assert f"file://{home.place.target} still has it" in page.text
    form = page.form("/delete")
    assert "confirm" in form.required
    wrong = await admin.send(form, confirm=home.names[1])
    assert wrong.status == 422
    assert "Nothing was removed" in wrong.text
    assert (home.copies / name).exists()
    form = wrong.form("/delete")
    first, second = await asyncio.gather(admin.send(form, confirm=name), admin.send(form, confirm=name))
    async with home.service.client() as client:
        job = await job_of(client, first)
        assert (await job_of(client, second))["id"] == job["id"], "sent twice, it is one job"
        assert (job["kind"], job["state"]) == ("delete", "succeeded"), job
        assert not (home.copies / name).exists()
        assert (home.place.target / name).exists(), "the other target's stays"
        page = await admin.get(f"/archives/{name}?target={target}")
        assert "This target does not have it" in page.text
        page = await admin.get(f"/archives/{name}")
        job = await job_of(client, await admin.send(page.form("/copy")))
        assert (job["kind"], job["state"]) == ("copy", "succeeded"), job
    assert (home.copies / name).read_bytes() == (home.place.target / name).read_bytes()


async def test_the_last_good_archive_asks_for_one_tick_more(home: Home, admin: Visitor) -> None:
    page = await admin.get(f"/archives/{home.names[2]}")
    assert "It is the newest archive here that is known to be good" in page.text
    assert "even_the_last" in page.form("/delete").required
    page = await admin.send(page.form("/delete"), confirm=home.names[2])
    async with home.service.client() as client:
        job = await job_of(client, page)
    assert job["state"] == "failed"
    assert "newest archive" in job["error"]["message"]


async def test_who_may_only_look_sees_all_and_has_nothing_to_press(home: Home) -> None:
    async with visiting(home.portal.origin, "read") as reader:
        page = await reader.get(f"/archives/{home.names[0]}")
        assert "What is in it" in page.text
        assert {form.action for form in page.forms} == {"/logout", "/preferences"}
        assert "Download" not in page.links and "Restore" in page.links
        assert page.links["Restore"] == "/restore"
        assert (await reader.get(f"/archives/{home.names[0]}/download")).status == 403
        page = await reader.get("/restore")
        assert "takes an administrator" in page.text
        assert (await reader.get(f"/restore/{home.names[0]}")).status == 403
        page = await reader.get("/reset")
        assert {form.action for form in page.forms} == {"/logout", "/preferences"}
        page = await reader.get("/drills")
        assert {form.action for form in page.forms} == {"/logout", "/preferences"}


async def test_the_service_refuses_a_form_that_a_reader_makes_up(home: Home, admin: Visitor) -> None:
    form = (await admin.get(f"/archives/{home.names[0]}")).form("/verify")
    async with visiting(home.portal.origin, "read") as reader:
        logout = (await reader.get("/archives")).form("/logout")
        token = dict(logout.fields)["csrf"]
        assert (await reader.send(form)).status == 403, "another's token"
        assert (await reader.send(form, csrf=token)).status == 403, "his own token, but not his role"


async def test_a_target_that_is_away_is_told_and_the_other_one_still_works(home: Home, admin: Visitor) -> None:
    aside = home.copies.rename(home.place.root / "unmounted")
    try:
        page = await admin.get(f"/archives?target=file://{home.copies}")
        assert page.status == 200
        assert "The target cannot be looked at" in page.text and "What to do:" in page.text
        assert "3 archives" in (await admin.follow(page, f"file://{home.place.target}")).text
        page = await admin.get(f"/archives/{home.names[0]}")
        assert "Away" in page.text and "What is in it" in page.text
        assert "The target cannot be looked at" in (await admin.get(f"/restore?target=file://{home.copies}")).text
    finally:
        aside.rename(home.copies)


async def test_an_archive_that_is_not_there_is_not_found(home: Home, admin: Visitor) -> None:
    for name in ("Backup_20200101_0000Z.zip", "server.conf", "..%2fetc"):
        page = await admin.get(f"/archives/{name}")
        assert page.status in (400, 404), name
        assert (await admin.get(f"/archives/{name}/download")).status in (400, 404), name


async def test_the_download_is_the_archive_and_ranges_of_it(home: Home, admin: Visitor) -> None:
    content, url = (home.place.target / home.names[0]).read_bytes(), f"{admin.origin}/archives/{home.names[0]}/download"
    before = home.portal.log.count("archive.read was asked for")
    async with admin.session.get(url) as answer:
        assert answer.status == 200
        assert answer.headers["Content-Length"] == str(len(content))
        assert answer.headers["Content-Disposition"] == f'attachment; filename="{home.names[0]}"'
        assert answer.headers["Cache-Control"] == "no-store"
        tag = answer.headers["ETag"]
        assert "an archive is downloaded" in home.portal.log, "who takes one away is in the log"
        assert home.portal.log.count("archive.read was asked for") == before + 1, "and not each piece of it"
        assert hashlib.sha256(await answer.read()).digest() == hashlib.sha256(content).digest()
    async with admin.session.head(url) as answer:
        assert (answer.status, answer.headers["Content-Length"]) == (200, str(len(content)))
    for header, expected in (
        ("bytes=1000000-", content[1_000_000:]),
        ("bytes=5-9", content[5:10]),
        ("bytes=-7", content[-7:]),
    ):
        async with admin.session.get(url, headers={"Range": header, "If-Range": tag}) as answer:
            assert (answer.status, await answer.read()) == (206, expected)
            assert answer.headers["Content-Range"].endswith(f"/{len(content)}")
    async with admin.session.get(url, headers={"Range": "bytes=5-9", "If-Range": '"another"'}) as answer:
        assert (answer.status, len(await answer.read())) == (200, len(content))
    async with admin.session.get(url, headers={"Range": f"bytes={len(content)}-"}) as answer:
        assert (answer.status, answer.headers["Content-Range"]) == (416, f"bytes */{len(content)}")


async def test_a_download_goes_no_faster_than_it_is_taken_and_stops_with_its_client(home: Home, admin: Visitor) -> None:
    name, size = "Backup_20200101_0000Z.zip", 64 << 20
    with (home.place.target / name).open("wb") as file:
        file.truncate(size)  # sparse: nothing of it takes room
    try:
        before = _resident(home)
        async with admin.session.get(f"{admin.origin}/archives/{name}/download") as answer:
            await answer.content.readexactly(1 << 20)
            await asyncio.sleep(1)  # it is not taken: what is read ahead has to be little
            read = _read_bytes(home.service.pid)
            await asyncio.sleep(0.5)
            assert _read_bytes(home.service.pid) == read, "the service goes on reading"
            assert _resident(home) - before < 32 << 20
            answer.close()
        await asyncio.sleep(0.5)
        read = _read_bytes(home.service.pid)
        await asyncio.sleep(0.5)
        assert _read_bytes(home.service.pid) == read
        async with admin.session.get(f"{admin.origin}/archives/{name}/download") as answer:
            begun, got = time.monotonic(), 0
            async for piece in answer.content.iter_any():
                got += len(piece)
        assert got == size
        print(f"{size / 2**20 / (time.monotonic() - begun):.0f} MiB/s")
    finally:
        (home.place.target / name).unlink()


async def test_a_download_goes_on_when_the_service_was_started_anew(home: Home, admin: Visitor) -> None:
    name, content = "Backup_20200101_0000Z.zip", os.urandom(1 << 20) * 24
    (home.place.target / name).write_bytes(content)
    try:
        async with admin.session.get(f"{admin.origin}/archives/{name}/download") as answer:
            got = await answer.content.readexactly(1 << 20)
            home.service.kill()
            home.service.start()
            got += await answer.read()
        assert hashlib.sha256(got).digest() == hashlib.sha256(content).digest()
    finally:
        (home.place.target / name).unlink()


async def test_an_archive_that_changes_under_a_download_breaks_it_off(home: Home, admin: Visitor) -> None:
    name, size = "Backup_20200101_0000Z.zip", 64 << 20
    with (home.place.target / name).open("wb") as file:
        file.truncate(size)
    try:
        async with admin.session.get(f"{admin.origin}/archives/{name}/download") as answer:
            await answer.content.readexactly(1 << 20)
            (home.place.target / name).unlink()
            with (home.place.target / name).open("wb") as file:
                file.write(b"another")
            with pytest.raises(aiohttp.ClientError):
                await answer.read()
    finally:
        (home.place.target / name).unlink()


async def test_no_more_than_a_few_downloads_run_at_once(home: Home, admin: Visitor) -> None:
    name = "Backup_20200101_0000Z.zip"
    with (home.place.target / name).open("wb") as file:
        file.truncate(64 << 20)
    try:
        url = f"{admin.origin}/archives/{name}/download"
        running = [await admin.session.get(url) for _ in range(AT_ONCE)]
        page = await admin.get(f"/archives/{name}/download")
        assert page.status == 503
        assert "other downloads are running" in page.text
        for answer in running:
            answer.close()
        async with asyncio.timeout(20):
            while (answer := await admin.session.get(url)).status == 503:
                answer.close()
                await asyncio.sleep(0.05)
        assert answer.status == 200
        answer.close()
    finally:
        (home.place.target / name).unlink()


async def test_a_thousand_archives_are_listed_in_no_time(home: Home, admin: Visitor) -> None:
    many = [home.place.target / archive_name(NOW - timedelta(days=9, hours=2 * at)) for at in range(1000)]
    for path in many:
        path.write_bytes(b"as good as any")
    try:
        await _remember(home, [path.name for path in many])
        await admin.get("/archives")
        begun = time.monotonic()
        page = await admin.get("/archives")
        seconds = time.monotonic() - begun
        assert "1,003 archives" in page.text and "1 to 50 of 1,003" in page.text
        page = await admin.follow(page, "Older")
        assert "51 to 100 of 1,003" in page.text
        assert "1 to 50 of 1,003" in (await admin.follow(page, "Newer")).text
        print(f"{seconds * 1000:.0f} ms")
        assert seconds < 5, "with noise; a page takes about a tenth of a second"
    finally:
        for path in many:
            path.unlink()
    async with open_target(f"file://{home.place.target}") as target:
        assert len([info async for info in target.list_objects("Backup_")]) == 3


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, None),
        ("bytes=0-", (0, 100)),
        ("bytes=10-19", (10, 20)),
        ("bytes=10-1000", (10, 100)),
        ("bytes=-30", (70, 100)),
        ("bytes=-300", (0, 100)),
        ("bytes=5-2", None),
        ("bytes=-", None),
        ("bytes=1-2,5-6", None),
        ("lines=1-2", None),
        ("bytes=99999999999999999999-", None),
    ],
)
def test_the_range_that_is_asked_for(header: str | None, expected: tuple[int, int] | None) -> None:
    assert asked_range(header, 100) == expected


@pytest.mark.parametrize("header", ["bytes=100-", "bytes=-0", "bytes=500-600"])
def test_a_range_beyond_the_end_cannot_be_satisfied(header: str) -> None:
    with pytest.raises(CannotSatisfy):
        asked_range(header, 100)


def test_bars_are_at_their_days_and_as_high_as_their_sizes() -> None:
    trend = [
        {"day": "2026-03-01", "archives": 1, "size": 0, "raw_bytes": 0},
        {"day": "2026-03-30", "archives": 2, "size": 50, "raw_bytes": 200},
        {"day": "2026-03-31", "archives": 1, "size": 100, "raw_bytes": 300},
    ]
    found = bars(trend, "2026-03-31T23:59:00+00:00", 31)
    assert [(bar.x, bar.y, bar.height) for bar in found] == [(0.0, 98.0, 2.0), (290.0, 50.0, 50.0), (300.0, 0.0, 100.0)]
    assert bars([], "2026-03-31T00:00:00+00:00", 31) == []


async def _remember(home: Home, names: list[str]) -> None:
    """Have the service's memory know what these archives say of themselves, as if it had looked at them before."""
    url = f"file://{home.place.target}"
    async with open_target(url) as target:
        found = {info.key: info.etag async for info in target.list_objects("Backup_")}
    facts = {"seq": 0, "server_version": "5.4.1", "sealing": "off", "raw_bytes": 5_000_000, "seconds": 12.0}
    told = {name: Known(found[name], facts=facts | {"created": str(parse_archive_name(name))}) for name in names}
    with contextlib.closing(Database.open(home.place.state_dir)) as database:
        await Archives(database, lambda: NOW).listed(url, told, [])


def _read_bytes(pid: int) -> int:
    """Bytes that a process has read by system calls."""
    told = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
    return int(told["rchar"])


def _resident(home: Home) -> int:
    process = home.portal.process
    assert process is not None
    return sum(
        int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        for pid in (home.service.pid, process.pid)
    )
