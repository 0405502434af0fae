"""Settings of restores: the programs run around the exchange, how the server's health is seen, how long to keep."""

from __future__ import annotations

import re
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from service.config_types import Settings, Word

_HTTP_URL = re.compile(r"https?://[^\s/?#@]+(?:[/?][^\s#]*)?")
_PLACE = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):[0-9]{1,5}")

Argv = Annotated[list[Word], Field(min_length=1, max_length=64)]
Timeout = Annotated[float, Field(gt=0, le=86_400)]


class HookSettings(Settings):
    """A program that is run as it is given, without a shell, with the service's rights and none of its secrets.

    It must be fit to be run twice: after a crash nobody knows whether it had been.
    """

    command: Argv
    """The program and its arguments."""
    timeout: Timeout = 120.0
    """Seconds after which it is ended, with all that it started, and has failed."""


def _url(text: str) -> str:
    if not _HTTP_URL.fullmatch(text):
        raise ValueError("must be an http:// or https:// URL, without user and password")
    return text


def _place(text: str) -> str:
    if not _PLACE.fullmatch(text) or int(text.rpartition(":")[2]) > 65535:
        raise ValueError("must be a host and a port, such as 127.0.0.1:1883 or [::1]:1883")
    return text


class HealthSettings(Settings):
    """How the server is seen to work after a restore: all that is given has to hold at once."""

    command: Argv | None = None
    """A program that exits 0 when the server works."""
    url: Annotated[str, AfterValidator(_url)] | None = None
    """What the server answers to a GET of this URL with `status`; proxies and redirections are not followed."""
    status: Annotated[int, Field(ge=100, le=599)] = 200
    """The status that the answer must have."""
    verify_certificate: bool = True
    """Whether the certificate behind an https URL must be one that this machine trusts, for that host."""
    tcp: Annotated[str, AfterValidator(_place)] | None = None
    """Host and port at which something must take connections."""
    timeout: Timeout = 10.0
    """Seconds that one try may take."""
    within: Timeout = 120.0
    """Seconds within which a try must succeed."""

    @model_validator(mode="after")
    def _something(self) -> Self:
        if self.command is None and self.url is None and self.tcp is None:
            raise ValueError("give at least one of command, url and tcp")
        return self


class RestoreHooks(Settings):
    """What is run around the exchange of the live data, so that the server never sees half of it."""

    stop: HookSettings | None = None
    """Stops the server's applications, not PostgreSQL. When it fails, nothing is exchanged."""
    start: HookSettings | None = None
    """Starts them again, after an exchange and after the way back."""
    reissue_secrets: HookSettings | None = None
    """Gives the server its passwords anew, after the exchange and before `start`, when the archive was made on other
    hardware, or on none that can be told: those that the server's TPM switch has encrypted can not be read here."""
    health: HealthSettings | None = None
    """Asked after `start`. A restored server that is not well within the time is rolled back."""

    @model_validator(mode="after")
    def _started_again(self) -> Self:
        if self.stop is not None and self.start is None:
            raise ValueError("there is a stop hook and no start hook: the server would stay stopped; give `start` too")
        return self


class ResetSettings(Settings):
    """What `reset-to-default` leaves as it is, beside this service's own configuration, state and archives."""

    keep: Annotated[list[Word], Field(max_length=1000)] = Field(default=[])
    """What belongs to this installation in the configuration trees, such as licences and network settings: globs as in
    a tree's `exclude`, relative to each tree, or with the tree's whole path in front."""


class RestoreSettings(Settings):
    """How restores are carried out."""

    hooks: RestoreHooks = RestoreHooks()
    """Programs that are run around the exchange."""
    keep_old: Annotated[float, Field(gt=0, le=3650)] | None = None
    """Days after which the running service removes the state before a restore by itself, told a day before, and only
    if the server is well then: it needs `hooks.health`. When left out, that state stays until `commit` or
    `rollback`."""

    @model_validator(mode="after")
    def _somebody_looks(self) -> Self:
        if self.keep_old is not None and self.hooks.health is None:
            raise ValueError("keep_old needs hooks.health: nobody would see whether the server works")
        return self
