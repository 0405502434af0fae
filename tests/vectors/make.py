"""Write the vector files beside this script: `python -m tests.vectors.make`.

They are committed and version 1 is frozen: a run must change nothing (a test holds that, but for zstd's own choices,
which may differ between its releases). The keys and nonces in them were computed independently of this code.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from pathlib import Path
from typing import Any

from service.archive import names, zip64
from service.archive.parts import Footer
from service.sealing.suite import ArchiveKeys
from tests.vectors.small import ARCHIVE_ID, CREATED, DATA_KEY, draft, sealed_chunk

HERE = Path(__file__).parent
LABEL = b"deviceon-backup/v1"
CHUNKS = [(1, 5, True, b"abc"), (1, 0, False, b""), (1, 0, True, b""), (0xFFFFFFFF, 0xFFFFFFFF, True, b"\x00" * 33)]


def _expand(prk: bytes, info: bytes, length: int) -> bytes:
    """HKDF-Expand, written once more (RFC 5869, section 2.3)."""
    okm = block = b""
    while len(okm) < length:
        block = hmac.digest(prk, block + info + bytes([len(okm) // 32 + 1]), "sha256")
        okm += block
    return okm[:length]


def keys() -> dict[str, Any]:
    """All keys of one archive."""
    header = b"{}"
    prk, hh = hmac.digest(ARCHIVE_ID, DATA_KEY, "sha256"), hashlib.sha256(header).digest()
    streams = []
    for stream in (1, 2, 0xFFFFFFFF):
        keying = _expand(prk, LABEL + b"/stream\0\0\1" + stream.to_bytes(4, "big") + hh, 44)
        streams.append({"stream": stream, "key": keying[:32].hex(), "base": keying[32:].hex()})
    return {
        "data_key": DATA_KEY.hex(),
        "archive_id": ARCHIVE_ID.hex(),
        "header": header.decode(),
        "suite": 1,
        "prk": prk.hex(),
        "commit": _expand(prk, LABEL + b"/commit\0\0\1", 32).hex(),
        "hh": hh.hex(),
        "key_footer": _expand(prk, LABEL + b"/footer\0\0\1" + hh, 32).hex(),
        "streams": streams,
    }


def chunks() -> list[dict[str, Any]]:
    """Sealed chunks under the keys of `keys`."""
    made = []
    derived = ArchiveKeys(DATA_KEY, archive_id=ARCHIVE_ID, header=b"{}")
    bases = {one["stream"]: int(one["base"], 16) for one in keys()["streams"]}
    for stream, index, last, body in CHUNKS:
        place = index.to_bytes(4, "big") + bytes([last])
        made.append(
            {
                "stream": stream,
                "index": index,
                "last": last,
                "nonce": (bases[stream] ^ int.from_bytes(place, "big")).to_bytes(12, "big").hex(),
                "aad": (LABEL + b"/chunk\0" + ARCHIVE_ID + stream.to_bytes(4, "big") + place).hex(),
                "body": body.hex(),
                "sealed": sealed_chunk(derived.stream(stream), index, body, last=last).hex(),
            }
        )
    return made


def footer() -> dict[str, Any]:
    """One footer and its MAC."""
    plain = Footer(
        archive_id=ARCHIVE_ID.hex(),
        entries=6,
        bytes=1234,
        raw_bytes=5678,
        started=CREATED,
        finished=CREATED,
        directory_sha256="ab" * 32,
    )
    mac = hmac.digest(bytes.fromhex(keys()["key_footer"]), plain.without_mac(), "sha256")
    signed = plain.model_copy(update={"mac": mac.hex()})
    return {"without_mac": plain.without_mac().decode(), "mac": mac.hex(), "footer": signed.to_bytes().decode()}


def zip_records() -> dict[str, Any]:
    """Records of the ZIP profile, with and without ZIP64."""
    entries = [
        zip64.Entry(names.HEADER, 0, 2, 0x99_11_22_33),
        zip64.Entry("streams/00000001/0000000a.zst", 0xFFFF_FFFE, 70_000, 1),
        zip64.Entry("streams/00000001/0000000b.sealed", 0xFFFF_FFFF, 0xFFFF_FFFE, 0xFFFF_FFFF),
        zip64.Entry(names.FOOTER, 0x1_2345_6789_ABCD, 300, 0),
    ]
    ends = [(4, 1000, 250), (0xFFFE, 0xFFFF_FFFE, 99), (0xFFFF, 5, 6), (5, 0xFFFF_FFFF, 6), (70_000, 1 << 40, 1 << 33)]
    return {
        "entries": [
            {
                "name": entry.name,
                "offset": entry.offset,
                "size": entry.size,
                "crc32": entry.crc32,
                "local_header": zip64.local_header(entry.name, size=entry.size, crc32=entry.crc32).hex(),
                "directory_record": zip64.directory_record(entry).hex(),
            }
            for entry in entries
        ],
        "ends": [
            {
                "entries": count,
                "directory_offset": offset,
                "directory_size": size,
                "records": zip64.end_records(entries=count, directory_offset=offset, directory_size=size).hex(),
            }
            for count, offset, size in ends
        ],
    }


def archives() -> dict[str, bytes]:
    """One small archive with sealing, one without."""
    return {"sealed.zip": draft(sealed=True).finish(), "unsealed.zip": draft(sealed=False).finish()}


def computed() -> dict[str, Any]:
    """The JSON vectors that are computed; those of names, frames and JSON texts were written by hand."""
    return {"keys.json": keys(), "chunks.json": chunks(), "footer.json": footer(), "zip.json": zip_records()}


if __name__ == "__main__":
    for name, value in computed().items():
        (HERE / name).write_text(json.dumps(value, indent=2) + "\n")
    for name, content in archives().items():
        (HERE / name).write_bytes(content)
    (HERE / "sealed.key").write_text(DATA_KEY.hex() + "\n")
