"""What a target's URL and options say: which directory of which share, and how to get in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

from storage_backends.base import InvalidUrl
from storage_backends.options import check_options

PORT = 445
TIMEOUT_SECONDS = 60.0
AUTH_PROTOCOLS = ("negotiate", "ntlm", "kerberos")
_FORM = "Write smb://user@host/share/directory, and the password into storage_options."
_KINDS: dict[str, tuple[type, ...]] = {
    "username": (str,),
    "password": (str,),
    "domain": (str,),
    "port": (int,),
    "encrypt": (bool,),
    "timeout": (int, float),
    "auto_mkdir": (bool,),
    "auth_protocol": (str,),
}
_NOT_IN_A_PATH = set('\\:*?"<>|') | {chr(code) for code in range(32)}


@dataclass(frozen=True)
class SmbPlace:
    """A directory (`path`, with backslashes, relative to the share; may be empty) and the way there."""

    host: str
    share: str
    path: str
    port: int = PORT
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    encrypt: bool = True
    timeout: float = TIMEOUT_SECONDS
    auto_mkdir: bool = False
    auth_protocol: str = "negotiate"

    @property
    def url(self) -> str:
        """Return where it is, without anything of the credentials."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port == PORT else f":{self.port}"
        return "/".join([f"smb://{host}{port}", self.share, *self.path.split("\\")]).rstrip("/")

    @property
    def unc(self) -> str:
        """Return the directory as SMB writes it."""
        return f"\\\\{self.host}\\{self.share}" + (f"\\{self.path}" if self.path else "")


def parse(url: str, options: Mapping[str, Any]) -> SmbPlace:
    """Read `smb://[[domain;]user@]host[:port]/share[/path]` and fsspec's options for smb. Raises InvalidUrl.

    As in fsspec the path is taken as it is written (no percent-decoding).
    """
    check_options("smb", options, _KINDS)
    if options.get("auth_protocol", "negotiate") not in AUTH_PROTOCOLS:
        raise InvalidUrl(f"storage_options: auth_protocol must be one of {', '.join(AUTH_PROTOCOLS)}")
    authority, _, path = url.partition("://")[2].partition("/")
    try:
        parts = urlsplit(f"//{authority}")
        host, port, user = parts.hostname, parts.port, parts.username
    except ValueError:
        raise InvalidUrl("the target's URL has no usable host and port", hint=_FORM) from None
    if parts.password is not None:
        raise InvalidUrl("the target's URL must not contain a password", hint=_FORM)
    names = [name for name in path.split("/") if name]
    if not host or not names:
        raise InvalidUrl("the target's URL must name a host and a share", hint=_FORM)
    if any(set(name) & _NOT_IN_A_PATH or name in (".", "..") for name in names):
        raise InvalidUrl(f"/{path} is no path that a share can have", hint=_FORM)
    return SmbPlace(
        host=host,
        share=names[0],
        path="\\".join(names[1:]),
        port=_port(port, options),
        username=_username(unquote(user) if user else None, options),
        password=options.get("password"),
        encrypt=options.get("encrypt", True),
        timeout=float(options.get("timeout", TIMEOUT_SECONDS)),
        auto_mkdir=options.get("auto_mkdir", False),
        auth_protocol=options.get("auth_protocol", "negotiate"),
    )


def _port(in_url: int | None, options: Mapping[str, Any]) -> int:
    port = options.get("port", in_url)
    if port is None:
        return PORT
    if not 0 < port < 65536 or in_url not in (None, port):
        raise InvalidUrl("storage_options: port must be 1 to 65535 and not another than the URL's")
    return int(port)


def _username(in_url: str | None, options: Mapping[str, Any]) -> str | None:
    """Return the user, with the domain before it when there is one. The URL and the options must not differ."""
    domain, _, user = (in_url or "").rpartition(";")
    if user and options.get("username", user) != user:
        raise InvalidUrl("the user in the URL and storage_options: username differ")
    user = user or options.get("username", "")
    domain = domain or options.get("domain", "")
    if not user:
        return None
    return f"{domain}\\{user}" if domain else user
