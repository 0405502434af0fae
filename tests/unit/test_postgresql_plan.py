"""What can be told of archived databases without a server: statements, streams, places and differences."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from service.config_sources import PostgresqlSettings
from service.errors import StageFailed
from service.progress import Progress
from service.sources.base import StoredStream
from service.sources.postgresql.compare import _groups
from service.sources.postgresql.connect import Connection
from service.sources.postgresql.load import _copy_together
from service.sources.postgresql.room import _needed, space
from service.sources.postgresql.side import _require_known, _Side
from service.sources.postgresql.stage import _Build, _difference, creation
from service.sources.postgresql.swap import _neutral
from tests.unit.test_postgresql_load import pieces, rows, small_tables

NOTHING: dict[str, Any] = {"roles": [], "memberships": [], "settings": [], "parameters": []}


def settings(**change: Any) -> PostgresqlSettings:
    return PostgresqlSettings.model_validate({"type": "postgresql", **change})


@pytest.mark.parametrize(
    ("version", "change", "end"),
    [
        pytest.param(14, {}, "", id="before 15 there is no choice"),
        pytest.param(15, {}, " LOCALE_PROVIDER libc", id="15"),
        pytest.param(15, {"provider": "i", "locale": "de"}, " LOCALE_PROVIDER icu ICU_LOCALE 'de'", id="icu"),
        pytest.param(
            16,
            {"provider": "i", "locale": "de", "icu_rules": "&a < b"},
            " LOCALE_PROVIDER icu ICU_LOCALE 'de' ICU_RULES '&a < b'",
            id="rules",
        ),
        pytest.param(
            17,
            {"provider": "b", "locale": "C.UTF-8"},
            " LOCALE_PROVIDER builtin BUILTIN_LOCALE 'C.UTF-8'",
            id="builtin",
        ),
    ],
)
def test_a_database_is_made_with_the_provider_of_its_locale(version: int, change: dict[str, Any], end: str) -> None:
    database: dict[str, Any] = {
        "owner": "boss",
        "encoding": "UTF8",
        "collate": "C",
        "ctype": "en",
        "tablespace": "fast",
    }
    database |= {"provider": "c", "locale": None, "icu_rules": None, **change}
    assert creation(database, "d", version) == (
        """CREATE DATABASE "d" TEMPLATE template0 OWNER "boss" ENCODING 'UTF8' LC_COLLATE 'C' LC_CTYPE 'en'"""
        f' TABLESPACE "fast" CONNECTION LIMIT 0{end}'
    )


def test_what_lists_lack_and_what_was_added_is_told() -> None:
    assert _difference(["a", "b"], ["b", "c"]) == "missing ['a'], added ['c']"


@pytest.mark.parametrize("kind", [_Build, _Side])
async def test_a_database_of_which_a_stream_is_lacking_is_not_built(kind: Any) -> None:
    database = {"name": "app", "tables": 1}
    more = {"new": NOTHING} if kind is _Build else {}
    build = kind(
        settings(),
        Path(),
        database,
        "scratch",
        [rows("t", 1, part=0, parts=2, rows=1)],
        None,
        Progress(),
        jobs=1,
        **more,
    )
    with pytest.raises(StageFailed, match="does not hold every stream of database 'app'"):
        await (build.run() if kind is _Build else build.run([("public", "t")], "beside"))


async def test_more_rows_of_small_tables_than_are_told_of_are_noticed_though_none_are_wanted() -> None:
    stream, connection = small_tables(3), cast(Connection, None)
    await _copy_together(connection, "app", stream, pieces(b"abc"), only=())
    with pytest.raises(StageFailed, match="more rows of small tables of database 'app'"):
        await _copy_together(connection, "app", stream, pieces(b"abc", b"d"), only=())


def test_rows_of_an_extensions_own_tables_are_not_compared() -> None:
    streams = [rows("mine", 1, rows=2), rows("theirs", 1, rows=3, configuration=True)]
    assert [(list(group.tables), group.archived) for group in _groups(streams)] == [([("public", "mine")], 2)]


def test_a_table_that_the_archive_lacks_is_refused_with_those_that_are_like_it() -> None:
    streams: list[StoredStream] = [rows("orders", 1, rows=2), small_tables(1)]
    plain: dict[str, Any] = {"name": "app", "objects": {}}
    _require_known(plain, streams, [("public", "orders"), ("public", "t0")])
    _require_known({"name": "app", "objects": {"relation:p": 1}}, streams, [("public", "split")])
    with pytest.raises(StageFailed, match=r"no table shop\.orders") as caught:
        _require_known(plain, streams, [("shop", "orders")])
    assert caught.value.hint == "It has, for instance, public.orders."
    with pytest.raises(StageFailed) as caught:
        _require_known(plain, streams, [("shop", "nothing")])
    assert caught.value.hint == "`extract --list` shows its tables."


@pytest.mark.parametrize(("large", "views"), [(1, [["public", "v"]]), (0, [])])
def test_what_single_tables_come_without_is_told(large: int, views: list[list[str]]) -> None:
    database = {"name": "app", "objects": {"large object": large}, "materialized_views": views}
    told = _Side(settings(), Path(), database, "scratch", [], None, Progress(), jobs=1)._notes()  # type: ignore[arg-type]
    assert [words for words in ("Large objects", "Materialized views") if words in " ".join(told)] == (
        ["Large objects", "Materialized views"] if large else []
    )


def test_every_tablespace_of_a_database_is_looked_at() -> None:
    database = {"tablespace": "pg_default", "bytes": 100, "tablespaces": ["fast", "pg_default", "gone"]}
    assert _needed(Path("/data"), {"fast": "/fast"}, [database]) == {
        Path("/data"): 100,
        Path("/data/pg_wal"): 20,
        Path("/fast"): 0,
    }


def test_rows_that_do_not_fit_are_refused_where_the_servers_files_can_be_seen(tmp_path: Path) -> None:
    here = {"data_directory": str(tmp_path)}
    assert space(settings(host="127.0.0.1"), here, 1) == []
    [obstacle] = space(settings(host="127.0.0.1"), here, 10**21)
    assert (obstacle.code, str(tmp_path) in obstacle.message) == ("SPACE", True)
    assert space(settings(host="db.example"), here, 10**21) == [], "a directory of the same name"
    for unseen in (None, str(tmp_path / "elsewhere")):
        assert space(settings(host="127.0.0.1"), {"data_directory": unseen}, 10**21) == []


def test_the_database_to_exchange_others_from_is_none_of_them() -> None:
    def record(*names: str) -> dict[str, Any]:
        return {"databases": [{"name": name} for name in names]}

    assert _neutral(settings(), record("app")) == "postgres"
    assert _neutral(settings(maintenance_database="work"), record("app", "postgres")) == "work"
    assert _neutral(settings(maintenance_database="work"), record("app", "work")) == "postgres"
    assert _neutral(settings(), record("app", "postgres")) == "template1"
