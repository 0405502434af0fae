"""What becomes files without a server: every part of every table, put together as COPY would have written it."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from service.errors import CorruptArchive
from service.progress import Progress
from service.sources.base import StoredSource, StoredStream
from service.sources.postgresql.extract import extract
from tests.unit.test_postgresql_load import rows, small_tables

HEAD, END = b"PGCOPY\n\xff\r\n\0" + bytes(8), b"\xff\xff"
HOW: dict[str, Any] = {"columns": ["n"], "encoding": "UTF8", "parts": 2, "rows": 1}


class Reader:
    """Reads streams that lie in memory, so many bytes at a time."""

    def __init__(self, contents: dict[int, bytes], size: int) -> None:
        self._contents = contents
        self._size = size

    async def read(self, stream: StoredStream) -> AsyncGenerator[bytes, None]:
        content = self._contents[stream.id]
        for at in range(0, len(content), self._size):
            yield content[at : at + self._size]


async def extracted(to: Path, *contents: tuple[StoredStream, bytes], size: int = 1000) -> tuple[Path, list[str]]:
    """Extract the database `app` of these streams; return its directory, and what was told."""
    numbered = [(replace(stream, id=number), content) for number, (stream, content) in enumerate(contents)]
    facts = {"server": {"server_version_num": 990001}, "databases": [{"name": "app"}]}
    stored = StoredSource(name="db", type="postgresql", facts=facts, streams=[stream for stream, _ in numbered])
    reader = Reader({stream.id: content for stream, content in numbered}, size)
    told = await extract(stored, reader, to, wants_table=None, with_roles=False, progress=Progress())
    return to / "app", told


def part(number: int) -> StoredStream:
    return rows("big", 1, part=number, format="binary", **HOW)


@pytest.mark.parametrize("size", [1, 2, 3, 19, 20, 21, 1000])
async def test_parts_of_a_table_are_put_together_wherever_pieces_end(tmp_path: Path, size: int) -> None:
    """Also in the middle of a header or a trailer."""
    later = (part(1), HEAD + b"second" + END)
    place, _ = await extracted(tmp_path, later, (part(0), HEAD + b"first, " + END), size=size)
    assert (place / "tables/public.big.binary").read_bytes() == HEAD + b"first, second" + END


@pytest.mark.parametrize(
    "content",
    [
        b"",
        HEAD,
        END,
        HEAD[:-1],
        HEAD + b"cut",
        b"x" + HEAD[1:] + END,
        pytest.param(HEAD[:-1] + b"\1" + END, id="a header with an extension"),
    ],
)
async def test_what_is_no_binary_data_is_noticed(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(CorruptArchive, match="no binary COPY data"):
        await extracted(tmp_path, (part(0), content), (part(1), HEAD + END))


async def test_a_table_of_which_a_part_is_lacking_is_not_extracted(tmp_path: Path) -> None:
    with pytest.raises(CorruptArchive, match="does not hold every part"):
        await extracted(tmp_path, (part(0), HEAD + END))


async def test_a_database_without_tables_has_its_definitions_and_large_objects(tmp_path: Path) -> None:
    """Also where no pg_restore can make text of them."""
    definitions, objects = (replace(part(0), kind=f"postgresql.{kind}") for kind in ("schema", "large_objects"))
    place, told = await extracted(tmp_path, (definitions, b"definitions"), (objects, b"objects"))
    assert told == ["There is no pg_restore of version 99 or newer here, so schema.sql was not made of schema.dump."]
    assert {path.name: path.read_bytes() for path in place.iterdir() if path.suffix == ".dump"} == {
        "schema.dump": b"definitions",
        "large_objects.dump": b"objects",
    }
    assert json.loads((place / "tables.json").read_text()) == []
    assert not (place / "tables").exists()


@pytest.mark.parametrize("more", [b"", b"x"])
async def test_small_tables_that_share_a_stream_become_files_of_their_own(tmp_path: Path, more: bytes) -> None:
    stream = small_tables(3, 4)
    told = [{**table, **HOW, "format": "text"} for table in stream.details["tables"]]
    stream = replace(stream, labels={"database": "app"}, details={"tables": told})
    if more:
        with pytest.raises(CorruptArchive, match="more rows of small tables"):
            await extracted(tmp_path, (stream, b"1\n2" + b"3\n45" + more))
        return
    place, _ = await extracted(tmp_path, (stream, b"1\n2" + b"3\n45"), size=2)
    assert (place / "tables/public.t0.copy").read_bytes() == b"1\n2"
    assert (place / "tables/public.t1.copy").read_bytes() == b"3\n45"
