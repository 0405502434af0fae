"""The settings of drills: restores for practice, whose outcome is the evidence that an archive restores."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from service.config_sources import PostgresqlSettings
from service.config_types import AbsolutePath, Settings
from service.schedule import ScheduleSettings

DrillAllowed = Literal["SPACE_UNKNOWN", "EXTENSION_VERSION", "LOCALE_MISSING"]


class DrillSettings(Settings):
    """Drills: an archive is restored into scratch databases and directories, compared, and dropped again."""

    schedule: ScheduleSettings | None = None
    """When drills run by themselves; never when left out."""
    postgresql: PostgresqlSettings | None = None
    """Another PostgreSQL server of the same major version to restore into, with the keys of a source of type postgresql
    (`name`, `include`, `exclude` and `delay` play no part); the servers of the sources when left out."""
    directory: AbsolutePath | None = None
    """Where trees and SQLite files are restored to; a directory of `state_dir` when left out. Never beside the live
    ones."""
    connections: Annotated[int, Field(ge=1, le=16)] = 2
    """Connections that load rows at once into the server of a source, at most; a server of its own takes what its
    section says."""
    max_connections_share: Annotated[float, Field(gt=0, le=1)] = 0.2
    """The share of that server's free connections that they may take. A drill is refused when fewer than three times
    `connections` are free."""
    min_free_share: Annotated[float, Field(ge=0, le=0.9)] = 0.1
    """The share of each file system that a drill writes to that has to stay free. A drill that would need more is
    refused; one during which less is left, whoever takes it, is given up and dropped at once."""
    allow: list[DrillAllowed] = []  # noqa: RUF012 - pydantic copies it
    """Obstacles to go ahead in spite of. `SPACE_UNKNOWN`: the server's files are not on this machine, so that nobody
    here sees whether its disk fills up."""
