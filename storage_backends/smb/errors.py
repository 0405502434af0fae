"""What an SMB server or the way to it says, as a `StorageError`: mapped once, by the protocol's status codes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from smbprotocol.exceptions import SMBAuthenticationError, SMBOSError, SMBResponseException
from smbprotocol.header import NtStatus

from storage_backends.base import (
    AccessDenied,
    InvalidUrl,
    ObjectExists,
    ObjectNotFound,
    StorageError,
    TargetFull,
    TargetUnavailable,
)
from storage_backends.smb.place import SmbPlace

# [MS-ERREF] 2.3.1; those that the library has no name for.
_QUOTA_EXCEEDED, _FILE_TOO_LARGE = 0xC0000044, 0xC0000904
_NETWORK_ACCESS_DENIED, _MEDIA_WRITE_PROTECTED = 0xC00000CA, 0xC00000A2
_ACCOUNT_RESTRICTION, _INVALID_LOGON_HOURS, _INVALID_WORKSTATION = 0xC000006E, 0xC000006F, 0xC0000070
_ACCOUNT_DISABLED, _LOGON_TYPE_NOT_GRANTED, _TRUSTED_DOMAIN_FAILURE = 0xC0000072, 0xC000015B, 0xC000018C
_ACCOUNT_EXPIRED, _PASSWORD_MUST_CHANGE, _ACCOUNT_LOCKED_OUT = 0xC0000193, 0xC0000224, 0xC0000234

ABSENT = frozenset({NtStatus.STATUS_OBJECT_NAME_NOT_FOUND, NtStatus.STATUS_NO_SUCH_FILE, NtStatus.STATUS_NOT_FOUND})
_FULL = {NtStatus.STATUS_DISK_FULL, _QUOTA_EXCEEDED, _FILE_TOO_LARGE}
_DENIED = {
    NtStatus.STATUS_ACCESS_DENIED,
    NtStatus.STATUS_PRIVILEGE_NOT_HELD,
    NtStatus.STATUS_CANNOT_DELETE,
    _NETWORK_ACCESS_DENIED,
    _MEDIA_WRITE_PROTECTED,
}
_NO_LOGON = {
    NtStatus.STATUS_LOGON_FAILURE,
    NtStatus.STATUS_WRONG_PASSWORD,
    NtStatus.STATUS_PASSWORD_EXPIRED,
    NtStatus.STATUS_NONE_MAPPED,
    _ACCOUNT_RESTRICTION,
    _INVALID_LOGON_HOURS,
    _INVALID_WORKSTATION,
    _ACCOUNT_DISABLED,
    _LOGON_TYPE_NOT_GRANTED,
    _TRUSTED_DOMAIN_FAILURE,
    _ACCOUNT_EXPIRED,
    _PASSWORD_MUST_CHANGE,
    _ACCOUNT_LOCKED_OUT,
}
_WRONG_PATH = {
    NtStatus.STATUS_NOT_A_DIRECTORY,
    NtStatus.STATUS_OBJECT_NAME_INVALID,
    NtStatus.STATUS_OBJECT_PATH_INVALID,
    NtStatus.STATUS_OBJECT_PATH_SYNTAX_BAD,
}
_NAMES = {value: name for name, value in vars(NtStatus).items() if name.startswith("STATUS_")}

_LOGON_HINT = (
    "Check username, password, domain and auth_protocol in storage_options, and that the account is neither locked nor "
    "expired."
)


@contextmanager
def mapped_errors(place: SmbPlace, key: str = "") -> Iterator[None]:
    """Raise a `StorageError` in place of all that the library raises; `key` is the object that is worked on."""
    try:
        yield
    except (StorageError, AttributeError, NameError, AssertionError):  # the latter are mistakes made here
        raise
    except SMBOSError as exc:
        raise from_status(exc.ntstatus, place, key) from exc
    except SMBResponseException as exc:
        raise from_status(exc.status, place, key) from exc
    except SMBAuthenticationError as exc:
        raise AccessDenied(f"{place.url}: {exc}", hint=_LOGON_HINT) from exc
    except ImportError as exc:
        raise InvalidUrl(
            f"{place.url}: {exc}", hint="Install what Kerberos needs: pip install 'smbprotocol[kerberos]'."
        ) from exc
    except Exception as exc:  # the library also raises what its receiving thread died of, whatever that was
        reason = exc.__cause__ if isinstance(exc, ValueError) and exc.__cause__ else exc
        raise TargetUnavailable(
            f"{place.url}: {reason or type(reason).__name__}",
            hint=f"See whether {place.host} is up and its port {place.port} can be reached, then run it again.",
        ) from exc


def status_of(exc: BaseException) -> int | None:
    """Return the status that the server answered with; None when it is another error."""
    if isinstance(exc, SMBOSError):
        return int(exc.ntstatus)
    return int(exc.status) if isinstance(exc, SMBResponseException) else None


def not_found(place: SmbPlace, key: str) -> ObjectNotFound:
    """Return the error for an object that is absent."""
    return ObjectNotFound(f"{place.url} has no {key}")


def exists(place: SmbPlace, key: str) -> ObjectExists:
    """Return the error for a name that is taken."""
    return ObjectExists(f"{place.url}/{key} exists already", hint="Nothing was replaced. Choose another name.")


def from_status(status: int, place: SmbPlace, key: str = "") -> StorageError:
    """Return the error for a status code of the server."""
    where = f"{place.url}/{key}" if key else place.url
    told = _NAMES.get(status, f"status {status:#010x}")
    error: StorageError
    if status in (NtStatus.STATUS_OBJECT_NAME_COLLISION, NtStatus.STATUS_FILE_IS_A_DIRECTORY):
        error = exists(place, key)
    elif status in ABSENT and key:
        error = not_found(place, key)
    elif status in ABSENT or status == NtStatus.STATUS_OBJECT_PATH_NOT_FOUND:
        error = TargetUnavailable(
            f"the directory {place.url} does not exist",
            hint="Create it on the server, or set storage_options: {auto_mkdir: true}.",
        )
    elif status in _FULL:
        error = TargetFull(
            f"{where}: no space is left on the share, or the quota is used up ({told})",
            hint=f"Make room on {place.host}, or keep fewer archives. Nothing half-made is left.",
        )
    elif status in _NO_LOGON:
        error = AccessDenied(f"{place.url} refuses the credentials ({told})", hint=_LOGON_HINT)
    elif status in _DENIED:
        error = AccessDenied(
            f"{where}: the server refuses access ({told})",
            hint=f"Give {place.username or 'the user'} the right to read, write and delete in this directory of the "
            "share; if it has it, another program may have the file open.",
        )
    elif status == NtStatus.STATUS_BAD_NETWORK_NAME:
        error = InvalidUrl(
            f"{place.host} has no share {place.share} for this user",
            hint="Check the share's name: the first part of the URL's path. The server's administrator knows it.",
        )
    elif status in _WRONG_PATH:
        error = InvalidUrl(f"{where}: {told}", hint="The target's URL must name a directory of the share.")
    elif status in (NtStatus.STATUS_SHARING_VIOLATION, NtStatus.STATUS_DELETE_PENDING):
        error = TargetUnavailable(f"{where} is in use by another program", hint="Run it again when that has finished.")
    else:
        error = TargetUnavailable(f"{where}: the server answers {told}", hint="Look into the server's log.")
    return error
