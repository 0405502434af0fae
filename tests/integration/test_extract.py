"""Files out of an archive: whole or not at all, nothing overwritten, and nothing read that is not wanted."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from demo.compare import diff, fingerprint
from demo.postgresql_server import PostgresqlServer
from service import extract as recipe
from service.errors import CorruptArchive, SourceError
from service.extract import Extraction, NotExtracted, extract_from
from service.pipeline.unpack import ArchiveReader
from service.progress import Progress
from service.selection import EVERYTHING, NotInArchive, Selection
from service.sources.base import StoredStream
from service.sources.extraction import Chosen
from service.sources.postgresql import rows
from storage_backends import open_target
from tests.recipes import Installation
from tests.trees import leftovers, listing

DATABASE = "extract_me"
SQL = """
    CREATE ROLE extract_owner;
    CREATE SCHEMA "odd/schema";
    CREATE TYPE mood AS ENUM ('glad', 'sad');
    CREATE TABLE big (id int, noise bytea);
    INSERT INTO big SELECT n, string_agg(sha512((n * 20 + m)::text::bytea), '')
        FROM generate_series(1, 8000) AS n, generate_series(1, 20) AS m GROUP BY n;
    CREATE TABLE big_text (id int PRIMARY KEY, kind regclass, text text);
    INSERT INTO big_text SELECT n, 'pg_class', sha512(n::text::bytea)::text || E'\\t\\n'
        FROM generate_series(1, 20000) AS n;
    CREATE TABLE "odd/schema"."a.b%" ("col""umn" text, double int GENERATED ALWAYS AS (1 + 1) STORED);
    INSERT INTO "odd/schema"."a.b%" VALUES ('one'), (NULL);
    CREATE TABLE moods (mood mood, n int) PARTITION BY HASH (mood);
    CREATE TABLE moods_0 PARTITION OF moods FOR VALUES WITH (MODULUS 2, REMAINDER 0);
    CREATE TABLE moods_1 PARTITION OF moods FOR VALUES WITH (MODULUS 2, REMAINDER 1);
    INSERT INTO moods SELECT CASE WHEN n % 2 = 0 THEN 'glad' ELSE 'sad' END::mood, n FROM generate_series(1, 50) AS n;
    CREATE TABLE nothing (); INSERT INTO nothing DEFAULT VALUES;
    CREATE INDEX ON big (id);
    ALTER TABLE big OWNER TO extract_owner;
"""


@dataclass
class Counted:
    """An opened archive, and how many bytes of it were read."""

    reader: ArchiveReader
    read: int = 0


@pytest.fixture(scope="module")
def archived(postgresql: PostgresqlServer) -> Iterator[tuple[Installation, str]]:
    """One backup of a database, a tree and an SQLite file, in small parts and chunks."""
    root = Path(tempfile.mkdtemp(prefix="deviceon-backup-test-"))
    tree = root / "etc"
    (tree / "deep/er").mkdir(parents=True)
    (tree / "deep/er/wanted.xml").write_text("<wanted/>")
    (tree / "deep/other.conf").write_text("other = 1\n")
    (tree / "deep/er/script").write_bytes(os.urandom(300_000))
    (tree / "deep/er/script").chmod(0o755)
    (tree / "link").symlink_to("deep/er/wanted.xml")
    os.link(tree / "deep/er/wanted.xml", tree / "second name")
    (tree / "empty").mkdir(mode=0o750)
    with closing(sqlite3.connect(root / "grafana.db")) as database:
        database.execute("CREATE TABLE dashboard (title TEXT)")
        database.execute("INSERT INTO dashboard VALUES ('one')")
        database.commit()
    more: list[dict[str, Any]] = [
        {"type": "tree", "name": "config", "path": str(tree)},
        {"type": "sqlite", "name": "grafana", "path": str(root / "grafana.db")},
    ]
    installation = Installation(postgresql, root, source={"include": [DATABASE]}, more_sources=more)

    async def make() -> str:
        await postgresql.execute(f"CREATE DATABASE {DATABASE} TEMPLATE template0")
        await postgresql.execute(SQL, database=DATABASE)
        return (await installation.backup()).name

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "_PART_BYTES", 1 << 20)
        name = asyncio.run(make())
    yield installation, name
    asyncio.run(postgresql.execute(f"DROP DATABASE {DATABASE} WITH (FORCE)"))
    asyncio.run(postgresql.execute("DROP ROLE extract_owner"))
    shutil.rmtree(root)


@pytest.fixture
async def counted(archived: tuple[Installation, str]) -> AsyncGenerator[Counted, None]:
    installation, name = archived
    async with open_target(installation.config.target.url) as target:
        found = Counted(reader=None)  # type: ignore[arg-type]  # the next line but two
        get = target.get

        async def counting(key: str, **where: Any) -> AsyncGenerator[bytes, None]:
            async for piece in get(key, **where):
                found.read += len(piece)
                yield piece

        target.get = counting  # type: ignore[method-assign]
        found.reader = await ArchiveReader.open(target, name, [])
        yield found


async def extracted(
    counted: Counted,
    to: Path,
    *,
    select: Selection = EVERYTHING,
    tables: tuple[str, ...] = (),
    paths: tuple[str, ...] = (),
) -> Extraction:
    chosen = Chosen(tables=tables, paths=paths)
    return await extract_from(counted.reader, to, select=select, chosen=chosen, progress=Progress())


def files(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir())


def psql(server: PostgresqlServer, database: str, command: str) -> None:
    server.run("psql", ["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", database, "-c", command])


async def test_a_database_can_be_made_again_by_hand_from_what_is_extracted(
    archived: tuple[Installation, str], counted: Counted, tmp_path: Path
) -> None:
    server = archived[0].server
    result = await extracted(counted, tmp_path / "out", select=Selection(databases=(DATABASE,)))
    assert result.warnings == []
    place = tmp_path / "out/postgresql" / DATABASE
    index = json.loads((place / "tables.json").read_text())
    assert {row["file"] for row in index} == {f"tables/{name}" for name in files(place / "tables")}
    assert "tables/odd%2Fschema.a%2Eb%25.binary" in {row["file"] for row in index}
    assert {row["format"] for row in index} == {"binary", "text"}
    parts = {stream.labels.get("table"): stream.details.get("parts") for stream in counted.reader.sources()[0].streams}
    assert int(parts["big"] or 0) > 3 and int(parts["big_text"] or 0) > 1, "the claim is about tables in several parts"
    assert "CREATE TABLE public.big" in (place / "schema.sql").read_text()
    before = await fingerprint(server, [DATABASE])
    await server.execute("CREATE DATABASE by_hand TEMPLATE template0")
    try:
        dump = str(place / "schema.dump")
        server.run("pg_restore", ["--exit-on-error", "--section=pre-data", "-d", "by_hand", dump])
        for row in index:
            load = row["load"].replace("COPY", "\\copy", 1).replace("FROM STDIN", f"FROM '{place / row['file']}'")
            psql(server, "by_hand", load)
        server.run("pg_restore", ["--exit-on-error", "--section=post-data", "-d", "by_hand", dump])
        after = await fingerprint(server, ["by_hand"])
    finally:
        await server.execute("DROP DATABASE by_hand WITH (FORCE)")
    mine = {key.replace("by_hand", DATABASE): value.replace("by_hand", DATABASE) for key, value in after.items()}
    differences = [line for line in diff(before, mine) if line.startswith(f"database {DATABASE}")]
    assert [line for line in differences if "privileges" not in line and "owner" not in line] == []


async def test_everything_is_there_and_nobody_else_may_read_it(
    archived: tuple[Installation, str], counted: Counted, tmp_path: Path
) -> None:
    result = await extracted(counted, tmp_path / "out")
    assert result.sources == ["postgresql", "config", "grafana"]
    assert listing(tmp_path / "out/config") == listing(archived[0].root / "etc")
    with closing(sqlite3.connect(tmp_path / "out/grafana/grafana.db")) as database:
        assert database.execute("SELECT title FROM dashboard").fetchone() == ("one",)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o700
    for path in (tmp_path / "out/postgresql").rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path
    assert 'CREATE ROLE "extract_owner"' in (tmp_path / "out/postgresql/roles.sql").read_text()
    stored = json.loads((tmp_path / "out/postgresql/roles.json").read_text())
    assert "extract_owner" in [role["name"] for role in stored["roles"]]
    assert result.files == len(files(tmp_path / "out"))


async def test_one_small_file_is_had_without_reading_the_rest(
    archived: tuple[Installation, str], counted: Counted, tmp_path: Path
) -> None:
    size = counted.reader.info.size
    opening = counted.read
    await extracted(counted, tmp_path / "out", paths=("deep/er/wanted.xml",))
    assert files(tmp_path / "out") == ["config/deep/er/wanted.xml"]
    tree = sum(
        stream.bytes for source in counted.reader.sources() for stream in source.streams if source.name == "config"
    )
    assert size > 4 * tree, "the claim is about a small part of an archive"
    assert counted.read - opening < tree + 200_000
    before = counted.read
    await extracted(counted, tmp_path / "two", tables=("nothing",))
    assert files(tmp_path / "two/postgresql" / DATABASE / "tables") == ["public.nothing.copy"]
    assert counted.read - before < size / 10


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (("deep/*.conf",), ["config/deep/other.conf"]),
        (("**/wanted.xml",), ["config/deep/er/wanted.xml"]),
        (("deep/er",), ["config/deep/er/script", "config/deep/er/wanted.xml"]),
        (("/TREE/deep/o*",), ["config/deep/other.conf"]),
        (("/TREE/link",), ["config/link"]),
        (("/ROOT/grafana.db", "link"), ["config/link", "grafana/grafana.db"]),
        (("deep/er/wanted.xml", "second*"), ["config/deep/er/wanted.xml", "config/second name"]),
        (("empty",), []),
    ],
)
async def test_paths_are_globs(
    archived: tuple[Installation, str], counted: Counted, tmp_path: Path, paths: tuple[str, ...], expected: list[str]
) -> None:
    root = str(archived[0].root)
    patterns = tuple(path.replace("/TREE", f"{root}/etc").replace("/ROOT", root) for path in paths)
    await extracted(counted, tmp_path / "out", paths=patterns)
    assert files(tmp_path / "out") == expected
    original, copy = archived[0].root / "etc", tmp_path / "out/config"
    for name in ("deep", "deep/er", "empty"):
        if (copy / name).exists():
            assert stat.S_IMODE((copy / name).stat().st_mode) == stat.S_IMODE((original / name).stat().st_mode)
            assert (copy / name).stat().st_mtime_ns == (original / name).stat().st_mtime_ns
    assert (copy / "empty").exists() == (paths == ("empty",))


async def test_the_directory_may_lie_behind_a_link(counted: Counted, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    await extracted(counted, tmp_path / "link/out", paths=("link",))
    assert files(tmp_path / "real") == ["out/config/link"]


async def test_another_name_of_a_file_that_was_not_chosen_is_told(counted: Counted, tmp_path: Path) -> None:
    result = await extracted(counted, tmp_path / "out", paths=("second name", "link"))
    assert files(tmp_path / "out") == ["config/link"]
    assert result.warnings == [
        "second name is another name of deep/er/wanted.xml and was left out: choose that one, too."
    ]


async def test_tables_bring_the_definitions_of_their_database_and_no_roles(counted: Counted, tmp_path: Path) -> None:
    await extracted(counted, tmp_path / "out", tables=(f"{DATABASE}:public.mood*", "a.b%"))
    found = files(tmp_path / "out/postgresql")
    assert f"{DATABASE}/schema.dump" in found
    assert [name for name in found if "tables/" in name] == [
        f"{DATABASE}/tables/odd%2Fschema.a%2Eb%25.binary",
        f"{DATABASE}/tables/public.moods_0.binary",
        f"{DATABASE}/tables/public.moods_1.binary",
    ]
    assert not [name for name in found if "roles" in name]
    assert files(tmp_path / "out") == [f"postgresql/{name}" for name in found]


async def test_roles_alone_can_be_had(counted: Counted, tmp_path: Path) -> None:
    await extracted(counted, tmp_path / "out", select=Selection(only="roles"))
    assert files(tmp_path / "out") == ["postgresql/roles.json", "postgresql/roles.sql"]


async def test_what_is_there_is_not_overwritten_and_what_is_not_in_the_archive_leaves_nothing(
    counted: Counted, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("out", "dangling"):
        with pytest.raises(NotExtracted, match="there already"):
            await extracted(counted, tmp_path / name)
    with pytest.raises(NotExtracted, match="nothing can be written"):
        await extracted(counted, tmp_path / "no/such")
    with pytest.raises(NotInArchive, match=r"no\.such\.table"):
        await extracted(counted, tmp_path / "new", tables=("no.such.table",))
    with pytest.raises(NotInArchive, match="no database nope"):
        await extracted(counted, tmp_path / "new", select=Selection(databases=("nope",)))
    assert files(tmp_path) == ["dangling"]
    assert leftovers(tmp_path) == []


async def test_nothing_appears_when_the_archive_is_damaged_or_the_work_is_cancelled(
    archived: tuple[Installation, str], tmp_path: Path
) -> None:
    installation, name = archived
    (tmp_path / "archives").mkdir()
    copy = tmp_path / "archives" / name
    shutil.copy(installation.target / name, copy)
    content = bytearray(copy.read_bytes())
    async with open_target(f"file://{copy.parent}") as target:
        reader = await ArchiveReader.open(target, name, [])
        (stream,) = reader.sources()[1].streams
        entry = [each for each in reader.entries if each.name.startswith(f"streams/{stream.id:08x}/")][-1]
    content[entry.offset + 200] ^= 1
    copy.write_bytes(content)
    async with open_target(f"file://{copy.parent}") as target:
        damaged = Counted(await ArchiveReader.open(target, name, []))
        with pytest.raises(CorruptArchive):
            await extracted(damaged, tmp_path / "out", select=Selection(sources=("config",)))
        slow = asyncio.ensure_future(extracted(damaged, tmp_path / "out", select=Selection(only="databases")))
        while not leftovers(tmp_path):
            await asyncio.sleep(0.001)
        slow.cancel()
        with pytest.raises(asyncio.CancelledError):
            await slow
    assert files(tmp_path) == [f"archives/{name}"]
    assert leftovers(tmp_path) == []


async def test_definitions_that_pg_restore_cannot_read_are_told_with_what_it_says(
    counted: Counted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def read(stream: StoredStream) -> AsyncGenerator[bytes, None]:
        yield b"no dump"

    monkeypatch.setattr(counted.reader, "read", read)
    with pytest.raises(SourceError, match=r"could not write schema\.dump as text: pg_restore: error: .+"):
        await extracted(counted, tmp_path / "out", select=Selection(databases=(DATABASE,)))
    assert leftovers(tmp_path) == []


def test_somebody_who_is_not_root_extracts_on_a_machine_without_configuration(
    archived: tuple[Installation, str], workspace: Path
) -> None:
    installation, name = archived
    workspace.chmod(0o777)
    shutil.copy(installation.target / name, workspace / name)
    (workspace / name).chmod(0o644)
    code = (  # the first run loads all modules, which may lie where only root can read
        "import os, sys; from service.cli.app import command_line as run;"
        "run(['extract', sys.argv[1], '--to', sys.argv[2] + '/by-root', '--quiet'], standalone_mode=False);"
        "sys.stdout.flush(); os.setgroups([]); os.setgid(65534); os.setuid(65534);"
        "run(['extract', sys.argv[1], '--to', sys.argv[2] + '/out', '--json'])"
    )
    arguments = [str(workspace / name), str(workspace)]
    environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent"}
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=environment, check=False
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout[result.stdout.index("{") :])["sources"] == ["postgresql", "config", "grafana"]
    found = workspace / "out/config/deep/er/script"
    assert found.stat().st_uid == 65534
    assert found.stat().st_mode & 0o7777 == 0o755
    assert found.stat().st_mtime_ns == (installation.root / "etc/deep/er/script").stat().st_mtime_ns
    assert found.read_bytes() == (installation.root / "etc/deep/er/script").read_bytes()


async def test_a_list_tells_sources_databases_and_tables(archived: tuple[Installation, str]) -> None:
    installation, name = archived
    found = await recipe.contents(installation.config, name)
    assert [(source["name"], source["type"]) for source in found] == [
        ("postgresql", "postgresql"),
        ("config", "tree"),
        ("grafana", "sqlite"),
    ]
    (database,) = found[0]["databases"]
    tables = {(table["schema"], table["table"]): table["rows"] for table in database["tables"]}
    assert tables["public", "big"] == 8000
    assert tables["odd/schema", "a.b%"] == 2
    assert found[1]["path"] == str(installation.root / "etc")
