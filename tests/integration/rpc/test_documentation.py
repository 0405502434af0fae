"""What docs/SOCKET.md says is so: its example runs, its limits and codes are the real ones."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from pathlib import Path

from service.events import QUEUE
from service.rpc.codec import MAX_ANSWER, Code
from service.rpc.limits import DEFAULTS
from service.rpc.unix_socket import LONGEST
from tests.integration.rpc.service import serving, until

TEXT = (Path(__file__).parents[3] / "docs" / "SOCKET.md").read_text()


async def test_the_example_in_python_hears_what_it_missed(path: Path) -> None:
    found = re.search(r"## By hand.*?```python\n(.*?)```", TEXT, re.DOTALL)
    assert found is not None
    program = found[1].replace("/run/deviceon-backup/service.sock", str(path))
    async with serving(path) as service:
        service.hub.publish("job.created")
        process = await asyncio.create_subprocess_exec(sys.executable, "-uc", program, stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert await process.stdout.readline() == b"answer: {'boot_id': 'boot', 'seq': 1, 'gap': False}\n"
        assert await process.stdout.readline() == b"event: 1 job.created\n"
        await until(lambda: service.server._seats)
    assert await process.wait() == 0


def test_every_code_is_listed_with_its_number() -> None:
    listed = dict(re.findall(r"^\| (-32\d{3}) \| `?([A-Z_]+|the service's own)", TEXT, re.MULTILINE))
    assert listed == {str(int(code)): "the service's own" if code is Code.FAILED else code.name for code in Code}


def test_the_limits_are_the_real_ones() -> None:
    rows = dict(re.findall(r"^\| ([^|]+) \| ([^|]+) \| [^|]+ \|$", TEXT, re.MULTILINE))
    kib, mib = 1024, 1024 * 1024
    assert rows["Request line, with its newline"] == f"{DEFAULTS.line_bytes // kib} KiB"
    assert rows["Line of the service"] == f"{MAX_ANSWER // mib} MiB"
    assert rows["Malformed lines of a connection"] == str(DEFAULTS.malformed_lines)
    assert rows["From a line's first byte to its newline"] == f"{DEFAULTS.partial_line_seconds} s"
    assert rows["Neither request nor subscription"] == f"{DEFAULTS.idle_seconds} s"
    assert rows["A line to the client waits to be read"] == f"{DEFAULTS.unread_seconds} s"
    assert rows["TLS handshake"] == f"{DEFAULTS.handshake_seconds} s"
    assert rows["Requests of a connection at once"] == str(DEFAULTS.requests_in_flight)
    assert rows["Subscriptions of a peer"] == str(DEFAULTS.subscribers_per_peer)
    assert rows["Connections of a peer"] == str(DEFAULTS.connections_per_peer)
    assert rows["Connections"] == str(DEFAULTS.connections)
    waiting = next(limit for what, limit in rows.items() if what.startswith("Answers above 64 KiB"))
    assert waiting == f"{DEFAULTS.unread_bytes_per_peer // mib} MiB"
    assert f"at most {LONGEST} bytes" in TEXT
    assert f"At most {QUEUE} events" in TEXT
