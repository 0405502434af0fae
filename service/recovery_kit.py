"""The recovery kit: one page for the safe that says whose archives these are and how they are opened without the TPM.

Everything in it is public but for the secret, which is there only when whoever prints it asks for it. Pure.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

TITLE = "DeviceOn Backup recovery kit"


@dataclass(frozen=True, slots=True)
class Kit:
    """What is known at provisioning. `signer` is the fingerprint of the TPM's signing key, None when it has none."""

    server: str
    created: datetime
    tpm: str
    signer: str | None
    recipients: Sequence[str]
    passphrase: bool
    """Whether the recovery key is a passphrase."""
    targets: Sequence[str]


def text(kit: Kit, secret: str | None = None) -> str:
    """Return the kit as plain text, with the recovery key in it when `secret` is given."""
    lines = [TITLE, "=" * len(TITLE), ""]
    lines += [f"{name + ':':<16}{value}" for name, value in _facts(kit)]
    lines += ["", "THE RECOVERY KEY", f"  {secret}" if secret else f"  {_where(kit)}", ""]
    lines += ["HOW TO RESTORE ON ANOTHER MACHINE", *(f"  {number}. {step}" for number, step in _steps(kit)), ""]
    return "\n".join(lines)


def page(kit: Kit, secret: str | None = None) -> str:
    """Return the kit as one HTML page that needs nothing else, for printing."""
    rows = "".join(
        f"<tr><th>{_safe(name)}</th><td><code>{_safe(value)}</code></td></tr>" for name, value in _facts(kit)
    )
    steps = "".join(f"<li>{_safe(step)}</li>" for _, step in _steps(kit))
    key = f"<p class=secret><code>{_safe(secret)}</code></p>" if secret else f"<p>{_safe(_where(kit))}</p>"
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{TITLE}</title>\n<style>{_STYLE}</style>'
        f"</head>\n<body><h1>{TITLE}</h1>\n<table>{rows}</table>\n<h2>The recovery key</h2>\n{key}\n"
        f"<h2>How to restore on another machine</h2>\n<ol>{steps}</ol>\n</body></html>\n"
    )


def _facts(kit: Kit) -> list[tuple[str, str]]:
    facts = [("Server", kit.server), ("Made", f"{kit.created:%Y-%m-%d %H:%M}Z"), ("TPM", kit.tpm)]
    facts += [("Signer", kit.signer)] if kit.signer else []
    facts += [("Recipient", recipient) for recipient in kit.recipients]
    return facts + [("Archives", target) for target in kit.targets]


def _where(kit: Kit) -> str:
    if not kit.recipients:
        return "There is none: these archives open on this TPM only. Loss of the TPM is loss of all backups."
    kind = "The recovery passphrase" if kit.passphrase else "The identity of the recipient above (AGE-SECRET-KEY-1...)"
    return f"{kind}. It is not on the server; keep it here: ________________________________"


def _steps(kit: Kit) -> list[tuple[int, str]]:
    if not kit.recipients:
        return [(1, "Not possible. Restore on this machine, or choose a recovery key: deviceon-backup provision")]
    option = "--recovery-passphrase-file FILE" if kit.passphrase else "--recovery-key FILE"
    signer = f' --signer "{kit.signer}"' if kit.signer else " --allow ORIGIN_NOT_PROVEN"
    by_hand = "unzip -p ARCHIVE keyslots.json | jq -r '.slots[] | select(.type == \"age\") | .file' > slot.age"
    identity = (
        "The same with .identity instead of .file gives identity.age. Then: age -d -i identity.age slot.age > data.key"
        if kit.passphrase
        else "Then: age -d -i key.txt slot.age > data.key"
    )
    steps = [
        "Install the server in the version that the archive's header.json names, and deviceon-backup.",
        f'"tools/System Recovery/recovery.sh" ARCHIVE {option}{signer}',
        "Without deviceon-backup, by hand: " + by_hand,
        identity + '. With that: "tools/System Recovery/open_archive.py" extract ARCHIVE DIR --key-file data.key',
    ]
    return list(enumerate(steps, 1))


def _safe(value: str) -> str:
    return html.escape(value)


_STYLE = (
    "body{font:11pt sans-serif;max-width:48em;margin:2em auto;padding:0 1em}"
    "th{text-align:left;padding-right:1em;vertical-align:top}code{word-break:break-all}"
    ".secret{border:2px solid;padding:.7em;font-size:14pt}li{margin:.4em 0}@media print{body{margin:0}}"
)
