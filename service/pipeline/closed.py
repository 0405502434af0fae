"""What can be told of an archive whose key is not at hand: that it is whole, and its bytes are those that it lists.

That finds what disks and networks do to an archive. It finds nothing that somebody does on purpose, who would list
other bytes, and nothing of what is inside.
"""

from __future__ import annotations

from contextlib import aclosing

from service.archive.names import KEYSLOTS
from service.archive.parts import KeySlots
from service.archive.zip64 import check_entry
from service.pipeline.chunks import ChunkMap
from service.pipeline.ends import read_back, read_directory, read_front
from service.pipeline.ranges import PinnedObject, ahead
from service.pipeline.unpack import Peek, check_name
from service.progress import Progress
from storage_backends.base import StorageBackend


async def check_closed(target: StorageBackend, name: str, progress: Progress) -> Peek:
    """Read every byte of an archive and compare it with the archive's own directory; no key is used.

    Raises UnsupportedArchive, IncompleteArchive, CorruptArchive, ArchiveError, StorageError.
    """
    archive = PinnedObject(target, await target.stat(name))
    front = await read_front(archive)
    directory = await read_directory(await read_back(archive), front.header)
    check_name(archive.info, front.header)
    ChunkMap(directory.entries, max_raw=front.header.max_raw)
    progress.expected_raw = archive.info.size
    records = ahead(archive.records(directory.entries, at_once=archive.info.size))
    async with aclosing(records):
        async for entry, record in records:
            content = check_entry(record, entry)
            if entry.name == KEYSLOTS:
                KeySlots.from_bytes(bytes(content))
            progress.raw = progress.stored = entry.end
    return Peek(archive.info, front.header, directory.footer)
