"""Whatever tree there is, it comes back equal: from our own restore, and from `tar x` by hand."""

from __future__ import annotations

import asyncio
import os
import stat
import struct
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from service.errors import CorruptArchive
from service.sources.directories import DIRECTORY, Descent
from service.sources.selection import SPECIAL
from service.sources.tar_reader import TarReader
from service.sources.tar_stream import END, HeaderWriter, Kind, Member, padding
from tests.sizes import examples
from tests.trees import Journal, Listing, back_up_tree, leftovers, listing, restore, tree_restorer

Tree = tuple[Any, ...]
Sparse = dict[int, bytes]
"""A file with holes: what is in it, by offset."""

names = (
    st.one_of(
        st.binary(min_size=1, max_size=24),
        st.text(min_size=1, max_size=30).map(lambda text: text.encode("utf-8", "replace")),
        st.integers(90, 255).map(lambda n: b"n" * n),
        st.sampled_from([b"new\nline", b"..\n", b" ", b"-rf", b"...", b"\xff\xfe", b"%41", b"a=b", b"PaxHeaders"]),
    )
    .map(lambda raw: raw.replace(b"/", b"_").replace(b"\0", b"_")[:255])
    .filter(lambda raw: raw not in {b"", b".", b".."} and not raw.startswith(b".deviceon-backup-"))
    .map(os.fsdecode)
)
modes = st.integers(0, 0o7777)
owners = st.tuples(st.sampled_from([0, 1, 101, 4_000_000, 2**31]), st.sampled_from([0, 42, 70_000, 3_000_000]))
times = st.integers(-(10**18), 4 * 10**18)
contents = st.one_of(
    st.binary(max_size=2000),
    st.sampled_from([b"", bytes(512), b"x" * 511, b"y" * (1 << 20), b"z" * ((1 << 20) + 1), bytes(300_000) + b"end"]),
    st.integers(0, 3_000_000).map(lambda n: b"head" + bytes(n) + b"tail"),
)
sparse: st.SearchStrategy[Sparse] = st.dictionaries(
    st.integers(0, 8_000_000) | st.integers(0, 120).map(lambda n: n * 65536),
    st.binary(min_size=1, max_size=70),
    max_size=4,
)
CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")


@st.composite
def acls(draw: st.DrawFn) -> bytes:
    """Access control lists of some users and groups, as Linux keeps them."""
    nobody, rights, who = 2**32 - 1, st.integers(0, 7), st.lists(st.integers(1, 2**31), max_size=3, unique=True)
    entries = [(0x01, draw(rights), nobody)]
    entries += [(0x02, draw(rights), user) for user in sorted(draw(who))]
    entries.append((0x04, draw(rights), nobody))
    entries += [(0x08, draw(rights), group) for group in sorted(draw(who))]
    entries += [(0x10, draw(rights), nobody), (0x20, draw(rights), nobody)]
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


xattrs = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["user.a", "user.b=c%3D", "trusted.t", "user.\u00fc"]), st.binary(max_size=300)),
        st.just(("security.capability", CAPABILITY)),
        st.tuples(st.just("system.posix_acl_access"), acls()),
        st.tuples(st.just("system.posix_acl_default"), acls()),
    ),
    max_size=3,
    unique_by=lambda pair: pair[0],
)
meta = st.tuples(modes, owners, times, xattrs)
files: st.SearchStrategy[Tree] = st.tuples(st.just("file"), contents, meta)
holed: st.SearchStrategy[Tree] = st.tuples(st.just("file"), sparse, meta)
links: st.SearchStrategy[Tree] = st.tuples(
    st.just("link"), names | st.sampled_from(["/etc/passwd", "../..", "x" * 300]), owners, times
)
hard_links: st.SearchStrategy[Tree] = st.tuples(st.just("hard"), st.integers(0, 5))
specials: st.SearchStrategy[Tree] = st.tuples(
    st.just("special"), st.sampled_from([stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK])
)
deep: st.SearchStrategy[Tree] = st.tuples(
    st.just("deep"),
    st.lists(names, min_size=1, max_size=60).map(lambda some: [(n + "d" * 250)[:80] for n in some]),
    files,
)
"""A file below so many directories that its path may be longer than the system takes."""


def trees_of(*nodes: st.SearchStrategy[Tree]) -> st.SearchStrategy[Tree]:
    """Trees of these, and of directories."""

    def directories(least: int, most: int) -> st.SearchStrategy[Tree]:
        return st.tuples(st.just("dir"), st.dictionaries(names, node, min_size=least, max_size=most), meta)

    node: st.SearchStrategy[Tree] = st.deferred(lambda: st.one_of(*nodes, inner))
    inner = directories(0, 5)
    return directories(1, 6)


ordinary = (files, files, holed, links, hard_links)


def build(path: Path, tree: Tree, made: list[Path]) -> None:
    kind = tree[0]
    if kind == "hard":
        if made:
            os.link(made[tree[1] % len(made)], path, follow_symlinks=False)
        else:
            path.touch()
    elif kind == "link":
        _, target, (uid, gid), time = tree
        path.symlink_to(target)
        os.chown(path, uid, gid, follow_symlinks=False)
        os.utime(path, ns=(time, time), follow_symlinks=False)
        made.append(path)
    elif kind == "special":
        # Of its own name: whatever is live where a backup left something out stays there.
        os.mknod(path.parent / f"special {len(list(path.parent.iterdir()))}", tree[1] | 0o640, os.makedev(1, 3))
    elif kind == "deep":
        path.mkdir()
        with Descent(os.open(path, DIRECTORY)) as descent:
            for name in tree[1]:
                os.mkdir(name, dir_fd=descent.fd)
                descent.enter(name)
            build(Path(f"/proc/self/fd/{descent.fd}/bottom"), tree[2], [])
    elif kind in {"file", "dir"}:
        _, content, (mode, (uid, gid), time, attributes) = tree
        if kind == "dir":
            path.mkdir()
            for name, below in content.items():
                build(path / name, below, made)
        elif isinstance(content, dict):
            with path.open("wb") as file:
                for offset, data in content.items():
                    file.seek(offset)
                    file.write(data)
            made.append(path)
        else:
            path.write_bytes(content)
            made.append(path)
        os.chown(path, uid, gid)
        path.chmod(mode)
        for key, value in attributes:
            if (kind == "dir" and key == "security.capability") or (kind == "file" and key.endswith("_default")):
                continue
            os.setxattr(path, key, value)
        os.utime(path, ns=(time, time))


def blocks(root: Path) -> dict[tuple[str, str], int]:
    """How much of the disk each file takes, in blocks of 512 bytes."""
    return {
        (above, name): os.stat(name, dir_fd=fd, follow_symlinks=False).st_blocks
        for above, _, files, fd in os.fwalk(root)
        for name in files
    }


@settings(max_examples=examples(60), deadline=None, suppress_health_check=list(HealthCheck))
@given(
    tree=trees_of(*ordinary, specials, deep),
    old=st.none() | trees_of(*ordinary, deep),
    cut=st.sampled_from([1 << 20, 511, 4096]),
)
@example(
    tree=("dir", {"a": ("file", b"x" * 3_000_000, (0o4755, (101, 42), 1, [("user.a", b"")]))}, (0, (0, 0), 0, [])),
    old=None,
    cut=511,
)
def test_any_tree_comes_back_equal(tree: Tree, old: Tree | None, cut: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        top = Path(directory)
        root = top / "root"
        build(root, tree, [])
        found = listing(root)
        archived = asyncio.run(back_up_tree(root))
        assert not archived.facts["warnings"]
        before = {path: told for path, told in found.items() if told[0] in {stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK}}
        assert len(archived.facts["excluded"]) == len(found) - len(before)
        assert {told["reason"] for told in archived.facts["excluded"]} <= {SPECIAL}
        assert listing(root) == found
        taken = blocks(root)
        root.rename(top / "gone")
        was = None
        if old is not None:
            build(root, old, [])
            was = listing(root, inodes=True)
        archived.piece = cut

        async def there_and_back() -> None:
            restorer, journal = tree_restorer(root), Journal(top / "journal")
            await restore(restorer, archived, journal)
            assert listing(root) == before
            assert all(now <= 16 * taken[file] + 8 for file, now in blocks(root).items()), "holes are holes of 64 KiB"
            await restorer.undo(journal.record)
            now = listing(root, inodes=True)
            assert (now if was is None else {p: v[:8] for p, v in now.items()}) == (
                {} if was is None else {p: v[:8] for p, v in was.items()}
            )
            journal = Journal(top / "journal.2")
            await restore(restorer, archived, journal)
            await restorer.commit(journal.record)

        asyncio.run(there_and_back())
        assert listing(root) == before
        assert not leftovers(top)


@settings(max_examples=examples(25), deadline=None, suppress_health_check=list(HealthCheck))
@given(tree=trees_of(*ordinary))
def test_gnu_tar_and_bsdtar_unpack_any_tree_by_hand(tree: Tree) -> None:
    with tempfile.TemporaryDirectory() as directory:
        top = Path(directory)
        root = top / "root"
        build(root, tree, [])
        before = listing(root)
        archived = asyncio.run(back_up_tree(root))
        (top / "tree.tar").write_bytes(archived.data)
        commands = {
            "gnu": ["tar", "-x", "-p", "-f", "tree.tar", "--numeric-owner", "--xattrs", "--xattrs-include=*", "-C"],
            "bsd": ["bsdtar", "-x", "-p", "-f", "tree.tar", "--numeric-owner", "--xattrs", "-C"],
        }
        for name, command in commands.items():
            if name == "bsd" and any(path.startswith("\\") for path in before):
                continue  # bsdtar takes a backslash away from the front of a name, as it does a slash
            (top / name).mkdir()
            done = subprocess.run([*command, name], cwd=top, capture_output=True, check=False)
            assert done.returncode == 0, done.stderr
            after, expected = listing(top / name), before
            if name == "bsd":
                after, expected = as_bsdtar_restores(after, before), as_bsdtar_restores(before, before)
            assert after == expected, done.stderr


def as_bsdtar_restores(found: Listing, original: Listing) -> Listing:
    """bsdtar sets some attributes only, leaves its target directory's time, and misreads times before 1970."""

    def told(path: str, value: tuple[Any, ...]) -> tuple[Any, ...]:
        return (*value[:4], value[4] if path and original[path][4] >= 0 else None, *value[6:])

    return {path: told(path, value) for path, value in found.items()}


@settings(max_examples=examples(200), deadline=None)
@given(data=st.binary(max_size=2048), at=st.integers(0, 4000), flips=st.integers(1, 255))
def test_a_changed_stream_is_refused_or_read_but_never_crashes_the_reader(data: bytes, at: int, flips: int) -> None:
    writer = HeaderWriter()
    member = Member("a" * 120, Kind.FILE, 0o644, 0, 0, "", "", 5, len(data), "", (("user.a", b"1"),))
    whole = writer.header(Member("", Kind.DIRECTORY, 0o755, 0, 0, "root", "root", 0))
    whole += writer.header(member) + data + padding(len(data)) + END
    at %= len(whole)
    changed = whole[:at] + bytes([whole[at] ^ flips]) + whole[at + 1 :]
    for stream in (changed, whole[:at], whole + data[:1]):
        reader = TarReader()
        try:
            for _ in reader.feed(stream):
                pass
            reader.finish()
        except CorruptArchive:
            continue
        assert stream is changed or stream == whole
