"""WHAT is backed up. This page knows all kinds of sources; the kinds know nothing of each other."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from service.config import Config
from service.config_sources import AnySource, PostgresqlSettings, SourceSettings, SqliteSettings, TreeSettings
from service.errors import ConfigError
from service.progress import Progress
from service.sources.base import MADE_SINCE as MADE_SINCE
from service.sources.base import Record, Restorer, Source, StoredSource, StreamReader
from storage_backends import local_directory

SWAP_ORDER = ("postgresql", "tree", "sqlite")
"""Databases first, since their swap can still be refused; an SQLite file may lie in a tree that must be there first."""


def source(settings: SourceSettings, config: Config) -> Source:
    """Return the source that `settings` describe."""
    if isinstance(settings, PostgresqlSettings):
        from service.sources.postgresql import PostgresqlSource  # noqa: PLC0415 - a heavy driver

        return PostgresqlSource(settings)
    if isinstance(settings, TreeSettings):
        from service.sources.config_tree import TreeSource  # noqa: PLC0415

        return TreeSource(settings, preserve=not_in_a_tree(config))
    from service.sources.sqlite import SqliteSource  # noqa: PLC0415

    return SqliteSource(settings, staging=config.state_dir)


def restorer(settings: SourceSettings, preserve: Sequence[Path]) -> Restorer:
    """Return what restores a source with these settings; `preserve` are paths that no tree may replace."""
    if isinstance(settings, PostgresqlSettings):
        from service.sources.postgresql import PostgresqlRestorer  # noqa: PLC0415 - a heavy driver

        return PostgresqlRestorer(settings)
    if isinstance(settings, TreeSettings):
        from service.sources.config_tree import TreeRestorer  # noqa: PLC0415

        return TreeRestorer(settings, preserve=preserve)
    from service.sources.sqlite import SqliteRestorer  # noqa: PLC0415

    return SqliteRestorer(settings)


async def stage_tables(
    settings: SourceSettings,
    stored: StoredSource,
    reader: StreamReader,
    record: Record,
    save: Callable[[], Awaitable[None]],
    progress: Progress,
    *,
    tables: Sequence[tuple[str, str]],
    into: str,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Make a database with some tables of another one; see `service.sources.postgresql.side.stage`."""
    from service.sources.postgresql import side  # noqa: PLC0415 - a heavy driver

    assert isinstance(settings, PostgresqlSettings)
    done, told = await side.stage(settings, stored, reader, record, save, progress, tables=tables, into=into)
    return [asdict(table) for table in done], told


def locks(
    settings: Iterable[SourceSettings], what: str, *, recovering: bool = False
) -> list[AbstractAsyncContextManager[None]]:
    """Return what has to be entered so that no other service works on the same PostgreSQL servers."""
    servers = {(each.host, each.port): each for each in settings if isinstance(each, PostgresqlSettings)}
    if not servers:
        return []
    from service.sources.postgresql.lock import only_one  # noqa: PLC0415 - a heavy driver

    return [only_one(server, what, recovering=recovering) for _, server in sorted(servers.items())]


def settings_for(config: Config, stored: StoredSource) -> SourceSettings:
    """Find the settings to restore an archived source with: those of the same name, else what the archive says.

    Raises ConfigError for a PostgreSQL server of which no connection settings are known.
    """
    same_type = [settings for settings in config.sources if settings.type == stored.type]
    for settings in same_type:
        if settings.name == stored.name:
            return settings
    if stored.type == "tree":
        return TreeSettings(name=stored.name, path=Path(stored.facts["path"]))
    if stored.type == "sqlite":
        return SqliteSettings(name=stored.name, path=Path(stored.facts["path"]))
    if len(same_type) == 1:
        return same_type[0]
    raise ConfigError(
        f"the archive has a source {stored.name!r} of type {stored.type}, the configuration has none of that name",
        hint="Add it to `sources` with the connection settings of the server to restore into.",
    )


def for_practice(config: Config, stored: StoredSource, scratch: Path) -> SourceSettings:
    """Return settings under which an archived source is restored beside everything that is live, for a drill.

    Trees and files go below `scratch`, databases to the server of drills or, more gently than a restore, to their own.
    Raises ConfigError as `settings_for`.
    """
    drill = config.drill
    if stored.type != "postgresql":
        place = scratch / stored.name / (Path(stored.facts["path"]).name or "root")
        of_type = TreeSettings if stored.type == "tree" else SqliteSettings
        return of_type(name=stored.name, path=place)
    if drill.postgresql is not None:
        return drill.postgresql.model_copy(update={"name": stored.name})
    settings = settings_for(config, stored)
    assert isinstance(settings, PostgresqlSettings)
    gentle = {
        "name": stored.name,
        "connections": min(settings.connections or drill.connections, drill.connections),
        "max_connections_share": min(settings.max_connections_share, drill.max_connections_share),
    }
    return settings.model_copy(update=gentle)


def scratch_of(settings: SourceSettings) -> Path | None:
    """Return the directory of `for_practice` that is one source's own; None for a server."""
    return None if isinstance(settings, PostgresqlSettings) else settings.path.parent


def make_place(settings: SourceSettings) -> None:
    """Make the directory of `for_practice`, for nobody else to look into. Raises OSError."""
    if (place := scratch_of(settings)) is not None:
        place.mkdir(mode=0o700, parents=True)


def place_in_words(settings: SourceSettings) -> str:
    """Say where a source is restored to."""
    if isinstance(settings, PostgresqlSettings):
        return f"scratch databases of the PostgreSQL server {settings.host}, port {settings.port}"
    return f"a scratch directory, {settings.path.parent.parent}"


def settings_from_json(value: Mapping[str, Any]) -> SourceSettings:
    """Read back settings that were written to a restore journal."""
    adapter: TypeAdapter[SourceSettings] = TypeAdapter(AnySource)
    return adapter.validate_python(dict(value), strict=False)


def not_in_a_tree(config: Config, *, sqlite: Sequence[Path] = (), archive: Path | None = None) -> list[Path]:
    """Paths that a tree leaves alone: databases with a source of their own, our own state, the archives themselves.

    `sqlite` are databases that the configuration does not name; `archive` is the one that is being restored.
    """
    databases = [settings.path for settings in config.sources if isinstance(settings, SqliteSettings)]
    files = [
        path.with_name(path.name + suffix)
        for path in dict.fromkeys([*databases, *sqlite])
        for suffix in ("", "-wal", "-shm", "-journal")
    ]
    directories = [local_directory(target.url) for target in config.targets]
    archives = [path for path in (*directories, archive) if path is not None]
    practice = [] if config.drill.directory is None else [config.drill.directory]
    return [*files, config.state_dir, *practice, *archives]
