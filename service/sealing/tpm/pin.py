"""The pinned TPM: which storage key this service trusts, remembered from the first time it was seen."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from service.errors import SealError
from service.sealing.tpm.gate import TpmGate
from service.sealing.tpm.public_area import BadPublicArea, fingerprint, name_of, require_storage_parent
from service.state_directory import make_directory, read_file, replace_file

if TYPE_CHECKING:
    from service.sealing.tpm.chip import Chip

_VERSION = 1
_LARGEST = 16 * 1024  # bytes; a pin has about one thousand


@dataclass(frozen=True, slots=True)
class TpmPin:
    """What is known of a trusted TPM. The names and the public area are binary (TPM2B_NAME's content, TPM2B_PUBLIC)."""

    srk_name: bytes
    srk_public: bytes
    ek_name: bytes | None
    manufacturer: str
    firmware: str
    kind: Literal["hardware", "virtual"]

    @property
    def fingerprint(self) -> str:
        """Return what people compare, `TPM 7Q4F-...` (80 bits of a hash of the storage key's name)."""
        return fingerprint(self.srk_name)


async def read_pin(gate: TpmGate) -> TpmPin:
    """Look at the TPM and return what a pin of it says. Trust on first use: nobody vouches for it. Raises SealError."""

    def work(chip: Chip) -> TpmPin:
        from service.sealing.tpm.identify import identify  # noqa: PLC0415 - loads libtss2

        return identify(chip)

    return await gate.run(work)


def load_pin(path: Path) -> TpmPin | None:
    """Return the pin, or None when there is none yet. Raises SealError when the file cannot be used."""
    data = read_file(path, "the pinned TPM", most=_LARGEST, hint="Correct its mode.")
    if data is None:
        return None
    try:
        return _parse(data)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise SealError(
            f"the pinned TPM in {path} is damaged",
            hint="Compare the TPM's fingerprint in `doctor` with the one in an archive of this machine; when they are "
            "equal, delete the file: the next backup pins this TPM again.",
        ) from error


def save_pin(path: Path, pin: TpmPin) -> None:
    """Write the pin, readable by the owner only: whole or not at all, and durable on return. Raises SealError."""
    text = json.dumps(
        {
            "version": _VERSION,
            "fingerprint": pin.fingerprint,
            "srk_name": pin.srk_name.hex(),
            "srk_public": pin.srk_public.hex(),
            "ek_name": pin.ek_name.hex() if pin.ek_name else None,
            "manufacturer": pin.manufacturer,
            "firmware": pin.firmware,
            "kind": pin.kind,
        },
        indent=1,
    )
    try:
        make_directory(path.parent)
        replace_file(path, f"{text}\n".encode())
    except OSError as error:
        raise SealError(
            f"the pinned TPM cannot be written to {path}: {error.strerror}", hint="Make state_dir writable."
        ) from error


def _parse(data: bytes) -> TpmPin:
    stored = json.loads(data)
    if stored["version"] != _VERSION or stored["kind"] not in ("hardware", "virtual"):
        raise ValueError("version or kind")
    for member in ("manufacturer", "firmware"):
        if not re.fullmatch(r"[ -~]{0,64}", stored[member]):
            raise ValueError(member)
    public = bytes.fromhex(stored["srk_public"])
    require_storage_parent(public)
    pin = TpmPin(
        srk_name=bytes.fromhex(stored["srk_name"]),
        srk_public=public,
        ek_name=bytes.fromhex(stored["ek_name"]) if stored["ek_name"] is not None else None,
        manufacturer=stored["manufacturer"],
        firmware=stored["firmware"],
        kind=stored["kind"],
    )
    if name_of(public) != pin.srk_name or pin.fingerprint != stored["fingerprint"]:
        raise BadPublicArea("name, fingerprint and public area do not belong together")
    return pin
