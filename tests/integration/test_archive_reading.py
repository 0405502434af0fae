"""What the socket tells of archives for a page of them: holds, filters, sizes by day, copies, and their bytes."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from service.api.params import MOST_READ
from service.app import App
from service.config import Config, ConfigFile
from service.progress import Progress
from service.rpc.codec import MAX_ANSWER, Code, encode_result
from service.targets_at_hand import TargetsAtHand
from storage_backends import open_target
from storage_backends.base import one_piece
from tests import s3_servers
from tests.service_parts import READER, START, Place
from tests.socket_calls import call_checked, refused


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture
async def app(place: Place) -> AsyncIterator[App]:
    async with place.app() as app:
        yield app


async def test_the_pieces_of_an_archive_are_its_bytes(place: Place, app: App) -> None:
    name = await place.backup(app.archives)
    content = (place.target / name).read_bytes()
    call = call_checked(app.api)
    first = await call("archive.read", archive=name, length=1000)
    assert (first["size"], first["offset"]) == (len(content), 0)
    asked = [
        call("archive.read", archive=name, offset=offset, length=1000, etag=first["etag"])
        for offset in range(0, len(content), 1000)
    ]
    pieces = await asyncio.gather(*asked)
    assert b"".join(base64.b64decode(piece["data"]) for piece in pieces) == content
    assert {piece["size"] for piece in pieces} == {None}
    beyond = await call("archive.read", archive=name, offset=len(content) + 5, etag=first["etag"])
    assert beyond["data"] == ""
    assert (await call("archive.read", archive=name, length=0))["size"] == len(content)


async def test_pieces_are_of_the_object_that_was_looked_at_first(place: Place, app: App) -> None:
    name = await place.backup(app.archives)
    first = await call_checked(app.api)("archive.read", archive=name, length=10)
    content = (place.target / name).read_bytes()
    (place.target / name).unlink()
    (place.target / name).write_bytes(content[::-1])
    error = await refused(app.api, "archive.read", archive=name, offset=10, etag=first["etag"])
    assert error.reason == "TARGET_CHANGED"


async def test_only_an_admin_reads_bytes_and_only_of_archives(place: Place, app: App) -> None:
    name = await place.backup(app.archives)
    (place.target / f"{name}.hold").write_text("{}")
    assert (await refused(app.api, "archive.read", READER, archive=name)).code is Code.NOT_ALLOWED
    for other in (f"{name}.hold", "../state/state.db", "server.conf"):
        assert (await refused(app.api, "archive.read", archive=other)).code is Code.INVALID_PARAMS
    missing = await refused(app.api, "archive.read", archive="Backup_20200101_0000Z.zip")
    assert missing.reason == "TARGET_NOT_FOUND"
    assert (await refused(app.api, "archive.read", archive=name, length=MOST_READ + 1)).code is Code.INVALID_PARAMS
    elsewhere = await refused(app.api, "archive.read", archive=name, target=f"file://{place.tree}")
    assert elsewhere.reason == "CONFIG"


async def test_the_largest_piece_fits_into_a_line(place: Place, app: App) -> None:
    name = "Backup_20200101_0000Z.zip"
    (place.target / name).write_bytes(b"\xff" * (MOST_READ + 1))
    told = await call_checked(app.api)("archive.read", archive=name)
    assert len(base64.b64decode(told["data"])) == MOST_READ
    assert len(encode_result("i" * 64, told)) < MAX_ANSWER


async def test_an_archive_on_s3_is_read_over_one_session(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    url, options = f"s3://{s3_servers.BUCKET}/{s3_servers.new_prefix()}", s3_servers.ceph_options()
    (place.root / "secret").write_text(options["secret"])
    told = options | {"secret": {"file": str(place.root / "secret")}}
    place.settings = {"target": {"url": url, "storage_options": told}}
    name, content = "Backup_20200101_0000Z.zip", bytes(range(256)) * 8192
    async with open_target(url, options) as target:
        await target.put(name, one_piece(content))
    opened: list[str] = []

    def counted(url: str, options: Any) -> Any:
        opened.append(url)
        return open_target(url, options)

    monkeypatch.setattr("service.targets_at_hand.open_target", counted)
    async with place.app() as app:
        call = call_checked(app.api)
        first = await call("archive.read", archive=name, length=0)
        pieces = [
            call("archive.read", archive=name, offset=at, etag=first["etag"])
            for at in range(0, len(content), MOST_READ)
        ]
        read = b"".join(base64.b64decode(piece["data"]) for piece in await asyncio.gather(*pieces))
    assert hashlib.sha256(read).digest() == hashlib.sha256(content).digest()
    assert opened == [url]


async def test_a_target_at_hand_is_closed_when_it_is_idle_and_when_its_options_change(tmp_path: Path) -> None:
    at_hand, url, closed = TargetsAtHand(idle_seconds=0.02), f"file://{tmp_path}", []

    def watch(target: Any) -> Any:
        async def aclose() -> None:
            closed.append(target)

        target.aclose = aclose
        return target

    async with at_hand.opened(url, {}) as first:
        watch(first)
        async with at_hand.opened(url, {}) as again:
            assert again is first
    async with at_hand.opened(url, {}) as again:
        assert again is first, "not idle for long enough"
        async with at_hand.opened(url, {"timeout": 5}) as other:
            watch(other)
            assert other is not first
            assert closed == [], "it is in use"
    async with asyncio.timeout(10):
        while other not in closed:
            await asyncio.sleep(0.01)
    assert closed == [first, other]
    await at_hand.aclose()


async def test_a_page_tells_why_archives_are_held_and_how_long_they_took(place: Place, app: App) -> None:
    names = [await place.backup(app.archives) for _ in range(3)]
    call = call_checked(app.api)
    await call("archive.hold", archive=names[1], reason="before the update")
    page = await call("archive.list")
    assert [entry["name"] for entry in page["archives"]] == names[::-1]
    held = page["archives"][1]
    assert (held["hold"]["reason"], held["hold"]["by"], held["held"]) == ("before the update", "socket", True)
    assert page["archives"][0]["hold"] is None
    assert all(entry["seconds"] == 0 for entry in page["archives"]), "the test's clock stands still"
    assert page["bytes"] == sum((place.target / name).stat().st_size for name in names)


async def test_a_page_can_be_asked_for_by_evidence_hold_and_place(place: Place, app: App) -> None:
    names = [await place.backup(app.archives) for _ in range(4)]
    place.spoil(names[2])
    call = call_checked(app.api)
    await app.jobs.run_now("verify", {"archive": names[2]}, Progress())
    await call("archive.hold", archive=names[0])

    async def asked(**params: Any) -> tuple[list[str], int, bool]:
        page = await call("archive.list", **params)
        return [entry["name"] for entry in page["archives"]], page["total"], page["more"]

    assert await asked(evidence=["damaged"]) == ([names[2]], 1, False)
    assert await asked(evidence=["verified"], limit=2) == ([names[3], names[1]], 3, True)
    assert await asked(evidence=["verified"], limit=2, skip=2) == ([names[0]], 3, False)
    assert await asked(held=True) == ([names[0]], 1, False)
    assert await asked(held=False, skip=1, limit=1) == ([names[2]], 3, True)
    assert await asked(skip=9) == ([], 4, False)


async def test_sizes_by_day_are_of_the_newest_archive_of_each_day(place: Place, app: App) -> None:
    names = [await place.backup(app.archives, after=timedelta(hours=hours)) for hours in (1, 2, 22)]
    call = call_checked(app.api)
    (place.target / "Backup_20260301_0000Z.zip").write_bytes(b"no archive")
    trend = (await call("archive.list", trend_days=90, limit=1))["trend"]
    sizes = [(place.target / name).stat().st_size for name in names]
    assert [(day["day"], day["archives"], day["size"]) for day in trend] == [
        (str(START.date()), 2, sizes[1]),
        (str((START + timedelta(days=1)).date()), 1, sizes[2]),
    ]
    assert trend[0]["raw_bytes"] > 0
    assert len((await call("archive.list", trend_days=1))["trend"]) == 1
    assert (await call("archive.list"))["trend"] == []


async def test_an_archive_is_told_for_every_target(place: Place, tmp_path: Path) -> None:
    copies, away = tmp_path / "copies", tmp_path / "away"
    copies.mkdir()
    place.settings = {"copies": [{"url": f"file://{copies}"}, {"url": f"file://{away}"}]}
    async with place.app() as app:
        away.mkdir()
        older, newer = [await place.backup(app.archives) for _ in range(2)]
        (copies / older).unlink()
        (away / newer).unlink()
        away.rename(tmp_path / "gone")
        call = call_checked(app.api)
        found = {copy["target"]: copy for copy in (await call("archive.get", READER, archive=newer))["copies"]}
        assert list(found) == app_targets(app.config())
        assert found[f"file://{place.target}"]["entry"]["evidence"] == "verified"
        assert "newest archive" in found[f"file://{place.target}"]["last_good"]
        assert found[f"file://{copies}"]["entry"]["name"] == newer
        assert found[f"file://{away}"]["entry"] is None
        assert str(away) in found[f"file://{away}"]["problem"]
        of_older = (await call("archive.get", archive=older))["copies"]
        assert of_older[0]["last_good"] == ""
        assert (of_older[1]["entry"], of_older[1]["problem"]) == (None, "")
        (tmp_path / "gone").rename(away)
        error = await refused(app.api, "archive.get", archive="Backup_20200101_0000Z.zip")
        assert error.reason == "TARGET_NOT_FOUND"


async def test_a_target_that_does_not_answer_keeps_nobody_from_the_others(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    (place.root / "secret").write_text("x")
    options = {"endpoint_url": f"http://127.0.0.1:{port}", "key": "x", "secret": {"file": str(place.root / "secret")}}
    async with place.app() as app:
        name = await place.backup(app.archives)
    place.settings = {"copies": [{"url": "s3://bucket/prefix", "storage_options": options}]}
    monkeypatch.setattr("service.api.archives.PATIENCE", 4.0)  # the driver is loaded meanwhile, and stops the loop
    async with server, place.app() as app, asyncio.timeout(40):
        local, away = (await call_checked(app.api)("archive.get", archive=name))["copies"]
        assert local["entry"]["name"] == name
        assert (away["entry"], away["problem"]) == (None, "s3://bucket/prefix has not answered within 4 s")


async def test_the_service_tells_its_machine_and_targets(place: Place, app: App) -> None:
    told = await call_checked(app.api)("system.info", READER)
    assert told["targets"] == [f"file://{place.target}"]
    assert told["host"]
    app.file = ConfigFile.model_validate({key: value for key, value in place.document.items() if key != "target"})
    assert (await call_checked(app.api)("system.info", READER))["targets"] == []


def app_targets(config: Config) -> list[str]:
    return [target.url for target in config.targets]
