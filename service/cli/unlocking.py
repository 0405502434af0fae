"""Options for a recovery key: from a file, from stdin, or typed where nobody sees it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import click

from service.cli.options import Shared

if TYPE_CHECKING:
    from service.recovery import RecoveryKey

P = ParamSpec("P")
R = TypeVar("R")

RECOVERY_OPTIONS = ("recovery_key", "recovery_passphrase_file")


def recovery_options(command: Callable[P, R]) -> Callable[P, R]:
    """Add what it takes to open an archive without its TPM."""
    for option in (
        click.option(
            "--recovery-passphrase-file",
            metavar="FILE",
            type=click.Path(path_type=Path),
            help="A file with the recovery passphrase.",
        ),
        click.option(
            "--recovery-key",
            metavar="FILE",
            help="An age identity file, where the TPM does not open the archive; - reads it from stdin, or asks.",
        ),
    ):
        command = option(command)
    return command


def signer_option(command: Callable[P, R]) -> Callable[P, R]:
    """Add how to say whose signature is trusted."""
    return click.option(
        "--signer",
        "signers",
        metavar="KEY",
        multiple=True,
        callback=lambda _, __, value: value or None,
        help="Fingerprint of a TPM's signing key (KEY XXXX-...) that is trusted; may be repeated.",
    )(command)


def recovery_of(shared: Shared, options: dict[str, Any]) -> RecoveryKey | None:
    """Return the recovery key that was given; None when none was. Raises ConfigError, BadRecoveryKey."""
    from service.recovery import recovery_key  # noqa: PLC0415
    from service.secret import read_secret  # noqa: PLC0415

    key, passphrase_file = (options.get(name) for name in RECOVERY_OPTIONS)
    if key is None and passphrase_file is None:
        return None
    passphrase = read_secret("recovery passphrase", file=passphrase_file)
    if key != "-":
        text = read_secret("recovery key", file=Path(key)) if key is not None else None
    elif shared.interactive:
        text = click.prompt("Recovery key or passphrase", hide_input=True, err=True).strip()
        if not text.startswith(("AGE-", "age1")):
            text, passphrase = None, text
    else:
        text = sys.stdin.read()
    return recovery_key(text, passphrase=passphrase)
