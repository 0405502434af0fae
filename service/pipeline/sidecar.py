"""Key slots beside an archive: the object `<archive name>.keys`, where slots are added without rewriting the archive.

It is a `keyslots.json` of its own, and as little trusted: a slot proves itself by yielding the archive's data key. One
that is lost, damaged or exchanged costs the slots in it and nothing else: the archive's own slots are tried first.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any, Final

from service.archive.parts import MAX_PART_BYTES, KeySlots
from service.errors import CorruptArchive, SealError
from storage_backends.base import ObjectNotFound, StorageBackend, StorageError, one_piece

log = logging.getLogger(__name__)

KEYS_SUFFIX: Final = ".keys"


class SidecarFull(SealError):
    """There are as many key slots beside an archive as there may be."""

    code = "SEAL_SLOTS_FULL"


async def read_sidecar(target: StorageBackend, name: str) -> list[dict[str, Any]]:
    """Return the slots beside an archive; none when there is no sidecar. Raises CorruptArchive, StorageError."""
    content = bytearray()
    try:
        async with aclosing(target.get(name + KEYS_SUFFIX, length=MAX_PART_BYTES + 1)) as pieces:
            async for piece in pieces:
                content += piece
    except ObjectNotFound:
        return []
    try:
        return KeySlots.from_bytes(bytes(content)).slots
    except CorruptArchive as error:
        raise CorruptArchive(
            f"the key slots beside the archive ({name}{KEYS_SUFFIX}) cannot be read: {error}",
            hint="The archive's own slots are not concerned. Add the slots anew with `deviceon-backup key add`.",
        ) from error


async def write_sidecar(target: StorageBackend, name: str, slots: Sequence[dict[str, Any]]) -> None:
    """Write the slots beside an archive, in place of those that were there; without any, remove the object.

    Raises SidecarFull, StorageError.
    """
    if not slots:
        await target.delete(name + KEYS_SUFFIX)
        return
    try:
        content = KeySlots(slots=list(slots)).to_bytes()
    except ValueError as error:
        raise SidecarFull(
            f"there is no room for more key slots beside {name}",
            hint="Remove those that nobody needs with `deviceon-backup key remove`.",
        ) from error
    await target.put(name + KEYS_SUFFIX, one_piece(content), overwrite=True)


async def remove_sidecar(target: StorageBackend, name: str) -> None:
    """Remove the slots beside an archive that was removed. Where that fails, they stay: they open nothing else."""
    try:
        await target.delete(name + KEYS_SUFFIX)
    except StorageError as error:
        log.warning("the key slots beside %s are left in %s: %s", name, target.url, error)
