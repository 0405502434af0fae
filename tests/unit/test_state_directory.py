"""Files of the state directory are replaced whole, whoever else replaces them."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

from service.state_directory import replace_file

CONTENTS = [letter * (1 << 20) for letter in (b"a", b"b", b"c")]


def _replace(path: Path, content: bytes) -> None:
    for _ in range(60):
        replace_file(path, content)


def test_of_writers_that_race_for_one_file_nobody_ever_sees_a_part(tmp_path: Path) -> None:
    path = tmp_path / "file"
    replace_file(path, CONTENTS[0])
    spawning = multiprocessing.get_context("spawn")
    writers = [spawning.Process(target=_replace, args=(path, content)) for content in CONTENTS]
    for writer in writers:
        writer.start()
    seen = set[bytes]()
    while any(writer.is_alive() for writer in writers):
        content = path.read_bytes()
        assert content in CONTENTS, (len(content), set(content))
        seen.add(content[:1])
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    assert len(seen) > 1
    assert [found.name for found in tmp_path.iterdir()] == ["file"]
    assert path.stat().st_mode & 0o777 == 0o600
