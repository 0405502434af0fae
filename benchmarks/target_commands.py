"""The commands that put one file into a target of each kind and get it back, ours and the peers'.

They find in the environment: FILE, KEY, BACK (the file that a get writes), PYTHON, TARGET and RESULT (ours), STORE (the
directory of the local target), ENDPOINT and BUCKET with AWS_... and RCLONE_..., SMB_SHARE, SMB_PORT and SMB_LOGIN.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

PART_MIB = 8
IN_FLIGHT = 5


@dataclass(frozen=True, slots=True)
class TargetWay:
    """One way to put and get. Scripts of bash."""

    name: str
    title: str
    put: str
    get: str


OURS = TargetWay(
    "ours",
    "deviceon-backup's target",
    '"$PYTHON" -m benchmarks.target_copy put "$TARGET" "$KEY" "$FILE" >"$RESULT"',
    '"$PYTHON" -m benchmarks.target_copy get "$TARGET" "$KEY" "$BACK"',
)
ARCHIVE = TargetWay(
    "archive",
    "deviceon-backup's pipeline and target: a sealed archive, and every byte read back",
    '"$PYTHON" -m benchmarks.target_archive "$TARGET" "$FILE" >"$RESULT"',
    "",
)
AWS = TargetWay(
    "aws",
    "aws s3 cp",
    'aws s3 cp --endpoint-url "$ENDPOINT" --only-show-errors "$FILE" "s3://$BUCKET/$KEY"',
    'aws s3 cp --endpoint-url "$ENDPOINT" --only-show-errors "s3://$BUCKET/$KEY" "$BACK"',
)
RCLONE_S3 = TargetWay(
    "rclone",
    "rclone copyto (s3)",
    'rclone copyto "$FILE" "ceph:$BUCKET/$KEY" '
    f"--s3-upload-cutoff {PART_MIB}M --s3-chunk-size {PART_MIB}M --s3-upload-concurrency {IN_FLIGHT}",
    f'rclone copyto "ceph:$BUCKET/$KEY" "$BACK" --multi-thread-cutoff {PART_MIB}M --multi-thread-streams {IN_FLIGHT}',
)
SMBCLIENT = TargetWay(
    "smbclient",
    "smbclient",
    'smbclient "$SMB_SHARE" -p "$SMB_PORT" -A "$SMB_LOGIN" --client-protection=encrypt -c "put \\"$FILE\\" $KEY"',
    'smbclient "$SMB_SHARE" -p "$SMB_PORT" -A "$SMB_LOGIN" --client-protection=encrypt -c "get $KEY \\"$BACK\\""',
)
RCLONE_SMB = TargetWay(
    "rclone",
    "rclone copyto (smb)",
    'rclone copyto "$FILE" "samba:$BUCKET/$KEY"',
    f'rclone copyto "samba:$BUCKET/$KEY" "$BACK" --multi-thread-cutoff {PART_MIB}M --multi-thread-streams {IN_FLIGHT}',
)
DD = TargetWay(
    "dd",
    "dd, the put with conv=fsync",
    'dd status=none bs=4M conv=fsync if="$FILE" of="$STORE/$KEY"',
    'dd status=none bs=4M if="$STORE/$KEY" of="$BACK"',
)
CP = TargetWay(
    "cp",
    "cp, after the put sync",
    'cp "$FILE" "$STORE/$KEY" && sync "$STORE/$KEY" "$STORE"',
    'cp "$STORE/$KEY" "$BACK"',
)

S3: Sequence[TargetWay] = (OURS, AWS, RCLONE_S3)
WAYS: Mapping[str, Sequence[TargetWay]] = {
    "s3-https": S3,
    "s3-http": S3,
    "smb": (OURS, SMBCLIENT, RCLONE_SMB),
    "local": (OURS, DD, CP),
}
"""By kind of target."""
LARGE_KIND = "s3-https"
LARGE_WAYS: Sequence[TargetWay] = (OURS, ARCHIVE)
"""What also puts a large file into the target of `LARGE_KIND`: for memory, not for comparison."""
NOT_DURABLE = ("smb",)
"""Where the peers leave to the server when it writes to its disks."""
KINDS: Mapping[str, str] = {
    "s3-https": "S3 (Ceph), https",
    "s3-http": "S3 (Ceph), http",
    "smb": "SMB 3.1.1 (Samba), encrypted",
    "local": "a local directory",
}
