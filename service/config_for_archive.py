"""A configuration when there is none: an archive, connection settings, and what the archive itself says.

On the day of a restore the machine may be new. The target is the archive's directory, the PostgreSQL server is the one
that the command line or libpq's environment variables name, and directories come from the archive's manifest
(`service.sources.settings_for`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from service.config import PATH_VARIABLE, Config, SealingSettings, ServerSettings, TargetSettings, find
from service.config_problems import describe
from service.config_sources import PostgresqlSettings
from service.config_types import Settings
from service.errors import ConfigError
from service.settings import load

UNKNOWN_VERSION = "(not given)"

_PASSWORD_PLACES = ("password_file", "password_env", "passfile")


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What the command line says beside or instead of a configuration file; None is not said."""

    pg_host: str | None = None
    pg_port: int | None = None
    pg_user: str | None = None
    pg_password_file: Path | None = None
    tcti: str | None = None
    state_dir: Path | None = None
    server_version: str | None = None
    signers: tuple[str, ...] | None = None

    def postgresql(self) -> dict[str, object]:
        """Return the members of PostgresqlSettings that were said."""
        said = {
            "host": self.pg_host,
            "port": self.pg_port,
            "user": self.pg_user,
            "password_file": Path.cwd() / self.pg_password_file if self.pg_password_file else None,
        }
        return {key: value for key, value in said.items() if value is not None}


def choose(path: Path | None, archive: str | None, given: Given, environment: Mapping[str, str]) -> Config:
    """Return the configuration file with what was said on the command line; without a file, one made for `archive`.

    A file that was named (`path` or $DEVICEON_BACKUP_CONFIG) must be there; the default one may be missing when the
    archive is given by its path or URL. Raises ConfigError.
    """
    if archive is not None and "/" in archive and not configured(path, environment):
        return config_for_archive(archive, given, environment)
    return with_given(load(path), given)


def choose_for_settling(path: Path | None, given: Given, environment: Mapping[str, str]) -> Config:
    """Return a configuration for `commit` and `rollback`, which need only `state_dir`: the journal has the rest."""
    if configured(path, environment):
        return with_given(load(path), given)
    return config_for_archive("/", given, environment)


def configured(path: Path | None, environment: Mapping[str, str]) -> bool:
    """Tell whether a configuration file was named or is where it belongs."""
    return path is not None or bool(environment.get(PATH_VARIABLE)) or find().exists()


def config_for_archive(archive: str, given: Given, environment: Mapping[str, str]) -> Config:
    """Return a configuration that reads or restores the archive at a path or URL. Raises ConfigError."""
    postgresql = _from_environment(environment)
    if given.pg_password_file is not None:
        postgresql = {key: value for key, value in postgresql.items() if key not in _PASSWORD_PLACES}
    try:
        config = Config(
            server=ServerSettings(version=given.server_version or UNKNOWN_VERSION),
            target=TargetSettings(url=_directory_url(archive)),
            # nobody said that archives are sealed here; one that is still opens, by the machine's own TPM
            sealing=SealingSettings(mode="off"),
            sources=[PostgresqlSettings.model_validate(postgresql | given.postgresql())],
        )
        config = config.model_copy(update=_common(given))
        if given.signers is not None:
            named = SealingSettings(trusted_signers=list(given.signers)).trusted_signers
            sealing = config.sealing.model_copy(update={"trusted_signers": named})
            config = config.model_copy(update={"sealing": sealing})
        return config  # noqa: TRY300
    except ValidationError as exc:
        raise _problem(Config, exc) from exc


def version_is_known(config: Config) -> bool:
    """Tell whether anybody said which version of the server is installed."""
    return config.server.version != UNKNOWN_VERSION


def require_version(config: Config) -> None:
    """Raise ConfigError when nobody said which version of the server is installed: a restore must know."""
    if not version_is_known(config):
        raise ConfigError(
            "without a configuration the installed version of the server is not known",
            hint="Give --server-version VERSION (or DEVICEON_BACKUP_SERVER_VERSION): an archive is restored only to "
            "the version it was made from.",
        )


def with_given(config: Config, given: Given) -> Config:
    """Return `config` with what was said on the command line in place of what the file says. Raises ConfigError."""
    try:
        changes = _common(given)
        if given.server_version is not None:
            changes["server"] = ServerSettings(product=config.server.product, version=given.server_version)
        if given.tcti is not None:
            changes["sealing"] = config.sealing.model_copy(update={"tcti": SealingSettings(tcti=given.tcti).tcti})
        if given.signers is not None:
            sealing = changes.get("sealing", config.sealing)
            assert isinstance(sealing, SealingSettings)
            named = SealingSettings(trusted_signers=[*sealing.trusted_signers, *given.signers]).trusted_signers
            changes["sealing"] = sealing.model_copy(update={"trusted_signers": named})
        if said := given.postgresql():
            changes["sources"] = _changed_sources(config, said)
        return config.model_copy(update=changes)
    except ValidationError as exc:
        raise _problem(Config, exc) from exc


def _common(given: Given) -> dict[str, object]:
    changes: dict[str, object] = {}
    if given.state_dir is not None:
        changes["state_dir"] = Path.cwd() / given.state_dir
    if given.tcti is not None:
        changes["sealing"] = SealingSettings(tcti=given.tcti)
    return changes


def _changed_sources(config: Config, said: dict[str, object]) -> list[object]:
    servers = [source for source in config.sources if isinstance(source, PostgresqlSettings)]
    if len(servers) != 1:
        raise ConfigError(
            f"the --pg options need exactly one source of type postgresql in the configuration; it has {len(servers)}",
            hint="Change the configuration instead, or name another one with --config.",
        )
    kept = servers[0].model_dump(exclude_none=True)
    if "password_file" in said:
        kept = {key: value for key, value in kept.items() if key not in _PASSWORD_PLACES}
    changed = PostgresqlSettings.model_validate(kept | said)
    return [changed if source is servers[0] else source for source in config.sources]


def _from_environment(environment: Mapping[str, str]) -> dict[str, object]:
    """Read libpq's variables, as psql and pg_dump do."""
    said: dict[str, object] = {}
    if host := environment.get("PGHOST"):
        said["host"] = host
    if user := environment.get("PGUSER"):
        said["user"] = user
    if port := environment.get("PGPORT"):
        if not port.isdecimal():
            raise ConfigError("PGPORT is not a number", hint="Correct or unset PGPORT.")
        said["port"] = int(port)
    if environment.get("PGPASSWORD"):
        said["password_env"] = "PGPASSWORD"  # noqa: S105 - the variable's name
    elif passfile := environment.get("PGPASSFILE"):
        said["passfile"] = Path.cwd() / passfile
    return said


def _directory_url(archive: str) -> str:
    if "://" in archive:
        return archive.rpartition("/")[0]
    return f"file://{(Path.cwd() / archive).parent.resolve()}"


def _problem(model: type[Settings], error: ValidationError) -> ConfigError:
    return ConfigError(
        describe(model, error, name="the options and environment", lines={}), hint="See deviceon-backup restore --help."
    )
