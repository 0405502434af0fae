"""A server in a process of its own, with the default limits, so that its memory can be looked at."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import uvloop

from service.rpc.peers import AllowedUsers
from tests.integration.rpc.service import ME, NOBODY, serving


async def main(path: Path) -> None:
    allowed = AllowedUsers(admin=frozenset({ME}), read=frozenset({NOBODY}))
    async with serving(path, allowed=allowed):
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    factory = {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}[sys.argv[2]]
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main(Path(sys.argv[1])))
