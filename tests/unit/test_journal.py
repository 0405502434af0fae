"""The restore journal read again: what no restore has written is refused, with the file kept and named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from service.errors import RestoreError
from service.journal import Journal, journals


async def written(state_dir: Path) -> dict[str, Any]:
    journal = Journal.begin(state_dir, archive="a.zip", started="2026-03-02T12:00:00+00:00")
    journal.add("etc", {"type": "tree", "path": "/etc"}, ["/etc/keep"])["staged"] = True
    await journal.save("swapped")
    found: dict[str, Any] = json.loads(journal.path.read_bytes())
    return found


async def test_a_journal_is_read_as_it_was_saved(tmp_path: Path) -> None:
    document = await written(tmp_path)
    [journal] = journals(tmp_path)
    assert journal.state == "swapped"
    assert journal.participants == document["participants"]
    assert journal.participants[0]["record"] == {"id": journal.id, "staged": True}


@pytest.mark.parametrize(
    "change",
    [
        {"state": "finished"},
        {"archive": 5},
        {"surprise": True},
        {"participants": [{"name": "etc", "settings": {}, "preserve": []}]},
        {"participants": [{"name": "etc", "settings": {}, "preserve": [], "record": "none"}]},
        {"participants": [{"name": "etc", "settings": 5, "preserve": [], "record": {}}]},
    ],
    ids=["state", "type", "key", "no record", "record", "settings"],
)
async def test_a_journal_that_no_restore_has_written_is_refused_and_kept(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    document = await written(tmp_path)
    [path] = (tmp_path / "restores").iterdir()
    content = json.dumps(document | change)
    path.write_text(content)
    with pytest.raises(RestoreError, match="cannot be read") as caught:
        journals(tmp_path)
    assert str(path) in str(caught.value)
    assert "Keep this file" in caught.value.hint
    assert path.read_text() == content
