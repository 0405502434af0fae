"""Whatever streams go in, the same come out, whoever reads them."""

from __future__ import annotations

import asyncio
import hashlib
import random
import tempfile
import zipfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from service.pipeline.unpack import ArchiveReader, peek
from service.progress import Progress
from storage_backends.local import LocalBackend
from tests.pipeline_archives import NAME, GivenSnapshot, HeldKey, contents, packed, stream_of
from tests.sizes import examples

pieces = st.lists(
    st.one_of(st.binary(max_size=40), st.integers(0, 12_000).map(lambda count: random.Random(count).randbytes(count))),
    max_size=8,
)
sources = st.lists(
    st.tuples(st.lists(pieces, max_size=5), st.integers(1, 4)),
    max_size=3,
)


@settings(max_examples=examples(60), deadline=None)
@given(listed=sources, chunk_bytes=st.sampled_from([1000, 4096, 9000]), sealed=st.booleans())
def test_every_stream_comes_back_byte_for_byte(
    listed: list[tuple[list[list[bytes]], int]], chunk_bytes: int, sealed: bool
) -> None:
    asyncio.run(round_trip(listed, chunk_bytes, sealed=sealed))


async def round_trip(listed: list[tuple[list[list[bytes]], int]], chunk_bytes: int, *, sealed: bool) -> None:
    held = HeldKey() if sealed else None
    snapshots = {
        f"source-{number}": GivenSnapshot([stream_of(each) for each in streams], parallel=parallel)
        for number, (streams, parallel) in enumerate(listed)
    }
    expected = [b"".join(each) for streams, _ in listed for each in streams]
    with tempfile.TemporaryDirectory() as directory:
        async with LocalBackend(Path(directory)) as target:
            progress = Progress()
            made = await packed(target, snapshots, held, chunk_bytes=chunk_bytes, progress=progress)
            assert (progress.raw, progress.stored) == (sum(map(len, expected)), made.info.size)

            reader = await ArchiveReader.open(target, NAME, [held] if held else [])
            assert await contents(reader) == expected
            assert reader.manifest == made.manifest
            assert [source.name for source in reader.sources()] == list(snapshots)
            assert [stream.id for source in reader.sources() for stream in source.streams] == list(
                range(1, len(expected) + 1)
            )
            for source in reader.sources():
                for stream in source.streams:
                    raw = expected[stream.id - 1]
                    assert (stream.bytes, stream.sha256) == (len(raw), hashlib.sha256(raw).hexdigest())
                    assert stream.chunks == max(1, -(-len(raw) // chunk_bytes))

            progress = Progress()
            await reader.verify(progress)
            assert (progress.raw, progress.stored) == (made.footer.raw_bytes, made.info.size)

            looked = await peek(target, NAME)
            assert (looked.header, looked.footer) == (reader.header, reader.footer)
        with zipfile.ZipFile(Path(directory) / NAME) as foreign:
            assert foreign.testzip() is None
            assert foreign.namelist() == [entry.name for entry in reader.entries]
