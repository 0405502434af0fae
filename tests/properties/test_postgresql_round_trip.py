"""Any rows of any built-in type come back as they were, in binary COPY and in text."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from demo.compare import diff, fingerprint
from demo.postgresql_server import PostgresqlServer
from service.catalog import opened
from service.sources.postgresql import catalog, rows
from service.sources.postgresql.connect import quote_identifier, quote_literal
from tests.conftest import NewServer
from tests.recipes import Installation
from tests.scoreboard import counted
from tests.sizes import examples

TYPES = """
    CREATE TYPE mood AS ENUM ('sad', 'ok', 'it''s "fine"', '');
    CREATE DOMAIN positive AS int CHECK (VALUE > 0);
    CREATE DOMAIN feeling AS mood;
    CREATE TYPE pair AS (a int, b text);
    CREATE TYPE span AS RANGE (subtype = float8);
"""
# fmt: off
VALUES: dict[str, list[str]] = {
    "bool": ["true", "false"],
    "smallint": ["-32768", "32767"], "int": ["-2147483648", "0", "2147483647"],
    "bigint": ["-9223372036854775808", "9223372036854775807"], "oid": ["0", "4294967295"],
    "real": ["NaN", "-Infinity", "1e-45", "3.4028235e38", "-0"], "money": ["-92233720368547758.08", "0.01"],
    "float8": ["NaN", "Infinity", "5e-324", "1.7976931348623157e308", "-0", "0.1"],
    "numeric": ["NaN", "Infinity", "-1e100", "0.00000000000000000000000000000001", "12345678901234567890.123456789"],
    "numeric(7,2)": ["-99999.99", "0.00"],
    "text": ["", "\\N", "\\.", "a\tb\nc\rd\\e", "ünïcödé ✓ \U0001f600", "'quoted' \"twice\"", "x" * 3000, "\\x00"],
    "varchar(5)": ["", "abc", "ééééé"], "char(4)": ["a", "    ", "abcd"], "\"char\"": ["a", "", "\\"],
    "name": ["", "sixty-three bytes at most"], "bytea": ["", "\\x00ff5c4e0a", "\\x" + "ab" * 5000],
    "date": ["infinity", "-infinity", "4713-01-01 BC", "5874897-12-31", "2024-02-29"],
    "time": ["00:00", "24:00", "12:34:56.789012"], "timetz": ["00:00+15:59", "23:59:59.999999-15:59"],
    "timestamp": ["infinity", "4713-01-01 00:00 BC", "294276-12-31 23:59:59.999999"],
    "timestamptz": ["-infinity", "2024-03-31 01:30+00", "1900-01-01 00:00+00"],
    "interval": ["1 mon -1 day +00:00:00.000001", "178000000 years", "-1 year -2 mons 3 days -04:05:06.7"],
    "uuid": ["00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff"],
    "json": ['{"a": 1, "a": [1, 2.50, null]}', '"\\u00e9"', "null"],
    "jsonb": ['{"b": {"c": [1.10, true, null, "\\n"]}, "": 1e400}', "[]", '"x"'],
    "inet": ["0.0.0.0/0", "::1", "192.168.1.7/24"], "cidr": ["10.0.0.0/8", "2001:db8::/32"],
    "macaddr": ["08:00:2b:01:02:03"], "macaddr8": ["08:00:2b:ff:fe:01:02:03"],
    "bit(9)": ["101010101"], "varbit": ["", "1", "110011001100"], "pg_lsn": ["0/0", "FFFFFFFF/FFFFFFFF"],
    "tsvector": ["'a b':1A,2B 'ü':3", ""], "tsquery": ["'a' & !'b':*A <2> 'c'", ""],
    "point": ["(1.5,-0)", "(NaN,Infinity)"], "lseg": ["[(0,0),(1,1)]"], "box": ["(2,2),(1,1)"],
    "path": ["((0,0),(1,1),(2,0))", "[(0,0),(1,1)]"], "polygon": ["((0,0),(1,1),(2,0))"],
    "line": ["{1,-1,0}"], "circle": ["<(0,0),2.5>"],
    "int4range": ["empty", "(,)", "[1,5)"], "int8range": ["[,9)"], "numrange": ["[0.10,0.20]"],
    "daterange": ["[2024-01-01,infinity)"], "tsrange": ["(,2024-01-01]"], "tstzrange": ['["2024-01-01 00:00+00",)'],
    "int4multirange": ["{}", "{[1,3),[5,9)}"], "span": ["[0.5,1.5]"],
    "int[]": ["{}", "{1,NULL,3}", "[0:1]={7,8}", "{{1,2},{3,4}}"], "text[]": ['{"",NULL,"NULL","a\\\\b","{x}"}'],
    "jsonb[]": ['{"{\\"a\\": 1}",NULL}'], "numeric[]": ["{NaN,1.50}"], "timestamptz[]": ["{infinity}"],
    "bytea[]": ['{"\\\\x00ff",""}'], "mood": ["sad", "it's \"fine\"", ""], "mood[]": ["{sad,ok}"], "feeling": ["ok"],
    "positive": ["1"], "pair": ["(1,\"a,b\")", "(,)"], "pair[]": ['{"(1,x)",NULL}'], "regclass": ["pg_class", "0"],
    "regtype": ["integer"], "xml": ["<a b='1'>é</a>", "text"], "pg_snapshot": ["10:20:10,14,15"], "xid8": ["42"],
    "tid": ["(7,3)"],
}
# fmt: on


Made = tuple[list[str], list[list[str | None]]]
"""A table: the types of its columns, and its rows."""


@st.composite
def tables(draw: st.DrawFn) -> list[Made]:
    """Some tables."""
    found = []
    for _ in range(draw(st.integers(2, 6))):
        columns = draw(st.lists(st.sampled_from(sorted(VALUES)), max_size=8))
        cells = [st.one_of(st.none(), st.sampled_from(VALUES[column])) for column in columns]
        found.append((columns, draw(st.lists(st.tuples(*cells).map(list), max_size=12))))
    return found


def script(made: list[Made]) -> str:
    statements = [TYPES]
    for number, (columns, contents) in enumerate(made):
        table = quote_identifier(f'Table "{number}" é')
        named = [f"{quote_identifier(f'c {position}')} {kind}" for position, kind in enumerate(columns)]
        statements.append(f"CREATE TABLE {table} ({', '.join(named)})")
        for row in contents:
            values = [
                "NULL" if value is None else f"{quote_literal(value)}::{kind}"
                for value, kind in zip(row, columns, strict=True)
            ]
            inserted = f"VALUES ({', '.join(values)})" if values else "DEFAULT VALUES"
            statements.append(f"INSERT INTO {table} {inserted}")
    return ";\n".join(statements)


async def round_trip(installation: Installation, sql: str) -> set[str]:
    """Back up and restore a database made by `sql`; return the formats that its rows travelled in."""
    server = installation.server
    await server.execute("DROP DATABASE IF EXISTS app WITH (FORCE)")
    await server.execute("CREATE DATABASE app TEMPLATE template0")
    await server.execute(sql, database="app")
    before = await fingerprint(server, ["app"])
    for path in installation.target.iterdir():
        path.unlink()
    archive = (await installation.backup()).name
    async with opened(installation.config, archive) as reader:
        told: list[Any] = []
        for stream in reader.manifest.streams:
            told += stream.details.get("tables", [stream.details] if stream.kind == rows.ROWS else [])
    await installation.restore(archive)
    await installation.commit()
    assert diff(before, await fingerprint(server, ["app"])) == []
    return {table["format"] for table in told}


@pytest.mark.parametrize(("kind", "together"), [("binary", True), ("binary", False), ("text", True), ("text", False)])
def test_rows_of_any_type_come_back_in_both_formats_alone_and_together(
    kind: str,
    together: bool,
    new_postgresql: NewServer,
    workspace: Path,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
) -> None:
    server: PostgresqlServer = new_postgresql()
    installation = Installation(server, workspace)
    if kind == "text":
        monkeypatch.setattr(catalog, "BINARY_TYPES", frozenset())
    if not together:
        monkeypatch.setattr(rows, "_SMALL_BYTES", -1)
    formats: set[str] = set()
    tried: Counter[str] = Counter()

    @settings(
        max_examples=examples(3),
        deadline=None,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(tables())
    def run(made: list[Made]) -> None:
        tried.update(databases=1, tables=len(made), rows=sum(len(contents) for _, contents in made))
        formats.update(asyncio.run(round_trip(installation, script(made))))

    arrays = [
        f"CREATE TABLE arrays_{number} AS SELECT ARRAY[{', '.join(f'{quote_literal(v)}::{kind}' for v in values)}] AS a"
        for number, (kind, values) in enumerate(VALUES.items())
        if "[" not in kind and kind not in ("feeling", "positive")  # domains have no array type in every version
    ]
    every: list[Made] = [([kind], [[value] for value in (*values, None)]) for kind, values in sorted(VALUES.items())]
    formats.update(asyncio.run(round_trip(installation, ";\n".join([script(every), *arrays]))))
    run()
    told = f"random databases: {tried['tables']} tables, {tried['rows']} rows; and one with every value of every type"
    record_property("counted", counted(tried["databases"], told))
    assert kind in formats
    if kind == "binary":
        assert formats == {"binary", "text"}  # what may not travel in binary does not


def test_only_types_without_oids_inside_travel_in_binary(new_postgresql: NewServer, workspace: Path) -> None:
    server = new_postgresql()
    columns = {f"t {kind}": kind for kind in VALUES}
    statements = [f"CREATE TABLE {quote_identifier(name)} (c {kind})" for name, kind in columns.items()]
    asyncio.run(server.execute("CREATE DATABASE app"))
    asyncio.run(server.execute(";".join([TYPES, *statements]), database="app"))
    installation = Installation(server, workspace)

    async def formats() -> dict[str, str]:
        archive = (await installation.backup()).name
        async with opened(installation.config, archive) as reader:
            streams = reader.manifest.streams
            return {columns[told["table"]]: told["format"] for one in streams for told in one.details.get("tables", ())}

    found = asyncio.run(formats())
    assert {kind for kind, name in found.items() if name == "text"} == {
        "int4multirange", "span", "mood[]", "pair", "pair[]", "regclass", "regtype", "tsquery", "xml", "pg_snapshot",
        "xid8", "tid"
    }  # fmt: skip
