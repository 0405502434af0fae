"""Whatever is written is read back, by both readers; whatever else is given to them ends in an error that is meant."""

from __future__ import annotations

import io
import zipfile
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from service.archive import chunk, names, zip64
from service.archive.parts import Footer, Header, KeySlots, Manifest
from service.archive.strict_json import canonical_json, strict_loads
from service.errors import ArchiveError, CorruptArchive, NotAuthentic, ServiceError
from service.sealing.suite import ArchiveKeys
from tests.sizes import examples
from tests.vectors.second_reader import open_archive, read_second
from tests.vectors.small import DATA_KEY, STREAMS, Streams, draft, make_manifest, read, sealed_chunk

keys = st.binary(min_size=32, max_size=32)
ids = st.binary(min_size=16, max_size=16)
u32 = st.integers(0, 0xFFFF_FFFF)
streams = st.dictionaries(
    st.integers(0, names.MANIFEST_STREAM - 1), st.lists(st.binary(max_size=300), min_size=1, max_size=4), max_size=4
)
text = st.text(st.characters(codec="utf-8"), max_size=20)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=20,
)


@given(streams, st.booleans(), keys, ids)
@settings(max_examples=examples(100), deadline=None)
def test_archives_come_back_through_both_readers(
    given_streams: Streams, sealed: bool, data_key: bytes, archive_id: bytes
) -> None:
    data = draft(sealed=sealed, streams=given_streams, data_key=data_key, archive_id=archive_id).finish()
    assert read(data, data_key) == given_streams
    assert read_second(data, data_key) == {stream: b"".join(raws) for stream, raws in given_streams.items()}
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        assert file.testzip() is None


@given(st.binary(max_size=5000), st.integers(1, 6))
@settings(max_examples=examples(100), deadline=None)
def test_chunks_come_back(raw: bytes, level: int) -> None:
    frame = chunk.compress(raw, level=level)
    assert open_archive.frame_size(frame) == len(raw)
    assert chunk.decompress(frame, max_raw=len(raw)) == raw
    assert len(frame) <= chunk.max_body(len(raw))


@given(keys, ids, st.binary(max_size=50), u32, u32, st.booleans(), st.binary(max_size=200))
@settings(max_examples=examples(100), deadline=None)
def test_sealed_chunks_open_only_where_they_were_sealed(
    data_key: bytes, archive_id: bytes, header: bytes, stream: int, index: int, last: bool, body: bytes
) -> None:
    derived = ArchiveKeys(data_key, archive_id=archive_id, header=header)
    sealed = sealed_chunk(derived.stream(stream), index, body, last=last)
    assert derived.stream(stream).open(index, sealed, last=last) == body
    second = open_archive.Keys(data_key, archive_id, header)
    assert second.open(stream, index, last, sealed) == body
    assert second.commit() == derived.commit
    assert second.footer_mac(body) == derived.footer_mac(body)
    for at in ((stream ^ 1, index, last), (stream, index ^ 1, last), (stream, index, not last)):
        with pytest.raises(NotAuthentic):
            derived.stream(at[0]).open(at[1], sealed, last=at[2])


@given(st.datetimes(min_value=datetime(1, 1, 2), max_value=datetime(9999, 12, 30)))
def test_archive_names_come_back(moment: datetime) -> None:
    name = names.archive_name(moment.replace(tzinfo=UTC))
    assert names.parse_archive_name(name) == moment.replace(tzinfo=UTC, second=0, microsecond=0)


@given(u32, u32, st.booleans())
def test_entry_names_come_back(stream: int, index: int, sealed: bool) -> None:
    assert names.parse_stream_entry(names.stream_entry(stream, index, sealed=sealed)) == (stream, index, sealed)


@given(st.text(max_size=60) | st.from_regex(r"Backup_\d{8}_\d{4}Z\.zip\n?", fullmatch=True))
def test_whatever_is_taken_for_an_archive_name_is_made_from_its_time(name: str) -> None:
    moment = names.parse_archive_name(name)
    assert moment is None or names.archive_name(moment) == name
    assert (moment is not None) == open_archive.is_archive_name(name)


@given(st.integers(0, 1 << 62), st.integers(0, 0xFFFF_FFFE), u32, st.booleans())
def test_zip_records_come_back(offset: int, size: int, crc: int, sealed: bool) -> None:
    entry = zip64.Entry(names.stream_entry(3, 9, sealed=sealed), offset, size, crc)
    header = zip64.local_header(entry.name, size=size, crc32=crc)
    assert zip64.read_local_header(header, offset=offset) == entry
    second, _ = open_archive.Archive._record(zip64.directory_record(entry), 0)
    assert (second.name, second.offset, second.size, second.crc) == (entry.name, offset, size, crc)


@given(json_values)
def test_json_comes_back_and_both_readers_agree(value: Any) -> None:
    data = canonical_json({"a": value})
    assert strict_loads(data) == {"a": value} == open_archive.strict_json(data, "it")


@given(st.text(alphabet='{}[]":,\\u0dD8aeE1.-+ \n\tNulinfty', max_size=40) | st.binary(max_size=40).map(repr))
@example('{"a":1,"a":2}')
@example('{"a":"\\udc00"}')
def test_both_readers_judge_json_alike(given_text: str) -> None:
    data = ('{"a":' + given_text + "}").encode()
    try:
        first = strict_loads(data)
    except CorruptArchive:
        with pytest.raises(open_archive.Problem):
            open_archive.strict_json(data, "it")
        return
    assert open_archive.strict_json(data, "it") == first


@given(st.dictionaries(text, text, max_size=3), st.dictionaries(text, json_values, max_size=3))
@settings(max_examples=examples(100), deadline=None)
def test_manifests_come_back(labels: dict[str, str], details: dict[str, Any]) -> None:
    manifest = make_manifest(STREAMS)
    stream = manifest.streams[0].model_copy(update={"labels": labels, "details": details})
    manifest = manifest.model_copy(update={"streams": [stream]})
    assert Manifest.from_bytes(manifest.to_bytes()) == manifest
    assert open_archive.read_manifest(manifest.to_bytes())["streams"][0]["labels"] == labels


@given(st.binary(max_size=300), st.sampled_from([Header, KeySlots, Footer, Manifest]))
def test_parts_refuse_noise_with_errors_that_are_meant(data: bytes, part: type[Header]) -> None:
    with pytest.raises(ArchiveError):
        part.from_bytes(data)


SEALED, UNSEALED = draft(sealed=True).finish(), draft(sealed=False).finish()
edits = st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 12), st.binary(max_size=12)), min_size=1, max_size=6)


@given(st.sampled_from([SEALED, UNSEALED]), edits)
@settings(max_examples=examples(400), deadline=None)
def test_an_edited_archive_is_the_same_or_is_refused_by_both(
    data: bytes, changes: list[tuple[int, int, bytes]]
) -> None:
    edited = data
    for start, length, new in changes:
        edited = edited[:start] + new + edited[start + length :]
    if edited == data:
        return
    with pytest.raises(ServiceError):
        read(edited, DATA_KEY)
    with pytest.raises(open_archive.Problem):
        read_second(edited, DATA_KEY)


@given(st.binary(max_size=200), st.sampled_from([SEALED, UNSEALED]), st.integers(0, 3000))
@settings(max_examples=examples(100), deadline=None)
def test_noise_is_refused_by_both(noise: bytes, data: bytes, cut: int) -> None:
    for bad in (noise, noise + data[cut:] + b"\0", data[:cut] + noise + b"\0" + data[-22:]):
        with pytest.raises(ServiceError):
            read(bad, DATA_KEY)
        with pytest.raises(open_archive.Problem):
            read_second(bad, DATA_KEY)
