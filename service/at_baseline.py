"""Whether the server is at its baseline: what differs, as far as that is cheap to tell.

The product's manual asks for a reset before a restore. Here a restore is done side by side in any case, so a server
that is not at its baseline is no obstacle; whoever restores is told.
"""

from __future__ import annotations

from dataclasses import replace

from service import sources
from service.baseline import find_baseline, named
from service.catalog import opened
from service.config import Config
from service.config_sources import TreeSettings
from service.errors import Obstacle, ServiceError
from service.ledger import NoLedger
from service.reset_keep import kept_in, own_files
from storage_backends.base import StorageError

_MOST_TOLD = 8


async def not_at_baseline(config: Config) -> Obstacle | None:
    """Return the note that the server is not at its baseline; None when it seems to be, or nothing can be compared."""
    if config.read_from is None:  # nobody's configuration: an archive that was found, and a server that was named
        return None
    try:
        baseline = await find_baseline(config, NoLedger())
        if baseline is None:
            return None
        # never with a PIN: it may be another one than the baseline's, and the TPM counts wrong ones
        config = config.opened_with(replace(config.opening, pin=None))
        async with opened(config, named(config, baseline)) as reader:
            own, preserve = own_files(config), sources.not_in_a_tree(config)
            told: list[str] = []
            for stored in reader.sources():
                settings = sources.settings_for(config, stored)
                ignore = kept_in(settings.path, config.reset.keep, own) if isinstance(settings, TreeSettings) else []
                restorer = sources.restorer(settings, preserve)
                told += await restorer.differences(stored, reader, since=reader.manifest.finished, ignore=ignore)
    except (ServiceError, StorageError):
        return None
    if not told:
        return None
    more = f"; and {len(told) - _MOST_TOLD} differences more" if len(told) > _MOST_TOLD else ""
    return Obstacle(
        "NOT_AT_BASELINE",
        f"the server is not at its baseline {baseline.archive}: {'; '.join(told[:_MOST_TOLD])}{more}",
        "Nothing has to be done: everything is restored side by side, and the state before is kept."
        " `deviceon-backup reset-to-default` returns to the baseline.",
    )
