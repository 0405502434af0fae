"""`serve` with a clock that runs fast, so that a schedule of minutes can be killed hundreds of times.

`python -m tests.fast_service CONFIG EPOCH FACTOR [SHOWN]`: at the real time EPOCH (UNIX seconds) the clock shows the
real time, or else SHOWN, and from there on it runs FACTOR times as fast, also after a restart. Everything else is the
real service.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from datetime import UTC, datetime

from service import log, scheduler
from service.config import read
from service.serve import serve


def main() -> None:
    """Run until SIGTERM."""
    config, epoch, factor, *rest = sys.argv[1], *map(float, sys.argv[2:])
    shown = rest[0] if rest else epoch

    def clock() -> datetime:
        return datetime.fromtimestamp(shown + (time.time() - epoch) * factor, UTC)

    async def run() -> None:
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        await serve(lambda: read(config), stop=stop, reload=asyncio.Event(), abandon=sys.exit, clock=clock)

    scheduler.LONGEST_SLEEP = 0.2  # it sleeps by the real clock
    log.configure("text", "info")
    asyncio.run(run())


if __name__ == "__main__":
    main()
