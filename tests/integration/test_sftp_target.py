"""Targets by SFTP, on a real OpenSSH: the server has to be known, and what it refuses is told."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import pytest

from storage_backends import (
    AccessDenied,
    InvalidUrl,
    ObjectExists,
    StorageBackend,
    StorageError,
    TargetUnavailable,
    open_target,
)
from storage_backends.generic_upload import Upload
from tests.sftp_server import SftpServer
from tests.tcp_proxy import Fault, TcpProxy

MIB = 1 << 20


async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def read(target: StorageBackend, key: str) -> bytes:
    async with aclosing(target.get(key)) as data:
        return b"".join([piece async for piece in data])


@pytest.fixture
def url(sftp_server: SftpServer) -> str:
    name = uuid4().hex
    (sftp_server.directory / name).mkdir()
    return f"{sftp_server.url}/{name}"


async def test_a_server_that_is_not_known_is_refused_with_its_key(
    sftp_server: SftpServer, url: str, tmp_path: Path
) -> None:
    nobody = tmp_path / "known_hosts"
    nobody.touch()
    shown = subprocess.run(
        ["ssh-keygen", "-lf", sftp_server.root / "host_key.pub"], capture_output=True, text=True, check=True
    ).stdout.split()[1]
    async with open_target(url, sftp_server.storage_options | {"known_hosts": str(nobody)}) as target:
        with pytest.raises(InvalidUrl, match="is not known") as caught:
            await target.put("object", pieces(b"x"))
    assert shown in str(caught.value)
    assert "ssh-keyscan" in caught.value.hint and str(nobody) in caught.value.hint


async def test_a_server_with_another_key_is_refused(sftp_server: SftpServer, url: str, tmp_path: Path) -> None:
    other = tmp_path / "other"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", other], check=True)
    known = tmp_path / "known_hosts"
    known.write_text(f"[127.0.0.1]:{sftp_server.port} {other.with_suffix('.pub').read_text()}")
    async with open_target(url, sftp_server.storage_options | {"known_hosts": str(known)}) as target:
        with pytest.raises(AccessDenied, match="another host key"):
            await target.put("object", pieces(b"x"))


async def test_that_any_key_is_trusted_must_be_asked_for_and_is_told(sftp_server: SftpServer, url: str) -> None:
    options = {name: value for name, value in sftp_server.storage_options.items() if name != "known_hosts"}
    assert open_target(url, sftp_server.storage_options).cautions == ()
    async with open_target(url, options | {"host_key_policy": "auto_add"}) as target:
        assert "Any host key is trusted" in target.cautions[0]
        await target.put("object", pieces(b"x"))


@pytest.mark.parametrize("wrong", [{"known_hosts": "/no/such"}, {"known_hosts": 1}, {"host_key_policy": "yes"}])
def test_an_option_that_makes_no_sense_is_refused(url: str, wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidUrl, match=next(iter(wrong))):
        open_target(url, wrong)


async def test_a_key_that_the_server_does_not_take_is_denied(sftp_server: SftpServer, url: str, tmp_path: Path) -> None:
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    options = sftp_server.storage_options | {"key_filename": str(key), "look_for_keys": False}
    async with open_target(url, options) as target:
        with pytest.raises(AccessDenied):
            await target.put("object", pieces(b"x"))


async def test_a_directory_that_is_not_there_is_told(sftp_server: SftpServer, url: str) -> None:
    async with open_target(f"{url}/absent", sftp_server.storage_options) as target:
        with pytest.raises(StorageError) as caught:
            await target.put("object", pieces(b"x"))
    assert caught.value.hint


async def test_a_server_that_stands_still_ends_a_call_at_its_deadline_and_its_thread_too(
    sftp_server: SftpServer, url: str
) -> None:
    async with open_target(url, sftp_server.storage_options | {"call_timeout": 2}) as target:
        await target.put("object", pieces(b"x"))
        stopped = sftp_server.sessions()
        assert stopped
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(TargetUnavailable, match="did not answer within 2 s") as caught:
                await target.stat("object")
            assert "left behind" not in caught.value.hint
        finally:
            for pid in stopped:
                os.kill(pid, signal.SIGCONT)
        assert (await target.stat("object")).size == 1


async def test_the_server_itself_refuses_a_name_that_another_machine_takes_at_the_last_moment(
    sftp_server: SftpServer, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = sftp_server.directory / url.rpartition("/")[2]
    honest, looks = Upload._refuse_taken, []

    def blind(self: Upload) -> None:
        looks.append(self)
        if len(looks) == 2:  # just after the last look before the name is given
            (directory / "object").write_bytes(b"another's")
        else:
            honest(self)

    monkeypatch.setattr(Upload, "_refuse_taken", blind)
    async with open_target(url, sftp_server.storage_options) as target:
        with pytest.raises(ObjectExists):
            await target.put("object", pieces(b"ours"))
    assert [(path.name, path.read_bytes()) for path in directory.iterdir()] == [("object", b"another's")]


@asynccontextmanager
async def through(sftp_server: SftpServer, url: str, *faults: Fault, **more: object) -> AsyncIterator[StorageBackend]:
    """Reach the target through a line with planned faults, each of which has to be met."""
    async with TcpProxy(f"ssh://127.0.0.1:{sftp_server.port}", list(faults)) as proxy:
        port = urlsplit(proxy.endpoint).port
        known = sftp_server.known_hosts.with_name(f"known_hosts.{port}")
        known.write_text(sftp_server.known_hosts.read_text().replace(str(sftp_server.port), str(port)))
        options = sftp_server.storage_options | {"known_hosts": str(known)} | more
        async with open_target(url.replace(f":{sftp_server.port}/", f":{port}/"), options) as target:
            yield target


@pytest.mark.parametrize("kind", ["reset", "close"])
@pytest.mark.parametrize("after", [0, 3000, MIB, 6 * MIB])
async def test_a_connection_that_breaks_at_any_byte_of_an_upload_leaves_nothing(
    sftp_server: SftpServer, url: str, kind: str, after: int
) -> None:
    async with through(sftp_server, url, Fault(kind, after)) as target:
        with pytest.raises(StorageError):
            await target.put("object", pieces(*[bytes(MIB)] * 8))
        assert list((sftp_server.directory / url.rpartition("/")[2]).iterdir()) == []
        assert (await target.put("object", pieces(b"again"))).size == 5


@pytest.mark.parametrize("to_server", [True, False])
async def test_a_line_that_stalls_ends_an_upload_at_its_deadline(
    sftp_server: SftpServer, url: str, *, to_server: bool
) -> None:
    after = MIB if to_server else 4000
    async with through(sftp_server, url, Fault("stall", after, to_server=to_server), call_timeout=0.5) as target:
        with pytest.raises(TargetUnavailable, match="did not answer"):
            await target.put("object", pieces(*[bytes(MIB)] * 8))
    assert [path.name for path in (sftp_server.directory / url.rpartition("/")[2]).iterdir()] == []


async def test_a_connection_that_breaks_while_reading_is_said_and_the_next_read_is_right(
    sftp_server: SftpServer, url: str
) -> None:
    content = os.urandom(12 * MIB)
    async with through(sftp_server, url, Fault("reset", 6 * MIB, to_server=False)) as target:
        await target.put("object", pieces(content))
        with pytest.raises(StorageError):
            await read(target, "object")
        assert await read(target, "object") == content


async def test_a_full_server_is_said_and_nothing_stays_on_it(sftp_server: SftpServer, url: str) -> None:
    directory = sftp_server.directory / url.rpartition("/")[2]
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", directory], check=True)
    try:
        async with open_target(url, sftp_server.storage_options) as target:
            with pytest.raises(StorageError):
                await target.put("object", pieces(*[bytes(MIB)] * 12))
            assert list(directory.iterdir()) == []
            await target.put("object", pieces(*[bytes(MIB)] * 7))
    finally:
        subprocess.run(["umount", "-l", directory], check=True)
