"""The portal's web server, as a command."""

from __future__ import annotations

import signal
import sys

import click

from service.cli.options import Shared, shared_options


@click.command()
@click.option("--check", is_flag=True, help="Check portal.yaml and the tokens that it names, and do nothing else.")
@click.option("--reference", is_flag=True, help="Print every key of portal.yaml with its meaning, as Markdown.")
@shared_options
@click.pass_obj
def portal(shared: Shared, check: bool, reference: bool) -> None:
    """Serve the System Backup page to browsers, as a client of the service, until SIGTERM.

    Its configuration is --config, else $DEVICEON_BACKUP_PORTAL_CONFIG, else /etc/deviceon-backup/portal.yaml.
    """
    import asyncio  # noqa: PLC0415
    import resource  # noqa: PLC0415 - not on every platform

    from service import log  # noqa: PLC0415
    from service.cli.running import loop_factory  # noqa: PLC0415
    from service.errors import ConfigError  # noqa: PLC0415
    from service.portal.settings import SECTIONS, PortalSettings, find, read  # noqa: PLC0415

    if reference:
        from service.config_reference import markdown  # noqa: PLC0415

        click.echo(markdown(PortalSettings.model_json_schema(), SECTIONS))
        return
    try:
        from service.portal.access import Access  # noqa: PLC0415
        from service.portal.serving import serve  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"the portal needs the Python package {error.name}, which is not installed",
            hint=f"Install what it needs beside this program: {sys.prefix}/bin/pip install 'deviceon-backup[portal]'.",
        ) from error
    settings = read(shared.config)
    if check:
        Access(settings)
        click.echo(f"{find(shared.config)} is good")
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core dump would hold sessions
    log.configure(settings.log.format, "debug" if shared.debug else settings.log.level)

    async def until_told_to_stop() -> None:
        loop, stop = asyncio.get_running_loop(), asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        await serve(settings, stop=stop)

    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(until_told_to_stop())
