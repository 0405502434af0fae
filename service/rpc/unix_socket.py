"""The file that the service listens on: private from its first moment, never another service's, gone at the end.

A lock file beside it tells a running service from a socket that a killed one left. The lock file stays: removing it
would let two services hold the lock at once.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import grp
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from service.errors import ConfigError, JobRefused

LONGEST: Final = 107
"""Bytes of a path that fit into `sockaddr_un` with the zero at its end."""
BACKLOG: Final = 1024
CONNECT_SECONDS: Final = 1.0


@contextlib.contextmanager
def listening(
    path: Path, *, group: str | int | None = None, given: socket.socket | None = None
) -> Iterator[socket.socket]:
    """Listen on `path` (0660, of `group` if given) in a directory with mode 0750; give the socket, non-blocking.

    With `given`, a socket that systemd listens on, only look whether it is as it should be: its file stays at the end.
    Raises JobRefused when another service runs on this socket, ConfigError when the path cannot be used.
    """
    with contextlib.ExitStack() as held:
        try:
            listener = _listen(path, group, held) if given is None else _take(held.enter_context(given), path, held)
        except OSError as exc:
            raise ConfigError(
                f"the service cannot listen on {path}: {exc.strerror}",
                hint="Give it a directory of its own, with mode 0750, and a group that it is in.",
            ) from exc
        yield listener


def _listen(path: Path, group: str | int | None, held: contextlib.ExitStack) -> socket.socket:
    _check_length(path)
    gid = _gid(group)
    _prepare_directory(path.parent, gid)
    held.enter_context(_lock(path))
    _remove_stale(path)
    listener = held.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
    _bind(listener, path)
    held.callback(_remove_if_still, path, path.lstat())
    if gid is not None:
        os.chown(path, -1, gid)
    listener.listen(BACKLOG)  # only now, so that nobody connects before its group is right
    listener.setblocking(False)
    return listener


def _take(given: socket.socket, path: Path, held: contextlib.ExitStack) -> socket.socket:
    name = given.getsockname()
    if name != os.fspath(path):
        raise ConfigError(
            f"systemd listens on {name!r}, and service.socket is {path}",
            hint="Let ListenStream= of deviceon-backup.socket and service.socket name the same path.",
        )
    _prepare_directory(path.parent, None)
    held.enter_context(_lock(path))
    found = path.lstat()
    if not stat.S_ISSOCK(found.st_mode) or stat.S_IMODE(found.st_mode) & 0o007 or found.st_uid not in {0, os.geteuid()}:
        raise ConfigError(
            f"{path} (mode {stat.S_IMODE(found.st_mode):04o}, uid {found.st_uid}) is not private enough for commands",
            hint="Set SocketMode=0660 in deviceon-backup.socket, and leave SocketUser= out.",
        )
    given.setblocking(False)
    return given


def _check_length(path: Path) -> None:
    encoded = os.fsencode(path)
    if len(encoded) > LONGEST:
        raise ConfigError(
            f"the path of the socket has {len(encoded)} bytes, {LONGEST} are the limit: {path}",
            hint="Use a short one, such as /run/deviceon-backup/service.sock.",
        )
    if b"\0" in encoded:  # would be an abstract socket: no permissions, and seen in the whole network namespace
        raise ConfigError("the path of the socket has a zero byte in it", hint="Give the path of a file.")


def _gid(group: str | int | None) -> int | None:
    if group is None or isinstance(group, int):
        return group
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError as exc:
        raise ConfigError(
            f"there is no group {group!r}", hint="Make the group, or give its number (in containers)."
        ) from exc


def _prepare_directory(directory: Path, gid: int | None) -> None:
    try:
        directory.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        found = directory.stat()
        if not stat.S_ISDIR(found.st_mode):
            raise NotADirectoryError(errno.ENOTDIR, f"{directory} is no directory") from None
        mode = stat.S_IMODE(found.st_mode)
        if mode & 0o027:
            raise ConfigError(
                f"others may use the directory of the socket, {directory} (mode {mode:04o})",
                hint=f"chmod 0750 {directory} (systemd: RuntimeDirectoryMode=0750), or use a directory inside it.",
            ) from None
        if found.st_uid not in {0, os.geteuid()}:
            raise ConfigError(
                f"the directory of the socket, {directory}, belongs to another user (uid {found.st_uid})",
                hint="That user could put another socket there. Give the directory to the user of this service.",
            ) from None
    else:
        if gid is not None:
            os.chown(directory, -1, gid)
        directory.chmod(0o750)  # whatever the umask


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    descriptor = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise _another(path) from exc
        yield
    finally:
        os.close(descriptor)


def _remove_stale(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigError(f"{path} is there and is no socket", hint="Give the socket another path.")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(CONNECT_SECONDS)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink()
        except BlockingIOError as exc:  # its backlog is full
            raise _another(path) from exc
        else:
            raise _another(path)


def _bind(listener: socket.socket, path: Path) -> None:
    before = os.umask(0o117)  # 0660 from the first moment
    try:
        listener.bind(os.fspath(path))
    except OSError as exc:
        if exc.errno == errno.EADDRINUSE:
            raise _another(path) from exc
        raise
    finally:
        os.umask(before)


def _remove_if_still(path: Path, made: os.stat_result) -> None:
    with contextlib.suppress(FileNotFoundError):
        found = path.lstat()
        if (found.st_dev, found.st_ino) == (made.st_dev, made.st_ino):
            path.unlink()


def _another(path: Path) -> JobRefused:
    return JobRefused(
        f"another service runs on this socket: {path}", hint="Stop it first, or give this one another socket."
    )
