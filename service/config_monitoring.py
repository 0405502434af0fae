"""Settings of how the service is seen from outside: its log, its status over HTTP, notifications, the dead-man ping."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from service.config_types import AbsolutePath, Settings, VariableName
from service.errors import ConfigError
from service.secret import read_secret, remember, remember_password_in

NotifyOn = Literal["failure", "success", "partial", "warning", "missed", "recovery", "expiry"]

_APPRISE_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://\S")
_HTTP_URL = re.compile(r"https?://[^\s/?#]+[^\s#]*")


class LogSettings(Settings):
    """The log of the service, on stderr."""

    format: Literal["json", "text"] = "json"
    """`json`: one object a line; `text`: one line a record, for people."""
    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least of what is logged. Libraries are heard from `warning` on, whatever is set here."""


def _listenable(text: str) -> str:
    host, port = address(text)
    if not host or not 0 <= port <= 65535:
        raise ValueError("must be an address and a port, such as 127.0.0.1:9847 or [::1]:9847")
    return text


def address(text: str) -> tuple[str, int]:
    """Return host and port of `host:port` or `[IPv6]:port`; ("", 0) when it is neither."""
    found = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9.-]+)):([0-9]{1,5})", text)
    return (found[1] or found[2], int(found[3])) if found else ("", 0)


class HttpSettings(Settings):
    """Metrics, liveness and readiness over HTTP: GET /metrics, /healthz and /readyz, without authentication."""

    listen: Annotated[str, AfterValidator(_listenable)] | None = None
    """Address and port, such as 127.0.0.1:9847; off when left out. No more than this machine should reach it."""


class NotificationSettings(Settings):
    """Messages to people by any service that Apprise knows: mail, chat, pager, ..."""

    urls_file: AbsolutePath | None = None
    """A file with one Apprise URL a line (they hold passwords); a line that begins with # is a comment."""
    urls_env: VariableName | None = None
    """An environment variable with Apprise URLs, separated by spaces or line ends. Give one of the two."""
    events: Annotated[list[NotifyOn], Field(min_length=1)] = [  # noqa: RUF012 - pydantic copies it
        "failure",
        "partial",
        "missed",
        "recovery",
        "expiry",
    ]
    """What is told: `failure` of any job; `partial`: the archive is there, but something after it did not happen;
    `missed`: a scheduled run that did not take place; `recovery`: the first success after a failure; `warning`: a
    success with warnings; `success`: every other one; `expiry`: the state before a restore will be removed by
    itself."""

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.urls_file is None) == (self.urls_env is None):
            raise ValueError("give exactly one of urls_file and urls_env")
        return self

    def urls(self) -> list[str]:
        """Read the Apprise URLs. Raises ConfigError when there is none, or a line that is none."""
        text = read_secret("notification URLs", file=self.urls_file, env=self.urls_env) or ""
        lines = [line.strip() for line in text.splitlines()] if self.urls_file else text.split()
        urls = [line for line in lines if line and not line.startswith("#")]
        place = str(self.urls_file or self.urls_env)
        hint = "Write one Apprise URL a line, such as mailtos://user:password@example.com."
        if not urls:
            raise ConfigError(f"{place} has no notification URL", hint=hint)
        for number, url in enumerate(urls, 1):
            if not _APPRISE_URL.match(url):
                raise ConfigError(f"{place}: notification URL {number} is not a URL", hint=hint)
            remember(url)
            remember_password_in(url)
        return urls


class DeadManSettings(Settings):
    """A dead-man's switch, such as healthchecks.io: it raises the alarm when no successful backup reports in time."""

    url_file: AbsolutePath | None = None
    """A file with the URL that a successful backup requests; its begin requests URL/start, a failure URL/fail."""
    url_env: VariableName | None = None
    """An environment variable with that URL. Give one of the two."""

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.url_file is None) == (self.url_env is None):
            raise ValueError("give exactly one of url_file and url_env")
        return self

    def url(self) -> str:
        """Read the URL. Raises ConfigError."""
        url = (read_secret("dead-man URL", file=self.url_file, env=self.url_env) or "").strip()
        if not _HTTP_URL.fullmatch(url):
            raise ConfigError(
                f"{self.url_file or self.url_env} does not hold the URL of a dead-man's switch",
                hint="Write its http:// or https:// URL alone, such as https://hc-ping.com/<uuid>.",
            )
        remember_password_in(url)
        return remember(url)
