"""What is in the targets, and what is done with one archive."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import Sequence
from dataclasses import replace

from service.api import params as p
from service.api.archive_views import ArchiveCopies, ArchiveCopy, ArchiveEntry, ArchivePage, ArchivePiece
from service.api.context import Family
from service.api.registry import method
from service.api.views import (
    Done,
    Inspection,
)
from service.baseline import refuse_baseline, refuse_reason
from service.catalog import CatalogEntry, archive_at, list_archives, opened, origin_proven
from service.config import Config
from service.errors import SealError
from service.holding import hold, last_good, read_hold, release
from service.job import Job
from service.pipeline.unpack import peek
from service.recovery import BadRecoveryKey
from service.size_trend import size_trend
from storage_backends import ObjectNotFound, StorageBackend, StorageError, open_target


class ArchiveMethods(Family):
    """What is in the targets, and what is done with one archive."""

    @method("archive.list")
    async def archives(self, params: p.ArchiveList) -> ArchivePage:
        """Return a page of the target's archives, the newest first."""
        config = self.context.config().at(params.target)
        async with self.context.targets.opened(config.target.url, config.target.options()) as target:
            found = await list_archives(target, self.context.ledger)
            asked = [
                entry
                for entry in reversed(found)
                if (params.evidence is None or entry.evidence in params.evidence)
                and (params.held is None or entry.held is params.held)
            ]
            begin = 0
            if params.before is not None:
                begin = next((at + 1 for at, entry in enumerate(asked) if entry.name == params.before), len(asked))
            begin += params.skip
            page = await _with_holds(target, asked[begin : begin + params.limit])
        return ArchivePage(
            config.target.url,
            page,
            total=len(asked),
            more=begin + params.limit < len(asked),
            bytes=sum(entry.size for entry in asked),
            trend=size_trend(found, self.context.clock(), params.trend_days) if params.trend_days else [],
        )

    @method("archive.get")
    async def get(self, params: p.ArchiveName) -> ArchiveCopies:
        """Tell what every target has of an archive: its evidence and hold there, and whether it is the last good one.

        A target that cannot be asked says why.
        """
        asked = (self._copy(one, params.archive) for one in self.context.config().each())
        copies = list(await asyncio.gather(*asked))
        if not any(copy.entry is not None or copy.problem for copy in copies):
            raise ObjectNotFound(f"there is no archive {params.archive}", hint="`archive.list` tells which there are.")
        return ArchiveCopies(params.archive, copies)

    async def _copy(self, config: Config, name: str) -> ArchiveCopy:
        url = config.target.url
        try:
            async with (
                asyncio.timeout(PATIENCE),
                self.context.targets.opened(url, config.target.options()) as target,
            ):
                found = await list_archives(target, self.context.ledger)
                entries = await _with_holds(target, [entry for entry in found if entry.name == name])
        except TimeoutError:
            return ArchiveCopy(url, None, problem=f"{url} has not answered within {PATIENCE:g} s")
        except StorageError as error:
            return ArchiveCopy(url, None, problem=str(error))
        return ArchiveCopy(url, entries[0], last_good=last_good(found, name)) if entries else ArchiveCopy(url, None)

    @method("archive.read", admin=True)
    async def read(self, params: p.ArchiveRead) -> ArchivePiece:
        """Return some bytes of an archive as it lies in the target. Ask for several pieces at once to read it fast.

        For admins only, sealed or not: one that is not sealed holds everything in the clear, and the passphrase of one
        that has such a key slot can be guessed at leisure by whoever has the file.
        """
        config = self.context.config().at(params.target)
        async with self.context.targets.opened(config.target.url, config.target.options()) as target:
            etag, size = params.etag, None
            if etag is None:
                info = await target.stat(params.archive)
                etag, size = info.etag, info.size
            content = bytearray()
            reading = target.get(params.archive, offset=params.offset, length=params.length, etag=etag)
            async with contextlib.aclosing(reading) as pieces:
                async for piece in pieces:
                    content += piece
        return ArchivePiece(base64.b64encode(content).decode(), params.offset, etag, size)

    @method("archive.inspect")
    async def inspect(self, params: p.Archive) -> Inspection:
        """Return what is in an archive; without its key, what it says of itself."""
        config = self.context.config().opened_with(p.opening(params))
        if config.opening.recovery is not None and config.opening.recovery.passphrase is not None:
            raise BadRecoveryKey(  # who may only look must not be able to take the service's memory
                "a recovery passphrase is not tried here", hint="Give the identity, or ask restore.plan, as an admin."
            )
        try:
            async with opened(config, archive_at(config, params.archive, params.target)) as reader:
                told = Inspection.of(reader.info, reader.header, reader.footer, reader.manifest)
                return replace(told, signer=reader.signer, origin_proven=origin_proven(config, reader))
        except SealError as error:
            one = config.at(params.target).target
            async with open_target(one.url, one.options()) as target:
                seen = await peek(target, params.archive)
            return Inspection.of(seen.info, seen.header, seen.footer, None, closed=str(error))

    @method("archive.verify", admin=True)
    async def verify(self, params: p.ArchiveVerify) -> Job:
        """Queue the reading and authenticating of every byte of an archive."""
        return await self.context.submit("verify", "archive.verify", params)

    @method("archive.copy", admin=True)
    async def copy(self, params: p.ArchiveCopy) -> Job:
        """Queue a copy of an archive to another target: the sealed bytes as they are, then read back."""
        return await self.context.submit("copy", "archive.copy", params)

    @method("archive.hold", admin=True)
    async def hold(self, params: p.ArchiveHold) -> Done:
        """Hold an archive: it is removed neither by retention nor by hand."""

        async def do() -> Done:
            refuse_reason(params.reason)
            await refuse_baseline(self.context.config(), params.archive, self.context.ledger)
            await hold(
                self.context.chosen(params),
                params.archive,
                reason=params.reason,
                by="socket",
                now=self.context.clock(),
                ledger=self.context.ledger,
            )
            await self.context.announcer.tell("archive.held", {"archive": params.archive, "reason": params.reason})
            return Done()

        return await self.context.once("archive.hold", params, do, again=Done)

    @method("archive.release", admin=True)
    async def release(self, params: p.ArchiveJob) -> Done:
        """End an archive's hold."""

        async def do() -> Done:
            await refuse_baseline(self.context.config(), params.archive, self.context.ledger)
            await release(self.context.chosen(params), params.archive, ledger=self.context.ledger)
            await self.context.announcer.tell("archive.released", {"archive": params.archive})
            return Done()

        return await self.context.once("archive.release", params, do, again=Done)

    @method("archive.delete", admin=True)
    async def delete(self, params: p.ArchiveDelete) -> Job:
        """Queue the removal of an archive for good."""
        return await self.context.submit("delete", "archive.delete", params)


HOLDS_AT_ONCE = 4
PATIENCE = 10.0
"""Seconds for a target to tell of one archive: whoever looks at it has other targets to see."""


async def _with_holds(target: StorageBackend, entries: Sequence[CatalogEntry]) -> list[ArchiveEntry]:
    """Read why archives are held, some at a time: each costs an answer of a server that may be far away."""
    turns = asyncio.Semaphore(HOLDS_AT_ONCE)

    async def viewed(entry: CatalogEntry) -> ArchiveEntry:
        if not entry.held:
            return ArchiveEntry.of(entry, None)
        async with turns:
            return ArchiveEntry.of(entry, await read_hold(target, entry.name))

    return list(await asyncio.gather(*map(viewed, entries)))
