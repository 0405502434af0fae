"""A service that answers on a real socket, and a client that may misbehave: for the tests of the transport."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from service.errors import JobRefused
from service.events import EventHub
from service.rpc.codec import Code, RpcError
from service.rpc.limits import DEFAULTS, Limits
from service.rpc.peers import AllowedUsers, Peer
from service.rpc.server import RpcServer
from storage_backends.base import TargetFull

ME = os.geteuid()
NOBODY = 65534
"""A user that is there on every system and owns nothing here."""


@dataclass
class Methods:
    """Methods that show what the transport does."""

    hub: EventHub
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    begun: int = 0
    ended: int = 0
    cancelled: int = 0

    async def call(self, method: str, params: dict[str, Any], peer: Peer) -> Any:
        match method:
            case "echo":
                return params
            case "whoami":
                return [peer.name, peer.role]
            case "command":
                if peer.role != "admin":
                    raise RpcError(Code.NOT_ALLOWED, "only an admin may do that")
                return "done"
            case "big":
                return "x" * params["size"]
            case "wait":
                return await self._wait()
            case "publish":
                for _ in range(params.get("times", 1)):
                    self.hub.publish("told", data={"text": "x" * params.get("size", 1)})
                return self.hub.seq
            case "progress":
                self.hub.progress("job", params)
                return None
            case "refuse":
                raise JobRefused("a backup is running", hint="Wait until it has finished.")
            case "full":
                raise TargetFull("the disk is full", hint="Make room.")
            case "break":
                raise RuntimeError("the password is swordfish")
            case "await_cancelled":
                await _cancelled()
            case "unwritable":
                return {1, 2}
        raise RpcError(Code.METHOD_NOT_FOUND, f"there is no method {method}")

    async def _wait(self) -> str:
        self.begun += 1
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        self.ended += 1
        return "opened"


async def _cancelled() -> None:
    task = asyncio.ensure_future(asyncio.sleep(60))
    task.cancel()
    await task


@dataclass
class Serving:
    """A server that runs in this event loop."""

    path: Path
    hub: EventHub
    methods: Methods
    server: RpcServer

    async def raw(self) -> Raw:
        return await Raw.connect(self.path)


@asynccontextmanager
async def serving(
    path: Path,
    *,
    limits: Limits = DEFAULTS,
    allowed: AllowedUsers = AllowedUsers(admin=frozenset({ME})),  # noqa: B008
    group: int | None = None,
) -> AsyncIterator[Serving]:
    """Serve on `path` until the block is left."""
    hub = EventHub("boot", [], clock=lambda: datetime.now(UTC))
    methods = Methods(hub)
    async with RpcServer(methods, hub, limits=limits) as server:
        await server.serve_unix(path, allowed, group=group)
        yield Serving(path, hub, methods, server)


class Raw:
    """A client that sends whatever bytes it is told to, and reads only when it is told to."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._received = b""
        self.reset = False

    @classmethod
    async def connect(cls, path: Path, uid: int = ME) -> Self:
        """Connect, as another user when told: the kernel notes the effective user id of that moment."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.setblocking(False)
        try:
            while not _connected(connection, path, uid):
                await asyncio.sleep(0.01)
        except BaseException:
            connection.close()
            raise
        return cls(connection)

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self._socket, data)

    async def ask(self, method: str, number: int = 1, **params: Any) -> None:
        await self.send(
            json.dumps({"jsonrpc": "2.0", "id": number, "method": method, "params": params}).encode() + b"\n"
        )

    async def read(self) -> dict[str, Any] | None:
        """Return the next message; None at the end."""
        while b"\n" not in self._received:
            try:
                more = await asyncio.get_running_loop().sock_recv(self._socket, 1 << 20)
            except ConnectionResetError:  # what we sent was not read to its end
                self.reset = True
                return None
            if not more:
                assert self._received == b"", "the last line was cut off"
                return None
            self._received += more
        line, _, self._received = self._received.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message

    async def call(self, method: str, number: int = 1, **params: Any) -> dict[str, Any] | None:
        await self.ask(method, number, **params)
        return await self.read()

    async def refusal(self) -> str:
        """Return the code of the one error that comes before the connection is closed."""
        message = await self.read()
        assert message is not None, "closed without a word"
        assert message["id"] is None
        assert await self.read() is None
        return str(message["error"]["data"]["code"])

    def end_output(self) -> None:
        self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _connected(connection: socket.socket, path: Path, uid: int) -> bool:
    os.seteuid(uid)
    try:
        connection.connect(str(path))
    except BlockingIOError:  # many stand in line
        return False
    else:
        return True
    finally:
        os.seteuid(ME)


async def connect_as(path: Path, uid: int) -> Raw:
    """Connect as a user whom the file's mode would keep out, so that only the server can refuse."""
    path.parent.chmod(0o755)
    path.chmod(0o666)
    return await Raw.connect(path, uid)


AS_ANOTHER_USER = """
import os, socket, sys
path, uid, gid, request = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
os.setgroups([gid]); os.setgid(uid); os.setuid(uid)
s = socket.socket(socket.AF_UNIX); s.connect(path)
try:
    s.sendall(request.encode() + b"\\n"); s.shutdown(socket.SHUT_WR)
except BrokenPipeError:
    pass
received = b""
try:
    while more := s.recv(65536):
        received += more
except ConnectionResetError:
    pass
sys.stdout.write(received.decode())
"""


async def as_another_user(path: Path, request: dict[str, Any], *, uid: int, group: int) -> dict[str, Any]:
    """Ask something from a process of another user, who is in `group`; return what it is told."""

    def run() -> str:
        command = [sys.executable, "-c", AS_ANOTHER_USER, str(path), str(uid), str(group), json.dumps(request)]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout

    message: dict[str, Any] = json.loads(await asyncio.to_thread(run))
    return message


async def until(condition: Any, seconds: float = 60) -> None:
    """Wait until something is so."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)
