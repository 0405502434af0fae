"""The configuration tree on real file systems: what is left out, what changes meanwhile, what stands in the way."""

# ruff: noqa: PTH208

from __future__ import annotations

import asyncio
import os
import re
import socket
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from service.config_sources import TreeSettings
from service.errors import CorruptArchive, SourceError, StageFailed, SwapFailed
from service.sources import tree_walk
from service.sources.config_tree import TreeSource
from service.sources.directories import DIRECTORY, Descent, decode_path, encode_path, mounts_below
from service.sources.selection import Selection, translate
from service.sources.tar_stream import END, HeaderWriter, Kind, Member, padding
from service.sources.tree_walk import BATCH, TreeWalk
from tests.trees import (
    Journal,
    as_nobody,
    back_up,
    back_up_tree,
    leftovers,
    listing,
    mounted,
    restore,
    stage,
    tree_restorer,
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A small live tree."""
    root = tmp_path / "srv" / "config"
    (root / "sub").mkdir(parents=True)
    (root / "server.xml").write_text("<server/>")
    (root / "sub" / "more").write_text("more")
    return root


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal")


def let_everybody_reach(root: Path) -> None:
    """Open the directories above, which pytest keeps to itself."""
    for above in root.parents:
        if above == Path(tempfile.gettempdir()):
            return
        above.chmod(0o755)


def listen(path: Path) -> None:
    with closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(path))


# --- what is left out ------------------------------------------------------------------------------------------------


async def test_mongodb_data_below_the_tree_is_left_out_and_said_so(root: Path) -> None:
    data = root / "mongo"
    (data / "journal").mkdir(parents=True)
    (data / "diagnostic.data").mkdir()
    (data / "devices").mkdir()
    (data / "own").mkdir()
    for name in ("WiredTiger", "WiredTiger.wt", "_mdb_catalog.wt", "collection-0.wt", "sizeStorer.wt", "mongod.lock"):
        (data / name).write_text("sensor data")
    for name in ("storage.bson", "WiredTigerHS.wt", "journal/WiredTigerLog.1", "devices/collection-7.wt"):
        (data / name).write_text("sensor data")
    (data / "mongod.conf").write_text("kept")
    (data / "own" / "keyfile").write_text("kept")
    (root / "old" / "journal").mkdir(parents=True)
    for name in ("local.ns", "local.0", "local.1", "mongod.lock", "journal/j._0"):
        (root / "old" / name).write_text("sensor data")
    (root / "old" / "notes.1").write_text("kept")
    (root / "unrelated.wt").write_text("kept")
    (root / "journal").write_text("kept")

    archived = await back_up_tree(root)

    assert b"sensor data" not in archived.data
    assert archived.data.count(b"kept") == 5
    left_out = {entry["path"] for entry in archived.facts["excluded"] if entry["reason"] == "MongoDB data"}
    assert {"mongo/WiredTiger", "mongo/collection-0.wt", "mongo/journal", "mongo/devices", "old/local.1"} <= left_out
    assert "mongo/own" not in left_out


async def test_excluded_paths_other_sources_files_and_what_has_no_content_are_told(root: Path) -> None:
    (root / "cache").mkdir()
    (root / "cache" / "c").write_text("secret")
    (root / "sub" / "x.log").write_text("secret")
    for end in ("", "-wal", "-shm", "-journal"):
        (root / f"grafana.db{end}").write_text("secret")
    (root / ".deviceon-backup-17-config").mkdir()
    (root / ".deviceon-backup-17-config" / "f").write_text("secret")
    listen(root / "socket")
    os.mkfifo(root / "pipe")
    os.mknod(root / "device", 0o600 | 0o020000, os.makedev(1, 3))

    archived = await back_up_tree(root, exclude=["cache", "**/*.log"], preserve=[root / "grafana.db"])

    assert b"secret" not in archived.data
    reasons = {entry["path"]: entry["reason"] for entry in archived.facts["excluded"]}
    assert reasons.keys() == {
        *("cache", "sub/x.log", "grafana.db", "grafana.db-wal", "grafana.db-shm", "grafana.db-journal"),
        *(".deviceon-backup-17-config", "socket", "pipe", "device"),
    }
    assert reasons["cache"] == "excluded by cache"
    assert archived.facts["files"] == 2


async def test_a_made_up_file_system_is_left_out_and_a_real_one_is_followed(root: Path) -> None:
    (root / "volume").mkdir()
    with mounted(root / "volume"), mounted(root / "proc", "-t", "proc", "none"):
        (root / "volume" / "file").write_text("on the volume")
        archived = await back_up_tree(root)
    assert b"on the volume" in archived.data
    assert archived.facts["excluded"] == [{"path": "proc", "reason": "a file system that the kernel makes up"}]
    assert archived.facts["mounts"] == ["proc", "volume"]


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("cache", "cache", True),
        ("cache", "sub/cache", False),
        ("cache/", "cache", True),
        ("*.log", "a.log", True),
        ("*.log", "sub/a.log", False),
        ("**/*.log", "a.log", True),
        ("**/*.log", "x/y/a.log", True),
        ("x/**", "x/y/z", True),
        ("x/**", "x", False),
        ("a?c", "abc", True),
        ("a?c", "a/c", False),
        ("a[bd]c", "adc", True),
        ("a[!b]c", "abc", False),
        ("a[!b]c", "a/c", False),
        ("a[b", "a[b", True),
        ("a.c", "abc", False),
        ("*", "new\nline", True),
    ],
)
def test_globs_are_relative_to_the_tree(pattern: str, path: str, matches: bool) -> None:
    assert bool(re.fullmatch(translate(pattern), path, re.DOTALL)) is matches


@pytest.mark.parametrize("raw", [b"plain", b"100%", b"%41", b"\xff\xfe/%", "ü/\u4e16".encode(), b"new\nline"])
def test_paths_survive_json(raw: bytes) -> None:
    encoded = encode_path(os.fsdecode(raw))
    assert os.fsencode(decode_path(encoded.encode("utf-8").decode())) == raw


# --- what cannot be backed up ----------------------------------------------------------------------------------------


async def test_a_missing_an_empty_and_a_wrong_root_are_errors_never_an_empty_backup(root: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "missing", tmp_path / "empty", root / "server.xml"):
        with pytest.raises(SourceError) as caught:
            await back_up_tree(path)
        assert str(path) in str(caught.value)
        assert caught.value.hint


async def test_an_unreadable_file_is_an_error_and_not_left_out(root: Path) -> None:
    (root / "sub" / "more").chmod(0)
    let_everybody_reach(root)
    with as_nobody(), pytest.raises(SourceError, match=r"sub/more cannot be read: permission denied") as caught:
        await back_up_tree(root)
    assert "exclude" in caught.value.hint


# --- what changes while it is read -----------------------------------------------------------------------------------


def walk(root: Path, between: Callable[[], None]) -> tuple[bytes, list[str]]:
    """Read a tree; `between` is called after the first piece."""
    reading = TreeWalk(root, Selection([], kept=[], mounts={}))
    pieces = reading.pieces()
    first = next(pieces)
    between()
    return first + b"".join(pieces), reading.found.warnings


@pytest.fixture
def large(root: Path) -> Path:
    """A file that is read first, and in several pieces."""
    path = root / "a-large"
    path.write_bytes(b"x" * (3 * BATCH))
    return path


async def there(data: bytes, root: Path, tmp_path: Path) -> dict[str, bytes]:
    """Unpack with GNU tar and give the files."""
    (tmp_path / "t.tar").write_bytes(data)
    (tmp_path / "there").mkdir()
    subprocess.run(["tar", "-xf", tmp_path / "t.tar", "-C", tmp_path / "there"], check=True)
    return {path.name: path.read_bytes() for path in (tmp_path / "there").rglob("*") if path.is_file()}


async def test_a_file_that_grows_is_cut_at_its_size_and_told(root: Path, large: Path, tmp_path: Path) -> None:
    def grow() -> None:
        with large.open("ab") as file:
            file.write(b"more")

    data, warnings = walk(root, grow)
    assert len((await there(data, root, tmp_path))["a-large"]) == 3 * BATCH
    assert warnings == ["a-large changed while it was read; what is kept may be a mixture"]


async def test_a_file_that_shrinks_is_padded_and_told(root: Path, large: Path, tmp_path: Path) -> None:
    data, warnings = walk(root, lambda: os.truncate(large, BATCH + 5))
    assert (await there(data, root, tmp_path))["a-large"] == b"x" * (BATCH + 5) + bytes(2 * BATCH - 5)
    assert warnings == [f"a-large shrank while it was read; its last {2 * BATCH - 5} bytes are zeros here"]


async def test_what_vanishes_and_what_changes_its_kind_is_told(root: Path, large: Path, tmp_path: Path) -> None:
    def change() -> None:
        (root / "server.xml").unlink()
        (root / "sub" / "more").unlink()
        (root / "sub").rmdir()
        (root / "sub").symlink_to("/etc")

    data, warnings = walk(root, change)
    assert set(await there(data, root, tmp_path)) == {"a-large"}
    assert (tmp_path / "there" / "sub").readlink() == Path("/etc")
    assert warnings == [
        "server.xml vanished while the tree was read",
        "the tree got or lost names while it was read",
    ]


@pytest.mark.parametrize(("times", "told"), [(1, False), (2, False), (3, True)])
async def test_a_small_file_that_changes_is_read_again_and_told_when_it_never_rests(
    root: Path, monkeypatch: pytest.MonkeyPatch, times: int, told: bool
) -> None:
    left = times
    read = tree_walk._read_up_to

    def read_while_others_write(fd: int, size: int) -> bytes:
        nonlocal left
        data = read(fd, size)
        if Path(f"/proc/self/fd/{fd}").readlink() == root / "server.xml" and left:
            left -= 1
            (root / "server.xml").write_text("y" * size)
        return data

    monkeypatch.setattr(tree_walk, "_read_up_to", read_while_others_write)
    archived = await back_up_tree(root)
    sentence = "server.xml kept changing while it was read; what is kept may be a mixture"
    assert archived.facts["warnings"] == ([sentence] if told else [])
    assert (b"yyyy" in archived.data) is (times < 3 or told)


async def test_a_tree_at_rest_is_read_without_a_warning_and_without_a_trace(root: Path) -> None:
    before = listing(root, inodes=True)
    assert (await back_up_tree(root)).facts["warnings"] == []
    assert listing(root, inodes=True) == before


async def test_reading_can_be_stopped_at_any_piece_and_leaves_no_file_open(root: Path, large: Path) -> None:
    source = TreeSource(TreeSettings(path=root))
    await back_up(source)
    before = sorted(os.listdir("/proc/self/fd"))
    for taken in range(4):
        async with source.snapshot() as snapshot:
            reading = snapshot.streams[0].read()
            for _ in range(taken):
                await anext(reading)
            await reading.aclose()
            with pytest.raises(SourceError):
                await snapshot.facts()
    task = asyncio.create_task(back_up(source))
    await asyncio.sleep(0.005)
    task.cancel()
    await asyncio.wait({task})
    assert sorted(os.listdir("/proc/self/fd")) == before


# --- what comes back -------------------------------------------------------------------------------------------------


async def test_a_tree_deeper_than_a_path_may_be_long_comes_back(root: Path, journal: Journal) -> None:
    def descend(*, make: bool) -> int:
        with Descent(os.open(root, DIRECTORY)) as descent:
            for level in range(700):
                if make:
                    os.mkdir(f"level-{level:04}", dir_fd=descent.fd)
                try:
                    descent.enter(f"level-{level:04}")
                except FileNotFoundError:
                    return level
            if make:
                os.close(os.open("bottom", os.O_CREAT | os.O_WRONLY, dir_fd=descent.fd))
            return len(os.listdir(descent.fd)) + 700

    descend(make=True)
    archived = await back_up_tree(root)
    assert archived.facts["directories"] == 702
    subprocess.run(["rm", "-r", root], check=True)
    restorer = tree_restorer(root)
    await restore(restorer, archived, journal)
    assert descend(make=False) == 701
    await restorer.undo(journal.record)
    assert not root.exists()
    assert leftovers(root.parent) == []


async def test_holes_come_back_as_holes(root: Path, journal: Journal) -> None:
    with (root / "sparse").open("wb") as file:
        file.write(b"head")
        file.seek(50_000_001)
        file.write(b"tail")
    archived = await back_up_tree(root)
    before = listing(root)
    (root / "sparse").unlink()
    restorer = tree_restorer(root)
    await restore(restorer, archived, journal)
    assert listing(root) == before
    assert (root / "sparse").stat().st_blocks * 512 < 1_000_000
    await restorer.commit(journal.record)


async def test_owners_are_found_by_name_when_the_numbers_have_changed(root: Path, journal: Journal) -> None:
    writer = HeaderWriter()
    data = writer.header(Member("", Kind.DIRECTORY, 0o755, 12345, 23456, "postgres", "nobody-knows", 0)) + END
    archived = (await back_up_tree(root)).changed(data)
    archived.stored.facts.update(files=0, directories=1, bytes=0)  # type: ignore[attr-defined]
    restorer = tree_restorer(root)
    await restore(restorer, archived, journal)
    assert root.owner() == "postgres"
    assert root.stat().st_gid == 23456


async def test_a_root_that_is_a_link_is_restored_where_it_leads(root: Path, tmp_path: Path, journal: Journal) -> None:
    (tmp_path / "link").symlink_to(root)
    archived = await back_up_tree(tmp_path / "link")
    (root / "server.xml").write_text("changed")
    await restore(tree_restorer(tmp_path / "link"), archived, journal)
    assert (tmp_path / "link").is_symlink()
    assert (root / "server.xml").read_text() == "<server/>"


async def test_directories_of_an_overlays_lower_layer_are_restored_name_by_name(
    root: Path, tmp_path: Path, journal: Journal
) -> None:
    for name in ("upper", "work", "merged"):
        (tmp_path / "layers" / name).mkdir(parents=True)
    archived = await back_up_tree(root)
    layers = tmp_path / "layers"
    options = f"lowerdir={root.parent},upperdir={layers / 'upper'},workdir={layers / 'work'},redirect_dir=off"
    with mounted(layers / "merged", "-t", "overlay", "-o", options, "none"):
        live = layers / "merged" / "config"
        before = listing(live)
        (live / "server.xml").write_text("changed")
        (live / "sub" / "added").write_text("added")
        changed = listing(live)
        restorer = tree_restorer(live)
        await restore(restorer, archived, journal)
        assert listing(live) == before
        await restorer.undo(journal.record)
        assert listing(live) == changed
        again = Journal(tmp_path / "again")
        await restore(restorer, archived, again)
        await restorer.commit(again.record)
        assert listing(live) == before
        assert leftovers(layers / "merged") == []


async def test_without_permission_above_it_the_tree_is_restored_from_inside(root: Path, journal: Journal) -> None:
    for path in (root, *root.rglob("*")):
        os.chown(path, 65534, 65534)
    let_everybody_reach(root)
    with as_nobody():
        archived = await back_up_tree(root)
    before = listing(root)
    os.chown(journal.path.parent, 65534, 65534)
    with as_nobody():
        (root / "server.xml").write_text("changed")
        restorer = tree_restorer(root)
        assert (await restorer.plan(archived.stored))[1] == []
        await restore(restorer, archived, journal)
        await restorer.commit(journal.record)
    assert listing(root) == before


# --- what stands in the way ------------------------------------------------------------------------------------------


async def test_the_plan_names_what_is_replaced_what_stays_and_what_stands_in_the_way(root: Path) -> None:
    os.chown(root / "sub", 1, 1)
    archived = await back_up_tree(root, exclude=["cache"])
    (root / "cache").mkdir()
    let_everybody_reach(root)
    items, obstacles, _ = await tree_restorer(root).plan(archived.stored)
    assert [(item.what, item.action) for item in items] == [(str(root), "replace"), (f"{root}/cache", "keep")]
    assert obstacles == []
    with as_nobody():
        _, obstacles, _ = await tree_restorer(root).plan(archived.stored)
    assert {obstacle.code for obstacle in obstacles} == {"OWNERS_NEED_ROOT", "TREE_NOT_WRITABLE"}
    archived.stored.facts.update(bytes=1 << 60)  # type: ignore[attr-defined]
    _, obstacles, _ = await tree_restorer(root).plan(archived.stored)
    assert [obstacle.code for obstacle in obstacles] == ["NO_SPACE"]


async def test_the_plan_gives_the_archives_own_reason_for_what_stays(root: Path) -> None:
    (root / "cache").mkdir()
    archived = await back_up_tree(root, exclude=["cache"])
    items, _, _ = await tree_restorer(root).plan(archived.stored)
    assert [item.note for item in items if item.action == "keep"] == ["excluded by cache"]


async def test_a_single_mounted_file_stands_in_the_way(root: Path, tmp_path: Path) -> None:
    archived = await back_up_tree(root)
    (tmp_path / "secret").write_text("mounted")
    subprocess.run(["mount", "--bind", tmp_path / "secret", root / "server.xml"], check=True)
    try:
        _, obstacles, _ = await tree_restorer(root).plan(archived.stored)
        _, excluded, _ = await tree_restorer(root, exclude=["server.xml"]).plan(archived.stored)
    finally:
        subprocess.run(["umount", root / "server.xml"], check=True)
    assert [obstacle.code for obstacle in obstacles] == ["MOUNTED_FILE"]
    assert excluded == []


async def test_a_bind_mount_of_the_same_file_system_is_never_moved_nor_emptied(
    root: Path, tmp_path: Path, journal: Journal
) -> None:
    archived = await back_up_tree(root)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").write_text("mounted")
    (root / "live-only" / "here").mkdir(parents=True)
    with mounted(root / "live-only" / "here", "--bind", str(tmp_path / "elsewhere")):
        restorer = tree_restorer(root)
        await restore(restorer, archived, journal)
        assert "live-only/here" in mounts_below(root)
        assert os.listdir(root / "live-only" / "here") == [f".deviceon-backup-{journal.record['id']}-config"]
        await restorer.undo(journal.record)
        assert (tmp_path / "elsewhere" / "file").read_text() == "mounted"


async def test_a_full_disk_fails_the_copy_and_the_live_tree_is_as_it_was(root: Path, tmp_path: Path) -> None:
    (root / "big").write_bytes(os.urandom(3 << 20))
    archived = await back_up_tree(root)
    with mounted(tmp_path / "small"):
        live = tmp_path / "small" / "config"
        live.mkdir()
        (live / "server.xml").write_text("live")
        before = listing(tmp_path / "small")
        journal = Journal(tmp_path / "journal")
        restorer = tree_restorer(live)
        assert [o.code for o in (await restorer.plan(archived.stored))[1]] == ["NO_SPACE"]
        with pytest.raises(StageFailed, match="no room left"):
            await stage(restorer, archived, journal)
        await restorer.undo(journal.record)
        assert listing(tmp_path / "small") == before


async def test_what_the_archive_has_where_live_data_must_stay_is_refused_before_the_swap(
    root: Path, journal: Journal
) -> None:
    archived = await back_up_tree(root)
    (root / "sub" / "more").unlink()
    (root / "server.xml").unlink()
    (root / "server.xml").mkdir()
    (root / "server.xml" / "WiredTiger").write_text("precious")
    (root / "server.xml" / "WiredTiger.wt").write_text("precious")
    before = listing(root, inodes=True)
    restorer = tree_restorer(root)
    with pytest.raises(StageFailed, match="no directory in the archive"):
        await stage(restorer, archived, journal)
    await restorer.undo(journal.record)
    assert {path: value[:7] for path, value in listing(root).items()} == {p: v[:7] for p, v in before.items()}


async def test_an_area_that_is_not_mounted_any_more_stops_undo_before_it_removes_anything(
    root: Path, tmp_path: Path, journal: Journal
) -> None:
    archived = await back_up_tree(root)
    with mounted(root / "volume"):
        (root / "volume" / "v").write_text("old")
        restorer = tree_restorer(root)
        await restore(restorer, archived, journal)
        subprocess.run(["mount", "--bind", root / "sub", root / "volume"], check=True)  # hides the area
        try:
            with pytest.raises(SwapFailed, match="is not there"):
                await restorer.undo(journal.record)
        finally:
            subprocess.run(["umount", root / "volume"], check=True)
        await restorer.undo(journal.record)
        assert (root / "volume" / "v").read_text() == "old"
        assert (root / "server.xml").exists()


async def test_what_changes_between_the_copy_and_the_swap_is_not_lost(root: Path, journal: Journal) -> None:
    (root / "cache").mkdir()
    archived = await back_up_tree(root, exclude=["cache"])
    restorer = tree_restorer(root)
    await stage(restorer, archived, journal)
    saves = 0

    async def save() -> None:
        nonlocal saves
        saves += 1
        await journal.save()
        if saves == 1:  # the plan is made, nothing is exchanged yet
            (root / "new").write_text("written meanwhile")
            (root / "new").replace(root / "server.xml")

    with pytest.raises(SwapFailed, match=r"server\.xml changed"):
        await restorer.swap(journal.record, save)
    await restorer.undo(journal.record)
    assert (root / "server.xml").read_text() == "written meanwhile"


# --- hostile streams -------------------------------------------------------------------------------------------------


def tar(*members: tuple[str, Kind, str], root: bool = True, end: bytes = END) -> bytes:
    writer = HeaderWriter()
    found = [("", Kind.DIRECTORY, "")] if root else []
    data = b""
    for path, kind, text in [*found, *members]:
        body = text.encode() if kind is Kind.FILE else b""
        member = Member(path, kind, 0o644, 0, 0, "root", "root", 0, len(body), "" if kind is Kind.FILE else text)
        data += writer.header(member) + body + padding(len(body))
    return data + end


FILE, DIR, LINK, HARD = Kind.FILE, Kind.DIRECTORY, Kind.SYMLINK, Kind.HARD_LINK
EVIL = "evil"
HOSTILE = {
    "absolute name": tar(("/tmp/evil", FILE, EVIL)),
    "parent": tar(("../evil", FILE, EVIL)),
    "parent inside": tar(("a", DIR, ""), ("a/../../evil", FILE, EVIL)),
    "dot": tar(("./evil", FILE, EVIL)),
    "empty part": tar(("a", DIR, ""), ("a//evil", FILE, EVIL)),
    "through a link": tar(("a", LINK, "{outside}"), ("a/evil", FILE, EVIL)),
    "directory through a link": tar(("a", LINK, "{outside}"), ("a/evil", DIR, "")),
    "over a link": tar(("a", LINK, "{outside}/sentinel"), ("a", FILE, EVIL)),
    "directory over a link": tar(("a", LINK, "{outside}"), ("a", DIR, ""), ("a/evil", FILE, EVIL)),
    "hard link over a link": tar(("f", FILE, EVIL), ("a", LINK, "{outside}/evil"), ("a", HARD, "f")),
    "hard link to outside": tar(("a", HARD, "../outside/sentinel")),
    "hard link to absolute": tar(("a", HARD, "{outside}/sentinel")),
    "hard link through a link": tar(("a", LINK, "{outside}"), ("b", HARD, "a/sentinel")),
    "hard link to nothing": tar(("a", HARD, "b")),
    "hard link to a directory": tar(("a", DIR, ""), ("b", HARD, "a")),
    "hard link to the root": tar(("b", HARD, ".")),
    "twice": tar(("a", FILE, "1"), ("a", FILE, EVIL)),
    "file then directory": tar(("a", FILE, "1"), ("a", DIR, ""), ("a/evil", FILE, EVIL)),
    "directory then file": tar(("a", DIR, ""), ("a", FILE, EVIL)),
    "directory twice": tar(("a", DIR, ""), ("b", FILE, ""), ("a", DIR, "")),
    "back into a directory that was left": tar(("a", DIR, ""), ("b", DIR, ""), ("a/evil", FILE, EVIL)),
    "no directory": tar(("a/evil", FILE, EVIL)),
    "no root": tar(("evil", FILE, EVIL), root=False),
    "root twice": tar(("", DIR, "")),
    "no end": tar(("a", FILE, ""), end=b""),
    "half an end": tar(("a", FILE, ""), end=bytes(512)),
    "more after the end": tar(("a", FILE, ""), end=END + bytes(512)),
    "a member after the end": tar(("a", FILE, ""), end=END + tar(("b", FILE, EVIL))),
    "nothing": b"",
    "foreign": b"PK\3\4" * 1000,
    "name too long": tar(("n" * 256, FILE, EVIL)),
    "zero in a name": tar(("a\0" + "b" * 120, FILE, EVIL)),
    "link without a target": tar(("a", LINK, "")),
}
for kind in b"3467gLKSDVM":
    block = bytearray(512)
    block[:] = tar(("evil", FILE, ""), root=False)[1024:1536]
    block[156] = kind
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    HOSTILE[f"type {chr(kind)}"] = tar()[:-1024] + bytes(block) + END


@pytest.mark.parametrize("name", HOSTILE)
async def test_a_hostile_stream_is_refused_and_nothing_outside_the_copy_is_touched(
    name: str, root: Path, tmp_path: Path, journal: Journal
) -> None:
    outside = tmp_path / "srv" / "outside"
    outside.mkdir()
    (outside / "sentinel").write_text("sentinel")
    data = HOSTILE[name]
    if b"{outside}" in data:  # same length, so that the checksums can be made anew
        data = retarget(name, str(outside))
    archived = (await back_up_tree(root)).changed(data)
    before = listing(tmp_path / "srv")
    restorer = tree_restorer(root)
    with pytest.raises(CorruptArchive):
        await stage(restorer, archived, journal)
    await restorer.undo(journal.record)
    assert listing(tmp_path / "srv") == before
    assert not Path("/tmp/evil").exists()


def retarget(name: str, outside: str) -> bytes:
    links = {
        "through a link": [("a", LINK, outside), ("a/evil", FILE, EVIL)],
        "directory through a link": [("a", LINK, outside), ("a/evil", DIR, "")],
        "over a link": [("a", LINK, outside + "/sentinel"), ("a", FILE, EVIL)],
        "directory over a link": [("a", LINK, outside), ("a", DIR, ""), ("a/evil", FILE, EVIL)],
        "hard link over a link": [("f", FILE, EVIL), ("a", LINK, outside + "/evil"), ("a", HARD, "f")],
        "hard link to absolute": [("a", HARD, outside + "/sentinel")],
        "hard link through a link": [("a", LINK, outside), ("b", HARD, "a/sentinel")],
    }
    return tar(*links[name])


async def test_a_stream_cut_anywhere_is_refused(root: Path, tmp_path: Path) -> None:
    archived = await back_up_tree(root)
    before = listing(root)
    restorer = tree_restorer(root)
    for length in range(0, len(archived.data), 256):
        journal = Journal(tmp_path / f"journal.{length}")
        with pytest.raises(CorruptArchive):
            await stage(restorer, archived.changed(archived.data[:length]), journal)
        await restorer.undo(journal.record)
    assert listing(root) == before
    assert leftovers(tmp_path) == []


async def test_a_stream_that_is_not_what_the_manifest_counted_is_refused(root: Path, journal: Journal) -> None:
    archived = (await back_up_tree(root)).changed(tar(("server.xml", FILE, "")))
    with pytest.raises(StageFailed, match="manifest"):
        await stage(tree_restorer(root), archived, journal)


async def test_staging_that_is_cancelled_leaves_no_file_open_and_can_be_undone(root: Path, tmp_path: Path) -> None:
    (root / "big").write_bytes(os.urandom(3 << 20))
    archived = await back_up_tree(root)
    archived.piece = 4096
    before = listing(root)
    restorer = tree_restorer(root)
    open_files = sorted(os.listdir("/proc/self/fd"))
    for wait in (0.0, 0.001, 0.01, 0.02):
        journal = Journal(tmp_path / f"journal.{wait}")
        task = asyncio.create_task(stage(restorer, archived, journal))
        await asyncio.sleep(wait)
        task.cancel()
        await asyncio.wait({task})
        await restorer.undo(journal.record)
        assert listing(root) == before
    assert sorted(os.listdir("/proc/self/fd")) == open_files
    assert leftovers(tmp_path) == []
