"""pg_dump and pg_restore as child processes: the right client, a password that touches neither disk nor argv.

A newer pg_dump can read older servers but writes what an older server may refuse, and an older one refuses a newer
server outright; so the client's major version always equals the server's.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from service.config_sources import PostgresqlSettings
from service.errors import SourceError, SourceUnavailable
from service.sources.postgresql.connect import STARTUP_SETTINGS

_STDERR_TAIL = 8 * 1024
_LINE = 500
_ERROR = re.compile(rb".*error:.*", re.IGNORECASE)
_PIECE = 256 * 1024
_ENTRY = re.compile(r"[0-9]+; [0-9]+ [0-9]+ (.*)", re.DOTALL)


def client_directory(settings: PostgresqlSettings, server_version_num: int) -> Path:
    """Return the directory of the clients for the server's major version. Raises SourceError when there is none."""
    major = server_version_num // 10000
    candidates = (
        [settings.client_dir]
        if settings.client_dir
        else [Path(f"/usr/lib/postgresql/{major}/bin"), Path(f"/usr/pgsql-{major}/bin")]
    )
    for directory in candidates:
        if (directory / "pg_dump").is_file() and (directory / "pg_restore").is_file():
            return directory
    searched = ", ".join(str(directory) for directory in candidates)
    raise SourceError(
        f"the server is PostgreSQL {major}, but pg_dump and pg_restore {major} were not found in {searched}",
        hint=f"Install postgresql-client-{major}, or set client_dir to where these programs are.",
    )


def pg_restore_for(major: int) -> Path | None:
    """Return a pg_restore that reads dumps of this major version: the same, else the next newer; None without one."""
    found: dict[int, Path] = {}
    for pattern in ("usr/lib/postgresql/*/bin/pg_restore", "usr/pgsql-*/bin/pg_restore"):
        for program in Path("/").glob(pattern):
            version = program.parts[-3].removeprefix("pgsql-")
            if version.isdecimal() and int(version) >= major:
                found.setdefault(int(version), program)
    return found[min(found)] if found else None


async def started(program: Path, *arguments: str, **options: Any) -> asyncio.subprocess.Process:
    """Start a program, as asyncio does. Raises SourceUnavailable."""
    try:
        return await asyncio.create_subprocess_exec(program, *arguments, **options)
    except OSError as error:
        raise SourceUnavailable(
            f"{program} cannot be started: {error.strerror or error}",
            hint="Look whether it may be run, and for a limit of memory or of processes (such as a container's).",
        ) from error


async def client_version(directory: Path, server_version_num: int) -> str:
    """Return pg_dump's version, such as `15.20`. Raises SourceError when its major is not the server's."""
    process = await started(
        directory / "pg_dump",
        "--version",
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        env=_environment(),
    )
    output, _ = await process.communicate()
    words = output.decode(errors="replace").split()
    version = words[2] if len(words) > 2 else "unknown"
    major = server_version_num // 10000
    if version.split(".")[0].rstrip("abcdefghijklmnopqrstuvwxyz") != str(major):
        raise SourceError(
            f"the server is PostgreSQL {major}, but {directory / 'pg_dump'} is version {version}",
            hint=f"Install postgresql-client-{major}, or set client_dir to its directory.",
        )
    return version


def conninfo(settings: PostgresqlSettings, database: str) -> str:
    """Return a libpq connection string; the name of a database may hold any character."""

    def quoted(value: str) -> str:
        return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"

    parts = {
        "host": settings.host,
        "port": str(settings.port),
        "user": settings.user,
        "dbname": database,
        "connect_timeout": str(max(2, round(settings.connect_timeout))),
        "application_name": settings.application_name,
    }
    return " ".join(f"{key}={quoted(value)}" for key, value in parts.items())


def _environment() -> dict[str, str]:
    """Not this process's own, which may hold passwords of all kinds, and settings of libpq's that are not ours."""
    return {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LC_ALL": "C.UTF-8"}


@contextlib.contextmanager
def anonymous_file(name: str, content: bytes = b"") -> Iterator[IO[bytes]]:
    """Open a file in memory that has no name on any disk; children reach it as /proc/self/fd/N.

    Raises SourceUnavailable.
    """
    with contextlib.ExitStack() as opened:
        try:
            file = opened.enter_context(os.fdopen(os.memfd_create(name, os.MFD_CLOEXEC), "w+b"))
            os.fchmod(file.fileno(), 0o600)  # libpq refuses a password file that others may read
            file.write(content)
            file.flush()
        except OSError as error:
            raise SourceUnavailable(
                f"a file in memory cannot be made: {error.strerror or error}",
                hint="Look for a limit of memory or of open files (such as a container's).",
            ) from error
        yield file


@contextlib.asynccontextmanager
async def child(
    settings: PostgresqlSettings,
    program: Path,
    arguments: Sequence[str],
    *,
    stdin: int = asyncio.subprocess.DEVNULL,
    pass_fds: Sequence[int] = (),
    options: Mapping[str, str] | None = None,
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a client program for a block; leaving it waits for the program and raises SourceError unless it exited 0.

    When the block raises, the program is killed. `options` are server settings for its sessions.
    """
    password = (settings.password() or "").replace("\\", "\\\\").replace(":", "\\:")
    with anonymous_file("pgpass", f"*:*:*:*:{password}\n".encode()) as pgpass:
        environment = _environment() | {
            "PGPASSFILE": f"/proc/self/fd/{pgpass.fileno()}",
            "PGOPTIONS": " ".join(
                f"-c {key}={value}" for key, value in {**STARTUP_SETTINGS, **(options or {})}.items()
            ),
        }
        process = await started(
            program,
            "--no-password",
            *arguments,
            stdin=stdin,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=environment,
            pass_fds=(pgpass.fileno(), *pass_fds),
            limit=_PIECE,
        )
        assert process.stderr is not None
        stderr = asyncio.create_task(_tail(process.stderr))
        failure: ConnectionError | None = None
        try:
            try:
                yield process
            except ConnectionError as error:
                failure = error  # the program went away; what it said is the better message
            told, _ = await asyncio.gather(stderr, process.wait())
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            stderr.cancel()
            await process.wait()
            raise
        finally:
            _close_pipes(process)
        if process.returncode != 0 or failure:
            raise SourceError(
                f"{program.name} failed (exit code {process.returncode}): {_last_words(told)}",
                hint="Look at the server's log.",
            ) from failure


def _close_pipes(process: asyncio.subprocess.Process) -> None:
    # asyncio closes a finished child's pipes only when somebody read them to the end
    transport = getattr(process, "_transport", None)
    if transport is not None:
        transport.close()


async def _tail(stream: asyncio.StreamReader) -> bytes:
    """Return what was said at last, and before it the first line that tells of an error."""
    error, kept = b"", b""
    while piece := await stream.read(4096):
        kept += piece
        if len(kept) > 2 * _STDERR_TAIL:
            if not error and (found := _ERROR.search(kept)):
                error = found[0] + b"\n"
            kept = kept[-_STDERR_TAIL:]
    return error + kept


def _last_words(stderr: bytes) -> str:
    """Return the error and the last lines, each cut short: a command that failed may be longer than all the rest."""
    lines = [line.strip()[:_LINE] for line in stderr.decode(errors="replace").splitlines() if line.strip()]
    first = next((line for line in lines if "error:" in line.lower()), "")
    told = lines[-4:]
    return " | ".join([first, *told] if first and first not in told else told) or "it said nothing"


def dump_options(encoding: str) -> list[str]:
    """Return how pg_dump is asked for definitions and large objects, by backups and by what is compared with one."""
    # A restored subscription would pull from its publisher, and keep its database from ever being dropped. The encoding
    # is the database's, not the client_encoding that it may be set to.
    return ["--format=custom", "--compress=0", "--no-subscriptions", f"--encoding={encoding}"]


async def dump(
    settings: PostgresqlSettings, directory: Path, database: str, arguments: Sequence[str]
) -> AsyncGenerator[bytes, None]:
    """Yield what pg_dump writes. Ends normally only when it exited 0; SourceError otherwise."""
    argv = [f"--dbname={conninfo(settings, database)}", *arguments]
    async with child(settings, directory / "pg_dump", argv) as process:
        assert process.stdout is not None
        while piece := await process.stdout.read(_PIECE):
            yield piece


async def entries(settings: PostgresqlSettings, directory: Path, file: IO[bytes]) -> list[str]:
    """Return what is in an open file of pg_dump's, a line an entry, as `pg_restore --list` tells it."""
    argv = ["--list", f"/proc/self/fd/{file.fileno()}"]
    async with child(settings, directory / "pg_restore", argv, pass_fds=(file.fileno(),)) as process:
        assert process.stdout is not None
        told = await process.stdout.read()
    # not splitlines(): a name may hold what is a line's end to Python, and is none to pg_restore
    return [line for line in told.decode(errors="surrogateescape").split("\n") if line and not line.startswith(";")]


def is_of(entry: str, kinds: tuple[str, ...]) -> bool:
    """Say whether a line of `entries` begins with one of these, behind its numbers: `("INDEX ATTACH ",)`."""
    found = _ENTRY.fullmatch(entry)
    return found is not None and found[1].startswith(kinds)


async def restore_file(
    settings: PostgresqlSettings,
    directory: Path,
    database: str,
    arguments: Sequence[str],
    *,
    file: IO[bytes],
    only: Sequence[str] | None = None,
    options: Mapping[str, str],
) -> None:
    """Run pg_restore on an open file, into `database`. Raises SourceError with its last words on any SQL error.

    `only` are lines of `entries`: nothing else is restored then.
    """
    if only is not None:
        text = "".join(f"{line}\n" for line in only).encode(errors="surrogateescape")
        with anonymous_file("entries", text) as chosen:
            more = [f"--use-list=/proc/self/fd/{chosen.fileno()}", *arguments]
            return await _restore_file(settings, directory, database, more, [file, chosen], options)
    return await _restore_file(settings, directory, database, arguments, [file], options)


async def _restore_file(
    settings: PostgresqlSettings,
    directory: Path,
    database: str,
    arguments: Sequence[str],
    files: Sequence[IO[bytes]],
    options: Mapping[str, str],
) -> None:
    argv = [
        f"--dbname={conninfo(settings, database)}",
        "--exit-on-error",
        *arguments,
        f"/proc/self/fd/{files[0].fileno()}",
    ]
    fds = [file.fileno() for file in files]
    async with child(settings, directory / "pg_restore", argv, pass_fds=fds, options=options) as process:
        assert process.stdout is not None
        await process.stdout.read()


async def converted(settings: PostgresqlSettings, directory: Path, arguments: Sequence[str], *, file: IO[bytes]) -> str:
    """Return what pg_restore says of an open file, without a server. Raises SourceError."""
    argv = [*arguments, f"/proc/self/fd/{file.fileno()}"]
    async with child(settings, directory / "pg_restore", argv, pass_fds=(file.fileno(),)) as process:
        assert process.stdout is not None
        return (await process.stdout.read()).decode(errors="surrogateescape")


async def restore_stream(
    settings: PostgresqlSettings,
    directory: Path,
    database: str,
    data: AsyncIterable[bytes],
    *,
    options: Mapping[str, str],
) -> None:
    """Feed a custom-format archive to pg_restore; its end is only shown once `data` ended without an error."""
    argv = [f"--dbname={conninfo(settings, database)}", "--exit-on-error"]
    async with child(
        settings, directory / "pg_restore", argv, stdin=asyncio.subprocess.PIPE, options=options
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        async for piece in data:
            process.stdin.write(piece)
            await process.stdin.drain()
        process.stdin.close()
        await process.stdout.read()
