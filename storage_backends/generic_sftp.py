"""What fsspec's SFTP driver leaves to be done: knowing the server, never replacing a file, ending what hangs.

The driver trusts any host key, so that anybody between could take the password and the archives. Here the key has to be
in a file of known hosts, as with `ssh`. It renames by an extension that replaces; SFTP's own rename does not, and
OpenSSH carries that out as a hard link, so that of two writers one is refused by the server's kernel.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import paramiko

from storage_backends.base import AccessDenied, InvalidUrl, Promise

PROTOCOLS = ("sftp", "ssh")
KNOWN_HOSTS = (Path("~/.ssh/known_hosts"), Path("/etc/ssh/ssh_known_hosts"))
PROMISE = Promise(
    whole_or_not_at_all="Yes: an archive is written under a hidden name first.",
    no_overwrite="Yes with OpenSSH on a file system with hard links: the server gives only a name that is free. "
    "Elsewhere as far as the server keeps to the protocol.",
    durable="Unknown: SFTP has no way to ask for it. Every archive is read back after it was written.",
)


class _Known(paramiko.MissingHostKeyPolicy):  # type: ignore[misc]  # the library has no types
    """Lets a server pass whose key is in one of the files; the driver's client knows no host by itself."""

    def __init__(self, files: tuple[Path, ...]) -> None:
        self._files = files

    def missing_host_key(self, client: paramiko.SSHClient, hostname: str, key: paramiko.PKey) -> None:
        """Raise InvalidUrl for a host that is not known, AccessDenied for one that has another key."""
        known = paramiko.HostKeys()
        for file in self._files:
            with suppress(OSError):
                known.load(str(file.expanduser()))
        if known.check(hostname, key):
            return
        shown = f"{key.get_name()} {key.fingerprint}"
        if key.get_name() in (known.lookup(hostname) or {}):
            raise AccessDenied(
                f"{hostname} has another host key ({shown}) than is known of it",
                hint="Somebody may be in between. If the server was set up anew, correct the file of known hosts.",
            )
        raise InvalidUrl(
            f"the host key of {hostname} is not known: {shown}",
            hint=f"Compare it with `ssh-keygen -lf` on the server, then add the line of ssh-keyscan to "
            f"{self._files[0]}; storage_options: known_hosts names another file.",
        )


def checked(options: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the driver's options, with the host key checked, and what is left unprotected. Raises InvalidUrl.

    `known_hosts` is a file; `host_key_policy` is the driver's own, for whoever really wants any key to be trusted.
    """
    given = dict(options)
    file = given.pop("known_hosts", None)
    if file is not None and not (isinstance(file, str) and Path(file).is_file()):
        raise InvalidUrl(
            "storage_options: known_hosts is no file", hint="Make it with ssh-keyscan, and compare the keys."
        )
    policy = given.get("host_key_policy")
    if policy is None:
        given["host_key_policy"] = _Known((Path(file),) if file else KNOWN_HOSTS)
    elif file is not None or policy not in ("auto_add", "warning", "reject"):
        raise InvalidUrl("storage_options: host_key_policy must be auto_add, warning or reject, without known_hosts")
    if policy in ("auto_add", "warning"):
        return given, (f"Any host key is trusted (host_key_policy: {policy}): anybody may pretend to be the server.",)
    return given, ()


def pipelined(file: Any) -> None:
    """Have several writes on their way at once. An error is raised by a later write, or when the file is closed."""
    file.set_pipelined(True)


def rename(fs: Any, old: str, new: str) -> None:
    """Give a file another name, which the server refuses when it is taken."""
    fs.ftp.rename(old, new)


def make_newer(fs: Any, path: str, seconds: float) -> None:
    """Have a file say that it was written at `seconds` since 1970; SFTP tells whole ones."""
    fs.ftp.utime(path, (seconds, seconds))


def break_off(fs: Any) -> None:
    """Make a call that hangs in another thread fail. Never blocks."""
    with suppress(OSError, AttributeError):
        fs.client.get_transport().sock.shutdown(socket.SHUT_RDWR)


def close(fs: Any) -> None:
    """Close the connection, and let the library's thread end."""
    fs.client.close()
