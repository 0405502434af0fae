"""One source of an archive as files: what stands in the way is told, and where."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from service.errors import CorruptArchive, StageFailed
from service.progress import Progress
from service.sources.base import StoredSource, StoredStream
from service.sources.extraction import Chosen, extract
from tests.trees import Archived, mounted

CONTENT = b"SQLite format 3\0" * 1000


@pytest.fixture
def archived() -> Archived:
    """A backup of one file that is larger than a page."""
    stream = StoredStream(1, "grafana", "sqlite.file", {}, 1, len(CONTENT), "", {})
    facts = {"path": "/var/lib/grafana/grafana.db"}
    return Archived(StoredSource(name="grafana", type="sqlite", facts=facts, streams=[stream]), CONTENT)


async def test_where_there_is_no_room_left_is_told(archived: Archived, tmp_path: Path) -> None:
    with mounted(tmp_path / "small", "-t", "tmpfs", "-o", "size=4k", "none"):
        (tmp_path / "small/work").mkdir()
        with pytest.raises(StageFailed, match=f"no room left at {tmp_path}/small") as caught:
            await extract(archived.stored, archived, tmp_path / "small/work", Chosen(), Progress())
    assert caught.value.hint == "Extract to elsewhere."


async def test_what_cannot_be_written_is_named(archived: Archived, tmp_path: Path) -> None:
    (tmp_path / "grafana").mkdir()
    (tmp_path / "grafana/grafana.db").write_text("of somebody else")
    with pytest.raises(StageFailed, match=r"grafana/grafana\.db could not be written: File exists"):
        await extract(archived.stored, archived, tmp_path, Chosen(), Progress())
    assert (tmp_path / "grafana/grafana.db").read_text() == "of somebody else"


async def test_a_file_that_lacks_its_stream_or_has_two_is_refused(archived: Archived, tmp_path: Path) -> None:
    for streams in ([], [*archived.stored.streams] * 2):
        with pytest.raises(CorruptArchive, match="has not the one stream"):
            await extract(replace(archived.stored, streams=streams), archived, tmp_path, Chosen(), Progress())
