"""The restore side: databases are built beside the live ones, checked, and renamed into place in one transaction."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime

from service.config_sources import PostgresqlSettings
from service.progress import Progress
from service.sources.base import Compared, Record, Restorer, Room, SourcePlan, StoredSource, StreamReader
from service.sources.postgresql import preflight, rows, stage, swap
from service.sources.postgresql.compare import compare
from service.sources.postgresql.differences import differences
from service.sources.postgresql.room import room


class PostgresqlRestorer(Restorer):
    """Brings back the databases and roles of one archived server."""

    kinds = frozenset(
        {"postgresql.globals", "postgresql.schema", "postgresql.large_objects", rows.ROWS, rows.SMALL_TABLES}
    )

    def __init__(self, settings: PostgresqlSettings) -> None:
        self._settings = settings

    async def plan(self, stored: StoredSource, reader: StreamReader | None = None) -> SourcePlan:
        """See `Restorer.plan`."""
        return await preflight.plan(self._settings, stored, reader)

    async def differences(
        self, stored: StoredSource, reader: StreamReader, *, since: datetime, ignore: Sequence[str]
    ) -> list[str]:
        """See `Restorer.differences`: databases, objects, sizes and roles."""
        return await differences(self._settings, stored, reader)

    async def stage(
        self,
        stored: StoredSource,
        reader: StreamReader,
        record: Record,
        save: Callable[[], Awaitable[None]],
        progress: Progress,
    ) -> None:
        """See `Restorer.stage`."""
        await stage.stage(self._settings, stored, reader, record, save, progress)

    async def ready(self, record: Record) -> None:
        """See `Restorer.ready`: the server answers."""
        await swap.ready(self._settings, record)

    async def room(self, stored: StoredSource) -> Room:
        """See `Restorer.room`."""
        return await room(self._settings, stored)

    async def compare(self, stored: StoredSource, reader: StreamReader, record: Record, progress: Progress) -> Compared:
        """See `Restorer.compare`."""
        return await compare(self._settings, stored, reader, record, progress)

    async def swap(self, record: Record, save: Callable[[], Awaitable[None]]) -> None:
        """See `Restorer.swap`."""
        await swap.swap(self._settings, record, save)

    async def undo(self, record: Record) -> None:
        """See `Restorer.undo`."""
        await swap.undo(self._settings, record)

    async def confirm(self, record: Record) -> None:
        """See `Restorer.confirm`."""
        await swap.confirm(self._settings, record)

    async def commit(self, record: Record) -> None:
        """See `Restorer.commit`."""
        await swap.commit(self._settings, record)
