"""Suite 1 against its published vectors, and everything that a sealed chunk is bound to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from service.errors import NotAuthentic
from service.sealing.suite import TAG_BYTES, ArchiveKeys, check_commit, check_footer_mac
from tests.vectors.make import computed
from tests.vectors.small import sealed_chunk

VECTORS = Path(__file__).parents[1] / "vectors"
KEYS: dict[str, Any] = json.loads((VECTORS / "keys.json").read_text())
CHUNKS: list[dict[str, Any]] = json.loads((VECTORS / "chunks.json").read_text())
FOOTER: dict[str, str] = json.loads((VECTORS / "footer.json").read_text())
DATA_KEY = bytes.fromhex(KEYS["data_key"])
ARCHIVE_ID = bytes.fromhex(KEYS["archive_id"])


def keys(*, data_key: bytes = DATA_KEY, archive_id: bytes = ARCHIVE_ID, header: bytes = b"{}") -> ArchiveKeys:
    return ArchiveKeys(data_key, archive_id=archive_id, header=header)


def test_the_design_s_own_vectors_hold() -> None:
    assert KEYS["prk"] == "1341af864f792990bbee1f036c20ff7224b44ff6863eb646049409dfae70d650"
    assert KEYS["commit"] == "25d5ef613c216f03adde81b3a731afab1ac39a8a26acbd0b7346173a5230718d"
    assert KEYS["hh"] == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    assert KEYS["streams"][0]["key"] == "2213e9fdf1435ec70237902a89fef5e72a91791efe51fd23ce8cb094cd08adb7"
    assert KEYS["streams"][0]["base"] == "da9f4fae8486571ea5d61128"
    assert KEYS["key_footer"] == "64b959f3763d3fe95bf07e2e74b3b1c25be5e8ba360cf927b39a969639e854a0"
    assert sealed_chunk(keys().stream(1), 5, b"abc", last=True).hex() == "9db9fefcb6ae7b7b434c750617c65fd00606dc"
    assert sealed_chunk(keys().stream(1), 0, b"", last=False).hex() == "5e5fee5a2b6104187a186f0c644a2cb3"


def test_the_published_page_has_the_same_vectors() -> None:
    page = (Path(__file__).parents[2] / "docs" / "ARCHIVE_FORMAT.md").read_text()
    published = page[page.index("## 10. Test vectors") : page.index("## 11.")]
    first = KEYS["streams"][0]
    for value in (KEYS["prk"], KEYS["commit"], KEYS["hh"], first["key"], first["base"], KEYS["key_footer"]):
        assert f" {value}\n" in published
    for member in ("nonce", "aad", "sealed"):
        assert f" {CHUNKS[0][member]}\n" in published
    assert f" {CHUNKS[1]['sealed']}\n" in published
    for file in VECTORS.iterdir():
        assert file.suffix == ".py" or file.is_dir() or f"`{file.name}`" in published, file.name


@pytest.mark.parametrize("name", ["keys.json", "chunks.json", "footer.json", "zip.json"])
def test_the_committed_vectors_are_what_the_code_computes(name: str) -> None:
    assert json.loads((VECTORS / name).read_text()) == computed()[name]


def test_commit_needs_no_header_and_is_that_of_the_vectors() -> None:
    early = ArchiveKeys(DATA_KEY, archive_id=ARCHIVE_ID, header=None)
    assert early.commit.hex() == KEYS["commit"] == keys(header=b"other").commit.hex()
    with pytest.raises(ValueError, match="without a header"):
        early.stream(1)
    with pytest.raises(ValueError, match="without a header"):
        early.footer_mac(b"")


@pytest.mark.parametrize("vector", CHUNKS, ids=lambda vector: f"stream {vector['stream']} chunk {vector['index']}")
def test_chunks_seal_and_open_as_published(vector: dict[str, Any]) -> None:
    cipher = keys().stream(vector["stream"])
    body, sealed = bytes.fromhex(vector["body"]), bytes.fromhex(vector["sealed"])
    assert sealed_chunk(cipher, vector["index"], body, last=vector["last"]) == sealed
    assert cipher.open(vector["index"], memoryview(sealed), last=vector["last"]) == body
    assert len(sealed) == len(body) + TAG_BYTES


def test_the_footer_mac_is_as_published() -> None:
    mac = keys().footer_mac(FOOTER["without_mac"].encode())
    assert mac.hex() == FOOTER["mac"]
    check_footer_mac(keys(), FOOTER["without_mac"].encode(), mac)
    with pytest.raises(NotAuthentic, match="footer"):
        check_footer_mac(keys(), FOOTER["without_mac"].encode() + b" ", mac)
    with pytest.raises(NotAuthentic, match="footer"):
        check_footer_mac(keys(header=b"{ }"), FOOTER["without_mac"].encode(), mac)


@pytest.mark.parametrize(
    "other",
    [
        {"data_key": bytes(32)},
        {"archive_id": bytes(16)},
        {"header": b"{ }"},
        {"stream": 2},
        {"index": 4},
        {"index": 5 + (1 << 31)},
        {"last": False},
    ],
    ids=lambda other: next(iter(other)),
)
def test_a_chunk_opens_only_in_its_place(other: dict[str, Any]) -> None:
    sealed = sealed_chunk(keys().stream(1), 5, b"abc", last=True)
    place = {"stream": 1, "index": 5, "last": True}
    at = place | other
    derived = keys(**{name: value for name, value in other.items() if name not in place})
    with pytest.raises(NotAuthentic, match="not what was sealed"):
        derived.stream(at["stream"]).open(at["index"], sealed, last=at["last"])


def test_every_flipped_bit_and_every_cut_of_a_chunk_is_refused() -> None:
    cipher = keys().stream(1)
    sealed = sealed_chunk(cipher, 0, b"some content", last=True)
    for bit in range(len(sealed) * 8):
        flipped = bytearray(sealed)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(NotAuthentic):
            cipher.open(0, flipped, last=True)
    for length in range(len(sealed)):
        with pytest.raises(NotAuthentic):
            cipher.open(0, sealed[:length], last=True)
    with pytest.raises(NotAuthentic):
        cipher.open(0, sealed + b"\0", last=True)


def test_a_key_of_another_archive_does_not_match_the_commitment() -> None:
    check_commit(keys(), bytes.fromhex(KEYS["commit"]))
    for wrong in (keys(data_key=bytes(32)), keys(archive_id=bytes(16))):
        with pytest.raises(NotAuthentic, match="not the one"):
            check_commit(wrong, bytes.fromhex(KEYS["commit"]))
    with pytest.raises(NotAuthentic):
        check_commit(keys(), b"")


@pytest.mark.parametrize(("data_key", "archive_id"), [(bytes(31), bytes(16)), (bytes(32), bytes(15)), (b"", b"")])
def test_keys_of_wrong_length_are_a_mistake_of_the_caller(data_key: bytes, archive_id: bytes) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        ArchiveKeys(data_key, archive_id=archive_id, header=b"")


def test_no_secret_shows_in_a_repr() -> None:
    shown = repr(keys()) + repr(keys().stream(1)) + str(keys())
    assert DATA_KEY.hex() not in shown
    assert repr(DATA_KEY) not in shown
