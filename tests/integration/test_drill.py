"""Drills on a real PostgreSQL and a TPM: what they prove, and that they leave nothing and touch nothing live."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import errno
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NoReturn

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from demo.postgresql_server import PostgresqlServer
from demo.software_tpm import SoftwareTpm
from service import drill as drill_module
from service import drill_report, headroom
from service.backup import utc_now
from service.catalog import verify
from service.config import Config
from service.drill import DrillResult, NotReported, NotTidied, drill, recover, unfinished
from service.drill_report import as_public_key, check, message_of, signature_member
from service.errors import (
    ArchiveError,
    JobRefused,
    NotAuthentic,
    RestoreRefused,
    SourceError,
    StageFailed,
)
from service.ledger import Evidence
from service.progress import Progress
from service.sealing.signature import signed_bytes
from service.settle import settle
from service.state import Archives, Database
from service.state_directory import only_job
from tests.recipes import Installation
from tests.scoreboard import counted

SAMPLE = """
    CREATE ROLE keeper NOLOGIN;
    CREATE TABLE things AS SELECT n AS id, md5(n::text) AS text FROM generate_series(1, 60000) AS n;
    ALTER TABLE things ADD PRIMARY KEY (id);
    ALTER TABLE things OWNER TO keeper;
    CREATE TABLE kinds (kind varchar(10) CHECK (kind IN ('a', 'b')));
    INSERT INTO kinds VALUES ('a'), ('b');
    CREATE TABLE places (at int, note text) PARTITION BY HASH (at);
    CREATE TABLE places_0 PARTITION OF places FOR VALUES WITH (MODULUS 2, REMAINDER 0);
    CREATE TABLE places_1 PARTITION OF places FOR VALUES WITH (MODULUS 2, REMAINDER 1);
    INSERT INTO places SELECT n, 'x' FROM generate_series(1, 500) AS n;
    CREATE SEQUENCE counter; SELECT setval('counter', 77, false);
    CREATE MATERIALIZED VIEW total AS SELECT count(*) AS n FROM things;
    CREATE VIEW few AS SELECT * FROM things WHERE id < 10;
    SELECT lo_from_bytea(4711, 'large');
"""


@dataclass
class Made:
    """A server, a TPM, a tree and an SQLite file, and one archive of them: the same for all tests of this module."""

    server: PostgresqlServer
    tpm: SoftwareTpm
    root: Path
    archive: str = ""

    def installation(self, root: Path) -> Installation:
        return Installation(
            self.server,
            root,
            sealing={"mode": "tpm", "tcti": self.tpm.tcti},
            source={"include": ["app"]},
            more_sources=[
                {"type": "tree", "path": str(self.root / "etc")},
                {"type": "sqlite", "path": str(self.root / "grafana.db")},
            ],
        )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    root = tmp_path_factory.mktemp("drills")
    tree = root / "etc"
    (tree / "more").mkdir(parents=True)
    (tree / "Server_Config.xml").write_text("<config/>")
    (tree / "more" / "big").write_bytes(os.urandom(1 << 21))
    (tree / "link").symlink_to("Server_Config.xml")
    os.link(tree / "Server_Config.xml", tree / "more" / "again")
    with contextlib.closing(sqlite3.connect(root / "grafana.db")) as database:
        database.execute("CREATE TABLE t (a)")
        database.execute("INSERT INTO t VALUES (1)")
        database.commit()
    with PostgresqlServer(fsync=False) as server, SoftwareTpm() as tpm:
        made = Made(server, tpm, root)

        async def make() -> None:
            await server.execute("CREATE DATABASE app")
            await server.execute(SAMPLE, database="app")
            made.archive = (await made.installation(root).backup()).name

        asyncio.run(make())
        yield made


@dataclass
class Ground:
    """One test's own target, state and settings, on what the module shares."""

    made: Made
    installation: Installation
    settings: dict[str, Any] = field(default_factory=lambda: {"drill": {"min_free_share": 0}})
    said: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        state = self.installation.root / "state"
        state.mkdir(mode=0o700)
        shutil.copy(self.made.root / "state" / "tpm-pin.json", state)
        shutil.copy(self.made.root / "archives" / self.made.archive, self.installation.target)
        self.database = Database.open(state)
        self.ledger = Archives(self.database, utc_now)

    @property
    def archive(self) -> str:
        return self.made.archive

    @property
    def config(self) -> Config:
        document = self.installation.config.model_dump(mode="json", exclude_unset=True) | self.settings
        return Config.model_validate(document, strict=False)

    @property
    def url(self) -> str:
        return self.config.target.url

    @property
    def drills(self) -> Path:
        return self.config.state_dir / "drills"

    async def known(self, evidence: Evidence) -> None:
        """Have the archive known with this evidence."""
        status = (self.installation.target / self.archive).stat()
        async with self._target() as target:
            etag = (await target.stat(self.archive)).etag
        assert status.st_size
        await self.ledger.found(self.url, self.archive, etag, evidence)

    def _target(self) -> Any:
        from storage_backends import open_target  # noqa: PLC0415

        return open_target(self.url)

    async def evidence(self) -> str:
        return (await self.ledger.known(self.url))[self.archive].evidence

    async def drill(self, *, on_step: Callable[[str], None] = lambda _: None) -> DrillResult:
        def said(sentence: str) -> None:
            self.said.append(sentence)
            on_step(sentence)

        return await drill(self.config, self.archive, progress=Progress(on_step=said), ledger=self.ledger)

    async def live(self) -> list[list[tuple[Any, ...]]]:
        """All that a drill could harm: rows, databases, roles, files."""
        fetch = self.made.server.fetch
        databases = await fetch(
            "SELECT datname, datallowconn, datconnlimit, datacl::text, oid::bigint FROM pg_database ORDER BY 1"
        )
        roles = await fetch("SELECT * FROM pg_authid ORDER BY rolname")
        rows = await fetch("SELECT count(*), sum(hashtext(text)) FROM things", database="app")
        files = [
            (str(path), path.lstat().st_ino, path.lstat().st_mtime_ns, path.lstat().st_mode)
            for path in sorted([*(self.made.root / "etc").rglob("*"), *self.made.root.iterdir()])
        ]
        return [[tuple(row) for row in found] for found in (databases, roles, rows)] + [files]

    def reports(self) -> list[dict[str, Any]]:
        return drill_report.listed(self.config.state_dir)

    def nothing_left(self) -> bool:
        scratch = self.drills / "scratch"
        return not unfinished(self.config) and not (scratch.exists() and list(scratch.iterdir()))


@pytest.fixture
async def ground(made: Made, workspace: Path) -> AsyncIterator[Ground]:
    ground = Ground(made, made.installation(workspace))
    await ground.known("verified")
    before = await ground.live()
    yield ground
    assert await ground.live() == before, "whatever a drill does, what is live stays as it was"
    assert ground.nothing_left()
    ground.database.close()


async def test_a_good_archive_becomes_restorable_and_leaves_a_signed_report_and_nothing_else(ground: Ground) -> None:
    result = await ground.drill()
    assert await ground.evidence() == "restorable" == result.evidence
    report = json.loads(Path(result.report).read_bytes())
    assert (report["result"], report["failure"], report["evidence"]) == ("passed", None, "restorable")
    assert report["archive"]["tpm"].startswith("TPM ")
    counts = report["counts"]
    assert (counts["databases"], counts["tables"], counts["rows"]) == (1, 4, 60502)
    assert (counts["files"], counts["directories"], counts["symlinks"], counts["hard_links"]) == (2, 2, 1, 1)
    assert counts["read_back_digests"] == 2, "the tree and the SQLite file gave the very same bytes"
    assert counts["definitions"] >= 10
    assert counts["stream_digests"] == report["archive"]["streams"]
    assert {"stage", "rows", "compare", "drop"} <= report["stages"].keys()
    assert [each["id"] for each in report["requirements"]] == [
        "IEC 62443-4-2 CR 7.3",
        "IEC 62443-4-2 CR 7.3 RE (1)",
        "IEC 62443-4-2 CR 7.4",
    ]
    assert "this machine's TPM unsealed" in report["requirements"][1]["shown"][0]
    assert check(Path(result.report).read_bytes(), None).fingerprint == report["signature"]["fingerprint"]
    page = Path(result.page).read_text()
    assert ground.archive in page and "CR 7.4" in page and report["signature"]["fingerprint"] in page
    assert "<script" not in page and "http://" not in page and "https://" not in page
    for path in (result.report, result.page):
        assert Path(path).stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in ground.drills.iterdir()) == sorted(
        [Path(result.report).name, Path(result.page).name, "scratch", "unfinished"]
    )


async def test_to_verify_a_restorable_archive_leaves_it_restorable_and_damage_makes_it_fall(ground: Ground) -> None:
    await ground.drill()
    await verify(ground.config, ground.archive, progress=Progress(), ledger=ground.ledger)
    assert await ground.evidence() == "restorable"
    _spoil(ground)
    with pytest.raises((ArchiveError, NotAuthentic)):
        await verify(ground.config, ground.archive, progress=Progress(), ledger=ground.ledger)
    assert await ground.evidence() == "damaged"


def _spoil(ground: Ground) -> None:
    path = ground.installation.target / ground.archive
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


async def test_one_damaged_chunk_fails_the_drill_which_says_so_and_drops_everything(ground: Ground) -> None:
    _spoil(ground)
    await ground.known("verified")  # it was good when it was read; the disk has decayed since
    with pytest.raises((ArchiveError, NotAuthentic)) as caught:
        await ground.drill()
    assert await ground.evidence() == "damaged"
    [report] = ground.reports()
    assert (report["result"], report["evidence"], report["failure"]["stage"]) == ("failed", "damaged", "stage")
    assert report["failure"]["code"] == caught.value.code
    assert all(each["shown"] == [] for each in report["requirements"])
    assert check(json.dumps(report).encode(), None), "a failure is signed, too"
    assert "Failed in the stage stage" in next(ground.drills.glob("*.html")).read_text()


async def test_an_archive_that_nobody_has_verified_is_verified_first(ground: Ground) -> None:
    await ground.known("written")
    await ground.drill()
    assert ground.said[0].startswith("Verifying ")
    assert await ground.evidence() == "restorable"


async def test_an_unsealed_archive_is_refused_where_archives_are_sealed(ground: Ground) -> None:
    other = Installation(ground.made.server, ground.installation.root / "other", more_sources=[])
    other.root.mkdir()
    name = (await other.backup()).name
    shutil.copy(other.target / name, ground.installation.target)
    with pytest.raises(RestoreRefused) as caught:
        await drill(ground.config, name, progress=Progress(), ledger=ground.ledger)
    assert [each.code for each in caught.value.obstacles] == ["ARCHIVE_NOT_SEALED"]


async def test_a_drill_that_would_leave_too_little_room_or_connections_is_refused_and_touches_nothing(
    ground: Ground,
) -> None:
    ground.settings = {"drill": {"min_free_share": 0.9}}
    with pytest.raises(RestoreRefused, match="have to stay free") as caught:
        await ground.drill()
    assert {each.code for each in caught.value.obstacles} == {"SPACE"}
    assert await ground.evidence() == "verified"
    [report] = ground.reports()
    assert report["failure"]["stage"] == "plan"
    ground.settings = {"drill": {"connections": 16, "min_free_share": 0}}
    async with contextlib.AsyncExitStack() as crowd:
        for _ in range(55):
            await crowd.enter_async_context(_connected(ground.made.server))
        with pytest.raises(RestoreRefused, match="more connections") as caught:
            await ground.drill()
    assert {each.code for each in caught.value.obstacles} == {"CONNECTIONS"}


@contextlib.asynccontextmanager
async def _connected(server: PostgresqlServer) -> AsyncIterator[None]:
    import asyncpg  # noqa: PLC0415

    connection = await asyncpg.connect(
        host=server.host, port=server.port, user=server.user, password=server.password, database="postgres"
    )
    yield
    await connection.close()


async def test_a_drill_is_given_up_when_room_becomes_scarce_while_it_works(
    ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(headroom, "LOOK_SECONDS", 0.01)
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m,mode=755", "none", disk], check=True)
    try:
        ground.settings = {"drill": {"directory": str(disk), "min_free_share": 0.02}}

        def somebody_fills_the_disk(sentence: str) -> None:
            if sentence.startswith("Building indexes"):
                (disk / "live data that grows").write_bytes(bytes((32 << 20) - 400_000))

        with pytest.raises(headroom.NoRoomLeft, match="room became scarce"):
            await ground.drill(on_step=somebody_fills_the_disk)
        assert [path.name for path in disk.iterdir()] == ["live data that grows"]
    finally:
        subprocess.run(["umount", disk], check=True)
    assert await ground.evidence() == "verified"
    assert [report["failure"]["code"] for report in ground.reports()] == ["NO_ROOM_LEFT"]


async def test_a_server_whose_disk_cannot_be_seen_is_refused_unless_that_is_allowed(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.sources.postgresql.room._HERE", frozenset())  # as if it were elsewhere
    with pytest.raises(RestoreRefused) as caught:
        await ground.drill()
    assert {each.code for each in caught.value.obstacles} == {"SPACE_UNKNOWN"}
    ground.settings = {"drill": {"allow": ["SPACE_UNKNOWN"], "min_free_share": 0}}
    await ground.drill()
    assert any("in spite of" in note for report in ground.reports() for note in report["notes"]), "both in one second"


async def test_a_drill_on_another_server_needs_nothing_of_the_live_one(
    ground: Ground, own_postgresql: PostgresqlServer
) -> None:
    there = own_postgresql.source_settings(name="drills")
    other_source = ground.made.server.source_settings(name="again", include=["app"])
    twice = Installation(
        ground.made.server,
        ground.installation.root / "twice",
        source={"include": ["app"]},
        sealing=ground.installation.sealing,
        more_sources=[other_source],
    )
    twice.root.mkdir()
    shutil.copytree(ground.config.state_dir, twice.root / "state", ignore=shutil.ignore_patterns("state.db*"))
    name = (await twice.backup()).name
    before = await own_postgresql.fetch("SELECT rolname FROM pg_roles")
    document = twice.config.model_dump(mode="json", exclude_unset=True)
    document["sources"] = [source | {"port": 1} for source in document["sources"]]  # the live server does not answer
    config = Config.model_validate(document | {"drill": {"postgresql": there, "min_free_share": 0}}, strict=False)
    result = await drill(config, name, progress=Progress(), ledger=ground.ledger)
    assert result.counts["databases"] == 2, "both sources, whose databases have the same names"
    assert [
        row[0] for row in await own_postgresql.fetch("SELECT datname FROM pg_database WHERE NOT datistemplate")
    ] == ["postgres"]
    assert await own_postgresql.fetch("SELECT rolname FROM pg_roles") == before, "the role that was made is gone again"
    assert not unfinished(config)


async def test_a_cancelled_drill_drops_everything_and_leaves_no_report(ground: Ground) -> None:
    for moment in ("Restoring database app", "Comparing the restored copy of database app"):
        tasks: list[asyncio.Task[DrillResult]] = []

        def cancel(sentence: str, moment: str = moment, tasks: list[asyncio.Task[DrillResult]] = tasks) -> None:
            if sentence.startswith(moment):
                tasks[0].cancel()

        tasks.append(asyncio.create_task(ground.drill(on_step=cancel)))
        with pytest.raises(asyncio.CancelledError):
            await tasks[0]
        assert ground.nothing_left(), moment
    assert ground.reports() == []
    assert await ground.evidence() == "verified"


async def test_the_journal_of_a_drill_knows_nothing_of_what_is_live(ground: Ground) -> None:
    """What it does not know, no way back can touch, whatever becomes of the live databases meanwhile."""
    seen: list[str] = []

    def look(sentence: str) -> None:
        if sentence.startswith(("Building indexes", "Everything is restored")):
            [path] = (ground.drills / "unfinished").glob("*.json")
            seen.append(path.read_text())

    await ground.drill(on_step=look)
    assert len(seen) == 2
    for text in seen:
        [database] = json.loads(text)["participants"][0]["record"]["databases"]
        assert database["live_oid"] is None and database["scratch_oid"] is not None
        assert "SCRAM-SHA-256" not in text and ground.made.server.password not in text


async def test_other_jobs_and_drills_are_refused_beside_each_other(ground: Ground) -> None:
    with only_job(ground.config.state_dir, "a backup"), pytest.raises(JobRefused, match="a backup"):
        await ground.drill()
    assert ground.reports() == [], "it never began"


_DRILL = """
import asyncio, sys
from service.backup import utc_now
from service.config import Config
from service.drill import drill
from service.progress import Progress
from service.state import Archives, Database

async def main():
    config = Config.model_validate_json(sys.argv[1], strict=False)
    database = Database.open(config.state_dir)
    progress = Progress(on_step=lambda sentence: print(sentence, flush=True))
    await drill(config, sys.argv[2], progress=progress, ledger=Archives(database, utc_now))

asyncio.run(main())
"""


async def test_what_a_killed_drill_leaves_is_dropped_at_the_next_start(
    ground: Ground, record_property: Callable[[str, object], None]
) -> None:
    """Killed at each of its steps, and somewhat later."""
    kills = left = 0
    for step, delay in [
        ("Restoring database app", 0.1),
        ("Building indexes and constraints of database app", 0.02),
        ("Comparing the restored copy of /", 0.0),
        ("Dropping what was restored", 0.0),
        ("Dropping what was restored", 0.01),
    ]:
        process = subprocess.Popen(
            [sys.executable, "-c", _DRILL, ground.config.model_dump_json(exclude_unset=True), ground.archive],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(step):
                break
        else:
            raise AssertionError(f"it never came to {step!r}")
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        kills += 1
        left += not ground.nothing_left()
        assert await ground.evidence() == "verified"
        await settle(ground.config, archives=ground.ledger, clock=utc_now, progress=Progress())
        assert ground.nothing_left(), step
        databases = await ground.installation.databases()
        assert databases == {"app", "postgres"}, step
    assert left >= 4, "the kills came too late to leave anything"
    assert ground.reports() == []
    record_property("counted", counted(kills, f"{left} of them left something, all dropped", kills=kills))


async def test_a_drill_whose_server_is_killed_fails_and_is_tidied_up_when_the_server_is_back(
    ground: Ground, own_postgresql: PostgresqlServer
) -> None:
    ground.settings = {"drill": {"postgresql": own_postgresql.source_settings(name="drills"), "min_free_share": 0}}

    def kill(sentence: str) -> None:
        if sentence.startswith("Building indexes and constraints of database app"):
            own_postgresql.kill()

    with pytest.raises(SourceError) as caught:
        await ground.drill(on_step=kill)
    assert any("could not be dropped" in note for note in caught.value.__notes__)
    assert await ground.evidence() == "verified"
    assert unfinished(ground.config)
    assert [report["result"] for report in ground.reports()] == ["failed"]
    with pytest.raises(NotTidied, match="could not be dropped") as left:
        await recover(ground.config, progress=Progress())
    assert "gone for good, delete" in left.value.hint
    own_postgresql.start()
    assert await recover(ground.config, progress=Progress()) == [ground.archive]
    names = await own_postgresql.fetch("SELECT datname FROM pg_database WHERE NOT datistemplate")
    assert [row[0] for row in names] == ["postgres"]
    assert (await ground.drill()).evidence == "restorable"


@pytest.mark.parametrize(
    ("tampering", "said"),
    [
        ("DELETE FROM things WHERE id = 4711", "59999 rows are there, 60000 were archived"),
        ("INSERT INTO places VALUES (1, 'one more')", "501 rows are there, 500 were archived"),
        ("DROP VIEW few", "missing .*VIEW public few"),
        ("ALTER TABLE things OWNER TO postgres", "TABLE public things keeper"),
        ("CREATE TABLE more ()", "added .*TABLE public more"),
    ],
)
async def test_a_copy_that_is_not_what_was_archived_fails_the_drill(
    ground: Ground, monkeypatch: pytest.MonkeyPatch, tampering: str, said: str
) -> None:
    from service.sources.postgresql.restore import PostgresqlRestorer  # noqa: PLC0415

    compare = PostgresqlRestorer.compare

    async def tampered(self: PostgresqlRestorer, stored: Any, reader: Any, record: Any, progress: Any) -> Any:
        [scratch] = [entry["scratch"] for entry in record["databases"] if entry["name"] == "app"]
        await ground.made.server.execute(tampering, database=scratch)
        return await compare(self, stored, reader, record, progress)

    monkeypatch.setattr(PostgresqlRestorer, "compare", tampered)
    with pytest.raises(StageFailed, match=said):
        await ground.drill()
    assert await ground.evidence() == "verified", "the archive is not known to be damaged"


async def test_a_report_that_was_forged_is_refused(ground: Ground) -> None:
    result = await ground.drill()
    content = Path(result.report).read_bytes()
    report = json.loads(content)
    own = base64.b64decode(report["signature"]["public_key"])
    assert check(content, own).vouched
    assert check(json.dumps(report).encode(), own).vouched, "spaces and order are not what is signed"
    changes: list[dict[str, Any]] = [{"seconds": 0.001}, {"result": "passed "}, {"notes": []}, {"more": 1}]
    for change in changes:
        with pytest.raises(NotAuthentic, match="not one of KEY"):
            check(json.dumps({**report, **change}).encode(), own)
    with pytest.raises(NotAuthentic, match="not signed"):
        check(json.dumps(report | {"signature": None}).encode(), own)
    key = ec.generate_private_key(ec.SECP256R1())
    public = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    forged = report | {"result": "passed", "seconds": 1.0}
    value = key.sign(signed_bytes(drill_report.PURPOSE, message_of(forged)), ec.ECDSA(SHA256()))
    forged["signature"] = signature_member(public, value)
    with pytest.raises(NotAuthentic, match="is signed by KEY"):
        check(json.dumps(forged).encode(), own)
    assert not check(json.dumps(forged).encode(), None).vouched, "whose key it is, nobody says"
    other = key.sign(signed_bytes("archive", message_of(forged)), ec.ECDSA(SHA256()))
    with pytest.raises(NotAuthentic):
        check(json.dumps(forged | {"signature": signature_member(public, other)}).encode(), public)
    for junk in (b"", b"[]", b"{}", b'{"format": 1, "format": 2}', content[:-20], b"\xff"):
        with pytest.raises(NotAuthentic, match="no report of a drill"):
            check(junk, own)
    for junk in (b"hello", b"-----BEGIN PUBLIC KEY-----\naGVsbG8=\n-----END PUBLIC KEY-----\n", b""):
        with pytest.raises(NotAuthentic, match="holds no public key"):
            as_public_key(junk)


async def test_a_report_that_cannot_be_signed_is_written_all_the_same(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(_: Config) -> None:
        raise NotAuthentic("the signing key is damaged")

    monkeypatch.setattr(drill_module, "signer", broken)
    result = await ground.drill()
    assert not result.signed
    [report] = ground.reports()
    assert report["signature"] is None and "not signed: the signing key is damaged" in report["notes"]
    assert await ground.evidence() == "restorable"


async def test_a_drill_without_room_for_its_report_fails_and_says_so(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(drill_report, "replace_file", full)
    with pytest.raises(NotReported, match="the drill passed, but its report cannot be written: No space left"):
        await ground.drill()
    assert await ground.evidence() == "restorable"
    _spoil(ground)
    await ground.known("verified")
    with pytest.raises((ArchiveError, NotAuthentic)) as caught:
        await ground.drill()
    assert any("its report cannot be written" in note for note in caught.value.__notes__)


async def test_old_reports_are_forgotten_but_for_the_newest_that_passed(ground: Ground) -> None:
    result = await ground.drill()
    report = json.loads(Path(result.report).read_bytes())
    state = ground.config.state_dir
    for day, outcome in ((1, "passed"), (2, "passed"), (3, "failed"), (9, "failed")):
        moment = f"2026010{day}T000000Z-0000000{day}"
        drill_report.save(
            state,
            report
            | {
                "id": moment,
                "result": outcome,
                "failure": None
                if outcome == "passed"
                else {"stage": "stage", "code": "X", "message": "<b>", "hint": ""},
            },
        )
    Path(result.report).unlink()
    Path(result.page).unlink()
    before = datetime(2026, 1, 5, tzinfo=UTC)
    drill_report.forget(state, before)
    assert [each["id"][:8] for each in ground.reports()] == ["20260109", "20260102"]
    assert len(list(ground.drills.glob("*.html"))) == 2
    drill_report.forget(state, before + timedelta(days=90))
    assert [each["id"][:8] for each in ground.reports()] == ["20260102"]
    assert "<b>" not in "".join(path.read_text() for path in ground.drills.glob("*.html"))
