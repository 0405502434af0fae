"""The way to the TPM: what a TCTI string names in the file system, and who may open it. Pure look-ups, no TPM used."""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import socket
import stat
from dataclasses import dataclass
from pathlib import Path

from service.errors import TpmUnavailable
from service.sealing.tpm.surroundings import surroundings


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A device node or socket. `path` is None when the TCTI names none (TCP, a broker)."""

    tcti: str
    path: Path | None
    is_socket: bool

    @property
    def has_resource_manager(self) -> bool:
        """Tell whether someone else isolates and cleans up what each client leaves in the TPM."""
        kind, _, _ = self.tcti.partition(":")
        return kind == "tabrmd" or (self.path is not None and self.path.name.startswith("tpmrm"))

    def obstacle(self) -> TpmUnavailable | None:
        """Return the error that explains why the TPM cannot be reached from here, or None if the way is open."""
        if self.path is None:
            return None
        if not self.path.exists():
            return TpmUnavailable(f"there is no TPM at {self.path}", hint=self._absent_hint())
        if not os.access(self.path, os.R_OK | os.W_OK, effective_ids=True):
            return TpmUnavailable(f"no permission to use the TPM: {self.ownership()}", hint=self._permission_hint())
        return None

    def after_failure(self) -> TpmUnavailable | None:
        """Return what explains a connection that failed, or None. Unlike `obstacle` this may disturb a TPM at work."""
        if obstacle := self.obstacle():
            return obstacle
        if self.path is None:
            return None
        if not self.is_socket:
            return _unopenable(self.path)
        if _listens(self.path):
            return None
        return TpmUnavailable(
            f"nobody listens on the TPM socket {self.path}",
            hint="Start the software TPM that the socket belongs to.",
        )

    def ownership(self) -> str:
        """Say who owns the node and who we are, names where known and numbers always."""
        assert self.path is not None
        found = self.path.stat()
        ours = ", ".join(_group(gid) for gid in sorted({os.getegid(), *os.getgroups()}))
        return (
            f"{self.path} belongs to {_user(found.st_uid)}, group {_group(found.st_gid)}, mode "
            f"{stat.S_IMODE(found.st_mode):04o}; this process is {_user(os.geteuid())}, groups {ours}"
        )

    def _absent_hint(self) -> str:
        if self.is_socket:
            return "Start the software TPM, or correct sealing.tcti."
        assert self.path is not None
        return surroundings().let_in(self.path)

    def _permission_hint(self) -> str:
        assert self.path is not None
        found = self.path.stat()
        gid = found.st_gid
        if found.st_mode & 0o060 != 0o060 or gid == 0:
            return (
                f"The group may not use it: install Debian's tpm-udev (it gives the node to the group tss), or "
                f"chgrp tss {self.path} && chmod 0660 {self.path}; then join that group."
            )
        return surroundings().let_use(self.path, gid, user=_user_name(os.geteuid()), group=_group_name(gid))


def endpoint(tcti: str) -> Endpoint:
    """Return what `tcti` names: `device:/dev/tpmrm0`, `swtpm:path=/run/tpm.sock`, or something without a path."""
    kind, _, conf = tcti.partition(":")
    if kind == "device":
        return Endpoint(tcti, Path(conf or "/dev/tpmrm0"), is_socket=False)
    options = dict(part.partition("=")[::2] for part in conf.split(",")) if kind == "swtpm" else {}
    if path := options.get("path"):
        return Endpoint(tcti, Path(path), is_socket=True)
    return Endpoint(tcti, None, is_socket=False)


def _unopenable(node: Path) -> TpmUnavailable | None:
    try:
        os.close(os.open(node, os.O_RDWR | os.O_NONBLOCK))
    except OSError as error:
        if explained := surroundings().explain_open(node, error.errno):
            return TpmUnavailable(explained[0], hint=explained[1])
    return None


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return False
        except OSError:
            return True  # somebody listens, and is busy
    return True


def _user_name(uid: int) -> str:
    with contextlib.suppress(KeyError):
        return pwd.getpwuid(uid).pw_name
    return str(uid)


def _group_name(gid: int) -> str:
    with contextlib.suppress(KeyError):
        return grp.getgrgid(gid).gr_name
    return str(gid)


def _user(uid: int) -> str:
    return f"{_user_name(uid)} ({uid})"


def _group(gid: int) -> str:
    return f"{_group_name(gid)} ({gid})"
