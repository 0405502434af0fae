"""Names of one file stay names of that file, also when one of them is replaced while it is read."""

from __future__ import annotations

import io
import os
import tarfile
from contextlib import aclosing
from pathlib import Path

import pytest

from service.config_sources import TreeSettings
from service.sources import tree_walk
from service.sources.config_tree import TreeSource


async def test_other_names_of_a_file_keep_its_content_when_the_first_is_replaced_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "0").write_bytes(b"OLD")
    for name in ("1", "2"):
        os.link(tree / "0", tree / name)
    read = tree_walk._read_up_to
    replaced: list[str] = []

    def read_and_replace(fd: int, size: int) -> bytes:
        body = read(fd, size)
        if not replaced:  # whichever name comes first is saved anew, as editors do
            first = Path(f"/proc/self/fd/{fd}").readlink()
            replaced.append(first.name)
            (tree / "new").write_bytes(b"NEW")
            (tree / "new").rename(first)
        return body

    monkeypatch.setattr(tree_walk, "_read_up_to", read_and_replace)
    async with (
        TreeSource(TreeSettings(path=tree)).snapshot() as snapshot,
        aclosing(snapshot.streams[0].read()) as pieces,
    ):
        content = b"".join([piece async for piece in pieces])
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        bodies = {}
        for member in tar.getmembers():
            if member.isfile() or member.islnk():
                extracted = tar.extractfile(member)
                assert extracted is not None
                bodies[Path(member.name).name] = extracted.read()
    [first] = replaced
    assert bodies == {name: b"NEW" if name == first else b"OLD" for name in "012"}
