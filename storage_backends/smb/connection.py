"""One connection to a share, with a session of its own. Blocking; used by one thread at a time, except `break_off`.

The library's sessions are not safe to use from several threads (they run out of credits, smbprotocol #312), its global
cache never checks a password twice, and its calls wait for ever. So each connection here is private, knows its socket
from the start, and can be broken off from outside.
"""

from __future__ import annotations

import logging
import socket
import uuid
from contextlib import suppress
from typing import Any

import smbclient
from smbprotocol import Dialects
from smbprotocol.connection import Connection
from smbprotocol.exceptions import SMBConnectionClosed, SMBException, SMBResponseException
from smbprotocol.header import NtStatus, Smb2Flags
from smbprotocol.open import CreateOptions, DirectoryAccessMask, FilePipePrinterAccessMask
from smbprotocol.session import Session

from storage_backends.base import AccessDenied, InvalidUrl, ObjectExists, ObjectInfo
from storage_backends.smb.errors import ABSENT, from_status, mapped_errors, status_of
from storage_backends.smb.handle import Handle, closing
from storage_backends.smb.place import SmbPlace

_UPLOAD = (
    FilePipePrinterAccessMask.FILE_READ_ATTRIBUTES
    | FilePipePrinterAccessMask.FILE_WRITE_DATA
    | FilePipePrinterAccessMask.FILE_WRITE_ATTRIBUTES
    | FilePipePrinterAccessMask.DELETE
)
_REMOVE = FilePipePrinterAccessMask.FILE_READ_ATTRIBUTES | FilePipePrinterAccessMask.DELETE
_LIST = DirectoryAccessMask.FILE_LIST_DIRECTORY | DirectoryAccessMask.FILE_READ_ATTRIBUTES

_NO_FILE = {NtStatus.STATUS_FILE_IS_A_DIRECTORY, NtStatus.STATUS_DELETE_PENDING}

# What is worth telling is raised; without this, what the library logs of it would reach the terminal too.
for _name in ("smbprotocol", "smbclient", "spnego"):
    logging.getLogger(_name).addHandler(logging.NullHandler())


class _StrictConnection(Connection):  # type: ignore[misc]  # the library has no types
    """Takes no answer that is neither encrypted nor signed: the library does, so that anybody could forge one.

    [MS-SMB2] 3.2.5.1.1.1 and 3.2.5.1.3: such an answer is to be discarded. Here it ends the connection.
    """

    def verify_signature(self, header: Any, session_id: int, force: bool = False) -> None:
        """Check an answer that came unencrypted."""
        session = self.session_table.get(session_id)
        if session is not None and not force:
            if session.encrypt_data:
                raise SMBException("an answer of the server was not encrypted")
            pending = header["status"].get_value() == NtStatus.STATUS_PENDING  # never signed, says nothing
            if not header["flags"].has_flag(Smb2Flags.SMB2_FLAGS_SIGNED) and not pending:
                raise SMBException("an answer of the server was not signed")
        super().verify_signature(header, session_id, force)


class SmbConnection:
    """A connection that `open` makes. After an error other than the server's plain answers it is used no more."""

    def __init__(self, place: SmbPlace) -> None:
        self.place = place
        self._cache: dict[str, Connection] = {}  # more than one when DFS leads to other servers
        self._main: Connection | None = None

    @property
    def usable(self) -> bool:
        """Say whether the socket is still open, as far as is known here."""
        transport = self._main.transport if self._main is not None else None
        return transport is not None and transport.connected

    def open(self) -> None:
        """Connect and log in. Raises TargetUnavailable, AccessDenied, and InvalidUrl when there is no encryption."""
        place = self.place
        with mapped_errors(place):
            # A GUID of its own: Samba serves all connections of one client GUID in one process.
            self._main = _StrictConnection(uuid.uuid4(), place.host, place.port, require_signing=True)
            self._cache[f"{place.host.lower()}:{place.port}"] = self._main  # where smbclient looks it up
            # Later than the deadline of who calls this; the library cuts it to whole seconds.
            self._main.connect(timeout=place.timeout + 2)
            self._check_protocol(self._main)
            session = Session(
                self._main,
                username=place.username,
                password=place.password,
                require_encryption=place.encrypt,
                auth_protocol=place.auth_protocol,
            )
            try:
                session.connect()
            except (SMBResponseException, SMBConnectionClosed):
                raise
            except SMBException as exc:
                if type(exc) is not SMBException:
                    raise
                raise AccessDenied(  # signing or encryption was asked for, and a guest has none
                    f"{place.url} gives no session that is safe to use: {exc}",
                    hint="Check username and password: the server may have let them pass as those of a guest.",
                ) from exc

            self._reach_share()

    def close(self) -> None:
        """Close the sockets, and wait for the library's threads. The server closes what was left open."""
        for connection in list(self._cache.values()):
            if connection.transport is not None:
                with suppress(OSError):
                    connection.disconnect(close=False)
        self._cache.clear()

    def break_off(self) -> None:
        """Make a call that hangs in another thread fail. Never blocks."""
        for connection in list(self._cache.values()):
            # Not `transport.close()`: it waits for the lock that a send holds which the server does not take.
            sock: socket.socket | None = getattr(connection.transport, "_sock", None)
            if sock is not None:
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def create_upload(self, name: str) -> Handle:
        """Make a file that nobody else can open."""
        with mapped_errors(self.place):
            return self._open(name, "xb", share_access="", desired_access=_UPLOAD)

    def open_for_reading(self, key: str) -> Handle:
        """Open a file; others may read, rename and remove it meanwhile."""
        with mapped_errors(self.place, key):
            return self._open(key, "rb", share_access="rd")

    def describe(self, key: str) -> ObjectInfo | None:
        """Describe the regular file `key`, None when there is none. ObjectExists when the name is another thing's."""
        options = {"share_access": "rwd", "desired_access": FilePipePrinterAccessMask.FILE_READ_ATTRIBUTES}
        with mapped_errors(self.place, key):
            try:
                handle = self._open(key, "rb", create_options=CreateOptions.FILE_OPEN_REPARSE_POINT, **options)
            except SMBException as exc:
                if self._absent(exc):
                    return None
                raise
            with closing(handle):
                info = handle.info(key)
        if info is None:
            raise ObjectExists(f"{self.place.url}/{key} is a symbolic link", hint="Remove it, or choose another name.")
        return info

    def remove(self, name: str, *, file_id: int | None = None) -> bool:
        """Remove a regular file, only that with `file_id` when given; False when there is none."""
        with mapped_errors(self.place, name):
            try:
                handle = self._open(
                    name,
                    "rb",
                    share_access="rwd",
                    desired_access=_REMOVE,
                    create_options=CreateOptions.FILE_OPEN_REPARSE_POINT,
                )
            except SMBException as exc:
                if self._absent(exc) or status_of(exc) in _NO_FILE:
                    return False
                raise
            with closing(handle):
                if handle.info(name) is None or (file_id is not None and handle.file_id() != file_id):
                    return False
                handle.delete()
        return True

    def open_directory(self, *, of_share: bool = False) -> Handle | None:
        """Open the target's directory (or the share's own) for looking.

        None when it is absent and may be made when it is written to.
        """
        path = f"\\\\{self.place.host}\\{self.place.share}" if of_share else self.place.unc
        with mapped_errors(self.place):
            try:
                return self._open_path(path, "rb", file_type="dir", share_access="rwd", desired_access=_LIST)
            except SMBException as exc:
                if self.place.auto_mkdir and (self._absent(exc)):
                    return None
                raise

    def flush_directory(self) -> None:
        """Have the server make the directory's names durable, if it can do that."""
        with mapped_errors(self.place):
            try:
                # [MS-SMB2] 3.3.5.11: a directory can be flushed by who may add files to it.
                handle = self._open(
                    "", "rb", file_type="dir", share_access="rwd", desired_access=DirectoryAccessMask.FILE_ADD_FILE
                )
                with closing(handle):
                    handle.flush()
            except SMBException as exc:
                if status_of(exc) is None:
                    raise

    def make_directory(self) -> None:
        """Make the directory and those above it; fine when it is there."""
        with mapped_errors(self.place):
            if self.place.path:
                smbclient.makedirs(self.place.unc, exist_ok=True, **self._arguments())

    def _absent(self, exc: SMBException) -> bool:
        """Say whether a name is absent, or may be since the directory was not made yet."""
        status = status_of(exc)
        return status in ABSENT or (self.place.auto_mkdir and status == NtStatus.STATUS_OBJECT_PATH_NOT_FOUND)

    def _open(self, name: str, mode: str, **options: Any) -> Handle:
        return self._open_path(f"{self.place.unc}\\{name}" if name else self.place.unc, mode, **options)

    def _open_path(self, path: str, mode: str, **options: Any) -> Handle:
        if not self.usable:  # smbclient would silently connect anew
            raise SMBConnectionClosed("the connection was closed")
        return Handle(smbclient.open_file(path, mode, buffering=0, **options, **self._arguments()))

    def _arguments(self) -> dict[str, Any]:
        place = self.place
        return {
            "username": place.username,
            "password": place.password,
            "port": place.port,
            "encrypt": True if place.encrypt else None,
            "connection_timeout": place.timeout,
            "connection_cache": self._cache,
            "auth_protocol": place.auth_protocol,
            "require_signing": True,
        }

    def _reach_share(self) -> None:
        """Tell a share that is absent from a directory that is: later the server's answer is the same."""
        share = f"\\\\{self.place.host}\\{self.place.share}"
        access = FilePipePrinterAccessMask.FILE_READ_ATTRIBUTES
        try:
            with closing(self._open_path(share, "rb", file_type="dir", share_access="rwd", desired_access=access)):
                pass
        except SMBException as exc:
            if status_of(exc) in ABSENT | {NtStatus.STATUS_OBJECT_PATH_NOT_FOUND}:
                raise from_status(NtStatus.STATUS_BAD_NETWORK_NAME, self.place) from exc
            if status_of(exc) in (None, NtStatus.STATUS_BAD_NETWORK_NAME):
                raise

    def _check_protocol(self, connection: Connection) -> None:
        if connection.dialect < Dialects.SMB_3_0_0:
            raise InvalidUrl(
                f"{self.place.host} speaks no SMB 3",
                hint="Turn SMB 3 on at the server. Older versions cannot be protected from others on the network.",
            )
        if self.place.encrypt and not connection.supports_encryption:
            raise InvalidUrl(
                f"{self.place.host} does not offer encryption",
                hint="Turn it on at the server or, if the network is trusted, set storage_options: {encrypt: false}.",
            )
