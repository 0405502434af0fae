"""How large each part of a multipart upload is: pure arithmetic.

The size of an object is not known before its last byte, an upload has at most 10,000 parts, and each part is held until
it was taken. So parts begin small, and after a quarter of what is allowed they are twice as large: 8 MiB at first are
16 MiB from 20 GiB up to 74 GiB, and several of these still fit where memory is bounded. Beyond that they double after
each twenty-fifth, up to 5 GiB, so that 5 TiB fit. Where an endpoint takes only parts of one size (Cloudflare R2), they
stay as they are and the object's size is limited.
"""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1 << 20
SMALLEST_PART = 5 * MIB
LARGEST_PART = 5120 * MIB
MOST_PARTS = 10_000
FIRST_BYTES = 8 * MIB
EQUAL_BYTES = 16 * MIB


@dataclass(frozen=True, slots=True)
class PartSizes:
    """The sizes of parts 1 to `most`. `equal` parts are all of `first_bytes`, but for the last."""

    first_bytes: int = FIRST_BYTES
    most: int = MOST_PARTS
    equal: bool = False

    def size(self, number: int) -> int:
        """Return the bytes of part `number`, counted from 1; the last part of an object may be smaller."""
        if not 1 <= number <= self.most:
            raise ValueError(f"part {number} of {self.most}")
        if self.equal or number <= max(1, self.most // 4):
            return self.first_bytes
        beyond = number - 1 - self.most * 3 // 5
        doublings = 1 if beyond < 0 else 2 + beyond // max(1, self.most // 25)
        return min(self.first_bytes << min(doublings, 20), LARGEST_PART)

    @property
    def capacity(self) -> int:
        """Return the bytes of the largest object."""
        return sum(self.size(number) for number in range(1, self.most + 1))
