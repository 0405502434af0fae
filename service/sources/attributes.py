"""What a file has besides its content: owner, mode, time, extended attributes (ACLs and capabilities are some)."""

from __future__ import annotations

import base64
import errno
import functools
import grp
import os
import pwd
import stat
from collections.abc import Callable
from typing import Any, NamedTuple

Xattrs = tuple[tuple[str, bytes], ...]

_BY_POLICY = ("security.selinux", "security.ima", "security.evm")
"""Set and refused by the system's own policy; a refusal does not spoil a restore."""


class Attributes(NamedTuple):
    """Owner, permission bits, modification time in ns since 1970 and extended attributes (sorted, raw bytes)."""

    mode: int
    uid: int
    gid: int
    mtime_ns: int
    xattrs: Xattrs = ()

    def to_json(self) -> dict[str, Any]:
        """Give a form that JSON can hold."""
        xattrs = [[name, base64.b64encode(value).decode()] for name, value in self.xattrs]
        return {"mode": self.mode, "uid": self.uid, "gid": self.gid, "mtime_ns": self.mtime_ns, "xattrs": xattrs}

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Attributes:
        """Read what `to_json` gave."""
        xattrs = tuple((name, base64.b64decode(value)) for name, value in found["xattrs"])
        return cls(found["mode"], found["uid"], found["gid"], found["mtime_ns"], xattrs)


def read_attributes(fd: int) -> Attributes:
    """Read all of an open file's or directory's."""
    status = os.fstat(fd)
    return Attributes(stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, status.st_mtime_ns, read_xattrs(fd))


def read_xattrs(fd: int) -> Xattrs:
    """Read the extended attributes; none where the file system has no such thing."""
    try:
        names = os.listxattr(fd)
        return tuple((name, os.getxattr(fd, name)) for name in sorted(names)) if names else ()
    except OSError as exc:
        if exc.errno == errno.ENOTSUP:
            return ()
        raise


def read_link_xattrs(name: str, dir_fd: int) -> Xattrs:
    """Read those of a symbolic link itself."""
    # There is no descriptor of a link that the kernel takes here; the way through /proc stays in the directory.
    path = f"/proc/self/fd/{dir_fd}/{name}"
    try:
        names = os.listxattr(path, follow_symlinks=False)
        return tuple((key, os.getxattr(path, key, follow_symlinks=False)) for key in sorted(names))
    except OSError as exc:
        if exc.errno == errno.ENOTSUP:
            return ()
        raise


def apply_attributes(fd: int, wanted: Attributes, *, say: Callable[[str], None], exactly: bool = False) -> None:
    """Give an open file or directory its attributes; `exactly` also removes extended attributes not wanted.

    The order matters: chown clears set-user-ID bits and capabilities, chmod would rewrite an ACL's mask, and all of
    them are over before the time is set. Owner and mode are looked at first: a new file mostly has them already, and
    to the file system each setting is a transaction.
    """
    found = os.fstat(fd)
    another_owner = found.st_uid != wanted.uid or found.st_gid != wanted.gid
    if another_owner:
        os.fchown(fd, wanted.uid, wanted.gid)
    if another_owner or found.st_mode & 0o7777 != wanted.mode:
        os.fchmod(fd, wanted.mode)
    if exactly:
        keep = {name for name, _ in wanted.xattrs}
        for name, _ in read_xattrs(fd):
            if name not in keep and name not in _BY_POLICY:
                os.removexattr(fd, name)
    for name, value in wanted.xattrs:
        set_xattr(fd, name, value, say=say)
    os.utime(fd, ns=(wanted.mtime_ns, wanted.mtime_ns))


def apply_link_attributes(name: str, dir_fd: int, wanted: Attributes, *, say: Callable[[str], None]) -> None:
    """Give a symbolic link itself its owner, extended attributes and time."""
    os.chown(name, wanted.uid, wanted.gid, dir_fd=dir_fd, follow_symlinks=False)
    for key, value in wanted.xattrs:
        set_xattr(f"/proc/self/fd/{dir_fd}/{name}", key, value, say=say)
    os.utime(name, ns=(wanted.mtime_ns, wanted.mtime_ns), dir_fd=dir_fd, follow_symlinks=False)


def set_xattr(target: int | str, name: str, value: bytes, *, say: Callable[[str], None]) -> None:
    """Set one extended attribute; what the system's policy alone decides may be refused, and is then only said."""
    try:
        if isinstance(target, int):
            os.setxattr(target, name, value)
        else:
            os.setxattr(target, name, value, follow_symlinks=False)
    except OSError as exc:
        if name not in _BY_POLICY:
            raise OSError(exc.errno, f"extended attribute {name}: {exc.strerror}") from exc
        say(f"The attribute {name} could not be set here ({exc.strerror}); the system's policy decides it.")


def unprivileged(wanted: Attributes) -> Attributes:
    """Return what somebody who is not root can give to a file of their own."""
    kept = tuple(item for item in wanted.xattrs if item[0].startswith(("user.", "system.posix_acl_")))
    return Attributes(wanted.mode & 0o777, os.geteuid(), os.getegid(), wanted.mtime_ns, kept)


def strip_acls(fd: int) -> None:
    """Take inherited ACLs off a new directory, so that what is made in it inherits none."""
    for name, _ in read_xattrs(fd):
        if name.startswith("system.posix_acl_"):
            os.removexattr(fd, name)


@functools.lru_cache(maxsize=4096)
def user_name(uid: int) -> str:
    """The user's name; empty when the number has none here."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return ""


@functools.lru_cache(maxsize=4096)
def group_name(gid: int) -> str:
    """The group's name; empty when the number has none here."""
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return ""


def user_here(uid: int, name: str) -> int:
    """The number that a recorded user has on this system: by name when the name is known here, like `tar` does.

    A server that was installed anew may have given its user another number.
    """
    try:
        return pwd.getpwnam(name).pw_uid if name else uid
    except KeyError:
        return uid


def group_here(gid: int, name: str) -> int:
    """The number that a recorded group has on this system; see `user_here`."""
    try:
        return grp.getgrnam(name).gr_gid if name else gid
    except KeyError:
        return gid
