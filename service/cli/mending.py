"""What `recover` asks of a person when something is in the way: what can be told is asked for, the rest waited for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import click

from service.cli import failures
from service.cli.connection import ask_for_pin, config_for
from service.cli.failures import Exit
from service.cli.options import Shared
from service.errors import Obstacle, ServiceError

if TYPE_CHECKING:
    from service.config import Config

CLOSED = ("TPM", "SEAL", "PIN")
"""What codes begin with that mean that the archive could not be opened, so that the rest was not looked at."""


@dataclass(slots=True)
class Mending:
    """A conversation about one archive. What is said changes `options` and `allowed`."""

    shared: Shared
    archive: str
    options: dict[str, Any]
    allowed: set[str]

    def mend(self, config: Config, blocking: Sequence[Obstacle]) -> Config:
        """Have what is in the way put right; return the configuration to look again with. Leaves when given up."""
        codes = {obstacle.code for obstacle in blocking}
        if self.options["recovery_key"] == "-" and config.opening.recovery is not None:
            self.options["recovery_key"] = None  # typed and held: nobody has to type it again for the next look
        click.echo("", err=True)
        if not self._told(codes):
            self._wait(blocking)
        while True:
            try:
                again = config_for(self.shared, self.archive, self.options)
                break
            except ServiceError as error:
                failures.show(error, debug=self.shared.debug)
                self.options |= {"recovery_key": None, "signers": None}
                self._wait(blocking)
        if any(code.startswith("PIN") for code in codes):
            return ask_for_pin(self.shared, again, self.archive)
        held = config.opening
        return again.opened_with(
            replace(again.opening, pin=again.opening.pin or held.pin, recovery=again.opening.recovery or held.recovery)
        )

    def _told(self, codes: set[str]) -> bool:
        """Ask for what can be told here and now; False when nothing was."""
        if any(code.startswith(CLOSED[:2]) for code in codes) and self._recovery_key():
            return True
        if "SERVER_UNREACHABLE" in codes and self._server():
            return True
        if "SERVER_VERSION" in codes and self._version():
            return True
        if "ORIGIN_NOT_PROVEN" in codes and self._signer():
            return True
        return self._gone_ahead(codes)

    def _recovery_key(self) -> bool:
        click.echo("A recovery key opens the archive too, if one was set up when it was made.", err=True)
        said = _line("File of the recovery key, or - to type the key or its passphrase; Enter for none")
        self.options["recovery_key"] = said or self.options["recovery_key"]
        return bool(said)

    def _server(self) -> bool:
        from service.config_for_archive import configured  # noqa: PLC0415 - models take time to import

        if configured(self.shared.config, os.environ):
            click.echo("The configuration names the server; it is read again when you press Enter.", err=True)
            return False
        if not click.confirm("Name another PostgreSQL server or password now?", err=True):
            return False
        for option, question, default in (
            ("pg_host", "PostgreSQL host, or directory of its socket", "/var/run/postgresql"),
            ("pg_port", "Port", "5432"),
            ("pg_user", "Superuser", "postgres"),
        ):
            before = self.options[option] or os.environ.get(option.replace("_", "").upper()) or default
            kind = click.IntRange(1, 65535) if option == "pg_port" else str
            self.options[option] = click.prompt(question, default=before, type=kind, err=True)
        password = click.prompt("Password (not shown)", hide_input=True, default="", show_default=False, err=True)
        if password:
            os.environ["PGPASSWORD"] = password
            self.options["pg_password_file"] = None
        return True

    def _version(self) -> bool:
        said = _line("Installed version of the server, if it was mistyped")
        self.options["server_version"] = said or self.options["server_version"]
        return bool(said)

    def _signer(self) -> bool:
        said = _line("Signer that the recovery kit names, KEY XXXX-XXXX-XXXX-XXXX; Enter for none")
        self.options["signers"] = (said,) if said else None  # what was given before has not sufficed
        return bool(said)

    def _gone_ahead(self, codes: set[str]) -> bool:
        """Ask, code by code, whether to go ahead in spite of what may be overridden."""
        from service.restore_plan import MAY_BE_ALLOWED  # noqa: PLC0415

        asked = sorted(codes & MAY_BE_ALLOWED)
        accepted = [code for code in asked if click.confirm(f"Go ahead in spite of {code}?", err=True)]
        self.allowed.update(accepted)
        return bool(accepted)

    def _wait(self, blocking: Sequence[Obstacle]) -> None:
        if _line("Press Enter to check again, or type q to give up").lower().startswith("q"):
            click.echo("Nothing was touched.", err=True)
            click.get_current_context().exit(failures.refusal_code(blocking) if blocking else Exit.FAILED)


def _line(question: str) -> str:
    said: str = click.prompt(question, default="", show_default=False, err=True)
    return said.strip()
