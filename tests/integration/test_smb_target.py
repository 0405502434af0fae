"""The SMB target with the servers it meets: full, read-only, without encryption, with another password."""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from demo.smb_server import SHARE, SambaServer
from storage_backends import (
    AccessDenied,
    InvalidUrl,
    ObjectExists,
    ObjectNotFound,
    StorageBackend,
    StorageError,
    TargetFull,
    TargetUnavailable,
    open_target,
    pool,
)
from storage_backends.smb.connection import SmbConnection
from storage_backends.smb.flow import Writer
from tests.conformance.target_place import SmbPlace, smb_place
from tests.fault_proxy_smb import ANSWER, Fault, FaultProxy
from tests.tracing import attached

MIB = 1 << 20
SENTENCE = b"Nobody else is to read this sentence. " * 1000


@pytest.fixture
def place(samba: SambaServer) -> SmbPlace:
    return smb_place(samba)


async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def read(target: StorageBackend, key: str) -> bytes:
    async with aclosing(target.get(key)) as data:
        return b"".join([piece async for piece in data])


async def keys(target: StorageBackend) -> list[str]:
    return [info.key async for info in target.list_objects()]


@contextmanager
def mounted(directory: Path, *, size: str) -> Iterator[Path]:
    """Mount a file system of its own, of this size, in memory."""
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", directory], check=True)
    try:
        yield directory
    finally:
        subprocess.run(["umount", "--lazy", directory], check=True)


async def test_another_client_reads_what_was_stored(samba: SambaServer, place: SmbPlace, tmp_path: Path) -> None:
    content = os.urandom(3 * MIB + 5)
    async with place.open() as target:
        await target.put("object", pieces(content))
    command = [
        "smbclient",
        f"//{samba.host}/{SHARE}",
        "-p",
        str(samba.port),
        "-U",
        f"{samba.username}%{samba.password}",
    ]
    command += ["-c", f"get {place.directory.name}/object {tmp_path}/object"]
    subprocess.run(command, check=True, capture_output=True)
    assert (tmp_path / "object").read_bytes() == content


async def test_a_full_share_is_said_and_nothing_stays_on_it(samba: SambaServer) -> None:
    with mounted(samba.share / "small", size="8m") as directory:
        async with open_target(f"{samba.url}/small", samba.storage_options) as target:
            assert await target.free_bytes() == 8 * MIB
            with pytest.raises(TargetFull) as caught:
                await target.put("big", pieces(*[bytes(MIB)] * 9))
            assert samba.host in caught.value.hint
            assert list(directory.iterdir()) == []
            assert await target.free_bytes() == 8 * MIB
            await target.put("fits", pieces(*[bytes(MIB)] * 7))
            assert await keys(target) == ["fits"]


@pytest.mark.parametrize(
    "wrong", [{"password": "hunter2-wrong"}, {"username": "nobody-else"}, {"username": "", "password": ""}]
)
async def test_wrong_credentials_are_denied_without_repeating_them(
    place: SmbPlace, wrong: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with open_target(place.url, place.options | wrong) as target:
        with pytest.raises(AccessDenied) as caught:
            await target.put("object", pieces(b"x"))
    assert "password" in caught.value.hint
    assert "hunter2" not in f"{caught.value!r}{caught.value}{caught.value.hint}{target!r}{caplog.text}"


async def test_nothing_that_is_logged_or_shown_holds_the_password(
    samba: SambaServer, place: SmbPlace, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with place.open() as target:
        await target.put("object", pieces(b"x"))
        shown = f"{target!r}{target.__dict__}{target.url}{caplog.text}"
    assert len(caplog.text) > 1000, "the library logs at this level"
    assert samba.password not in shown


async def test_a_wrong_share_is_said_with_what_to_check(samba: SambaServer) -> None:
    async with open_target(samba.url.replace(SHARE, "no-such-share"), samba.storage_options) as target:
        with pytest.raises(InvalidUrl, match="no share no-such-share") as caught:
            await target.stat("object")
    assert "share's name" in caught.value.hint


async def test_a_read_only_share_is_denied() -> None:
    with SambaServer(shares={"fixed": {"path": "/usr", "read only": "yes"}}) as server:
        async with open_target(server.url.replace(SHARE, "fixed"), server.storage_options) as target:
            assert await keys(target) == []
            with pytest.raises(AccessDenied) as caught:
                await target.put("object", pieces(b"x"))
    assert "right to read, write and delete" in caught.value.hint


async def test_a_share_that_is_gone_is_unavailable_and_usable_when_it_is_back(
    samba: SambaServer, place: SmbPlace
) -> None:
    async with place.open() as target:
        await target.put("object", pieces(b"x"))
        away = place.directory.rename(samba.directory / "away")
        for call in (target.stat("object"), keys(target), read(target, "object"), target.put("new", pieces(b"y"))):
            with pytest.raises(TargetUnavailable, match="does not exist"):
                await call
        away.rename(place.directory)
        assert await keys(target) == ["object"]


@pytest.mark.parametrize("host", ["127.0.0.1:1", "does-not-exist.invalid:445"])
async def test_a_server_that_cannot_be_reached_is_unavailable(host: str) -> None:
    async with open_target(f"smb://{host}/share", {"username": "u", "password": "p", "timeout": 20}) as target:
        with pytest.raises(TargetUnavailable) as caught:
            await target.stat("object")
    assert "can be reached" in caught.value.hint
    assert caught.value.transient


async def test_an_absent_directory_is_made_only_when_asked_for(samba: SambaServer, place: SmbPlace) -> None:
    url = f"{place.url}/new/deep"
    async with open_target(url, place.options) as target:
        for call in (target.put("object", pieces(b"x")), target.stat("object"), keys(target), target.free_bytes()):
            with pytest.raises(TargetUnavailable) as caught:
                await call
            assert "auto_mkdir" in caught.value.hint
    async with open_target(url, place.options | {"auto_mkdir": True}) as target:
        assert await keys(target) == []
        assert await target.sweep(datetime.now(UTC)) == 0
        assert (await target.free_bytes() or 0) > 0
        with pytest.raises(ObjectNotFound):
            await target.stat("object")
        with pytest.raises(ObjectNotFound):
            await read(target, "object")
        await target.delete("object")
        assert list(place.directory.iterdir()) == []
        await target.put("object", pieces(b"x"))
        assert await keys(target) == ["object"]
    assert (place.directory / "new/deep/object").read_bytes() == b"x"


async def test_the_share_itself_is_a_directory_too(samba: SambaServer) -> None:
    async with open_target(samba.url, samba.storage_options) as target:
        info = await target.put("at-the-top", pieces(b"x"))
        assert await target.stat("at-the-top") == info
        assert "at-the-top" in await keys(target)
        await target.put("at-the-top", pieces(b"y"), overwrite=True)
        assert await read(target, "at-the-top") == b"y"
        await target.delete("at-the-top")
        assert "at-the-top" not in await keys(target)


async def test_only_regular_files_are_objects(place: SmbPlace) -> None:
    (place.directory / "directory").mkdir()
    (place.directory / "name with blanks").write_text("x")
    (place.directory / "object").write_text("x")
    async with place.open() as target:
        assert await keys(target) == ["object"]
        with pytest.raises(ObjectNotFound):
            await target.stat("directory")
        with pytest.raises(ObjectNotFound):
            await read(target, "directory")
        for overwrite in (False, True):
            with pytest.raises(ObjectExists):
                await target.put("directory", pieces(b"x"), overwrite=overwrite)
        await target.delete("directory")
        assert (place.directory / "directory").is_dir()
        (place.directory / ".deviceon-backup-1.part").mkdir()
        assert await target.sweep(datetime.now(UTC) + timedelta(days=1)) == 0


async def test_many_objects_are_listed(place: SmbPlace) -> None:
    expected = sorted(f"object{number}" for number in range(1500))
    for name in expected:
        (place.directory / name).touch()
    async with place.open() as target:
        assert await keys(target) == expected


async def test_what_is_sent_is_encrypted_unless_that_is_switched_off() -> None:
    with SambaServer(settings={"server smb encrypt": "default"}) as server:
        for encrypt in (True, False):
            async with FaultProxy(server.port) as proxy:
                proxy.keep = True
                url = server.url.replace(str(server.port), str(proxy.port))
                async with open_target(url, server.storage_options | {"encrypt": encrypt}) as target:
                    await target.put(f"object-{encrypt}", pieces(SENTENCE))
                    assert await read(target, f"object-{encrypt}") == SENTENCE
                assert (SENTENCE in proxy.seen) is not encrypt
                if not encrypt:
                    assert all(signed(frame) for frame in requests(bytes(proxy.seen)) if after_login(frame))


def requests(seen: bytes) -> Iterator[bytes]:
    """Split what was sent into the messages without encryption."""
    while seen:
        length = int.from_bytes(seen[:4], "big")
        yield seen[4 : 4 + length]
        seen = seen[4 + length :]


def after_login(message: bytes) -> bool:
    """Say whether a message is none of negotiating and logging in, and more than "wait" ([MS-SMB2] 2.2.1)."""
    status, command = int.from_bytes(message[8:12], "little"), int.from_bytes(message[12:14], "little")
    return message[:4] == b"\xfeSMB" and command > 1 and status != 0x103


def signed(message: bytes) -> bool:
    """Say whether a message has the flag SMB2_FLAGS_SIGNED and a signature."""
    return bool(message[16] & 8) and any(message[48:64])


@pytest.mark.parametrize("encrypt", [True, False])
async def test_a_forged_answer_is_not_believed(*, encrypt: bool) -> None:
    """Somebody on the way answers in the server's place, that the archive is not there: it needs no key for that."""
    number = 7  # after negotiate, logging in, the share, and opening and closing it
    absent = (0xC0000034).to_bytes(4, "little")
    header = b"\xfeSMB" + (64).to_bytes(2, "little") + (1).to_bytes(2, "little") + absent
    header += (5).to_bytes(2, "little") + (1).to_bytes(2, "little") + (1).to_bytes(4, "little") + bytes(4)
    header += (number - 1).to_bytes(8, "little") + bytes(4 + 4 + 8 + 16)
    forged = header + (9).to_bytes(2, "little") + bytes(7)
    with SambaServer(settings={"server smb encrypt": "default"}) as server:
        options = server.storage_options | {"encrypt": encrypt}
        async with open_target(server.url, options) as target:
            await target.put("object", pieces(b"x"))
        async with FaultProxy(server.port, Fault("forge", ANSWER, number, forged=forged)) as proxy:
            url = server.url.replace(str(server.port), str(proxy.port))
            async with open_target(url, options) as target:
                with pytest.raises(TargetUnavailable, match="was not encrypted" if encrypt else "was not signed"):
                    await target.stat("object")


async def test_a_server_without_encryption_is_refused_unless_that_is_allowed() -> None:
    with SambaServer(settings={"server smb encrypt": "off"}) as server:
        async with open_target(server.url, server.storage_options) as target:
            with pytest.raises(InvalidUrl) as caught:
                await target.put("object", pieces(b"x"))
        assert "encrypt: false" in caught.value.hint
        async with open_target(server.url, server.storage_options | {"encrypt": False}) as target:
            await target.put("object", pieces(b"x"))


@pytest.mark.parametrize("encrypt", [True, False])
async def test_a_server_that_knows_no_smb_3_is_refused(*, encrypt: bool) -> None:
    old = {"server min protocol": "SMB2_02", "server max protocol": "SMB2_10", "server smb encrypt": "off"}
    with SambaServer(settings=old) as server:
        async with open_target(server.url, server.storage_options | {"encrypt": encrypt}) as target:
            with pytest.raises(InvalidUrl, match="no SMB 3"):
                await target.put("object", pieces(b"x"))


async def test_a_guest_is_not_let_in_as_if_it_were_the_user() -> None:
    with SambaServer(settings={"map to guest": "bad user", "server smb encrypt": "default"}) as server:
        async with open_target(server.url, {"username": "nobody-else", "password": "x"}) as target:
            with pytest.raises(AccessDenied):
                await target.put("object", pieces(b"x"))


async def test_kerberos_says_which_package_it_needs(place: SmbPlace) -> None:
    async with open_target(place.url, place.options | {"auth_protocol": "kerberos"}) as target:
        with pytest.raises(InvalidUrl) as caught:
            await target.stat("object")
    assert "smbprotocol[kerberos]" in caught.value.hint


@pytest.mark.parametrize("auth_protocol", ["negotiate", "ntlm"])
async def test_the_user_is_known_by_ntlm(place: SmbPlace, auth_protocol: str) -> None:
    async with open_target(place.url, place.options | {"auth_protocol": auth_protocol}) as target:
        await target.put("object", pieces(b"x"))


async def test_file_and_directory_reach_the_disk_in_the_right_order() -> None:
    with SambaServer() as server:
        trace = server.directory / "trace"
        calls = ["-e", "trace=fsync,fdatasync,linkat,renameat,unlinkat"]
        with attached(["strace", "-f", "-qq", "-yy", *calls, "-o", str(trace), "-p", str(server.pid)], server.pid):
            async with open_target(server.url, server.storage_options) as target:
                await target.put("object", pieces(b"x" * MIB))
                await target.put("object", pieces(b"y" * MIB), overwrite=True)
                await target.delete("object")
        lines = [line for line in trace.read_text().splitlines() if str(server.share) in line]
    told = [next(call for call in ("sync", "unlinkat", "linkat", "renameat") if call in line) for line in lines]
    new = ["sync", "linkat", "unlinkat", "sync"]
    replaced = ["sync", "renameat", "sync"]
    assert told == [*new, *replaced, "unlinkat", "sync"]
    assert [".part" in line for line in lines if "sync" in line] == [True, False, True, False, False]


@pytest.mark.parametrize("error", ["EOPNOTSUPP", "EPERM", "EMLINK"])
async def test_a_file_system_without_hard_links_gets_a_rename(error: str) -> None:
    with SambaServer() as server:
        trace = server.directory / "trace"
        calls = ["-e", "trace=linkat,renameat", "-e", f"inject=linkat:error={error}"]
        with attached(["strace", "-f", "-qq", *calls, "-o", str(trace), "-p", str(server.pid)], server.pid):
            async with open_target(server.url, server.storage_options) as target:
                await target.put("object", pieces(b"x"))
                with pytest.raises(ObjectExists):
                    await target.put("object", pieces(b"y"))
                assert await read(target, "object") == b"x"
        assert "INJECTED" in trace.read_text()
        assert [path.name for path in server.share.iterdir()] == ["object"]


async def test_a_server_that_stores_other_bytes_is_found_out(place: SmbPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Injected: no server at hand lies."""
    honest = Writer.write
    damage = [lambda piece: bytes(piece[:-1]) + b"?", lambda piece: bytes(piece[:-1]), lambda piece: b"?" + piece[1:]]
    for damaged in damage:
        with monkeypatch.context() as patch:
            patch.setattr(
                Writer, "write", lambda self, piece, damaged=damaged: honest(self, memoryview(damaged(bytes(piece))))
            )
            async with place.open() as target:
                with pytest.raises(StorageError) as caught:
                    await target.put("object", pieces(b"x" * 100_000))
                assert "Do not trust" in caught.value.hint
        assert list(place.directory.iterdir()) == []


async def test_a_connection_is_kept_for_the_next_call_but_not_for_long(
    place: SmbPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[SmbConnection] = []
    honest = SmbConnection.open

    def counted(self: SmbConnection) -> None:
        opened.append(self)
        honest(self)

    monkeypatch.setattr(SmbConnection, "open", counted)
    async with place.open() as target:
        await target.put("object", pieces(b"x"))
        for _ in range(5):
            await read(target, "object")
        assert len(opened) == 1
        monkeypatch.setattr(pool, "IDLE_SECONDS", 0.0)
        await read(target, "object")
        assert len(opened) == 2
        assert not opened[0].usable


async def test_a_dfs_path_leads_to_where_the_files_are(tmp_path: Path) -> None:
    namespace = tmp_path / "namespace"
    namespace.mkdir()
    shares = {"dfs": {"path": str(namespace), "msdfs root": "yes"}}
    with SambaServer(settings={"host msdfs": "yes"}, shares=shares) as server:
        (server.share / "deep").mkdir()
        (namespace / "link").symlink_to(f"msdfs:127.0.0.1\\{SHARE}\\deep")
        url = server.url.replace(SHARE, "dfs/link")
        async with open_target(url, server.storage_options) as target:
            info = await target.put("object", pieces(b"x"))
            with pytest.raises(ObjectExists):
                await target.put("object", pieces(b"y"))
            assert (server.share / "deep/object").read_bytes() == b"x"
            assert await target.stat("object") == info
            assert await keys(target) == ["object"]
            await target.put("object", pieces(b"z"), overwrite=True)
            assert await read(target, "object") == b"z"
            await target.delete("object")
            assert await keys(target) == []
        assert list((server.share / "deep").iterdir()) == []
