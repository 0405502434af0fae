"""The targets that are measured, one of each kind, with the server behind it and what commands need to reach it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.facts import PROGRAMS
from benchmarks.target_commands import IN_FLIGHT, PART_MIB
from demo.s3_server import REGION, CephServer
from demo.smb_server import SHARE, SambaServer

BUCKET = "backups"
_PROJECT = Path(__file__).parent.parent
_AWS = f"""[default]
region = {REGION}
ca_bundle = {{ca_file}}
s3 =
  addressing_style = path
  multipart_threshold = {PART_MIB}MB
  multipart_chunksize = {PART_MIB}MB
  max_concurrent_requests = {IN_FLIGHT}
"""
_SETTINGS = ("AWS_", "RCLONE_")  # of the user who measures


@dataclass(frozen=True, slots=True)
class Place:
    """A target that is there and empty. `environment` is what commands find, `empty` removes what they stored."""

    environment: Mapping[str, str] = field(repr=False)
    empty: Callable[[], None]
    servers: Collection[int] = ()


@contextmanager
def running_place(kind: str, directory: Path, room: int) -> Iterator[Place]:
    """Give a target of a kind of `benchmarks.target_commands.KINDS`; files go to `directory`.

    A server that keeps what it stores in memory takes `room` bytes at least.
    """
    directory.mkdir(parents=True)
    if kind == "local":
        yield _local(directory)
    elif kind == "smb":
        with SambaServer() as samba:
            yield _smb(samba, directory)
    else:
        with CephServer(memory_bytes=room + (1 << 30)) as ceph:
            ceph.create_bucket(BUCKET)
            yield _s3(ceph, directory, tls=kind == "s3-https")


def _local(directory: Path) -> Place:
    store = directory / "store"
    store.mkdir()
    environment = _environment(directory, {"url": store.as_uri()}) | {"STORE": str(store)}
    return Place(environment, lambda: _remove_all(store))


def _smb(samba: SambaServer, directory: Path) -> Place:
    login = directory / "login"
    login.touch(0o600)
    login.write_text(f"username = {samba.username}\npassword = {samba.password}\n")
    environment = _environment(directory, {"url": samba.url, "storage_options": samba.storage_options}) | {
        "BUCKET": SHARE,
        "SMB_SHARE": f"//{samba.host}/{SHARE}",
        "SMB_PORT": str(samba.port),
        "SMB_LOGIN": str(login),
        "RCLONE_CONFIG_SAMBA_TYPE": "smb",
        "RCLONE_CONFIG_SAMBA_HOST": samba.host,
        "RCLONE_CONFIG_SAMBA_PORT": str(samba.port),
        "RCLONE_CONFIG_SAMBA_USER": samba.username,
        "RCLONE_CONFIG_SAMBA_PASS": _obscured(samba.password),
    }
    return Place(environment, lambda: _remove_all(samba.share), [samba.pid])


def _obscured(password: str) -> str:
    """Return a password as rclone's settings have it; nothing when there is no rclone."""
    if shutil.which("rclone") is None:
        return ""
    command = ["rclone", "obscure", "-"]
    return subprocess.run(command, input=password, check=True, capture_output=True, text=True).stdout.strip()


def _remove_all(directory: Path) -> None:
    for path in directory.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _s3(ceph: CephServer, directory: Path, *, tls: bool) -> Place:
    endpoint = ceph.tls_endpoint if tls else ceph.endpoint
    settings = ceph.target_settings(BUCKET)
    settings["storage_options"]["endpoint_url"] = endpoint
    aws = directory / "aws.config"
    aws.write_text(_AWS.format(ca_file=ceph.ca_file))
    environment = _environment(directory, settings) | {
        "ENDPOINT": endpoint,
        "BUCKET": BUCKET,
        "AWS_CONFIG_FILE": str(aws),
        "AWS_ACCESS_KEY_ID": ceph.access_key,
        "AWS_SECRET_ACCESS_KEY": ceph.secret_key,
        "RCLONE_CA_CERT": str(ceph.ca_file),
        "RCLONE_CONFIG_CEPH_TYPE": "s3",
        "RCLONE_CONFIG_CEPH_PROVIDER": "Ceph",
        "RCLONE_CONFIG_CEPH_ENDPOINT": endpoint,
        "RCLONE_CONFIG_CEPH_ACCESS_KEY_ID": ceph.access_key,
        "RCLONE_CONFIG_CEPH_SECRET_ACCESS_KEY": ceph.secret_key,
    }
    servers = [ceph.pid("radosgw"), ceph.pid("ceph-osd")]
    return Place(environment, lambda: ceph.empty_bucket(BUCKET), servers)


def _environment(directory: Path, target: Mapping[str, Any]) -> dict[str, str]:
    described = directory / "target.json"
    described.touch(0o600)
    described.write_text(json.dumps(target))
    cleaned = {name: value for name, value in os.environ.items() if not name.startswith(_SETTINGS)}
    return cleaned | {
        "PATH": f"{PROGRAMS}:{os.environ['PATH']}",
        "LC_ALL": "C.UTF-8",
        "PYTHON": sys.executable,
        "PYTHONPATH": str(_PROJECT),
        "TARGET": str(described),
        "RCLONE_CONFIG": os.devnull,
    }
