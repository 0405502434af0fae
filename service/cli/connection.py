"""Options for reading and restoring an archive where no configuration is."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import click

from service.cli.failures import result_of
from service.cli.options import Shared
from service.cli.running import run
from service.cli.unlocking import RECOVERY_OPTIONS, recovery_of, recovery_options, signer_option
from service.opening import NOTHING, Opening
from service.terminal import reporting

if TYPE_CHECKING:
    from service.cli.commander import Commander
    from service.config import Config, ConfigFile

P = ParamSpec("P")
R = TypeVar("R")

_TCTI = click.option("--tcti", metavar="TCTI", help="How the TPM is reached. [default: device:/dev/tpmrm0]")
_STATE_DIR = click.option(
    "--state-dir", metavar="DIR", type=click.Path(path_type=Path), help="This service's own state."
)
_PIN_FILE = click.option(
    "--pin-file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="The restore PIN of an archive that has one; else it is asked for.",
)
_SERVER = (
    click.option("--pg-host", metavar="HOST", help="PostgreSQL host or socket directory. [env: PGHOST]"),
    click.option("--pg-port", metavar="PORT", type=int, help="PostgreSQL port. [env: PGPORT]"),
    click.option("--pg-user", metavar="ROLE", help="PostgreSQL superuser. [env: PGUSER]"),
    click.option(
        "--pg-password-file",
        metavar="FILE",
        type=click.Path(path_type=Path),
        help="Its password. [env: PGPASSWORD, PGPASSFILE]",
    ),
    click.option(
        "--server-version",
        metavar="VERSION",
        envvar="DEVICEON_BACKUP_SERVER_VERSION",
        help="The installed version of the server. [env: DEVICEON_BACKUP_SERVER_VERSION]",
    ),
)


def opening_options(command: Callable[P, R]) -> Callable[P, R]:
    """Add what somebody may give to open an archive with, beside this machine's TPM; `opening_of` reads it."""
    return recovery_options(_PIN_FILE(command))


def opening_of(shared: Shared, options: dict[str, Any]) -> Opening:
    """Return what was given to open an archive with. Raises ConfigError."""
    return _opening(shared, options)


def reading_options(command: Callable[P, R]) -> Callable[P, R]:
    """Add what it takes to open an archive."""
    return recovery_options(signer_option(_TCTI(_PIN_FILE(command))))


def settling_options(command: Callable[P, R]) -> Callable[P, R]:
    """Add what it takes to commit or roll back."""
    return _STATE_DIR(command)


def restoring_options(command: Callable[P, R]) -> Callable[P, R]:
    """Add what it takes to restore."""
    for option in (_PIN_FILE, _STATE_DIR, _TCTI, *reversed(_SERVER)):
        command = option(command)
    return recovery_options(signer_option(command))


def config_for(shared: Shared, archive: str, options: dict[str, Any]) -> Config:
    """Return the configuration to read or restore `archive` with. Raises ConfigError."""
    from service.config_for_archive import Given, choose  # noqa: PLC0415 - models take time to import

    config = choose(shared.config, archive, Given(**_settings(options)), os.environ)
    return config.opened_with(_opening(shared, options))


def given(options: dict[str, Any]) -> bool:
    """Tell whether any option was given that only this process can obey, not a service."""
    return any(value is not None for value in _settings(options).values())


def ask_for_pin(shared: Shared, config: Config, archive: str) -> Config:
    """Return the configuration with the restore PIN, which somebody is asked for when the archive needs one."""
    from service.catalog import needs_pin  # noqa: PLC0415

    if config.opening.pin is not None or not shared.interactive or not run(needs_pin(config, archive)):
        return config
    return config.opened_with(replace(config.opening, pin=click.prompt("Restore PIN", hide_input=True, err=True)))


_OPENING = frozenset({"pin_file", *RECOVERY_OPTIONS})


def _settings(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in _OPENING}


def _opening(shared: Shared, options: dict[str, Any]) -> Opening:
    from service.secret import read_secret  # noqa: PLC0415

    pin = read_secret("restore PIN", file=options.get("pin_file"), remembered=False)
    return Opening(pin=pin, recovery=recovery_of(shared, options))


def configuration(shared: Shared, *, complete: bool = True) -> ConfigFile | None:
    """Return the configuration; None when it cannot be read and a service was named. Raises ConfigError.

    `complete`: with a target, which a job needs.
    """
    from service.config import read  # noqa: PLC0415
    from service.errors import ConfigError  # noqa: PLC0415
    from service.settings import load  # noqa: PLC0415

    try:
        return load(shared.config) if complete and shared.socket is None else read(shared.config)
    except ConfigError:
        if shared.socket is None:
            raise
        return None


def config_for_settling(shared: Shared, options: dict[str, Any]) -> Config:
    """Return the configuration to commit or roll back with. Raises ConfigError."""
    from service.config_for_archive import Given, choose_for_settling  # noqa: PLC0415 - models take time to import

    return choose_for_settling(shared.config, Given(**options), os.environ)


@asynccontextmanager
async def commander_of(shared: Shared, *, complete: bool = True) -> AsyncIterator[Commander]:
    """Give whoever carries out commands here: the service, or this process. Raises ConfigError, JobRefused."""
    from service.cli.commander import commanding  # noqa: PLC0415 - models take time to import

    async with commanding(configuration(shared, complete=complete), shared.socket) as commander:
        yield commander


def call(shared: Shared, method: str, /, **params: Any) -> Any:
    """Return what a method of the socket gives, as JSON values. Raises ServiceError, StorageError."""

    async def called() -> Any:
        async with commander_of(shared, complete=False) as commander:
            return await commander.call(method, **params)

    return run(called())


def run_job(shared: Shared, method: str, /, *, opening: Opening = NOTHING, **params: Any) -> dict[str, Any]:
    """Have a job done, with its progress on the terminal, and return its result. Raises ServiceError, StorageError."""
    with reporting(quiet=shared.quiet) as progress:

        async def done() -> dict[str, Any]:
            async with commander_of(shared) as commander:
                return await commander.job(method, params, progress, opening)

        return result_of(run(done()))


def run_job_with(
    config: Config, shared: Shared, options: dict[str, Any], method: str, /, **params: Any
) -> dict[str, Any]:
    """Do the same with `config`, in this process when an option or an archive elsewhere asks for it."""
    from service.cli.commander import commanding  # noqa: PLC0415

    elsewhere = "/" in params.get("archive", "") or given(options)
    with reporting(quiet=shared.quiet) as progress:

        async def done() -> dict[str, Any]:
            async with commanding(config, shared.socket, here=elsewhere) as commander:
                return await commander.job(method, params, progress, config.opening)

        return result_of(run(done()))
