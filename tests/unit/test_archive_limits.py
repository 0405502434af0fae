"""Each limit of the format, met exactly and passed by one, in both readers."""

from __future__ import annotations

import json
from typing import Any

import pytest

from service.archive import names, parts, zip64
from service.archive.chunk import MAX_RAW
from service.archive.parts import Footer, Header, KeySlots, Manifest
from service.archive.strict_json import canonical_json
from service.errors import CorruptArchive
from tests.vectors.second_reader import open_archive
from tests.vectors.small import CREATED, STREAMS, make_header, make_manifest

Members = dict[str, Any]

HEADER: Members = json.loads(make_header(sealed=True, fingerprint="TPM 7Q4F").to_bytes())
MANIFEST: Members = json.loads(make_manifest(STREAMS).to_bytes())
STREAM: Members = MANIFEST["streams"][0]
SOURCE: Members = MANIFEST["sources"][0]
SIGNATURE = {"public_key": "ab" * 91, "value": "cd" * 70}
FOOTER: Members = {
    "archive_id": "00" * 16,
    "entries": 3,
    "bytes": 900,
    "raw_bytes": 0,
    "started": "2025-01-31T02:00:07Z",
    "finished": "2025-01-31T02:00:07Z",
    "directory_sha256": "00" * 32,
    "mac": "00" * 32,
}


def test_the_limits_are_the_published_ones() -> None:
    assert (parts.MAX_PART_BYTES, open_archive.MAX_PART) == (65_536, 65_536)
    assert (parts.MAX_MANIFEST_BYTES, open_archive.MAX_MANIFEST) == (67_108_864, 67_108_864)
    assert (MAX_RAW, open_archive.MAX_RAW) == (67_108_864, 67_108_864)
    assert (zip64.MAX_ENTRIES, open_archive.MAX_ENTRIES) == (4_194_304, 4_194_304)
    assert (parts.FORMAT, parts.VERSION, parts.SUITE_NONE, parts.SUITE_AES_256_GCM) == ("deviceon-backup", 1, 0, 1)


def both_headers(value: Members, *, good: bool) -> None:
    data = json.dumps(value).encode()
    if good:
        assert json.loads(Header.from_bytes(data).to_bytes()) == value
        assert open_archive.read_header(data) == value
        return
    with pytest.raises(CorruptArchive, match="header is not as this format writes it"):
        Header.from_bytes(data)
    with pytest.raises(open_archive.Problem, match=r"header\.json"):
        open_archive.read_header(data)


def both_manifests(value: Members, *, good: bool) -> None:
    data = json.dumps(value).encode()
    if good:
        assert json.loads(Manifest.from_bytes(data).to_bytes()) == value
        assert open_archive.read_manifest(data) == value
        if "signature" in value:
            open_archive.check_members(value["signature"], "it", open_archive.SIGNATURE_MEMBERS, others=True)
        return
    with pytest.raises(CorruptArchive, match="manifest is not as this format writes it"):
        Manifest.from_bytes(data)
    with pytest.raises(open_archive.Problem, match=r"manifest|signature"):
        open_archive.check_signature(open_archive.read_manifest(data), b"")


GOOD_HEADERS: list[Members] = [
    {"seq": 0},
    {"seq": 2**53 - 1},
    {"max_raw": 1},
    {"max_raw": 64 << 20},
    {"product": "x"},
    {"product": "x" * 500},
    {"notice": "ü" * 500},
    {"sealing": "a"},
    {"sealing": "age+tpm-2" + "a" * 23},
    {"created": "0001-01-01T00:00:00Z", "name": "Backup_00010101_0000Z.zip"},
    {"created": "9999-12-31T23:59:59Z", "name": "Backup_99991231_2359Z.zip"},
]


@pytest.mark.parametrize("change", GOOD_HEADERS, ids=lambda change: str(change)[:60])
def test_a_header_at_a_limit_is_read_by_both(change: Members) -> None:
    both_headers(HEADER | change, good=True)


BAD_HEADERS: list[Members] = [
    {"seq": 2**53},
    {"seq": True},
    {"seq": "3"},
    {"max_raw": True},
    {"max_raw": 65536.0},
    {"product": 5},
    {"sealing": "a" * 33},
    {"sealing": ""},
    {"sealing": "tpm\n"},
    {"sealing": "\ntpm"},
    {"sealing": "t.m"},
    {"sealing": "é"},
    {"commit": "ab" * 32 + "a"},
    {"commit": "ab" * 31 + "a"},
    {"commit": "ab" * 32 + "\n"},
    {"commit": "\n" + "ab" * 32},
    {"commit": "AB" * 32},
    {"commit": "x" + "ab" * 31 + "b"},
    {"archive_id": "0" * 33},
    {"archive_id": "\n" + "0" * 32},
    {"archive_id": "x" + "0" * 32},
    {"archive_id": "0" * 32 + "x"},
    {"archive_id": 0},
    {"created": "12025-01-31T02:00:07Z"},
    {"created": "225-01-31T02:00:07Z"},
    {"created": "2025-1-31T02:00:07Z"},
    {"created": "2025-01-3T02:00:07Z"},
    {"created": "2025-01-31T2:00:07Z"},
    {"created": "2025-01-31T02:0:07Z"},
    {"created": "2025-01-31T02:00:7Z"},
    {"created": "2025-01-31T02:00:07Z\n"},
    {"created": "2025-01-31T02:00:07"},
    {"created": "٢025-01-31T02:00:07Z"},
    {"created": "2025-٠1-31T02:00:07Z"},
    {"created": "2025-01-1٣T02:00:07Z"},
    {"created": "2025-01- 3T02:00:07Z"},
    {"created": "2025-01-31T0٢:00:07Z"},
    {"created": "2025-01-31T02:0٠:07Z"},
    {"created": "2025-01-31T02:00:0٧Z"},
    {"fingerprint": ""},
    {"fingerprint": "TPM\t1"},
]


@pytest.mark.parametrize("change", BAD_HEADERS, ids=lambda change: ascii(change)[:60])
def test_a_header_beyond_a_limit_is_corrupt_to_both(change: Members) -> None:
    both_headers(HEADER | change, good=False)


@pytest.mark.parametrize("format_", ["xdeviceon-backup", "deviceon-backup\n", "deviceon-backupx", "Deviceon-backup"])
def test_a_header_says_exactly_which_format_it_has(format_: str) -> None:
    with pytest.raises(ValueError, match="format"):
        Header.model_validate(HEADER | {"format": format_})


@pytest.mark.parametrize("member", ["version", "min_reader", "suite"])
@pytest.mark.parametrize("value", [True, "1", 1.0, 2, -1, None])
def test_a_header_is_of_one_version_and_of_no_other_also_when_it_is_made(member: str, value: object) -> None:
    with pytest.raises(ValueError, match=member):
        Header.model_validate(HEADER | {member: value})


def test_a_header_without_versions_is_made_of_the_one_that_this_code_writes() -> None:
    made = Header.model_validate({name: HEADER[name] for name in HEADER.keys() - {"format", "version", "min_reader"}})
    assert (made.format, made.version, made.min_reader) == ("deviceon-backup", 1, 1)
    assert made.model_dump()["created"] == CREATED


def test_what_is_wrong_with_a_part_is_said_with_its_place_and_in_bounded_words() -> None:
    with pytest.raises(CorruptArchive, match=r"writes it: streams\.0\.kind [A-Z]"):
        Manifest.from_bytes(json.dumps(MANIFEST | {"streams": [STREAM | {"kind": ""}]}).encode())
    with pytest.raises(CorruptArchive, match=r"writes it: x{60} [A-Z]"):
        Header.from_bytes(json.dumps(HEADER | {"x" * 3000: 1}).encode())


GOOD_MANIFESTS: list[Members] = [
    {"streams": []},
    {"streams": [], "sources": []},
    {"streams": [STREAM | {"id": 0}]},
    {"streams": [STREAM | {"id": 0xFFFF_FFFE}]},
    {"streams": [STREAM | {"chunks": 1, "bytes": 0}]},
    {"streams": [STREAM | {"chunks": 1 << 22, "bytes": 2**53 - 1}]},
    {"streams": [STREAM | {"kind": "a"}]},
    {"streams": [STREAM | {"kind": "a" + "0_.-" * 15 + "abc"}]},
    {"streams": [], "sources": [SOURCE | {"name": "a"}]},
    {"streams": [], "sources": [SOURCE | {"name": "-0" * 16}]},
    {"streams": [], "sources": [SOURCE | {"type": "a"}]},
    {"streams": [], "sources": [SOURCE | {"type": "a" + "0_-" * 10 + "a"}]},
    {"signature": SIGNATURE},
    {"signature": SIGNATURE | {"value": "00" * 8}},
    {"signature": SIGNATURE | {"value": "ff" * 72}},
]


@pytest.mark.parametrize("change", GOOD_MANIFESTS, ids=lambda change: str(change)[:70])
def test_a_manifest_at_a_limit_is_read_by_both(change: Members) -> None:
    both_manifests(MANIFEST | change, good=True)


BAD_MANIFESTS: list[Members] = [
    {"streams": [STREAM | {"chunks": (1 << 22) + 1}]},
    {"streams": [STREAM | {"chunks": True}]},
    {"streams": [STREAM | {"bytes": 2**53}]},
    {"streams": [STREAM | {"bytes": True}]},
    {"streams": [STREAM | {"id": 1.0}]},
    {"streams": [STREAM | {"sha256": "0" * 65}]},
    *({"streams": [STREAM | {"kind": kind}]} for kind in ("", "0a", "_a", "a" * 65, "a\n", "\na", "a:", "é", "aé")),
    *(
        {"streams": [], "sources": [SOURCE | {"name": name}]}
        for name in ("", "a" * 33, "a\n", "\na", "a_", "A", "é", "a.b")
    ),
    *(
        {"streams": [], "sources": [SOURCE | {"type": kind}]}
        for kind in ("", "0a", "_a", "a" * 33, "a\n", "\na", "a.b", "é", "aé")
    ),
    {"sources": [SOURCE | {"facts": []}]},
    {"tool": {"version": "1"}},
    {"signature": None},
    {"signature": {"value": SIGNATURE["value"]}},
    {"signature": {"public_key": SIGNATURE["public_key"]}},
    *(
        {"signature": SIGNATURE | {"public_key": key}}
        for key in ("ab" * 90, "ab" * 92, "ab" * 91 + "a", "AB" * 91, "ab" * 91 + "\n", "x" + "ab" * 91, "xy" * 91)
    ),
    *(
        {"signature": SIGNATURE | {"value": value}}
        for value in ("cd" * 7, "cd" * 73, "cd" * 8 + "c", "CD" * 70, "cd" * 70 + "\n", "x" + "cd" * 70, "xy" * 70)
    ),
]


@pytest.mark.parametrize("change", BAD_MANIFESTS, ids=lambda change: ascii(change)[:70])
def test_a_manifest_beyond_a_limit_is_corrupt_to_both(change: Members) -> None:
    both_manifests(MANIFEST | change, good=False)


def slots_of(number: int, **slot: Any) -> bytes:
    return json.dumps({"slots": [{"type": "age"} | slot] * number}).encode()


@pytest.mark.parametrize(
    "data", [slots_of(1), slots_of(64), slots_of(1, type="a"), slots_of(1, type="-0" * 16)], ids=lambda data: data[:40]
)
def test_key_slots_at_a_limit_are_read_by_both(data: bytes) -> None:
    assert KeySlots.from_bytes(data).slots == open_archive.read_slots(data) == json.loads(data)["slots"]


@pytest.mark.parametrize(
    "data",
    [
        slots_of(0),
        slots_of(65),
        *(slots_of(1, type=kind) for kind in ("", "a" * 33, "a\n", "\na", "a_b", "A", "é", None, 1)),
        b'{"slots":[{"type":"age"},{"file":"x"}]}',
        b'{"slots":[{"type":"age"}],"more":1}',
        b'{"slots":null}',
        b"[]",
    ],
    ids=lambda data: data[:40],
)
def test_key_slots_beyond_a_limit_are_corrupt_to_both(data: bytes) -> None:
    with pytest.raises(CorruptArchive, match="list of key slots"):
        KeySlots.from_bytes(data)
    with pytest.raises(open_archive.Problem, match=r"keyslots\.json"):
        open_archive.read_slots(data)


def test_a_part_has_at_most_64_kib() -> None:
    empty = KeySlots(slots=[{"type": "age", "file": ""}])
    room = 65_536 - len(empty.to_bytes())
    full = KeySlots(slots=[{"type": "age", "file": "x" * room}])
    assert KeySlots.from_bytes(full.to_bytes()) == full
    with pytest.raises(ValueError, match="65537 bytes"):
        KeySlots(slots=[{"type": "age", "file": "x" * (room + 1)}]).to_bytes()
    with pytest.raises(CorruptArchive, match="larger than 65536 bytes"):
        KeySlots.from_bytes(full.to_bytes() + b" ")


def test_a_manifest_has_at_most_64_mib() -> None:
    data = json.dumps(MANIFEST).encode()
    full = data + b" " * ((64 << 20) - len(data))
    assert Manifest.from_bytes(full) == Manifest.from_bytes(data)
    with pytest.raises(CorruptArchive, match="larger than 67108864 bytes"):
        Manifest.from_bytes(full + b" ")


GOOD_FOOTERS: list[Members] = [
    {},
    {"entries": 0, "bytes": 0},
    {"entries": 2**53 - 1, "raw_bytes": 2**53 - 1},
    {"started": "0001-01-01T00:00:00Z", "finished": "0999-12-31T23:59:59Z"},
]


@pytest.mark.parametrize("change", GOOD_FOOTERS, ids=str)
def test_a_footer_at_a_limit_is_read(change: Members) -> None:
    data = canonical_json(FOOTER | change)
    assert Footer.from_bytes(data).to_bytes() == data


@pytest.mark.parametrize(
    "change",
    [
        {"entries": -1},
        {"entries": 2**53},
        {"entries": True},
        {"bytes": 1.0},
        {"raw_bytes": -1},
        {"mac": "00" * 31},
        {"mac": None},
        {"directory_sha256": "00" * 33},
        {"started": "2025-01-31"},
        {"finished": None},
        {"more": 1},
    ],
    ids=str,
)
def test_a_footer_beyond_a_limit_is_corrupt(change: Members) -> None:
    with pytest.raises(CorruptArchive, match="footer"):
        Footer.from_bytes(canonical_json(FOOTER | change))
    with pytest.raises(open_archive.Problem, match=r"footer\.json"):
        open_archive.check_members(
            FOOTER | change,
            "footer.json",
            open_archive.FOOTER_MEMBERS,
            optional={"mac": open_archive.is_text(open_archive.HEX64)},
        )


def test_a_part_that_is_no_object_is_corrupt() -> None:
    for part in (Header, Manifest, Footer, KeySlots):
        for data in (b"[]", b"1", b'"x"', b"null"):
            with pytest.raises(CorruptArchive, match="not a JSON object"):
                part.from_bytes(data)


def test_an_archive_is_named_after_its_time_whatever_zone_that_is_told_in() -> None:
    assert names.archive_name(CREATED) == "Backup_20250131_0200Z.zip"
