"""The JSON parts: strict JSON, exact members, one way to write them."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from service.archive import zip64
from service.archive.parts import (
    MAX_PART_BYTES,
    Footer,
    Header,
    KeySlots,
    Manifest,
    check_footer,
    check_manifest,
)
from service.archive.strict_json import canonical_json, strict_loads
from service.errors import CorruptArchive, UnsupportedArchive
from tests.vectors.second_reader import open_archive
from tests.vectors.small import CREATED, STREAMS, make_header, make_manifest, place

VECTORS = Path(__file__).parents[1] / "vectors"
TEXTS: dict[str, dict[str, str]] = json.loads((VECTORS / "json_texts.json").read_text())
FOOTER: dict[str, str] = json.loads((VECTORS / "footer.json").read_text())

Members = dict[str, Any]


def members(part: Header | Manifest | Footer, **change: Any) -> bytes:
    """Return a part's JSON with members changed; `...` removes one."""
    value = json.loads(part.to_bytes()) | change
    return json.dumps({name: member for name, member in value.items() if member is not ...}).encode()


@pytest.mark.parametrize("text", TEXTS["good"].values(), ids=TEXTS["good"].keys())
def test_published_json_is_read(text: str) -> None:
    assert strict_loads(text.encode()) == json.loads(text)
    if isinstance(json.loads(text), dict):
        assert open_archive.strict_json(text.encode(), "it") == json.loads(text)


@pytest.mark.parametrize("text", TEXTS["bad_hex"].values(), ids=TEXTS["bad_hex"].keys())
def test_published_bad_json_is_refused_by_both_readers(text: str) -> None:
    with pytest.raises(CorruptArchive, match="JSON part"):
        strict_loads(bytes.fromhex(text))
    with pytest.raises(open_archive.Problem):
        open_archive.strict_json(bytes.fromhex(text), "it")


def test_canonical_json_is_sorted_dense_and_plain_utf8() -> None:
    assert canonical_json({"b": [1, "é\n"], "a": {"z": None, "y": True}}) == (
        '{"a":{"y":true,"z":null},"b":[1,"é\\n"]}'.encode()
    )
    for value in ({"a": float("nan")}, {"a": float("inf")}, {"a": "\ud800"}):
        with pytest.raises(ValueError, match=r"JSON|surrogates"):
            canonical_json(value)


@pytest.mark.parametrize("sealed", [True, False])
def test_parts_come_back_as_they_were(sealed: bool) -> None:
    header, manifest = make_header(sealed=sealed), make_manifest(STREAMS)
    assert Header.from_bytes(header.to_bytes()) == header
    assert Manifest.from_bytes(manifest.to_bytes()) == manifest
    assert (b'"commit"' in header.to_bytes()) == sealed
    assert open_archive.read_header(header.to_bytes())["seq"] == 3
    assert len(open_archive.read_manifest(manifest.to_bytes())["streams"]) == len(STREAMS)


def test_times_are_kept_in_utc_and_whole_seconds() -> None:
    local = datetime(2025, 1, 31, 10, 0, 7, 999_999, tzinfo=timezone(timedelta(hours=8)))
    header = make_header(sealed=False, created=local)
    assert header.created == CREATED
    assert json.loads(header.to_bytes())["created"] == "2025-01-31T02:00:07Z"
    with pytest.raises(ValueError, match="zone"):
        make_header(sealed=False, created=datetime(2025, 1, 31))


NOT_SEALED = {"suite": 0, "commit": ..., "sealing": "off"}


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"version": 2, "min_reader": 2, "suite": 9, "commit": ..., "streams_folder": "s", "format_flags": {}},
        {"min_reader": 2},
        {"min_reader": 10**6},
        {"suite": 2},
        {"suite": 65535},
    ],
    ids=str,
)
def test_a_newer_header_says_which_reader_it_needs(change: Members) -> None:
    data = members(make_header(sealed=True), **change)
    with pytest.raises(UnsupportedArchive, match="needs a reader for format") as caught:
        Header.from_bytes(data)
    assert "newer" in caught.value.hint
    newer = max(change.get("version", 1), change.get("min_reader", 1)) > 1
    what = f"format version {change.get('version', 1)}" if newer else f"cryptographic suite {change['suite']}"
    assert f"the archive has {what}; it" in str(caught.value)
    with pytest.raises(open_archive.Problem, match=r"needs a reader for format|suite"):
        open_archive.read_header(data)


@pytest.mark.parametrize("change", [{"format": "other"}, {"format": ...}, {"format": 1}, {"format": None}], ids=str)
def test_a_header_of_something_else_is_unsupported(change: Members) -> None:
    data = members(make_header(sealed=True), **change)
    with pytest.raises(CorruptArchive if change == {"format": None} else UnsupportedArchive):
        Header.from_bytes(data)
    with pytest.raises(open_archive.Problem):
        open_archive.read_header(data)


BAD_HEADERS: list[Members] = [
    *({name: ...} for name in json.loads(make_header(sealed=True).to_bytes()) if name != "format"),
    *({name: None} for name in json.loads(make_header(sealed=True).to_bytes()) if name != "format"),
    {"unknown": 1},
    {"fingerprint": None},
    {"version": True},
    {"version": 1.0},
    {"version": "1"},
    {"version": 0},
    {"min_reader": 0},
    {"archive_id": "0" * 31},
    {"archive_id": "0" * 32 + "\n"},
    {"archive_id": "A" * 32},
    {"archive_id": "٠" * 32},
    {"name": "../Backup_20250131_0200Z.zip"},
    {"name": "Backup_20250131_0200Z.zip\n"},
    {"name": "Backup_20250231_0200Z.zip"},
    {"created": "2025-01-31T02:00:07+00:00"},
    {"created": "2025-02-31T02:00:07Z"},
    {"created": "2025-01-31T24:00:00Z"},
    {"created": "2025-01-31T23:59:60Z"},
    {"created": "2025-01-31 02:00:07Z"},
    {"created": 1738288807},
    {"seq": -1},
    {"seq": 2**53},
    {"seq": 3.0},
    {"product": ""},
    {"product": "a\nb"},
    {"product": "\x1b[31mred"},
    {"product": "x" * 501},
    {"server_version": "5.3\u202e"},
    {"max_raw": 0},
    {"max_raw": (64 << 20) + 1},
    {"commit": "ab" * 31},
    {"sealing": "TPM"},
    {"sealing": "off"},
    {"suite": 0},
    {"suite": 0, "sealing": "off"},
    {"suite": 0, "commit": ...},
    {"commit": ..., "sealing": "off"},
    NOT_SEALED | {"fingerprint": "TPM 7Q4F"},
]


@pytest.mark.parametrize("change", BAD_HEADERS, ids=str)
def test_a_header_that_is_not_as_the_format_says_is_corrupt(change: Members) -> None:
    data = members(make_header(sealed=True, fingerprint="TPM 7Q4F-0000"), **change)
    if change == {"fingerprint": ...}:
        assert Header.from_bytes(data).fingerprint is None
        return
    with pytest.raises(CorruptArchive, match="header"):
        Header.from_bytes(data)
    with pytest.raises(open_archive.Problem, match="header"):
        open_archive.read_header(data)


def test_a_header_without_sealing_is_read_by_both() -> None:
    data = members(make_header(sealed=True), **NOT_SEALED)
    assert not Header.from_bytes(data).sealed
    assert open_archive.read_header(data)["suite"] == 0


def test_messages_do_not_carry_what_was_in_the_file() -> None:
    with pytest.raises(CorruptArchive) as caught:
        Header.from_bytes(members(make_header(sealed=True), product="\x1b[31mSECRET\n"))
    assert "SECRET" not in str(caught.value)
    assert str(caught.value).isprintable()


STREAM: Members = json.loads(make_manifest(STREAMS).to_bytes())["streams"][0]
BAD_MANIFESTS: list[Members] = [
    *({name: ...} for name in json.loads(make_manifest(STREAMS).to_bytes())),
    *({"streams": [{k: v for k, v in STREAM.items() if k != name}]} for name in STREAM),
    {"streams": [STREAM, STREAM]},
    {"streams": {}},
    {"streams": [STREAM | {"id": 0xFFFFFFFF}]},
    {"streams": [STREAM | {"id": -1}]},
    {"streams": [STREAM | {"id": True}]},
    {"streams": [STREAM | {"chunks": 0}]},
    {"streams": [STREAM | {"chunks": 1.0}]},
    {"streams": [STREAM | {"bytes": -1}]},
    {"streams": [STREAM | {"sha256": "0" * 63}]},
    {"streams": [STREAM | {"kind": "Bad Kind"}]},
    {"streams": [STREAM | {"labels": {"a": 1}}]},
    {"streams": [STREAM | {"labels": []}]},
    {"streams": [STREAM | {"details": None}]},
    {"streams": [STREAM | {"source": "missing"}]},
    {"sources": []},
    {"sources": [{"name": "server", "type": "postgresql", "facts": {}}] * 2},
    {"tool": {"name": "x"}},
    {"tool": {"name": "x", "version": 1}},
    {"warnings": [1]},
    {"excluded": ["x"]},
    {"archive_id": "xyz"},
]


@pytest.mark.parametrize("change", BAD_MANIFESTS, ids=lambda change: str(change)[:70])
def test_a_manifest_that_is_not_as_the_format_says_is_corrupt(change: Members) -> None:
    data = members(make_manifest(STREAMS), **change)
    with pytest.raises(CorruptArchive, match="manifest"):
        Manifest.from_bytes(data)
    with pytest.raises(open_archive.Problem, match="manifest"):
        open_archive.read_manifest(data)


def test_a_manifest_may_have_members_that_this_reader_does_not_know() -> None:
    more = members(
        make_manifest(STREAMS),
        new=1,
        streams=[STREAM | {"new": {}}],
        sources=[{"name": "server", "type": "postgresql", "facts": {}, "new": []}],
    )
    assert Manifest.from_bytes(more).streams[0].id == STREAM["id"]
    assert open_archive.read_manifest(more)["new"] == 1


@pytest.mark.parametrize(
    "value",
    [{"slots": []}, {"slots": [{}]}, {"slots": [{"type": 1}]}, {"slots": [{"type": "A b"}]}, {}, {"slots": "x"},
     {"slots": [{"type": "age"}] * 65}, {"slots": [{"type": "age"}], "more": 1}, [], 1],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_key_slots_that_are_not_as_the_format_says_are_corrupt(value: object) -> None:
    with pytest.raises(CorruptArchive, match="key slots"):
        KeySlots.from_bytes(json.dumps(value).encode())


def test_parts_are_capped_when_written_and_when_read() -> None:
    slots = [{"type": "age", "file": "x" * MAX_PART_BYTES}]
    with pytest.raises(ValueError, match="allowed"):
        KeySlots(slots=slots).to_bytes()
    with pytest.raises(CorruptArchive, match="larger"):
        KeySlots.from_bytes(json.dumps({"slots": slots}).encode())


def test_the_published_footer_is_read_and_only_its_canonical_form() -> None:
    data = FOOTER["footer"].encode()
    footer = Footer.from_bytes(data)
    assert footer.to_bytes() == data
    assert footer.without_mac() == FOOTER["without_mac"].encode()
    assert Footer.from_bytes(FOOTER["without_mac"].encode()).mac is None
    for other in (
        data + b"\n",
        data.replace(b":", b": ", 1),
        json.dumps(dict(reversed(json.loads(data).items()))).encode(),
    ):
        with pytest.raises(CorruptArchive, match="footer"):
            Footer.from_bytes(other)


def test_header_directory_and_footer_have_to_belong_together() -> None:
    entries, body = place([("header.json", b"{}"), ("streams/ffffffff/00000000.zst", b"x"), ("footer.json", b"{}")])
    right: Members = {
        "archive_id": "00" * 16,
        "entries": 2,
        "bytes": entries[-1].offset,
        "raw_bytes": 0,
        "started": CREATED,
        "finished": CREATED,
        "directory_sha256": zip64.directory_digest(entries[:-1]),
    }
    header = make_header(sealed=False, archive_id=bytes(16))
    check_footer(Footer(**right), header=header, entries=entries)
    wrongs: list[Members] = [
        {"archive_id": "11" * 16},
        {"entries": 3},
        {"bytes": len(body)},
        {"directory_sha256": zip64.directory_digest(entries)},
        {"mac": "00" * 32},
    ]
    for wrong in wrongs:
        with pytest.raises(CorruptArchive, match="belong together"):
            check_footer(Footer(**(right | wrong)), header=header, entries=entries)
    with pytest.raises(CorruptArchive, match="belong together"):
        check_footer(Footer(**right), header=make_header(sealed=True, archive_id=bytes(16)), entries=entries)
    with pytest.raises(CorruptArchive, match="belong together"):
        check_footer(Footer(**right), header=header, entries=entries[:1])


def test_key_slots_stand_second_in_the_directory_of_a_sealed_archive_and_of_no_other() -> None:
    header = make_header(sealed=True, archive_id=bytes(16))
    for names, sealed in (
        (["header.json", "keyslots.json", "streams/ffffffff/00000000.sealed", "footer.json"], True),
        (["header.json", "keyslots.json"], True),
        (["header.json", "streams/ffffffff/00000000.sealed", "keyslots.json", "footer.json"], False),
        (["keyslots.json", "header.json", "streams/ffffffff/00000000.sealed", "footer.json"], False),
        (["header.json", "streams/ffffffff/00000000.sealed", "footer.json"], False),
    ):
        entries, _ = place([(name, b"") for name in names])
        footer = Footer(
            archive_id="00" * 16,
            entries=len(entries) - 1,
            bytes=entries[-1].offset,
            raw_bytes=0,
            started=CREATED,
            finished=CREATED,
            directory_sha256=zip64.directory_digest(entries[:-1]),
            mac="00" * 32,
        )
        if sealed:
            check_footer(footer, header=header, entries=entries)
            continue
        with pytest.raises(CorruptArchive, match="belong together"):
            check_footer(footer, header=header, entries=entries)


def test_the_manifest_has_to_list_exactly_what_the_directory_has() -> None:
    manifest = make_manifest(STREAMS)
    names = [f"streams/{stream:08x}/{i:08x}.zst" for stream, raws in STREAMS.items() for i in range(len(raws))]
    entries, _ = place([(name, b"") for name in ["header.json", *names, "streams/ffffffff/00000000.zst"]])
    footer = Footer.from_bytes(FOOTER["footer"].encode())
    raw = sum(stream.bytes for stream in manifest.streams)
    footer = footer.model_copy(update={"archive_id": manifest.archive_id, "raw_bytes": raw})
    check_manifest(manifest, footer=footer, entries=entries)
    wrongs = [
        (manifest, footer, entries[:-2]),
        (manifest, footer, [*entries, zip64.Entry("streams/00000009/00000000.zst", 0, 0, 0)]),
        (manifest.model_copy(update={"streams": manifest.streams[1:]}), footer, entries),
        (manifest.model_copy(update={"archive_id": "11" * 16}), footer, entries),
        (manifest, footer.model_copy(update={"raw_bytes": 1}), entries),
    ]
    for described, ended, listed in wrongs:
        with pytest.raises(CorruptArchive, match="does not match"):
            check_manifest(described, footer=ended, entries=listed)


def test_utc_is_what_a_time_is_read_as() -> None:
    assert Header.from_bytes(make_header(sealed=False).to_bytes()).created.tzinfo is UTC
