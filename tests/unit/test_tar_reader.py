"""What the reader takes in one look and what it takes field by field is the same."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from service.errors import CorruptArchive
from service.sources.tar_reader import TarReader
from service.sources.tar_stream import END, HeaderWriter, Kind, Member, padding

BLOCK = 512


def stream(*files: Member) -> bytes:
    """A tree with these files in it."""
    writer = HeaderWriter()
    whole = writer.header(Member("", Kind.DIRECTORY, 0o755, 0, 0, "root", "root", 1_600_000_000_000_000_001))
    for member in files:
        whole += writer.header(member) + b"x" * member.size + padding(member.size)
    return whole + END


def file(name: str, size: int = 5) -> Member:
    return Member(name, Kind.FILE, 0o644, 0, 0, "root", "root", 1_700_000_000_123_456_789, size)


def told(data: bytes, *, at_once: int) -> list[Member] | str:
    """The members that a reader finds, or what it says against them."""
    reader = TarReader()
    members = []
    try:
        for at in range(0, len(data), at_once):
            members += [piece.member for piece in reader.feed(data[at : at + at_once]) if piece.member]
        reader.finish()
    except CorruptArchive as error:
        return str(error)
    return members


FILES = [file("a"), file("b"), file("c.d", 600), file("dir/e", 0), file("dir/f")]
WHOLE = stream(*FILES)


def test_files_are_read_as_they_were_written() -> None:
    found = told(WHOLE, at_once=len(WHOLE))
    assert isinstance(found, list)
    assert found[1:] == FILES


@settings(max_examples=1500, deadline=None)
@given(at=st.integers(0, len(WHOLE) - 1), value=st.integers(0, 255))
@example(at=WHOLE.index(b"dir/f"), value=0x2F)
def test_a_changed_byte_is_judged_alike_whether_a_file_is_seen_whole_or_in_parts(at: int, value: int) -> None:
    changed = WHOLE[:at] + bytes([value]) + WHOLE[at + 1 :]
    assert told(changed, at_once=len(changed)) == told(changed, at_once=BLOCK)


@settings(max_examples=300, deadline=None)
@given(name=st.text(st.sampled_from("ab./\0"), max_size=6), before=st.sampled_from(["a", "a/b", "aa/b"]))
@example(name="/a", before="a")
@example(name="a//b", before="a/b")
def test_a_bad_name_is_refused_whatever_stands_before_it(name: str, before: str) -> None:
    whole = stream(file("first"), file(before), file(name))
    judged = told(whole, at_once=len(whole))
    assert judged == told(whole, at_once=BLOCK)
    text = name.rstrip("\0")
    good = "\0" not in text and all(part not in {"", ".", ".."} for part in text.split("/"))
    assert isinstance(judged, list) == good


def header(name: bytes = b"a", kind: bytes = b"0", **fields: bytes) -> bytes:
    """A header made by hand, with its checksum."""
    layout = (("mode", 8), ("uid", 8), ("gid", 8), ("size", 12), ("mtime", 12))
    numbers = b"".join(fields.get(field, b"0" * (width - 1) + b"\0") for field, width in layout)
    owner = fields.get("user", b"root").ljust(32, b"\0") + b"root".ljust(32, b"\0") + b"0000000\0" * 2
    front, back = (
        name.ljust(100, b"\0") + numbers,
        kind
        + fields.get("link", b"").ljust(100, b"\0")
        + fields.get("magic", b"ustar\x0000")
        + owner
        + fields.get("prefix", b"").ljust(167, b"\0"),
    )
    return front + b"%06o\0 " % (sum(front) + sum(back) + 8 * 0x20) + back


def pax(*records: bytes, **fields: bytes) -> bytes:
    """A pax header with these records, each as `key=value`."""
    body = b"".join(b"%d %b\n" % (len(record) + (3 if len(record) < 7 else 4), record) for record in records)
    return header(b"PaxHeaders/x", b"x", **{"size": b"%011o\0" % len(body), **fields}) + body + padding(len(body))


ROOT = header(b"./", b"5")
ODD = {
    "a header of an older tar": (header(magic=b"ustar  \0"), "not of the kind"),
    "a name that begins in a field of its own": (header(prefix=b"above"), "not of the kind"),
    "a mode of more than its bits": (header(mode=b"0010000\0"), "impossible mode"),
    "a number that is none": (header(mode=b"000064x\0"), "malformed number"),
    "a number without an end": (header(size=b"000000000000"), "malformed number"),
    "a record of a number that is none": (pax(b"uid=-1") + header(), "malformed number"),
    "a record of a time that is none": (pax(b"mtime=5") + header(), "malformed time"),
    "an owner that the system cannot have": (pax(b"uid=4294967295") + header(), "impossible owner"),
    "a directory with a body": (header(b"a/", b"5", size=b"00000000001\0"), "body that its type cannot have"),
    "a directory that is not written as one": (header(b"a", b"5"), "not written as one"),
    "a file with a link": (header(link=b"b"), "a link where none belongs"),
    "a hard link without one": (header(kind=b"1"), "leaves the tree or is malformed"),
    "a link with a zero byte in it": (pax(b"linkpath=a\0b") + header(kind=b"2"), "a zero byte"),
    "bytes behind the end of a name": (header(user=b"root\0x"), "after the end of a text"),
    "a record that comes twice": (pax(b"mtime=1.000000000", b"mtime=1.000000000") + header(), "comes twice"),
    "a record of which nothing is known": (pax(b"surprise=1") + header(), "unknown pax record"),
    "two pax headers in a row": (pax(b"uid=1") + pax(b"gid=1") + header(), "out of place"),
    "a pax header of nothing": (pax(), "empty or too long"),
    "a pax header without an end": (pax(b"uid=1", size=b"77777777777\0"), "empty or too long"),
    "a pax header with nothing after it": (pax(b"uid=1"), "goes on after its end"),
}


@pytest.mark.parametrize("name", ODD)
def test_what_the_writer_never_writes_is_refused_in_plain_words(name: str) -> None:
    odd, words = ODD[name]
    for at_once in (BLOCK, 1 << 20):
        judged = told(ROOT + odd + END, at_once=at_once)
        assert isinstance(judged, str)
        assert words in judged


def test_a_header_without_records_is_taken_as_its_fields_say() -> None:
    whole = ROOT + header(b"a", uid=b"0000017\0", mtime=b"00000000144\0") + END
    assert told(whole, at_once=BLOCK) == [
        Member("", Kind.DIRECTORY, 0, 0, 0, "root", "root", 0),
        Member("a", Kind.FILE, 0, 15, 0, "root", "root", 100_000_000_000),
    ]


def test_many_owners_and_pax_headers_are_read_and_not_remembered_without_end() -> None:
    reader = TarReader()
    odd = b"".join(pax(b"uid=%d" % (n + 10000), uid=b"%07o\0" % n) + header(b"f%d" % n) for n in range(4200))
    found = [piece.member for piece in reader.feed(ROOT + odd + END) if piece.member]
    assert [(member.path, member.uid) for member in found[1:]] == [(f"f{n}", n + 10000) for n in range(4200)]
    assert len(reader._owners) == len(reader._pax_headers) == 4096
