"""Which transaction loads what, and how many connections read."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any

import pytest

from service.config_sources import PostgresqlSettings
from service.errors import StageFailed
from service.sources.base import StoredStream
from service.sources.postgresql.connect import at_once
from service.sources.postgresql.copy_out import pull
from service.sources.postgresql.load import Cut, Load, Size, divide, lacking, tables_of

MIB = 1 << 20


def rows(table: str, size: int, **details: Any) -> StoredStream:
    labels = {"database": "app", "schema": "public", "table": table}
    return StoredStream(
        id=1, source="db", kind="postgresql.rows", labels=labels, chunks=1, bytes=size, sha256="", details=details
    )


def described(loads: list[Load]) -> list[tuple[str, int, bool]]:
    return [(load.streams[0].labels["table"], len(load.streams), load.freeze) for load in loads]


def test_tables_are_loaded_whole_and_frozen_the_biggest_first() -> None:
    streams = [rows("small", 2 * MIB), rows("big", 4 * MIB), rows("big", 4 * MIB), rows("middle", 7 * MIB)]
    assert described(divide(streams, 2)) == [("big", 2, True), ("middle", 1, True), ("small", 1, True)]


def test_parts_of_a_table_that_outweighs_the_others_are_loaded_at_once_and_not_frozen() -> None:
    streams = [rows("huge", 5 * MIB), rows("huge", 6 * MIB), rows("other", 9 * MIB)]
    assert described(divide(streams, 2)) == [("other", 1, True), ("huge", 1, False), ("huge", 1, False)]
    assert described(divide(streams, 1)) == [("huge", 2, True), ("other", 1, True)]


def test_a_table_of_one_part_is_frozen_however_big_it_is() -> None:
    assert described(divide([rows("only", 50 * MIB)], 8)) == [("only", 1, True)]


def test_small_tables_are_not_truncated_first() -> None:
    assert described(divide([rows("tiny", MIB - 1), rows("empty", 0)], 2)) == [("tiny", 1, False), ("empty", 1, False)]


@pytest.mark.parametrize("details", [{"configuration": True}, {"load_via": ["public", "root"]}])
def test_rows_that_are_added_to_others_are_never_frozen(details: dict[str, Any]) -> None:
    streams = [rows("shared", 9 * MIB, **details), rows("shared", 8 * MIB, **details), rows("other", 30 * MIB)]
    assert described(divide(streams, 2)) == [("other", 1, True), ("shared", 1, False), ("shared", 1, False)]


def small_tables(*sizes: int) -> StoredStream:
    told = [{"schema": "public", "table": f"t{number}", "bytes": size, "rows": 1} for number, size in enumerate(sizes)]
    return replace(rows("", sum(sizes)), kind="postgresql.small_tables", labels={}, details={"tables": told})


def test_small_tables_that_share_a_stream_are_loaded_together_and_all_are_known() -> None:
    streams = [small_tables(5, 0, 7), rows("big", 4 * MIB), small_tables(1)]
    assert [(load.bytes, load.freeze) for load in divide(streams, 2)] == [(4 * MIB, True), (12, False), (1, False)]
    parts = [rows("big", 4 * MIB, rows=3), rows("big", MIB, rows=4), small_tables(5, 0, 7)]
    assert tables_of(parts) == {
        ("public", "big"): Size(5 * MIB, 7),
        ("public", "t0"): Size(5, 1),
        ("public", "t1"): Size(0, 1),
        ("public", "t2"): Size(7, 1),
    }


async def pieces(*contents: bytes) -> AsyncGenerator[bytes, None]:
    for content in contents:
        yield content


@pytest.mark.parametrize(
    ("parts", "count", "expected"), [([0, 1, 2], 3, False), ([0, 2], 3, True), ([0, 0], 2, True), ([0], 1, False)]
)
def test_a_missing_part_of_a_table_is_noticed(parts: list[int], count: int, expected: bool) -> None:
    streams = [rows("big", MIB, part=part, parts=count) for part in parts]
    assert lacking([*streams, small_tables(1)]) == expected


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50])
async def test_a_shared_stream_is_cut_where_its_tables_end(size: int) -> None:
    whole = b"one" + b"" + b"three and more" + b"4"
    cut = Cut(pieces(*(piece for at in range(0, len(whole), size) for piece in (whole[at : at + size], b""))))
    found = [b"".join([piece async for piece in cut.take(length)]) for length in (3, 0, 14, 1)]
    assert found == [b"one", b"", b"three and more", b"4"]
    assert await cut.ended()


async def test_a_shared_stream_with_fewer_or_more_bytes_than_told_is_noticed() -> None:
    cut = Cut(pieces(b"abc", b"de"))
    with pytest.raises(StageFailed, match="fewer rows"):
        assert [piece async for piece in cut.take(6)] == [b"abc", b"de"]
    for left in (b"e", b"xe"):
        cut = Cut(pieces(b"abc", left))
        assert b"".join([piece async for piece in cut.take(2 + len(left))]) != b""
        assert not await cut.ended()


def settings(**change: Any) -> PostgresqlSettings:
    return PostgresqlSettings.model_validate({"type": "postgresql", **change})


@pytest.mark.parametrize(
    ("change", "default", "free", "expected"),
    [
        ({}, 3, 100, 3),
        ({}, 3, 4, 2),
        ({}, 3, 0, 1),
        ({}, 3, -3, 1),
        ({"connections": 12}, 3, 100, 12),
        ({"connections": 12}, 3, 10, 5),
        ({"connections": 1}, 3, 100, 1),
        ({"connections": 12, "max_connections_share": 1.0}, 3, 10, 10),
        ({"max_connections_share": 0.1}, 8, 50, 5),
    ],
)
def test_connections_stay_within_the_share_of_what_the_server_has_free(
    change: dict[str, Any], default: int, free: int, expected: int
) -> None:
    assert at_once(settings(**change), default=default, free=free) == expected


async def test_a_delay_holds_back_whoever_sends() -> None:
    async def copy(output: Any) -> str:
        for _ in range(8):
            await output(bytes(MIB // 4))
        return "COPY 8"

    began = time.monotonic()
    pieces = [piece async for piece in pull(copy, abort=lambda: None, delay=0.1)]
    assert time.monotonic() - began >= 0.19
    assert pieces[-1] == "COPY 8"
    assert len(pieces) == 9


@pytest.mark.parametrize(
    ("sizes", "pauses"),
    [
        pytest.param([8192] * 20, [], id="a small table is never waited for"),
        pytest.param([MIB, 8192, MIB, 262144, 8192], [1, 4], id="after small pieces of a big one the buffer may fill"),
    ],
)
async def test_a_reader_pauses_only_when_it_has_caught_up_with_a_big_table(
    sizes: list[int], pauses: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[int] = []
    paused: list[tuple[int, float]] = []
    real_sleep = asyncio.sleep

    async def sleep(seconds: float) -> None:
        paused.append((len(sent) - 1, seconds))
        await real_sleep(0)

    async def copy(output: Any) -> str:
        for size in sizes:
            sent.append(size)
            await output(bytes(size))
        return f"COPY {len(sizes)}"

    monkeypatch.setattr(asyncio, "sleep", sleep)
    assert len([piece async for piece in pull(copy, abort=lambda: None)]) == len(sizes) + 1
    assert paused == [(at, 0.002) for at in pauses]
