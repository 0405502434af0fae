"""What is in the targets, and what is done with one archive."""

from __future__ import annotations

from dataclasses import replace

from service.api import params as p
from service.api.context import Family
from service.api.registry import method
from service.api.views import (
    ArchivePage,
    Done,
    Inspection,
)
from service.baseline import refuse_baseline, refuse_reason
from service.catalog import archive_at, list_archives, opened, origin_proven
from service.errors import SealError
from service.holding import hold, release
from service.job import Job
from service.pipeline.unpack import peek
from service.recovery import BadRecoveryKey
from storage_backends import open_target


class ArchiveMethods(Family):
    """What is in the targets, and what is done with one archive."""

    @method("archive.list")
    async def archives(self, params: p.ArchiveList) -> ArchivePage:
        """Return a page of the target's archives, the newest first."""
        config = self.context.config().at(params.target)
        async with open_target(config.target.url, config.target.options()) as target:
            found = list(reversed(await list_archives(target, self.context.ledger)))
        begin = 0
        if params.before is not None:
            begin = next((at + 1 for at, entry in enumerate(found) if entry.name == params.before), len(found))
        page = found[begin : begin + params.limit]
        return ArchivePage(config.target.url, page, total=len(found), more=begin + params.limit < len(found))

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
