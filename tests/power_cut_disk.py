"""A disk that forgets: a FUSE file system in memory, served by a process of its own, that power can be cut from.

What was written is seen at once by everybody, and is durable only after fsync of the file; a name, only after fsync of
its directory. When the power is cut, of what was not durable a random part survives: pages of 4 KiB whole, torn at a
sector or not at all, sizes old or new, names in the order they were given or some of them. It is the least that a file
system may promise; ext4 and XFS promise more.

It speaks the kernel's protocol itself (linux/fuse.h), because the libraries know neither O_TMPFILE nor the flags of
renameat2, which is how archives are published and trees exchanged. What FUSE does not pass on is syncfs: whoever looks
up the name `SYNC_ALL` has asked for it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import select
import signal
import stat
import struct
import sys
from collections.abc import Callable
from typing import Any

from tests.power_cut_memory import ROOT, Inode, World

SYNC_ALL = ".sync-everything"
_HEADER = struct.Struct("<IIQQIIII")
_ATTR = struct.Struct("<QQQQQQIIIIIIIIII")
_ENTRY = struct.Struct("<QQQQII")
_SETATTR = struct.Struct("<IIQQQQQQIIIIIIII")
_IO = struct.Struct("<QQIIQII")
_FOREVER = 1 << 30
_MAX_WRITE = 1 << 20
_BIG_WRITES, _MAX_PAGES = 1 << 5, 1 << 22
_NOREPLACE, _EXCHANGE = 1, 2
_MNT_DETACH = 2
_libc = ctypes.CDLL(None, use_errno=True)

Reply = bytes | None


def _name(data: bytes) -> str:
    return os.fsdecode(data.split(b"\0", 1)[0])


class Disk:
    """The mounted disk: answers the kernel, counts changes, and fails where it was told to."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.world = World()
        self.saved = World()
        self.fuse = -1
        self.changes = self.syncs = 0
        self.cut_at = self.fail_sync_at = 0
        self.victim = 0
        self.dead = False
        self.failed = ""

    def mount(self) -> None:
        self.fuse = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        options = f"fd={self.fuse},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions".encode()
        if _libc.mount(b"power-cut", os.fsencode(self.directory), b"fuse", 0, options):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), "mounting FUSE")

    def unmount(self) -> None:
        os.close(self.fuse)  # the kernel fails what still waits
        _libc.umount2(os.fsencode(self.directory), _MNT_DETACH)

    def serve(self) -> None:
        """Answer the kernel and the test, until the test has gone."""
        self.mount()
        sys.stdout.write("{}\n")
        sys.stdout.flush()
        commands = os.fdopen(0, "rb", buffering=0)
        try:
            while True:
                ready, _, _ = select.select([self.fuse, commands.fileno()], [], [])
                if commands.fileno() in ready:
                    line = commands.readline()
                    if not line:
                        return
                    sys.stdout.write(json.dumps(self._command(**json.loads(line))) + "\n")
                    sys.stdout.flush()
                elif self.fuse in ready:
                    with contextlib.suppress(InterruptedError, FileNotFoundError):
                        self._answer(os.read(self.fuse, _MAX_WRITE + (1 << 16)))
        finally:
            self.unmount()

    def _command(self, do: str, **given: Any) -> dict[str, Any]:
        match do:
            case "arm":
                self.changes = self.syncs = 0
                self.failed = ""
                self.cut_at, self.fail_sync_at, self.victim = given["cut_at"], given["fail_sync_at"], given["victim"]
            case "cut":  # and switched on again; the dice decide what survives
                self.unmount()
                lost = self.world.cut(given["seed"])
                self.dead, self.cut_at, self.fail_sync_at = False, 0, 0
                self.mount()
                return {"lost": lost, "changes": self.changes, "syncs": self.syncs, "failed": self.failed}
            case "save":
                self.world.sync_all()
                self.saved = self.world.copy()
            case "load":
                self.unmount()
                self.world = self.saved.copy()
                self.mount()
        return {"changes": self.changes, "syncs": self.syncs}

    def _answer(self, request: bytes) -> None:
        length, opcode, unique, node, uid, gid, _, _ = _HEADER.unpack_from(request)
        body = request[_HEADER.size : length]
        handler = self._HANDLERS.get(opcode)
        if opcode in (2, 42):  # FORGET, BATCH_FORGET have no answer
            return
        error, answer = 0, b""
        try:
            self._refuse(opcode)
            assert handler is not None
            answer = handler(self, self.world.inodes[node or ROOT], body, uid, gid) or b""
        except OSError as problem:
            error = problem.errno or errno.EIO
        except KeyError:
            error = errno.ENOENT
        with contextlib.suppress(OSError):  # whoever asked has gone
            os.write(self.fuse, struct.pack("<IiQ", 16 + len(answer), -error, unique) + answer)

    def _refuse(self, opcode: int) -> None:
        if self.dead:
            raise OSError(errno.EIO, "")
        if opcode not in self._HANDLERS:
            raise OSError(errno.ENOSYS, "")
        if opcode not in self._CHANGES:
            return
        self.changes += 1
        if self.changes == self.cut_at:
            self.dead = True
            if self.victim:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.victim, signal.SIGKILL)
            raise OSError(errno.EIO, "")
        if opcode in (20, 30):
            self.syncs += 1

    # What the kernel asks. Each gets the inode, the request's body, and who asks.

    def _init(self, inode: Inode, body: bytes, uid: int, gid: int) -> Reply:
        answer = struct.pack("<IIIIHHIIHHI", 7, 31, 1 << 17, _BIG_WRITES | _MAX_PAGES, 12, 9, _MAX_WRITE, 1, 256, 0, 0)
        return answer + bytes(64 - len(answer))

    def _lookup(self, inode: Inode, body: bytes, uid: int, gid: int) -> Reply:
        name = _name(body)
        if name == SYNC_ALL:
            self.world.sync_all()
        return self._entry(self.world.child(inode, name))

    def _getattr(self, inode: Inode, body: bytes, uid: int, gid: int) -> Reply:
        return struct.pack("<QII", _FOREVER, 0, 0) + self._attributes(inode)

    def _setattr(self, inode: Inode, body: bytes, uid: int, gid: int) -> Reply:
        valid, _, _, size, _, atime, mtime, _, atime_ns, mtime_ns, _, mode, _, owner, group, _ = _SETATTR.unpack_from(
            body
        )
        if valid & 1:
            inode.mode = stat.S_IFMT(inode.mode) | stat.S_IMODE(mode)
        if valid & 2:
            inode.uid = owner
        if valid & 4:
            inode.gid = group
        if valid & 8:
            inode.resize(size)
        if valid & 16:
            inode.atime = self.world.now() if valid & 128 else atime * 10**9 + atime_ns
        if valid & 32:
            inode.mtime = self.world.now() if valid & 256 else mtime * 10**9 + mtime_ns
        return self._getattr(inode, body, uid, gid)

    def _readlink(self, inode: Inode, body: bytes, uid: int, gid: int) -> Reply:
        return inode.link

    def _symlink(self, inode: Inode, body: bytes, uid: int, gid: int) -> Reply:
        name, link = body.split(b"\0")[:2]
        made = self.world.new(stat.S_IFLNK | 0o777, uid, gid)
        made.link = link
        self.world.name(inode, os.fsdecode(name), made)
        return self._entry(made)

    def _mkdir(self, inode: Inode, body: bytes, uid: int, gid: int) -> Reply:
        mode, umask = struct.unpack_from("<II", body)
        made = self.world.new(stat.S_IFDIR | (mode & ~umask), uid, gid)
        self.world.name(inode, _name(body[8:]), made)
        return self._entry(made)

    def _mknod(self, inode: Inode, body: bytes, uid: int, gid: int) -> Reply:
        mode, _, umask, _ = struct.unpack_from("<IIII", body)
        made = self.world.new(mode & ~umask, uid, gid)
        self.world.name(inode, _name(body[16:]), made)
        return self._entry(made)

    def _create(self, inode: Inode, body: bytes, uid: int, gid: int) -> Reply:
        _, mode, umask, _ = struct.unpack_from("<IIII", body)
        made = self.world.new(stat.S_IFREG | (stat.S_IMODE(mode) & ~umask), uid, gid)
        self.world.name(inode, _name(body[16:]), made)
        return self._entry(made) + bytes(16)

    def _tmpfile(self, inode: Inode, body: bytes, uid: int, gid: int) -> Reply:
        _, mode, umask, _ = struct.unpack_from("<IIII", body)
        return self._entry(self.world.new(stat.S_IFREG | (stat.S_IMODE(mode) & ~umask), uid, gid)) + bytes(16)

    def _unlink(self, inode: Inode, body: bytes, uid: int, gid: int) -> Reply:
        self.world.unname(inode, _name(body))
        return b""

    def _rmdir(self, inode: Inode, body: bytes, uid: int, gid: int) -> Reply:
        if self.world.child(inode, _name(body)).entries:
            raise OSError(errno.ENOTEMPTY, "")
        self.world.unname(inode, _name(body))
        return b""

    def _rename(self, inode: Inode, body: bytes, uid: int, gid: int, *, flags: int = 0, start: int = 8) -> Reply:
        (parent,) = struct.unpack_from("<Q", body)
        old, new = (os.fsdecode(name) for name in body[start:].split(b"\0")[:2])
        target = self.world.inodes[parent]
        if flags & _NOREPLACE and new in target.entries:
            raise OSError(errno.EEXIST, "")
        self.world.rename(inode, old, target, new, exchange=bool(flags & _EXCHANGE))
        return b""

    def _rename2(self, inode: Inode, body: bytes, uid: int, gid: int) -> Reply:
        (flags,) = struct.unpack_from("<I", body, 8)
        return self._rename(inode, body, uid, gid, flags=flags, start=16)

    def _link(self, inode: Inode, body: bytes, uid: int, gid: int) -> Reply:
        (old,) = struct.unpack_from("<Q", body)
        name = _name(body[8:])
        if name in inode.entries:
            raise OSError(errno.EEXIST, "")
        self.world.name(inode, name, self.world.inodes[old])
        return self._entry(self.world.inodes[old])

    def _open(self, inode: Inode, body: bytes, uid: int, gid: int) -> Reply:
        return bytes(16)

    def _nothing(self, inode: Inode, body: bytes, uid: int, gid: int) -> Reply:
        return b""

    def _read(self, inode: Inode, body: bytes, uid: int, gid: int) -> Reply:
        _, offset, size, *_ = _IO.unpack_from(body)
        return bytes(inode.data[offset : offset + size])

    def _write(self, inode: Inode, body: bytes, uid: int, gid: int) -> Reply:
        _, offset, size, *_ = _IO.unpack_from(body)
        inode.write(offset, body[_IO.size : _IO.size + size])
        inode.mtime = self.world.now()
        return struct.pack("<II", size, 0)

    def _fsync(self, inode: Inode, body: bytes, uid: int, gid: int) -> Reply:
        if self.syncs == self.fail_sync_at:
            self.failed = "directory" if stat.S_ISDIR(inode.mode) else "file"
            self.world.forget(inode)
            raise OSError(errno.EIO, "")
        self.world.sync(inode)
        return b""

    def _statfs(self, inode: Inode, body: bytes, uid: int, gid: int) -> Reply:
        return struct.pack("<QQQQQIIII", 1 << 20, 1 << 19, 1 << 19, 1 << 20, 1 << 19, 4096, 255, 4096, 0) + bytes(24)

    def _readdir(self, inode: Inode, body: bytes, uid: int, gid: int) -> Reply:
        _, offset, size, *_ = _IO.unpack_from(body)
        answer = b""
        for number, (name, child) in enumerate(list(inode.entries.items())[offset:], offset + 1):
            raw = os.fsencode(name)
            kind = self.world.inodes[child].mode >> 12
            record = struct.pack("<QQII", child, number, len(raw), kind) + raw
            record += bytes(-len(record) % 8)
            if len(answer) + len(record) > size:
                break
            answer += record
        return answer

    def _setxattr(self, inode: Inode, body: bytes, uid: int, gid: int) -> Reply:
        size, _ = struct.unpack_from("<II", body)
        name, rest = body[8:].split(b"\0", 1)
        inode.xattrs[name] = rest[:size]
        return b""

    def _getxattr(self, inode: Inode, body: bytes, uid: int, gid: int) -> Reply:
        (size,) = struct.unpack_from("<I", body)
        name = body[8:].split(b"\0", 1)[0]
        if name not in inode.xattrs:
            raise OSError(errno.ENODATA, "")
        return self._sized(inode.xattrs[name], size)

    def _listxattr(self, inode: Inode, body: bytes, uid: int, gid: int) -> Reply:
        (size,) = struct.unpack_from("<I", body)
        return self._sized(b"".join(name + b"\0" for name in inode.xattrs), size)

    def _removexattr(self, inode: Inode, body: bytes, uid: int, gid: int) -> Reply:
        if inode.xattrs.pop(body.split(b"\0", 1)[0], None) is None:
            raise OSError(errno.ENODATA, "")
        return b""

    @staticmethod
    def _sized(value: bytes, size: int) -> bytes:
        if size == 0:
            return struct.pack("<II", len(value), 0)
        if size < len(value):
            raise OSError(errno.ERANGE, "")
        return value

    def _entry(self, inode: Inode) -> bytes:
        return _ENTRY.pack(inode.number, inode.generation, _FOREVER, _FOREVER, 0, 0) + self._attributes(inode)

    def _attributes(self, inode: Inode) -> bytes:
        size = len(inode.link) if stat.S_ISLNK(inode.mode) else len(inode.data)
        seconds = [divmod(time, 10**9) for time in (inode.atime, inode.mtime, inode.mtime)]
        links = self.world.links(inode)
        return _ATTR.pack(
            *(inode.number, size, (size + 511) // 512, *(time[0] for time in seconds)),
            *(*(time[1] for time in seconds), inode.mode, links, inode.uid, inode.gid, 0, 4096, 0),
        )

    _HANDLERS: dict[int, Callable[[Disk, Inode, bytes, int, int], Reply]] = {  # noqa: RUF012
        **{1: _lookup, 3: _getattr, 4: _setattr, 5: _readlink, 6: _symlink, 8: _mknod, 9: _mkdir, 10: _unlink},
        **{11: _rmdir, 12: _rename, 13: _link, 14: _open, 15: _read, 16: _write, 17: _statfs, 18: _nothing},
        **{20: _fsync, 21: _setxattr, 22: _getxattr, 23: _listxattr, 24: _removexattr, 25: _nothing, 26: _init},
        **{27: _open, 28: _readdir, 29: _nothing, 30: _fsync, 35: _create, 38: _nothing, 45: _rename2, 51: _tmpfile},
    }
    _CHANGES = frozenset({4, 6, 8, 9, 10, 11, 12, 13, 16, 20, 21, 24, 30, 35, 45, 51})


if __name__ == "__main__":
    assert ROOT == 1
    Disk(sys.argv[1]).serve()
