"""Which requirements of IEC 62443-4-2 a drill speaks to, and what of each it shows and does not show. Pure.

Titles and numbers are those of IEC 62443-4-2:2019; what they ask for is told in our own words.
"""

from __future__ import annotations

from typing import Any

_NOT_SWAPPED = (
    "The exchange of live and restored data, and the start of the server on it: a drill stops before them. "
    "`deviceon-backup restore` does both, and keeps the old state until it is confirmed."
)
_NO_MONGODB = "The sensor data in MongoDB: it is left out of System Backups by design."

_MAKER: dict[bool | None, list[str]] = {
    True: [],
    False: ["Who made the archive: it is not sealed."],
    None: ["Who made the archive: it was not opened."],
}


def requirements(*, passed: bool, sealed: bool | None, by_tpm: bool) -> list[dict[str, Any]]:
    """Return each requirement: id, title, what this drill shows (nothing when it failed), what it does not show.

    `sealed`: whether the archive is; None when it was not opened. `by_tpm`: it was opened by this machine's TPM, not by
    a recovery key.
    """
    opener = "this machine's TPM" if by_tpm else "a recovery key"
    authenticated = (
        f"Every byte that was restored was authenticated with the archive's data key, which {opener} unsealed."
        if sealed
        else "Every byte that was restored agreed with the checksums in the archive, which is not sealed."
    )
    told: list[tuple[str, str, list[str], list[str]]] = [
        (
            "IEC 62443-4-2 CR 7.3",
            "Control system backup",
            [
                "An archive with the databases, roles, files and settings of the server exists in the target named.",
                "It was read from that target alone, and holds all that its manifest lists.",
                "The drill left the live databases and files as they are.",
            ],
            [_NO_MONGODB, "That backups are made often enough: the schedule, metrics and notifications show that."],
        ),
        (
            "IEC 62443-4-2 CR 7.3 RE (1)",
            "Backup integrity verification",
            [
                authenticated,
                "Length and SHA-256 of every stream agreed with the manifest before anything was taken for restored.",
            ],
            ["The integrity of other archives, and of this one at a later time."] + _MAKER[sealed],
        ),
        (
            "IEC 62443-4-2 CR 7.4",
            "Control system recovery and reconstitution",
            [
                "The archive and its key were enough to build every database, directory and file again.",
                "What was built was compared with the archive: rows, definitions, digests.",
            ],
            [
                _NOT_SWAPPED,
                "Roles and their passwords: they are restored with the exchange.",
                "Recovery on other hardware, which needs a recovery key." if by_tpm else "That the TPM opens it.",
                _NO_MONGODB,
            ],
        ),
    ]
    return [
        {
            "id": identifier,
            "title": title,
            "shown": shown if passed else [],
            "not_shown": not_shown if passed else ["Anything: the drill did not pass.", *not_shown],
        }
        for identifier, title, shown, not_shown in told
    ]
