"""Real servers' databases, as Debian ships them: Zabbix's (monitoring; 170 tables, images, some data) and others.

Kea's DHCP database is mostly functions and triggers, Icinga's enums and domains; PowerDNS and Tiny Tiny RSS are small.
The packages are downloaded (16 MB), not installed, and kept in `build/` of this working copy.
"""

from __future__ import annotations

import asyncio
import gzip
import subprocess
import tempfile
from pathlib import Path

from demo.postgresql_server import PostgresqlServer

ZABBIX = "zabbix"
KEA = "kea"
ICINGA = "icingadb"
POWERDNS = "powerdns"
TTRSS = "ttrss"
DATABASES = (ZABBIX, KEA, ICINGA, POWERDNS, TTRSS)

_FILES = {
    ZABBIX: (
        "zabbix-server-pgsql",
        [f"./usr/share/zabbix-server-pgsql/{part}.sql.gz" for part in ("schema", "images", "data")],
    ),
    KEA: ("kea-admin", ["./usr/share/kea/scripts/pgsql/dhcpdb_create.pgsql"]),
    ICINGA: ("icingadb", ["./usr/share/icingadb/schema/pgsql/schema.sql"]),
    POWERDNS: ("pdns-backend-pgsql", ["./usr/share/pdns-backend-pgsql/schema/schema.pgsql.sql"]),
    TTRSS: ("tt-rss", ["./usr/share/tt-rss/schema/ttrss_schema_pgsql.sql"]),
}
_LONGEST_SCRIPT = 6_000_000  # bytes; all of Zabbix's data would take a minute, row by row
_CACHE = Path(__file__).parent.parent / "build" / "debian-schemas"


class DownloadFailed(RuntimeError):
    """A Debian package cannot be had; the message ends with what apt said."""


async def debian_schemas(server: PostgresqlServer) -> tuple[str, ...]:
    """Make these databases and return their names; the server must not have them yet. Takes 10 s without a cache."""
    for database, (package, members) in _FILES.items():
        script = await asyncio.to_thread(_script, package, members)
        await server.execute(f"CREATE DATABASE {database} TEMPLATE template0")
        await asyncio.to_thread(
            server.run,
            "psql",
            ["-X", "-q", "-v", "ON_ERROR_STOP=1", "-o", "/dev/null", "-f", str(script), "-d", database],
        )
    return DATABASES


def _script(package: str, members: list[str]) -> Path:
    """Return a file with the package's SQL files, one after the other."""
    script = _CACHE / f"{package}.sql"
    if script.exists():
        return script
    _CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=_CACHE) as directory:
        fetched = subprocess.run(
            ["apt-get", "download", "-q", package], cwd=directory, capture_output=True, check=False, text=True
        )
        archives = list(Path(directory).glob("*.deb"))
        if fetched.returncode or not archives:
            raise DownloadFailed(
                f"Cannot download the Debian package {package} (is `apt-get update` needed?): {fetched.stderr.strip()}"
            )
        subprocess.run(["dpkg-deb", "--extract", archives[0], directory], check=True)
        parts = [(Path(directory) / member).read_bytes() for member in members]
        text = b"\n".join(gzip.decompress(part) if part[:2] == b"\x1f\x8b" else part for part in parts)
        if len(text) > _LONGEST_SCRIPT:
            text = text[: text.rindex(b"\nINSERT INTO ", 0, _LONGEST_SCRIPT)]
        whole = Path(directory) / "whole.sql"
        whole.write_bytes(text + b"\n")
        whole.replace(script)
    return script
