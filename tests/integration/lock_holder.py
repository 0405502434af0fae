"""A process that holds the locks of a backup until its standard input ends, for tests that kill it."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from service.config_sources import PostgresqlSettings
from service.exclusive import exclusive


async def hold(state_dir: Path, settings: PostgresqlSettings) -> None:
    async with exclusive(state_dir, "a backup", [settings]):
        print("holding", flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(hold(Path(sys.argv[1]), PostgresqlSettings.model_validate(json.loads(sys.argv[2]), strict=False)))
