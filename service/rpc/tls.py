"""The socket over TCP: TLS 1.3, and only for clients whose certificate the given authority signed."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from service.errors import ConfigError
from service.rpc.unix_socket import BACKLOG


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files: the server's certificate (with its chain) and key, and the authority of the clients' certificates."""

    certificate: Path
    key: Path
    client_authority: Path


def server_context(files: TlsFiles) -> ssl.SSLContext:
    """Return the context that demands a client certificate. Raises ConfigError when a file cannot be used."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.num_tickets = 0  # no resumption: each connection shows its certificate, as it is now
    try:
        context.load_cert_chain(files.certificate, files.key, password=_no_password)
        context.load_verify_locations(cafile=files.client_authority)
    except (OSError, ValueError) as exc:
        raise ConfigError(
            f"the certificates of the TLS socket cannot be used: {exc}",
            hint=f"Look at {files.certificate}, {files.key} and {files.client_authority}: PEM, key without password.",
        ) from exc
    return context


def expiry(certificate: Path) -> datetime:
    """Return when the first certificate of a PEM file expires (UTC). Raises OSError, ValueError."""
    from cryptography.x509 import load_pem_x509_certificate  # noqa: PLC0415

    return load_pem_x509_certificate(certificate.read_bytes()).not_valid_after_utc


@contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """Listen on an IP address; give the socket, non-blocking. Raises ConfigError when that cannot be."""
    if not host:
        raise ConfigError("the TLS socket needs an address to listen on", hint="Give one of this machine's addresses.")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as exc:
        raise ConfigError(
            f"the service cannot listen on {host} port {port}: {exc.strerror}",
            hint="Give an address of this machine and a port that is free.",
        ) from exc
    with listener:
        listener.setblocking(False)
        yield listener


def _no_password() -> str:
    raise ValueError("the key has a password")  # instead of asking at a terminal that nobody looks at
