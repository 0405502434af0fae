"""The long-running service, as a command."""

from __future__ import annotations

import os
import signal
import sys
from typing import NoReturn

import click

from service.cli.options import Shared, emit, shared_options

EX_SOFTWARE = 70


@click.command()
@click.option("--schema", "schema_only", is_flag=True, help="Print the JSON Schema of the socket, and do nothing else.")
@shared_options
@click.pass_obj
def serve(shared: Shared, schema_only: bool) -> None:
    """Run the service: take commands on its socket, keep the schedule, until SIGTERM.

    SIGHUP has the configuration file read again.
    """
    if schema_only:
        from service.api.schema import schema  # noqa: PLC0415

        emit(schema())
        return
    import asyncio  # noqa: PLC0415
    import resource  # noqa: PLC0415 - not on every platform

    from service import log  # noqa: PLC0415
    from service.cli.running import loop_factory  # noqa: PLC0415
    from service.config import read  # noqa: PLC0415
    from service.serve import serve as recipe  # noqa: PLC0415

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core dump would hold secrets
    settings = read(shared.config).log
    log.configure(settings.format, "debug" if shared.debug else settings.level)

    def abandon(why: str) -> NoReturn:
        # A thread hangs in a system call. Leaving in good order would wait for it; the next start settles the rest.
        print(f"error: {why}; the service ends itself", file=sys.stderr, flush=True)
        os._exit(EX_SOFTWARE)

    async def until_told_to_stop() -> None:
        loop, stop, reload = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        loop.add_signal_handler(signal.SIGHUP, reload.set)
        await recipe(lambda: read(shared.config), stop=stop, reload=reload, abandon=abandon)

    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(until_told_to_stop())
