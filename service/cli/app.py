"""The group of commands, and the one place where failures become exit codes."""

from __future__ import annotations

from typing import Any

import click

from service.cli import (
    archives,
    drills,
    extracting,
    failures,
    keeping,
    keys,
    portal,
    provisioning,
    recovering,
    resetting,
    restore_pin,
    restoring,
    runbooks,
    selftest,
    serving,
    settings,
    system_backup,
    watching,
)
from service.cli.failures import Interrupted, JobEnded
from service.cli.options import Shared, emit, shared_options
from service.failure import as_json

SECTIONS = {
    "Set up": "config doctor provision settings test-target",
    "Back up": "backup list inspect verify copy prune hold release delete",
    "Restore": "restore rollback commit restore-table extract recover",
    "Prove and return": "drill baseline reset-to-default",
    "Run as a service": "serve portal status schedule job",
    "Keys": "key pin selftest prepare-firmware-update",
    "More": "explain version",
}
"""The commands as `--help` shows them, in the order in which somebody new needs them."""


class Commands(click.Group):
    """A group that reports every failure in the one way of `failures`."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands by what they are for, each with its whole first sentence."""
        for title, names in SECTIONS.items():
            commands = [(name, self.commands[name]) for name in names.split()]
            with formatter.section(title):
                formatter.write_dl([(name, command.get_short_help_str(limit=1000)) for name, command in commands])

    def invoke(self, ctx: click.Context) -> Any:
        shared = ctx.ensure_object(Shared)
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, BrokenPipeError):
            raise
        except (KeyboardInterrupt, click.Abort):
            failure: BaseException = Interrupted("interrupted before anything was begun")
        except (Exception, BaseExceptionGroup) as exc:
            failure = exc
        code = failures.show(failure, debug=shared.debug)
        if shared.json:
            if isinstance(failure, JobEnded):
                emit({"error": failure.told, "result": failure.result})
            else:
                emit({"error": as_json(failure)})
        return ctx.exit(code)


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 done, 1 failed, 2 usage or configuration, 3 restore refused, 4 target, 5 sealing or TPM, "
    "6 archive damaged or unknown, 7 source, 8 another job runs, 130 interrupted.",
)
@click.version_option(package_name="deviceon-backup", prog_name="deviceon-backup", message="%(prog)s %(version)s")
@shared_options
def command_line() -> None:
    """Back up a DeviceOn server's configuration and databases into sealed archives, and restore them.

    ARCHIVE is a name in the configured target, or the path or URL of an archive file (with a / in it).
    """


for command in (
    archives.backup,
    archives.list_archives,
    archives.inspect,
    archives.verify,
    extracting.extract,
    restoring.restore,
    extracting.restore_table,
    restoring.rollback,
    restoring.commit,
    drills.drill,
    resetting.baseline,
    resetting.reset_to_default,
    recovering.recover,
    restore_pin.pin,
    selftest.selftest,
    settings.config,
    settings.doctor,
    settings.version,
    runbooks.explain,
    serving.serve,
    portal.portal,
    watching.status,
    watching.job,
    watching.schedule,
    keeping.prune,
    keeping.hold,
    keeping.release,
    keeping.delete,
    keeping.copy,
    keys.key,
    keys.prepare_firmware_update,
    provisioning.provision,
    system_backup.settings,
    system_backup.test_target,
):
    command_line.add_command(command)
