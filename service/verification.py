"""Every byte of an archive read, and what came out, as commands and jobs tell it."""

from __future__ import annotations

from typing import Any

from service.catalog import check_whole, origin_proven, verify
from service.config import Config
from service.errors import PinRequired
from service.ledger import Ledger
from service.progress import Progress


async def verified(
    config: Config, archive: str, name: str, *, progress: Progress, ledger: Ledger | None = None
) -> dict[str, Any]:
    """Read every byte of an archive (`name` for people) and return what came out.

    Without the restore PIN that it needs, it is only told to be whole, not `authenticated`; `closed` says why.
    """
    try:
        reader = await verify(config, archive, progress=progress, ledger=ledger)
    except PinRequired as error:
        seen = await check_whole(config, archive, progress=progress, ledger=ledger)
        return {
            "archive": name,
            "good": True,
            "authenticated": False,
            "origin_proven": False,
            "signer": None,
            "size": seen.info.size,
            "raw_bytes": seen.footer.raw_bytes,
            "streams": None,
            "closed": str(error),
        }
    return {
        "archive": name,
        "good": True,
        "authenticated": reader.header.sealed,
        "origin_proven": reader.header.sealed and origin_proven(config, reader),
        "signer": reader.signer,
        "size": reader.info.size,
        "raw_bytes": reader.footer.raw_bytes,
        "streams": len(reader.manifest.streams),
        "closed": None,
    }
