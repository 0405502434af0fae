"""The command line. `main` is the entry point; docs/CLI.md lists commands and exit codes.

Commands are thin: they parse, call a recipe, and print what it returns. What takes time to import is imported when
a command runs, so that `--help` answers at once.
"""

from __future__ import annotations

import io
import sys


def main() -> None:
    """Run the command line and exit."""
    write_all_of_it()
    from service.cli.app import command_line  # noqa: PLC0415 - `import service.cli` stays free

    command_line(prog_name="deviceon-backup")


def write_all_of_it() -> None:
    """Have stdout write all that it is given.

    Unbuffered (PYTHONUNBUFFERED, `python -u`), the rest of a write that the system cuts short is lost without a word;
    the event loop's io_uring has it cut short writes of more than a pipe holds.
    """
    raw = getattr(sys.stdout, "buffer", None)
    if isinstance(raw, io.RawIOBase):
        encoding, errors = sys.stdout.encoding, sys.stdout.errors
        sys.stdout.detach()  # type: ignore[union-attr]  # or its end would close what is written to
        sys.stdout = io.TextIOWrapper(io.BufferedWriter(raw), encoding=encoding, errors=errors, line_buffering=True)
