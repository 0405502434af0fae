"""How large each part of a multipart upload is: pure arithmetic.

The size of an object is not known before its last byte, an upload has at most 10,000 parts, and small parts keep
memory small. So parts begin small and double after every 800, up to 1 GiB: 16 MiB at first hold 5 TiB and more. Where
an endpoint takes only parts of one size (Cloudflare R2), they stay as they are and the object's size is limited.
"""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1 << 20
SMALLEST_PART = 5 * MIB
LARGEST_PART = 1024 * MIB
LARGEST_PART_OF_S3 = 5120 * MIB
MOST_PARTS = 10_000


@dataclass(frozen=True, slots=True)
class PartSizes:
    """The sizes of parts 1 to `most`. `equal` parts are all of `first_bytes`, but for the last."""

    first_bytes: int = 16 * MIB
    most: int = MOST_PARTS
    equal: bool = False

    def size(self, number: int) -> int:
        """Return the bytes of part `number`, counted from 1; the last part of an object may be smaller."""
        if not 1 <= number <= self.most:
            raise ValueError(f"part {number} of {self.most}")
        if self.equal:
            return self.first_bytes
        doublings = (number - 1) // max(1, self.most * 2 // 25)
        largest = max(self.first_bytes, LARGEST_PART)
        return min(self.first_bytes << min(doublings, 20), largest)

    @property
    def capacity(self) -> int:
        """Return the bytes of the largest object."""
        return sum(self.size(number) for number in range(1, self.most + 1))
