"""The socket over TCP: who gets in with which certificate, and that those who do not keep nobody else out."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import ExtendedKeyUsageOID

from service.client import Client, ConnectionLost, RemoteError
from service.errors import ConfigError
from service.events import EventHub
from service.rpc.limits import DEFAULTS, Limits
from service.rpc.peers import AllowedNames, Peer
from service.rpc.server import RpcServer
from service.rpc.tls import TlsFiles, server_context
from tests.integration.rpc.certificates import LOCALHOST, Authority, Files
from tests.integration.rpc.service import Methods, until

ALLOWED = AllowedNames(
    admin=frozenset({"portal.example", "spiffe://site/backup-admin"}), read=frozenset({"Viewer.example", "a@b.example"})
)


@dataclass
class Place:
    authority: Authority
    files: TlsFiles
    directory: Path


@pytest.fixture
def place(tmp_path: Path) -> Place:
    authority = Authority(tmp_path)
    server = authority.sign("server", LOCALHOST, usage=ExtendedKeyUsageOID.SERVER_AUTH)
    return Place(authority, TlsFiles(server.certificate, server.key, authority.file), tmp_path)


@dataclass
class Serving:
    port: int
    hub: EventHub
    methods: Methods
    server: RpcServer
    place: Place

    def client(self, files: Files, timeout: float = 30) -> Client:
        return Client.tls(
            "127.0.0.1",
            self.port,
            certificate=files.certificate,
            key=files.key,
            authority=self.place.authority.file,
            timeout=timeout,
        )


@asynccontextmanager
async def serving(place: Place, limits: Limits = DEFAULTS) -> AsyncIterator[Serving]:
    hub = EventHub("boot", [], clock=lambda: datetime.now(UTC))
    methods = Methods(hub)
    async with RpcServer(methods, hub, limits=limits) as server:
        port = await server.serve_tls("127.0.0.1", 0, place.files, ALLOWED)
        yield Serving(port, hub, methods, server, place)


@pytest.mark.parametrize(
    ("name", "who", "role"),
    [
        (x509.DNSName("portal.example"), "certificate portal.example", "admin"),
        (x509.DNSName("PORTAL.example"), "certificate portal.example", "admin"),
        (x509.DNSName("viewer.example"), "certificate viewer.example", "read"),
        (
            x509.UniformResourceIdentifier("spiffe://site/backup-admin"),
            "certificate spiffe://site/backup-admin",
            "admin",
        ),
        (x509.RFC822Name("a@b.example"), "certificate a@b.example", "read"),
    ],
)
async def test_a_listed_name_is_let_in_with_its_role(place: Place, name: x509.GeneralName, who: str, role: str) -> None:
    files = place.authority.sign("client", x509.DNSName("unlisted.example"), name)
    async with serving(place) as service, service.client(files) as client:
        assert await client.call("whoami") == [who, role]
        assert await client.call("echo", text="ü" * 10_000) == {"text": "ü" * 10_000}
        assert len(await client.call("big", size=1_000_000)) == 1_000_000
        async with contextlib.aclosing(client.events()) as events:
            await anext(events)
            service.hub.publish("told")
            assert (await anext(events))["seq"] == 1


def test_the_stronger_of_two_listed_names_counts() -> None:
    certificate = {"subjectAltName": (("DNS", "viewer.example"), ("DNS", "portal.example"))}
    assert ALLOWED.peer(certificate) == Peer("certificate portal.example", "admin")


@pytest.mark.parametrize(
    "names",
    [
        (("DNS", "portal.example.evil"),),
        (("DNS", "*.example"),),
        (("DNS", "*"),),
        (("URI", "portal.example"),),
        (("email", "portal.example"),),
        (("DNS", "spiffe://site/backup-admin"),),
        (("IP Address", "portal.example"),),
        (("URI", "spiffe://site/BACKUP-admin"),),
        (("DNS", ""),),
        (),
    ],
)
def test_a_name_that_only_resembles_a_listed_one_is_nobody(names: tuple[tuple[str, str], ...]) -> None:
    assert ALLOWED.peer({"subjectAltName": names}) is None
    assert ALLOWED.peer({"subject": ((("commonName", "portal.example"),),)}) is None
    assert ALLOWED.peer(None) is None


async def test_an_unlisted_name_is_told_so_and_closed(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    async with serving(place) as service:
        for names in ([x509.DNSName("other.example")], []):
            files = place.authority.sign("portal.example", *names)  # the common name is not looked at
            async with service.client(files) as client:
                with pytest.raises(ConnectionLost, match="may not use this service"):
                    await client.call("echo")
        assert not service.server._seats
    assert "certificate other.example tried to connect" in caplog.text


async def refused(client: Client) -> None:
    """Check that a client is not let in. With TLS 1.3 it learns that only when it reads."""
    with pytest.raises(ConnectionLost):
        async with client:
            await client.call("echo")


async def test_certificates_of_others_and_bad_ones_are_refused(place: Place, tmp_path: Path) -> None:
    good = place.authority.sign("good", x509.DNSName("portal.example"))
    (tmp_path / "other").mkdir()
    other = Authority(tmp_path / "other")  # of the same name, but with another key
    async with serving(place) as service:
        await refused(service.client(other.sign("client", x509.DNSName("portal.example"))))
        await refused(service.client(place.authority.sign("ended", x509.DNSName("portal.example"), ended=True)))
        await refused(
            service.client(
                place.authority.sign("server2", x509.DNSName("portal.example"), usage=ExtendedKeyUsageOID.SERVER_AUTH)
            )
        )
        assert service.methods.hub.seq == 0
        assert not service.server._seats
        async with service.client(good) as client:
            assert await client.call("echo") == {}


async def by_hand(port: int, context: ssl.SSLContext) -> bytes:
    """Connect with a context of one's own, ask something, and return what comes; nothing when thrown out."""
    writer = None
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        writer.write(b'{"jsonrpc":"2.0","id":1,"method":"echo"}\n')
        return await reader.readline()
    except OSError:
        return b""
    finally:
        if writer is not None:
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


def context_of(place: Place) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cafile=place.authority.file)
    return context


async def test_without_a_certificate_nobody_is_let_in(place: Place) -> None:
    good = place.authority.sign("good", x509.DNSName("portal.example"))
    async with serving(place) as service:
        context = context_of(place)
        assert await by_hand(service.port, context) == b""
        context.load_cert_chain(good.certificate, good.key)
        assert b'"result"' in await by_hand(service.port, context)


async def test_tls_1_2_is_refused(place: Place) -> None:
    good = place.authority.sign("good", x509.DNSName("portal.example"))
    async with serving(place) as service:
        context = context_of(place)
        context.load_cert_chain(good.certificate, good.key)
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        assert await by_hand(service.port, context) == b""
        context.maximum_version = ssl.TLSVersion.TLSv1_3
        assert b'"result"' in await by_hand(service.port, context)


async def test_a_client_does_not_believe_a_server_of_another_authority_or_name(place: Place, tmp_path: Path) -> None:
    good = place.authority.sign("good", x509.DNSName("portal.example"))
    (tmp_path / "other").mkdir()
    other = Authority(tmp_path / "other")
    async with serving(place) as service:
        for authority, name in ((other.file, None), (place.authority.file, "x.example")):
            await refused(
                Client.tls(
                    "127.0.0.1",
                    service.port,
                    certificate=good.certificate,
                    key=good.key,
                    authority=authority,
                    server_name=name,
                )
            )
        assert not service.server._seats


async def test_who_does_not_shake_hands_is_closed_in_time_and_keeps_nobody_out(place: Place) -> None:
    good = place.authority.sign("good", x509.DNSName("portal.example"))
    limits = Limits(handshake_seconds=0.5)
    loop = asyncio.get_running_loop()
    async with serving(place, limits) as service, AsyncExitStack() as stack:
        silent = []
        for number in range(200):
            connection = stack.enter_context(socket.socket())
            connection.setblocking(False)
            await loop.sock_connect(connection, ("127.0.0.1", service.port))
            if number % 2:
                await loop.sock_sendall(connection, b"GET / HTTP/1.1\r\n\r\n")
            silent.append(connection)
            if number % 50 == 0:
                async with service.client(good) as client:
                    assert await client.call("echo") == {}
        assert len(service.server._handshakes) <= limits.connections
        for connection in silent:
            with contextlib.suppress(ConnectionResetError):
                while await loop.sock_recv(connection, 65536):
                    pass
        await until(lambda: not service.server._handshakes)
        async with service.client(good) as client:
            assert await client.call("echo") == {}


async def test_of_too_many_that_do_not_shake_hands_the_first_is_closed(place: Place) -> None:
    limits = Limits(connections=4, handshake_seconds=60)
    loop = asyncio.get_running_loop()
    async with serving(place, limits) as service, AsyncExitStack() as stack:
        silent = []
        for _ in range(5):
            silent.append(stack.enter_context(socket.socket()))
            silent[-1].setblocking(False)
            await loop.sock_connect(silent[-1], ("127.0.0.1", service.port))
        async with asyncio.timeout(30):
            assert await loop.sock_recv(silent[0], 1) == b""
        assert len(service.server._handshakes) == 4


async def test_limits_hold_over_tls_too(place: Place) -> None:
    good = place.authority.sign("good", x509.DNSName("portal.example"))
    viewer = place.authority.sign("viewer", x509.DNSName("viewer.example"))
    limits = Limits(connections_per_peer=2, partial_line_seconds=0.5, unread_seconds=0.5)
    async with serving(place, limits) as service, AsyncExitStack() as stack:
        idle, listener = [await stack.enter_async_context(service.client(good)) for _ in range(2)]
        await idle.call("echo")
        await listener.call("events.subscribe")
        newcomer = await stack.enter_async_context(service.client(good))
        assert await newcomer.call("echo") == {}
        with pytest.raises(ConnectionLost, match="took the place"):
            await idle.call("echo")
        await newcomer.call("events.subscribe")
        async with service.client(good) as late:
            with pytest.raises(ConnectionLost, match="too many connections"):
                await late.call("echo")
        async with service.client(viewer) as other:
            with pytest.raises(RemoteError, match="only an admin"):
                await other.call("command")
        async with service.client(viewer) as slow:
            slow._writer.write(b"{")
            await until(lambda: slow._lost is not None)
            assert slow._lost == "a line was not ended within 0.5 s"
        async with service.client(viewer) as long:
            long._writer.write(b"x" * 200_000)
            await until(lambda: long._lost is not None)


async def test_who_does_not_read_is_closed_over_tls_too(place: Place) -> None:
    good = place.authority.sign("good", x509.DNSName("portal.example"))
    async with serving(place, Limits(unread_seconds=0.4)) as service, service.client(good) as client:
        cast(asyncio.Transport, client._writer.transport).pause_reading()
        client._listening.cancel()
        for number in range(40):
            client._writer.write(b'{"jsonrpc":"2.0","id":%d,"method":"big","params":{"size":1000000}}\n' % number)
        await until(lambda: service.server._seats)
        await until(lambda: not service.server._seats)


async def test_a_server_with_tls_clients_stops_at_once(place: Place) -> None:
    good = place.authority.sign("good", x509.DNSName("portal.example"))
    before = asyncio.all_tasks()
    async with AsyncExitStack() as stack:
        async with serving(place, Limits(stop_seconds=60, handshake_seconds=60)) as service:
            client = await stack.enter_async_context(service.client(good))
            assert await client.call("echo") == {}
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", service.port)))
            await until(lambda: service.server._handshakes)
            began = time.monotonic()
        assert time.monotonic() - began < 30
        assert connection.fileno() >= 0
    assert asyncio.all_tasks() == before


async def test_files_that_cannot_be_used_are_a_configuration_error(place: Place, tmp_path: Path) -> None:
    other = place.authority.sign("other", LOCALHOST)
    empty = tmp_path / "empty.pem"
    empty.write_text("")
    locked = tmp_path / "locked.key"
    key = serialization.load_pem_private_key(place.files.key.read_bytes(), None)
    encryption = serialization.BestAvailableEncryption(b"x")
    locked.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption))
    good = place.files
    with pytest.raises(ConfigError, match="the key has a password"):
        server_context(TlsFiles(good.certificate, locked, good.client_authority))
    for files in (
        TlsFiles(tmp_path / "missing", good.key, good.client_authority),
        TlsFiles(good.certificate, other.key, good.client_authority),
        TlsFiles(good.certificate, empty, good.client_authority),
        TlsFiles(good.certificate, good.key, empty),
    ):
        async with RpcServer(Methods(hub := EventHub("b", [], clock=lambda: datetime.now(UTC))), hub) as server:
            with pytest.raises(ConfigError, match="certificates of the TLS socket"):
                await server.serve_tls("127.0.0.1", 0, files, ALLOWED)


async def test_an_address_that_is_not_given_or_taken_is_a_configuration_error(place: Place) -> None:
    async with serving(place) as service:
        with pytest.raises(ConfigError, match="needs an address"):
            await service.server.serve_tls("", 0, place.files, ALLOWED)
        with pytest.raises(ConfigError, match="cannot listen"):
            await service.server.serve_tls("127.0.0.1", service.port, place.files, ALLOWED)
        with pytest.raises(ConfigError, match="cannot listen"):
            await service.server.serve_tls("192.0.2.1", 0, place.files, ALLOWED)
