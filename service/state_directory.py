"""The service's own directory: files replaced whole, the lock that keeps jobs apart, the archives' sequence number."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from service.blocking import run_in_thread
from service.errors import ConfigError, JobRefused, SealError, StateError


def prepare(directory: Path) -> Path:
    """Make the directory (mode 0700) when it is missing. Raises ConfigError when that is not allowed."""
    try:
        make_directory(directory)
    except OSError as error:
        raise ConfigError(
            f"the state directory {directory} cannot be made: {error.strerror}",
            hint="Set state_dir to a directory that this service may write.",
        ) from error
    return directory


def make_directory(directory: Path) -> None:
    """Make the directory (mode 0700) and those above it where they are missing, durably: whatever is made durable in it
    would be lost with its name. Raises OSError.
    """
    missing = [each for each in (directory, *directory.parents) if not each.exists()]
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    for each in missing:
        sync_directory(each.parent)


@contextlib.contextmanager
def told_as_state(path: Path) -> Iterator[None]:
    """Raise StateError in place of every OSError of a block that works on `path`."""
    try:
        yield
    except OSError as error:
        raise StateError(
            f"{path} cannot be written: {error.strerror or error}",
            hint="Make room on the file system of the state directory, or look into the kernel's log for errors of its "
            "disk; then try again.",
        ) from error


def replace_file(path: Path, content: bytes) -> None:
    """Write a file so that after a crash it is the old one or the new one, whole; mode 0600. Writers take turns."""
    temporary = path.with_name(f".{path.name}.new")
    with os.fdopen(_own(temporary), "wb") as file:
        file.truncate()
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
        temporary.replace(path)
    sync_directory(path.parent)


def _own(temporary: Path) -> int:
    """Open a temporary file that nobody else writes, and that did not get its final name meanwhile."""
    while True:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(temporary.stat(), os.fstat(descriptor)):
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def read_file(path: Path, what: str, *, most: int, hint: str, failure: type[SealError] = SealError) -> bytes | None:
    """Return the first `most` bytes of a file of ours; None when there is none.

    Raises `failure`, naming `what` it is, when it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(most)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise failure(f"{what} in {path} cannot be read: {error.strerror}", hint=hint) from error


def remove_file(path: Path) -> None:
    """Remove a file durably; one that is absent is fine."""
    path.unlink(missing_ok=True)
    sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def only_job(directory: Path, what: str) -> Iterator[None]:
    """Hold the lock that lets one backup or restore run at a time. Raises JobRefused. A killed holder lets go."""
    with _locked(prepare(directory) / "job.lock", what) as running:
        if running is not None:
            raise JobRefused(f"{running} is running", hint="Wait until it has finished, then try again.")
        yield


@contextlib.asynccontextmanager
async def changing_archives(directory: Path) -> AsyncIterator[None]:
    """Hold, for a moment, the lock between holding an archive and removing one; waits for whoever has it."""
    path = prepare(directory) / "archives.lock"
    with told_as_state(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "r+") as file:
        await run_in_thread(fcntl.flock, file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def only_service(directory: Path) -> Iterator[None]:
    """Hold the lock that lets one service run on a state directory. Raises JobRefused."""
    with _locked(prepare(directory) / "service.lock", "a service") as running:
        if running is not None:
            raise JobRefused(
                f"{running} uses {directory} already", hint="Stop it, or give this one a state_dir of its own."
            )
        yield


@contextlib.contextmanager
def _locked(path: Path, what: str) -> Iterator[str | None]:
    """Hold a lock file for a block; yield what holds it instead when somebody does."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(
            f"the state directory {path.parent} cannot be written: {error.strerror}",
            hint="Run as the user that owns it, or set state_dir to a directory that this service may write.",
        ) from error
    with os.fdopen(descriptor, "r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield file.read().strip() or "another job"
            return
        with contextlib.suppress(OSError):  # a full disk: the lock is held all the same, and only does not say by whom
            file.truncate(0)
            file.write(f"{what} (process {os.getpid()})")
            file.flush()
        yield None


MOST_ARCHIVES = 1_000_000_000
"""A higher number is a mistake, or somebody's trick: nobody makes so many archives, and it would end all numbering."""


def next_sequence(directory: Path, newest: int) -> int:
    """Return a number that is above every one given out before and above `newest`, and remember it.

    Archives are ordered by it, not by a clock that may jump. Raises StateError.
    """
    path = directory / "sequence"
    try:
        last = int(path.read_text())
    except (FileNotFoundError, ValueError):
        last = 0  # a lost counter goes on from what the target holds
    number = max(number if number < MOST_ARCHIVES else 0 for number in (last, newest)) + 1
    with told_as_state(path):
        replace_file(path, f"{number}\n".encode())
    return number
