"""The names of what a killed writer leaves in a bucket, as they are announced and remembered; pure text."""

from __future__ import annotations

import re

from storage_backends.base import KEY_PATTERN

HIDDEN_PREFIX = ".deviceon-backup-"
HIDDEN_NAME = re.compile(r"\.deviceon-backup-(?:[A-Za-z0-9][A-Za-z0-9._-]{0,199}\.)?[0-9a-f]{32}\.(?:lock|probe)")
CLAIM_SUFFIX = ".lock"


def unfinished_upload(name: str, upload_id: str) -> str:
    """Return what an upload of parts for the object `name` is announced as."""
    return f"upload {name} {upload_id}"


def hidden_object(name: str) -> str:
    """Return what a hidden object (claim, probe) is announced as."""
    return f"object {name}"


def parse_unfinished(text: str) -> tuple[str, str] | None:
    """Return the name, and the upload id or nothing, of what was announced; None for what nobody of us announced."""
    kind, _, rest = text.partition(" ")
    if kind == "object" and HIDDEN_NAME.fullmatch(rest):
        return rest, ""
    name, _, upload_id = rest.partition(" ")
    if kind == "upload" and upload_id and (KEY_PATTERN.fullmatch(name) or HIDDEN_NAME.fullmatch(name)):
        return name, upload_id
    return None
