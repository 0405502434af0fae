"""What a drill leaves: one JSON document, signed by this machine's TPM, and a page of it for people.

The document is the evidence; what is signed is its canonical form without the member `signature` (members sorted, no
spaces, ASCII), for the purpose `drill-report`. Reports lie in `<state_dir>/drills`, named after the time and the drill.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from service.drill_page import page
from service.errors import NotAuthentic, NotFound
from service.sealing.signature import is_public_key, signer_fingerprint, verify
from service.state_directory import prepare, remove_file, replace_file
from service.strict_json import strict_loads

PURPOSE: Final = "drill-report"
FORMAT: Final = "deviceon-backup drill report"
VERSION: Final = 1
LARGEST = 4 << 20

_ID = re.compile(r"[0-9]{8}T[0-9]{6}Z-[0-9a-f]{8}")

Report = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Checked:
    """A report whose signature is that of the key that it names. `vouched`: that key is one that is trusted."""

    report: Report
    fingerprint: str
    vouched: bool


def message_of(report: Mapping[str, Any]) -> bytes:
    """Return the bytes that are signed."""
    unsigned = {name: value for name, value in report.items() if name != "signature"}
    return json.dumps(unsigned, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


def signature_member(public_key: bytes, signature: bytes) -> dict[str, str]:
    """Return the member `signature` of a report."""
    return {
        "algorithm": "ECDSA P-256 SHA-256",
        "purpose": PURPOSE,
        "fingerprint": signer_fingerprint(public_key),
        "public_key": base64.b64encode(public_key).decode(),
        "value": base64.b64encode(signature).decode(),
    }


def check(content: bytes, key: bytes | None = None, *, trusted: Collection[str] = ()) -> Checked:
    """Check a report's signature, offline. `key` is the public key (DER) that has to be its signer's; None when it may
    be any, of which those with the fingerprints `trusted` are vouched for.

    Raises NotAuthentic when it is no report, is not signed, was altered, or is signed by another key than `key`.
    """
    try:
        report = strict_loads(content)
    except ValueError as error:
        raise _no_report(str(error)) from error
    if not isinstance(report, dict) or report.get("format") != FORMAT or report.get("version") != VERSION:
        raise _no_report("it is not of the form that this version knows")
    told = report.get("signature")
    if not isinstance(told, dict):
        raise NotAuthentic(
            "the report is not signed, so anybody may have written it",
            hint="Reports are signed where archives are sealed to a TPM.",
        )
    try:
        public_key, signature = (base64.b64decode(told[name], validate=True) for name in ("public_key", "value"))
    except (KeyError, TypeError, ValueError, binascii.Error) as error:
        raise _no_report("its signature cannot be read") from error
    verify(public_key, PURPOSE, message_of(report), signature)
    fingerprint = signer_fingerprint(public_key)
    if key is not None and key != public_key:
        raise NotAuthentic(
            f"the report is signed by {fingerprint}, not by {signer_fingerprint(key)}",
            hint="It is another machine's, or was made by somebody else. Do not trust it as this machine's.",
        )
    return Checked(report, fingerprint, vouched=key is not None or fingerprint in trusted)


def _no_report(why: str) -> NotAuthentic:
    return NotAuthentic(f"this is no report of a drill: {why}", hint="Give the JSON file, whole and as it was written.")


def directory_of(state_dir: Path) -> Path:
    """Return where reports lie; it is made when it is missing."""
    return prepare(prepare(state_dir) / "drills")


def save(state_dir: Path, report: Report) -> tuple[Path, Path]:
    """Write a report and its page, each whole or not at all; return their paths. Raises OSError."""
    directory = directory_of(state_dir)
    paths = directory / f"{report['id']}.json", directory / f"{report['id']}.html"
    replace_file(paths[0], json.dumps(report, indent=2, ensure_ascii=True).encode() + b"\n")
    replace_file(paths[1], page(report).encode())
    return paths


def load(state_dir: Path, identifier: str) -> Report:
    """Return one report. Raises NotFound."""
    if _ID.fullmatch(identifier):
        report = _read(directory_of(state_dir) / f"{identifier}.json")
        if report is not None:
            return report
    raise NotFound(f"there is no report of a drill {identifier}", hint="`deviceon-backup drill --list` shows them.")


def listed(state_dir: Path) -> list[Report]:
    """Return every report that can be read, the newest first."""
    paths = sorted(directory_of(state_dir).glob("*.json"), reverse=True)
    return [report for path in paths if _ID.fullmatch(path.stem) and (report := _read(path)) is not None]


def _read(path: Path) -> Report | None:
    try:
        with path.open("rb") as file:
            report = strict_loads(file.read(LARGEST))
    except (OSError, ValueError):
        return None
    return report if isinstance(report, dict) and report.get("format") == FORMAT else None


def forget(state_dir: Path, before: datetime) -> None:
    """Remove the reports of drills that began before a time, but for the newest that passed. Raises OSError."""
    directory = directory_of(state_dir)
    kept = next((report["id"] for report in listed(state_dir) if report.get("result") == "passed"), None)
    oldest = f"{before.astimezone(UTC):%Y%m%dT%H%M%SZ}"
    for path in (*directory.glob("*.json"), *directory.glob("*.html")):
        if _ID.fullmatch(path.stem) and path.stem < oldest and path.stem != kept:
            remove_file(path)


def as_public_key(content: bytes) -> bytes:
    """Return a public key in DER from a file that holds it as such or in PEM. Raises NotAuthentic."""
    text = content.strip()
    if text.startswith(b"-----BEGIN PUBLIC KEY-----"):
        lines = text.splitlines()[1:-1]
        with contextlib.suppress(ValueError):  # what is left then is no key either
            content = base64.b64decode(b"".join(line.strip() for line in lines), validate=True)
    if not is_public_key(content):
        raise NotAuthentic(
            "the file given as --key holds no public key",
            hint="Give what `deviceon-backup drill --public-key` prints on the machine, in PEM or DER.",
        )
    return content


def as_pem(public_key: bytes) -> str:
    """Return a public key in PEM."""
    text = base64.b64encode(public_key).decode()
    lines = [text[at : at + 64] for at in range(0, len(text), 64)]
    return "\n".join(["-----BEGIN PUBLIC KEY-----", *lines, "-----END PUBLIC KEY-----", ""])
