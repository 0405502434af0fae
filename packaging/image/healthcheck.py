"""Ask the service one question on its socket: exit 0 when it answers, 1 when it does not. Python's own modules only.

`DEVICEON_BACKUP_SOCKET` names another socket than the usual one. Whether jobs are taken is not asked: a service that
still settles what a crash has left is healthy.
"""

import json
import os
import socket
import sys

SECONDS = 8.0


def answer(path: str) -> object:
    """Return what `system.info` answers. Raises OSError, and ValueError when it is no JSON."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(SECONDS)
        connection.connect(path)
        connection.sendall(b'{"jsonrpc":"2.0","id":1,"method":"system.info"}\n')
        with connection.makefile("rb") as lines:
            return json.loads(lines.readline())


def main() -> str | None:
    """Return what is wrong; None when nothing is."""
    path = os.environ.get("DEVICEON_BACKUP_SOCKET", "/run/deviceon-backup/service.sock")
    try:
        said = answer(path)
    except (OSError, ValueError) as problem:
        return f"{path}: {problem}"
    return None if isinstance(said, dict) and "result" in said else f"{path} answers: {said}"


if __name__ == "__main__":
    sys.exit(main())
