"""The settings of what is backed up: one model for each kind of source."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from service.config_types import AbsolutePath, Settings, SourceName, VariableName, Word
from service.passfile import password_from
from service.secret import read_secret

MONGODB_REASON = (
    "MongoDB holds the sensor data, which a System Backup leaves out by design: it is large, it changes all the time,"
    " and a server works again without it; use mongodump or snapshots for it"
)


class PostgresqlSettings(Settings):
    """A PostgreSQL server: its databases with roles, owners and grants."""

    type: Literal["postgresql"] = "postgresql"
    """Kind of source."""
    name: SourceName = "postgresql"
    """Name of this source in archives; unique in this file."""
    host: Word = "/var/run/postgresql"
    """Host name or address, or the directory of its UNIX socket."""
    port: Annotated[int, Field(ge=1, le=65535)] = 5432
    """TCP port; also part of the UNIX socket's name."""
    user: Word = "postgres"
    """Role to connect as. For a backup pg_read_all_data is enough, but passwords of roles are then missing from it; a
    complete backup and every restore need a superuser."""
    password_file: AbsolutePath | None = None
    """A file with the role's password; nothing else in it."""
    password_env: VariableName | None = None
    """An environment variable with the role's password, such as PGPASSWORD."""
    passfile: AbsolutePath | None = None
    """A libpq password file, such as /root/.pgpass, mode 0600."""
    maintenance_database: Word = "postgres"
    """Database to connect to for work on the server as a whole."""
    include: Annotated[list[Word], Field(min_length=1)] = ["*"]
    """Databases to back up, by shell patterns (* ? [..])."""
    exclude: list[Word] = []
    """Databases to leave out, by shell patterns; wins over `include`. Templates are always left out."""
    connections: Annotated[int, Field(ge=1, le=16)] | None = None
    """Connections that read or write rows at once, at most; when left out, one more than this machine has processors
    for a backup and as many for a restore, up to 8. Beside them, each database takes one that holds its snapshot,
    and pg_dump or pg_restore theirs."""
    max_connections_share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """The share of the server's free connections that `connections` may take; those that hold snapshots are taken off
    first. One is always taken."""
    delay: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Seconds that each connection pauses in a backup after every MiB of rows it has read, to leave a busy server more
    room. pg_dump, which reads definitions and large objects, does not pause."""
    application_name: Annotated[str, Field(pattern=r"^[\x21-\x7e]{1,63}$")] = "deviceon-backup"
    """What the server's pg_stat_activity and log show for this service's connections."""
    client_dir: AbsolutePath | None = None
    """Directory of pg_dump and pg_restore; found by the server's major version when left out."""
    connect_timeout: Annotated[float, Field(gt=0, le=600)] = 10.0
    """Seconds to wait for a connection."""

    @model_validator(mode="after")
    def _one_password(self) -> Self:
        if sum(place is not None for place in (self.password_file, self.password_env, self.passfile)) > 1:
            raise ValueError("give only one of password_file, password_env and passfile")
        return self

    def password(self) -> str | None:
        """Read the password from where the settings say; None when they name no place. Raises ConfigError."""
        if self.passfile is not None:
            return password_from(
                self.passfile, host=self.host, port=self.port, user=self.user, database=self.maintenance_database
            )
        return read_secret(
            f"password of the PostgreSQL role {self.user}", file=self.password_file, env=self.password_env
        )


class TreeSettings(Settings):
    """A directory with everything below it: the server's configuration."""

    type: Literal["tree"] = "tree"
    """Kind of source."""
    name: SourceName = "config"
    """Name of this source in archives; unique in this file."""
    path: AbsolutePath
    """The directory."""
    exclude: list[Word] = []
    """What to leave out: globs relative to `path`; `*` stays within a name, `**` spans directories."""


class SqliteSettings(Settings):
    """An SQLite database file, such as Grafana's; read with SQLite's online backup while it is in use."""

    type: Literal["sqlite"] = "sqlite"
    """Kind of source."""
    name: SourceName = "sqlite"
    """Name of this source in archives; unique in this file."""
    path: AbsolutePath
    """The database file."""


def _supported(source: Any) -> Any:
    if isinstance(source, Mapping) and source.get("type") == "mongodb":
        raise ValueError(f"type mongodb is refused: {MONGODB_REASON}")
    return source


SourceSettings = PostgresqlSettings | TreeSettings | SqliteSettings
AnySource = Annotated[SourceSettings, Field(discriminator="type"), BeforeValidator(_supported)]
