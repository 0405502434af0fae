"""The body of a chunk: exactly one zstd frame that tells its size and carries a checksum.

The frame's header is read before a byte is decompressed, so what a frame may cost in memory is known beforehand.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

from isal import isal_zlib

from service.errors import CorruptArchive

if TYPE_CHECKING or sys.version_info < (3, 14):
    from backports import zstd
else:
    from compression import zstd

MAX_RAW: Final = 64 * 1024 * 1024
"""No chunk holds more raw bytes, whatever a header says."""

_MAGIC: Final = b"\x28\xb5\x2f\xfd"
_CHECKSUM_FLAG: Final = 0x04
_FORBIDDEN_FLAGS: Final = 0x1B  # a dictionary, and bits that RFC 8878 reserves
_SINGLE_SEGMENT_FLAG: Final = 0x20


def max_body(max_raw: int) -> int:
    """Return the most bytes that the body of a chunk of `max_raw` raw bytes has (zstd's own bound, rounded up)."""
    return max_raw + (max_raw >> 8) + 1024


def crc32(data: bytes | bytearray | memoryview, value: int = 0) -> int:
    """Return the CRC-32 of ZIP, continued from `value`. Releases the GIL."""
    return int(isal_zlib.crc32(data, value))


def compress(raw: bytes | bytearray | memoryview, *, level: int) -> bytes:
    """Return `raw` as one zstd frame with content size and checksum. Releases the GIL; safe in many threads."""
    if len(raw) > MAX_RAW:
        raise ValueError(f"a chunk holds at most {MAX_RAW} bytes, not {len(raw)}")
    parameter = zstd.CompressionParameter
    options: dict[int, int] = {
        parameter.compression_level: level,
        parameter.checksum_flag: 1,
        parameter.content_size_flag: 1,
    }
    # A compressor kept for each thread was measured and gains nothing at chunks of 4 MiB.
    return zstd.compress(raw, options=options)


def decompress(frame: bytes | bytearray | memoryview, *, max_raw: int) -> bytes:
    """Return what one zstd frame holds. Releases the GIL; safe in many threads.

    Raises CorruptArchive unless `frame` is exactly one frame that tells its size, at most `max_raw`, needs no
    dictionary, carries a checksum, and holds just that many bytes.
    """
    try:
        size = _declared_size(frame, max_raw)
        decompressor = zstd.ZstdDecompressor()
        # One byte more than declared, so that a frame which holds more than it says is seen.
        raw = decompressor.decompress(frame, size + 1)
    except zstd.ZstdError as exc:
        raise CorruptArchive(f"a chunk cannot be decompressed: {exc}") from exc
    if len(raw) != size or not decompressor.eof or decompressor.unused_data:
        raise CorruptArchive("a chunk is not one whole zstd frame with as many bytes as it says")
    return raw


def _declared_size(frame: bytes | bytearray | memoryview, max_raw: int) -> int:
    if bytes(frame[:4]) != _MAGIC or len(frame) < 6:
        raise CorruptArchive("a chunk is not a zstd frame")
    flags = frame[4]
    if not flags & _CHECKSUM_FLAG:
        raise CorruptArchive("a chunk's zstd frame carries no checksum")
    if flags & _FORBIDDEN_FLAGS:
        raise CorruptArchive("a chunk's zstd frame needs a dictionary, or something that no zstd knows today")
    # zstd's own limit for the window does not hold when a frame is decompressed in one call.
    if not flags & _SINGLE_SEGMENT_FLAG and (8 + (frame[5] & 7)) << (frame[5] >> 3) + 7 > MAX_RAW:
        raise CorruptArchive("a chunk's zstd frame wants too much memory")
    info = zstd.get_frame_info(frame)
    if info.decompressed_size is None:
        raise CorruptArchive("a chunk's zstd frame does not tell its size")
    if info.decompressed_size > min(max_raw, MAX_RAW):
        raise CorruptArchive(f"a chunk claims {info.decompressed_size} bytes, more than the {max_raw} allowed")
    return info.decompressed_size
