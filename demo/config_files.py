"""What lies beside the databases: the server's configuration, MongoDB's files, Grafana's store.

The configuration has what makes copies of trees go wrong: rights, ACLs, extended attributes, links of both kinds,
odd names, holes, times with nanoseconds. MongoDB's directory lies below the configuration, where it must be left out.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
import struct
from dataclasses import dataclass
from pathlib import Path

from demo.compare_files import tree_listing

_SERVER_CONFIG = """<?xml version="1.0" encoding="UTF-8"?>
<ServerConfig version="5.3.12">
  <Portal host="0.0.0.0" port="8443" tls="true" certificate="certs/server.crt" key="certs/server.key"/>
  <Database type="postgresql" host="127.0.0.1" port="5432" name="deviceon" user="deviceon_app" password="{secret}"/>
  <Sensors type="mongodb" uri="mongodb://127.0.0.1:27017/sensors"/>
  <Mqtt port="1883" keepAlive="60"/>
  <Note>Prüfstand Halle 7 &amp; 設備</Note>
</ServerConfig>
"""
_MONGODB_FILES = {
    "WiredTiger": b"WiredTiger\nWiredTiger 10.0.2: (November 30, 2021)\n",
    "WiredTiger.lock": b"WiredTiger lock file\n",
    "WiredTiger.turtle": b"WiredTiger version string\nWiredTiger 10.0.2\n",
    "WiredTiger.wt": b"\x41\xd8\x01\x00" * 1024,
    "WiredTigerHS.wt": b"\x41\xd8\x01\x00" * 1024,
    "_mdb_catalog.wt": b"\x41\xd8\x01\x00" * 2048,
    "sizeStorer.wt": b"\x41\xd8\x01\x00" * 1024,
    "storage.bson": b"\x72\x00\x00\x00\x03storage\x00",
    "mongod.lock": b"4711\n",
    "collection-0-1234567890123456789.wt": b"sensor readings " * 65536,
    "index-1-1234567890123456789.wt": b"index " * 65536,
    "journal/WiredTigerLog.0000000001": bytes(1 << 20),
    "diagnostic.data/metrics.2025-10-01T00-00-00Z-00000": b"metrics" * 1000,
}
_MTIME_NS = 1_735_689_600_123_456_789


@dataclass(frozen=True, slots=True)
class ServerFiles:
    """Where everything is. `config` is backed up as a tree, `grafana` as an SQLite database."""

    config: Path
    grafana: Path

    @property
    def mongodb(self) -> Path:
        return self.config / "mongodb"

    def config_listing(self) -> dict[str, str]:
        """Return the tree's state without MongoDB's own files, which a backup leaves out."""
        left_out = {f"mongodb/{name.split('/')[0]}" for name in _MONGODB_FILES}
        listing = tree_listing(self.config)
        return {
            name: value
            for name, value in listing.items()
            if not any(name == own or name.startswith(f"{own}/") for own in left_out)
        }


def write(directory: Path) -> ServerFiles:
    """Write the files below `directory` (as below /opt/advantech/deviceon); owners differ when we are root."""
    files = ServerFiles(config=directory / "etc", grafana=directory / "grafana" / "data" / "grafana.db")
    _write_settings(files.config)
    _write_oddities(files.config / "plugins")
    for name, content in _MONGODB_FILES.items():
        _file(files.mongodb / name, content, mode=0o600)
    _file(files.mongodb / "mongod.conf", b"storage:\n  dbPath: .\n", mode=0o640)
    _set_owners_and_times(files.config)
    _write_grafana(files.grafana)
    return files


class GrafanaRunning:
    """Grafana with its database open: the last rows are in the write-ahead log only, as in a server at work."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA wal_autocheckpoint = 0")
        self.annotate("started")

    def close(self) -> None:
        """Stop Grafana; what the log holds goes into the database file. May be called twice."""
        self._connection.close()

    def annotate(self, text: str) -> None:
        """Write one row, as a user does by clicking into a chart."""
        self._connection.execute(
            "INSERT INTO annotation (dashboard_id, epoch, text, data) VALUES (1, 1735689600000, ?, ?)",
            (text, hashlib.sha256(text.encode()).digest()),
        )


def _write_settings(config: Path) -> None:
    deviceon = config / "deviceon"
    secret = "TPM:" + hashlib.sha256(b"database password").hexdigest()
    _file(deviceon / "Server_Config.xml", _SERVER_CONFIG.format(secret=secret).encode(), mode=0o640)
    _file(deviceon / "logging.properties", b"level=INFO\r\nfile=/var/log/deviceon/server.log\r\n")
    _file(deviceon / "mail.yaml", b"smtp: {host: mail.example.com, port: 587}\n", mode=0o600)
    _file(deviceon / "license.lic", hashlib.shake_256(b"license").digest(5000))
    _file(deviceon / "version", b"5.3.12\n")
    certificates = deviceon / "certs"
    _file(certificates / "server.key", _pem("PRIVATE KEY"), mode=0o600)
    _file(certificates / "server.crt", _pem("CERTIFICATE"))
    _file(certificates / "ca" / "device-ca.key", _pem("EC PRIVATE KEY"), mode=0o400)
    (certificates / "ca" / "current.key").symlink_to("device-ca.key")
    (certificates / "bundle.crt").symlink_to("/etc/ssl/certs/ca-certificates.crt")
    certificates.chmod(0o700)
    _file(config / "nginx" / "sites-available" / "deviceon.conf", b"server { listen 443 ssl; }\n")
    (config / "nginx" / "sites-enabled").mkdir()
    (config / "nginx" / "sites-enabled" / "deviceon.conf").symlink_to("../sites-available/deviceon.conf")
    (config / "nginx" / "sites-enabled" / "gone.conf").symlink_to("../sites-available/gone.conf")
    _file(config / "grafana" / "grafana.ini", b"[server]\nhttp_port = 3000\n", mode=0o640)
    (deviceon / "Server_Config.backup.xml").hardlink_to(deviceon / "Server_Config.xml")


def _write_oddities(plugins: Path) -> None:
    _file(plugins / "empty", b"")
    (plugins / "empty directory").mkdir()
    _file(plugins / "-rf", b"a name like an option\n")
    _file(plugins / "new\nline", b"")
    _file(plugins / " blanks ", b"")
    _file(plugins / "back\\slash", b"")
    _file(plugins / "設備-ü-😀", b"Unicode\n")
    with open(os.fsencode(plugins) + b"/not \xff UTF-8", "wb") as file:  # noqa: PTH123  (the name is bytes)
        file.write(b"bytes\n")
    _file(plugins / ("long" * 63), b"a name of 252 bytes\n")
    _file(plugins / "run as owner", b"#!/bin/sh\n", mode=0o4755)
    with (plugins / "holes").open("wb") as file:
        file.truncate(3 << 20)
        file.seek(1 << 20)
        file.write(b"an island")
    (plugins / "shared").mkdir()
    (plugins / "shared").chmod(0o3777)
    noted = plugins / "noted"
    _file(noted, b"has attributes and an ACL\n")
    os.setxattr(noted, "user.deviceon.note", b"binary \x00 value")
    os.setxattr(noted, "user.empty", b"")
    os.setxattr(plugins, "user.deviceon.directory", b"1")
    # rw- for its owner, r-- for user 12345, rwx for group 54321, mask rwx, --- for others
    access = ((0x01, 6, 0xFFFFFFFF), (0x02, 4, 12345), (0x04, 4, 0xFFFFFFFF), (0x08, 7, 54321), (0x10, 7, 0xFFFFFFFF))
    _set_acl(noted, "system.posix_acl_access", (*access, (0x20, 0, 0xFFFFFFFF)))
    inherited = ((0x01, 7, 0xFFFFFFFF), (0x02, 5, 12345), (0x04, 5, 0xFFFFFFFF), (0x10, 5, 0xFFFFFFFF))
    _set_acl(plugins / "shared", "system.posix_acl_default", (*inherited, (0x20, 0, 0xFFFFFFFF)))


def _set_owners_and_times(config: Path) -> None:
    for number, directory in enumerate(sorted(os.walk(os.fsencode(config), topdown=False))):
        path, folders, files = directory
        for name in [*files, *folders]:
            entry = os.path.join(path, name)
            if os.geteuid() == 0 and name.endswith((b".key", b".xml", b"noted")):
                os.chown(entry, 998, 12345, follow_symlinks=False)
            os.utime(entry, ns=(_MTIME_NS, _MTIME_NS + number * 1_000_000_007), follow_symlinks=False)
    os.utime(config / "plugins" / "empty", ns=(0, -1_500_000_000))  # before 1970
    os.utime(config / "plugins", ns=(_MTIME_NS, 1))
    os.utime(config, ns=(_MTIME_NS, _MTIME_NS))


def _write_grafana(path: Path) -> None:
    path.parent.mkdir(parents=True)
    with sqlite3.connect(path) as connection:
        connection.executescript(
            """
            PRAGMA journal_mode = WAL; PRAGMA user_version = 571;
            CREATE TABLE user (id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, login TEXT NOT NULL UNIQUE,
                               password TEXT, salt TEXT);
            CREATE TABLE dashboard (id INTEGER PRIMARY KEY AUTOINCREMENT, uid TEXT UNIQUE, title TEXT, data TEXT);
            CREATE TABLE annotation (id INTEGER PRIMARY KEY, dashboard_id INTEGER REFERENCES dashboard, epoch INTEGER,
                                     text TEXT, data BLOB);
            CREATE TABLE data_source (name TEXT PRIMARY KEY, url TEXT, secure_json BLOB) WITHOUT ROWID;
            CREATE INDEX annotation_epoch ON annotation (epoch DESC);
            CREATE VIEW titles AS SELECT title FROM dashboard;
            CREATE TRIGGER no_admin BEFORE DELETE ON user WHEN old.id = 1 BEGIN SELECT RAISE(ABORT, 'keep'); END;
            INSERT INTO user (login, password, salt) VALUES ('admin', hex('hash'), 'salt'), ('ops', NULL, '');
            INSERT INTO data_source VALUES ('DeviceOn', 'postgres://127.0.0.1', x'00ff00');
            """
        )
        connection.executemany(
            "INSERT INTO dashboard (uid, title, data) VALUES (?, ?, ?)",
            [(f"uid{n}", f"Hall {n}", '{"panels": [' + ", ".join(str(n)) * 400 + "]}") for n in range(200)],
        )
    connection.close()
    path.chmod(0o640)
    path.parent.chmod(0o755)


def _file(path: Path, content: bytes, *, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(mode)


def _set_acl(path: Path, attribute: str, entries: tuple[tuple[int, int, int], ...]) -> None:
    os.setxattr(path, attribute, struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries))


def _pem(kind: str) -> bytes:
    body = hashlib.shake_256(kind.encode()).hexdigest(400)
    lines = [body[at : at + 64] for at in range(0, len(body), 64)]
    # Realistic in shape, and no key of anything.
    return f"-----BEGIN {kind} (demo)-----\n{chr(10).join(lines)}\n-----END {kind} (demo)-----\n".encode()


def destroy(files: ServerFiles) -> None:
    """Lose the configuration and damage Grafana's database, as a failing disk does."""
    shutil.rmtree(files.config)
    with files.grafana.open("r+b") as file:
        file.write(os.urandom(8192))
