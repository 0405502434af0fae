"""A scratch database that is filled from an archive: how it is reached, and where definitions and rows come from."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import IO, Any

from service.config_sources import PostgresqlSettings
from service.progress import Progress
from service.sources.base import StoredStream, StreamReader
from service.sources.postgresql import tools
from service.sources.postgresql.connect import Connection, connection_to

# Without synchronous commits, which is safe in a database that nobody uses yet: losing it loses nothing, and the swap's
# own commit flushes it all. Definitions are written for `array_nulls`, which the database may be set against.
SCRATCH_OPTIONS = {"synchronous_commit": "off", "array_nulls": "on"}


class Scratch:
    """One scratch database; whoever derives from this fills it."""

    def __init__(
        self,
        settings: PostgresqlSettings,
        directory: Path,
        database: dict[str, Any],
        scratch: str,
        reader: StreamReader,
        progress: Progress,
        *,
        jobs: int,
    ) -> None:
        self._settings = settings
        self._directory = directory
        self._database = database
        self._scratch = scratch
        self._reader = reader
        self._progress = progress
        self._jobs = jobs

    def _connect(self) -> contextlib.AbstractAsyncContextManager[Connection]:
        return connection_to(self._settings, self._scratch, scratch=True)

    async def _read(self, stream: StoredStream) -> AsyncGenerator[bytes, None]:
        async with contextlib.aclosing(self._reader.read(stream)) as pieces:
            async for piece in pieces:
                self._progress.raw += len(piece)
                yield piece

    async def _write_schema(self, stream: StoredStream, file: IO[bytes]) -> None:
        """Write the archived definitions to a file, for pg_restore, which seeks in it."""
        async for piece in self._read(stream):
            file.write(piece)
        file.flush()

    async def _build(self, schema: IO[bytes], entries: Sequence[str], *arguments: str) -> None:
        """Build those of these entries of the schema that stand on rows: indexes, constraints; several at once.

        Only the indexes of partitions are attached one by one, with nothing beside: of what pg_restore does at once
        then, PostgreSQL ends some by a deadlock, and now and then leaves the index of the whole invalid though those of
        all partitions are there. In the order of the entries each comes after what it needs.
        """
        for attach, group in itertools.groupby(entries, lambda entry: tools.is_of(entry, ("INDEX ATTACH ",))):
            at_once = 1 if attach else self._jobs
            await self._definitions(schema, *arguments, "--section=post-data", f"--jobs={at_once}", only=list(group))

    async def _definitions(self, schema: IO[bytes], *arguments: str, only: Sequence[str] | None = None) -> None:
        """Make definitions of the schema that `arguments` of pg_restore choose, or those of its entries `only`."""
        await tools.restore_file(
            self._settings,
            self._directory,
            self._scratch,
            list(arguments),
            file=schema,
            only=only,
            options=SCRATCH_OPTIONS,
        )
