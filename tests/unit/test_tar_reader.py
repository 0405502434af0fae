"""What the reader takes in one look and what it takes field by field is the same."""

from __future__ import annotations

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
