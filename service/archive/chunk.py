"""The body of a chunk: exactly one zstd frame that tells its size and carries a checksum.

The frame's header is read before a byte is decompressed, so what a frame may cost in memory is known beforehand.
"""

from __future__ import annotations

from typing import Final

import zstandard
from isal import isal_zlib

from service.errors import CorruptArchive

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
    return zstandard.ZstdCompressor(level=level, write_checksum=True, write_content_size=True).compress(raw)


def decompress(frame: bytes | bytearray | memoryview, *, max_raw: int) -> bytes:
    """Return what one zstd frame holds. Releases the GIL; safe in many threads.

    Raises CorruptArchive unless `frame` is exactly one frame that tells its size, at most `max_raw`, needs no
    dictionary, carries a checksum, and holds just that many bytes.
    """
    decompressor = zstandard.ZstdDecompressor()
    try:
        size = _declared_size(frame, max_raw)
        if size == 0:  # `decompress` would take the frame's word for it
            return _empty(decompressor, frame)
        # Into one buffer of the declared size: several times as fast as one that grows.
        return decompressor.decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as exc:
        raise CorruptArchive(f"a chunk cannot be decompressed: {exc}") from exc


def _empty(decompressor: zstandard.ZstdDecompressor, frame: bytes | bytearray | memoryview) -> bytes:
    work = decompressor.decompressobj()
    if work.decompress(frame) or not work.eof or work.unused_data:
        raise CorruptArchive("a chunk is not one whole zstd frame with as many bytes as it says")
    return b""


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
    size = zstandard.get_frame_parameters(frame).content_size
    if size == zstandard.CONTENTSIZE_UNKNOWN:
        raise CorruptArchive("a chunk's zstd frame does not tell its size")
    if size > min(max_raw, MAX_RAW):
        raise CorruptArchive(f"a chunk claims {size} bytes, more than the {max_raw} allowed")
    return size
