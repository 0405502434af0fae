"""The command line. `main` is the entry point; docs/CLI.md lists commands and exit codes.

Commands are thin: they parse, call a recipe, and print what it returns. What takes time to import is imported when
a command runs, so that `--help` answers at once.
"""

from __future__ import annotations


def main() -> None:
    """Run the command line and exit."""
    from service.cli.app import command_line  # noqa: PLC0415 - `import service.cli` stays free

    command_line(prog_name="deviceon-backup")
