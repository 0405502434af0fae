"""The S3 servers that tests share: each is started when a test of this process first needs it, and ends with it."""

from __future__ import annotations

import atexit
import itertools
import os
import subprocess
import sys
from functools import cache
from typing import Any

from demo.s3_server import CephServer
from tests.swift_server import SwiftServer

BUCKET = "shared"

_prefixes = itertools.count(1)


@cache
def ceph() -> CephServer:
    """Give Ceph's gateway, with the bucket `shared`. Do not stop it or change what is global."""
    server = CephServer()
    atexit.register(server.close)
    server.start()
    server.create_bucket(BUCKET)
    return server


@cache
def swift() -> SwiftServer:
    """Give Swift, with the bucket `shared`."""
    server = SwiftServer()
    atexit.register(server.close)
    server.start()
    server.create_bucket(BUCKET)
    return server


@cache
def amazon() -> str:
    """Give the address of the shared Ceph with Amazon's conditional completion and checksums; same credentials."""
    server = ceph()
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.s3_amazon", server.endpoint, server.access_key, server.secret_key],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    atexit.register(process.wait, 10)
    atexit.register(process.stdin.close)  # handlers run in reverse order
    return process.stdout.readline().strip()


def new_prefix() -> str:
    """Return a prefix that nothing is below yet."""
    return f"test-{os.getpid()}/{next(_prefixes)}"


def ceph_options(*, tls: bool = False, **more: Any) -> dict[str, Any]:
    """Return `storage_options` for the shared Ceph, with parts as small as S3 allows."""
    server = ceph()
    where = {"endpoint_url": server.tls_endpoint, "verify": str(server.ca_file)}
    return {
        "key": server.access_key,
        "secret": server.secret_key,
        "part_bytes": 5 << 20,
        "parts_in_flight": 3,
        **(where if tls else {"endpoint_url": server.endpoint}),
        **more,
    }


def swift_options(**more: Any) -> dict[str, Any]:
    """Return `storage_options` for the shared Swift."""
    server = swift()
    return {
        "key": server.access_key,
        "secret": server.secret_key,
        "endpoint_url": server.endpoint,
        "part_bytes": 5 << 20,
        "parts_in_flight": 3,
        **more,
    }
