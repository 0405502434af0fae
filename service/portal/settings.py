"""portal.yaml: where the portal listens, which service it is a client of, and who may log in."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, Field, model_validator

from service.config_file import read_settings
from service.config_monitoring import LogSettings, address
from service.config_types import AbsolutePath, Person, Settings, Word
from service.rpc.peers import Role

PATH_VARIABLE = "DEVICEON_BACKUP_PORTAL_CONFIG"
DEFAULT_PATH = Path("/etc/deviceon-backup/portal.yaml")

_LOOPBACK = re.compile(r"localhost|127\.[0-9.]+|::1")


def _listenable(text: str) -> str:
    host, port = address(text)
    if not host or port > 65535:
        raise ValueError("must be an address and a port, such as 127.0.0.1:8480 or [::1]:8480")
    return text


_ORIGIN = re.compile(r"https?://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?")


def _origin(text: str) -> str:
    if not _ORIGIN.fullmatch(text):
        raise ValueError("must be an origin such as https://deviceon.example: in small letters, without a path or user")
    parts = urlsplit(text)
    if parts.scheme == "http" and not _LOOPBACK.fullmatch(str(parts.hostname).strip("[]")):
        raise ValueError(
            "must begin with https:// unless it is of this machine: logins would cross the network in clear"
        )
    return text


def _base_path(text: str) -> str:
    if text and not re.fullmatch(r"(/[A-Za-z0-9._~-]+)+", text):
        raise ValueError("must be empty or a path such as /backup, without / at its end")
    return text


def _zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ValueError, OSError, ZoneInfoNotFoundError) as error:
        raise ValueError("must be a time zone such as Asia/Taipei") from error
    return name


def _network(text: str) -> str:
    try:
        ipaddress.ip_network(text)
    except ValueError as error:
        raise ValueError("must be an address or a network, such as 10.0.0.5 or 10.0.0.0/24") from error
    return text


def _issuer(text: str) -> str:
    parts = urlsplit(text)
    local = parts.scheme == "http" and _LOOPBACK.fullmatch(parts.hostname or "")
    if not parts.hostname or parts.query or parts.fragment or not (parts.scheme == "https" or local):
        raise ValueError("must be an https:// URL without a query, such as https://id.example/realms/plant")
    return text


Origin = Annotated[str, AfterValidator(_origin)]
Network = Annotated[str, AfterValidator(_network)]
HeaderName = Annotated[str, Field(pattern=r"^[A-Za-z0-9-]{1,64}$")]


class ServiceSettings(Settings):
    """The service whose page this is."""

    socket: AbsolutePath = Path("/run/deviceon-backup/service.sock")
    """Its UNIX socket. `service.admins` (or `service.readers`) of the service lists the user that runs the portal."""
    timeout: Annotated[float, Field(ge=1, le=300)] = 30.0
    """Seconds in which it must answer; what is known to take long gets 300."""


class TokenSettings(Settings):
    """Logging in with a token: whoever knows it has its role. At least 20 characters, in a file of mode 0600."""

    admin_file: AbsolutePath | None = None
    """A file with the token of the role admin."""
    read_file: AbsolutePath | None = None
    """A file with the token of the role read."""

    @model_validator(mode="after")
    def _one_at_least(self) -> Self:
        if self.admin_file is None and self.read_file is None:
            raise ValueError("give admin_file or read_file, or both")
        return self


class ProxySettings(Settings):
    """The reverse proxy in front. Nobody else's X-Forwarded-For, and no other header that tells a user, is believed."""

    peers: list[Network] = []
    """Addresses or networks that it connects from, when `listen` is used. Every program there could pose as anybody."""
    users: list[Person] = []
    """System users (names or numbers) that it runs as, when `socket` is used."""

    @model_validator(mode="after")
    def _one_at_least(self) -> Self:
        if not self.peers and not self.users:
            raise ValueError("give peers, or with a socket users")
        return self


class RoleSettings(Settings):
    """Which role somebody has whom another system names. Who is in no list may not come in, unless `others` says so."""

    admins: list[Word] = []
    """Names of users that may do everything."""
    readers: list[Word] = []
    """Names of users that may look and not touch."""
    admin_roles: list[Word] = []
    """Roles or groups, as the other system tells them, whose members may do everything."""
    reader_roles: list[Word] = []
    """Roles or groups whose members may look and not touch."""
    others: Literal["read"] | None = None
    """`read`: everybody else that the other system lets in may look."""

    def role(self, name: str, roles: Iterable[str]) -> Role | None:
        """Return the role of a user; None when he may not come in. Names are compared whole."""
        told = frozenset(roles)
        if name in self.admins or told & frozenset(self.admin_roles):
            return "admin"
        if name in self.readers or told & frozenset(self.reader_roles):
            return "read"
        return self.others


class HeaderSettings(RoleSettings):
    """The reverse proxy (`proxy`) knows who it is and says so in a header. What clients send of it, it must remove."""

    user_header: HeaderName = "X-Remote-User"
    """The header with the user's name."""
    roles_header: HeaderName | None = None
    """The header with his roles or groups, separated by commas or semicolons."""


class OidcSettings(RoleSettings):
    """Logging in at an OpenID Connect provider: authorization code with PKCE."""

    issuer: Annotated[str, AfterValidator(_issuer)]
    """The provider, exactly as it calls itself; its discovery document is below /.well-known/openid-configuration."""
    client_id: Word
    """The portal's name there. Its redirect URI is ORIGIN + base_path + /login/oidc/callback."""
    client_secret_file: AbsolutePath | None = None
    """A file with the client's secret; without one, PKCE alone (a public client)."""
    scopes: list[Word] = ["openid", "profile"]
    """What is asked for; `openid` must be there."""
    name_claim: Word = "preferred_username"
    """The claim with the user's name, which `admins` and `readers` list; `sub` when it is not there."""
    roles_claim: Word = "groups"
    """The claim with his roles or groups: a list, or text separated by spaces; `realm_access.roles` goes inside."""
    ca_file: AbsolutePath | None = None
    """The authority (PEM) of the provider's certificate, when it is not one that the system knows."""
    label: Word | None = None
    """What the button says; "Log in with" and the issuer's host when it is left out."""

    @model_validator(mode="after")
    def _openid(self) -> Self:
        if "openid" not in self.scopes:
            raise ValueError("scopes must have openid")
        return self


class AccessSettings(Settings):
    """Who may look, and who may command. At least one of the ways must be given."""

    token: TokenSettings | None = None
    """Tokens in files."""
    header: HeaderSettings | None = None
    """The user that the reverse proxy names."""
    oidc: OidcSettings | None = None
    """An OpenID Connect provider."""

    @model_validator(mode="after")
    def _one_at_least(self) -> Self:
        if not any(getattr(self, name) is not None for name in type(self).model_fields):
            raise ValueError(f"give at least one of {', '.join(type(self).model_fields)}, or nobody can log in")
        return self


class SessionSettings(Settings):
    """How long a login lasts. Sessions are kept in memory: a restart of the portal ends them."""

    idle_minutes: Annotated[float, Field(gt=0, le=10_080)] = 30.0
    """Minutes without a request of the user's own after which it ends."""
    absolute_hours: Annotated[float, Field(gt=0, le=720)] = 12.0
    """Hours after which it ends in any case."""


class PortalSettings(Settings):
    """What portal.yaml may say."""

    listen: Annotated[str, AfterValidator(_listenable)] | None = None
    """Address and port, such as 127.0.0.1:8480. TLS is the reverse proxy's."""
    socket: AbsolutePath | None = None
    """A UNIX socket to listen on instead (0660; its directory 0750)."""
    socket_group: Word | None = None
    """The group that may reach the socket: the reverse proxy's."""
    origins: list[Origin] = []
    """What browsers show in front of the path, such as https://deviceon.example. Other hosts are refused. When it is
    left out: http://localhost and http://127.0.0.1 with the port of `listen`."""
    base_path: Annotated[str, AfterValidator(_base_path)] = ""
    """The path below which the portal lies, such as /backup; the reverse proxy passes it on as it is."""
    embed_in: list[Origin] = []
    """Origins whose pages may show the portal in a frame, beside its own."""
    service: ServiceSettings = ServiceSettings()
    """The service."""
    proxy: ProxySettings | None = None
    """The reverse proxy in front."""
    access: AccessSettings
    """Who may come in."""
    sessions: SessionSettings = SessionSettings()
    """How long a login lasts."""
    language: Literal["en", "zh_TW"] | None = None
    """The language for everybody; when left out, each viewer's own choice, else what the browser asks for."""
    timezone: Annotated[str, AfterValidator(_zone)] = "UTC"
    """The zone in which times are shown until the browser tells the viewer's."""
    log: LogSettings = LogSettings()
    """The portal's log."""

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.listen is None) == (self.socket is None):
            raise ValueError("give exactly one of listen and socket")
        if self.socket is not None and not self.origins:
            raise ValueError("origins is required with a socket: what browsers show in front of the path")
        if self.access.header is not None and self.proxy is None:
            raise ValueError("access.header needs proxy: who may say which user it is")
        return self

    def allowed_origins(self, port: int | None = None) -> frozenset[str]:
        """Return the origins that browsers may show; `port` is the one that is listened on."""
        if self.origins:
            return frozenset(self.origins)
        return frozenset(f"http://{host}:{port}" for host in ("localhost", "127.0.0.1", "[::1]"))


SECTIONS = {
    "ServiceSettings": "service",
    "ProxySettings": "proxy",
    "AccessSettings": "access",
    "TokenSettings": "access.token",
    "HeaderSettings": "access.header",
    "OidcSettings": "access.oidc",
    "SessionSettings": "sessions",
    "LogSettings": "log",
}
"""The sections and what they are called in the file, for the reference."""


def find(path: Path | str | None = None) -> Path:
    """Tell which file it is: `path`, else $DEVICEON_BACKUP_PORTAL_CONFIG, else the one below /etc."""
    return Path(path or os.environ.get(PATH_VARIABLE) or DEFAULT_PATH)


def read(path: Path | str | None = None) -> PortalSettings:
    """Read and check portal.yaml (`find` tells which). Raises ConfigError that names each line at fault."""
    return read_settings(
        PortalSettings,
        find(path),
        what="the portal's configuration",
        variable=PATH_VARIABLE,
        examples="examples/portal.yaml is one to start from.",
        start="Start from examples/portal.yaml.",
        explained="docs/PORTAL.md explains every key.",
    )
