"""Which TPM this is: its maker, its version, its keys' names. Runs in the gate's thread."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Literal

from service.sealing.tpm.chip import Chip
from service.sealing.tpm.endorsement import endorsement_names
from service.sealing.tpm.parents import choose_parent
from service.sealing.tpm.pin import TpmPin

_FIXED, _MANUFACTURER, _VENDOR, _FIRMWARE = 0x100, 0x105, 0x106, 0x10B  # TPM_PT_*, Part 2, 6.13

# libtpms under swtpm and QEMU, Hyper-V and Azure, VMware, Google Cloud, Amazon, Xen
_VIRTUAL = frozenset({"IBM", "MSFT", "VMW", "GOOG", "AMZN", "XEN"})


@dataclass(frozen=True, slots=True)
class Model:
    """What the TPM says it is."""

    manufacturer: str
    vendor: str
    firmware: str

    @property
    def kind(self) -> Literal["hardware", "virtual"]:
        """Tell whether the TPM is a program, whose state is a file that can be copied."""
        return "virtual" if self.manufacturer in _VIRTUAL else "hardware"


def model(chip: Chip) -> Model:
    """Read maker, vendor string and firmware version."""
    found = chip.properties(_FIXED, 20)
    first, second = found.get(_FIRMWARE, 0), found.get(_FIRMWARE + 1, 0)
    return Model(
        manufacturer=_text(found.get(_MANUFACTURER, 0)),
        vendor=_text(*(found.get(_VENDOR + number, 0) for number in range(4))),
        firmware=f"{first >> 16}.{first & 0xFFFF}.{second >> 16}.{second & 0xFFFF}",
    )


def identify(chip: Chip) -> TpmPin:
    """Return what a pin of this TPM says."""
    parent = choose_parent(chip)
    facts = model(chip)
    return TpmPin(
        srk_name=parent.name,
        srk_public=parent.public,
        ek_name=next(iter(endorsement_names(chip)), None),
        manufacturer=facts.manufacturer,
        firmware=facts.firmware,
        kind=facts.kind,
    )


def _text(*numbers: int) -> str:
    raw = b"".join(struct.pack(">I", number) for number in numbers)
    return "".join(chr(byte) for byte in raw if 0x20 <= byte <= 0x7E).strip()
