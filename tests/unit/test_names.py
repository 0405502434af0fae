"""Names of archives and entries: what is made, what is read back, what is nobody's."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from service.archive import names
from tests.vectors.second_reader import open_archive

VECTORS: dict[str, Any] = json.loads((Path(__file__).parents[1] / "vectors" / "names.json").read_text())


@pytest.mark.parametrize(("name", "time"), VECTORS["archives"]["good"].items())
def test_an_archive_name_tells_its_minute_and_is_made_from_it(name: str, time: str) -> None:
    told = datetime.fromisoformat(time)
    assert names.parse_archive_name(name) == told
    assert names.archive_name(told + timedelta(seconds=59)) == name
    assert open_archive.is_archive_name(name)


@pytest.mark.parametrize("name", VECTORS["archives"]["bad"])
def test_what_is_not_exactly_an_archive_name_is_none(name: str) -> None:
    assert names.parse_archive_name(name) is None
    assert not open_archive.is_archive_name(name)


def test_archive_names_are_in_utc_whatever_zone_the_clock_speaks() -> None:
    assert names.archive_name(datetime(2025, 1, 31, 1, 30, tzinfo=timezone(timedelta(hours=8)))) == (
        "Backup_20250130_1730Z.zip"
    )
    with pytest.raises(ValueError, match="zone"):
        names.archive_name(datetime(2025, 1, 31))
    assert names.parse_archive_name("Backup_20250131_0200Z.zip") == datetime(2025, 1, 31, 2, tzinfo=UTC)


@pytest.mark.parametrize(("name", "parsed"), VECTORS["chunks"]["good"].items())
def test_a_chunk_s_name_tells_where_it_belongs_and_is_made_from_it(name: str, parsed: list[Any]) -> None:
    stream, index, sealed = parsed
    assert names.parse_stream_entry(name) == (stream, index, sealed)
    assert names.stream_entry(stream, index, sealed=sealed) == name


@pytest.mark.parametrize("name", VECTORS["chunks"]["bad"])
def test_what_is_not_exactly_a_chunk_s_name_is_none(name: str) -> None:
    assert names.parse_stream_entry(name) is None


@pytest.mark.parametrize(("stream", "index"), [(-1, 0), (0, -1), (1 << 32, 0), (0, 1 << 32)])
def test_numbers_beyond_32_bits_have_no_name(stream: int, index: int) -> None:
    with pytest.raises(ValueError, match="no entry name"):
        names.stream_entry(stream, index, sealed=False)
