"""Targets by fsspec's drivers: what is refused, and what a driver that behaves badly can do."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, ClassVar
from urllib.parse import urlsplit
from uuid import uuid4

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from storage_backends import (
    AccessDenied,
    InvalidUrl,
    ObjectExists,
    StorageBackend,
    StorageError,
    TargetFull,
    TargetUnavailable,
    open_target,
)
from storage_backends.generic import GenericBackend
from tests.ftp_server import FtpServer
from tests.tcp_proxy import Fault, TcpProxy


async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def keys(target: StorageBackend) -> list[str]:
    return [info.key async for info in target.list_objects()]


class Strange(MemoryFileSystem):  # type: ignore[misc]  # fsspec has no types
    """A driver to be made to misbehave by its options."""

    protocol = "strange"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    error: Exception | None = None
    hangs: threading.Event | None = None

    def __init__(self, error: Exception | None = None, hangs: threading.Event | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.error, self.hangs = error, hangs

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.replace("strange://", "memory://")))

    def info(self, path: str, **options: Any) -> Any:
        if self.hangs is not None:
            self.hangs.wait()
        if self.error is not None:
            raise self.error
        return super().info(path, **options)


@pytest.fixture(autouse=True)
def strange() -> Iterator[str]:
    """Register the driver and give a URL of its own."""
    fsspec.register_implementation("strange", Strange, clobber=True)
    yield f"strange://{uuid4().hex}"
    Strange.store.clear()


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("nonsense://x/y", "not supported"),
        ("gs://bucket/x", "gcsfs"),
        ("abfs://container/x", "adlfs"),
        ("simplecache::memory://x", "not supported"),
        ("memory://user:hunter2@x/y", "password"),
    ],
)
def test_what_cannot_be_a_target_is_refused_with_what_is_missing(url: str, told: str) -> None:
    with pytest.raises(InvalidUrl) as caught:
        open_target(url, {"password": "hunter2"})
    assert told in f"{caught.value} {caught.value.hint}"
    assert caught.value.hint
    assert "hunter2" not in f"{caught.value}{caught.value.hint}"


@pytest.mark.parametrize(
    "options",
    [
        {"auto_mkdir": "yes"},
        *({"call_timeout": value} for value in (0, "1", -1, float("nan"), float("inf"), 1e9, True)),
        *({"timeout": value} for value in (-1, float("nan"), float("inf"))),
        {"nested": {"retry_timeout": float("nan")}},
    ],
)
def test_an_option_that_makes_no_sense_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(InvalidUrl, match=next(iter(options))):
        open_target("memory://x", options)


def test_that_nothing_is_encrypted_is_told() -> None:
    assert "unencrypted" in open_target("ftp://host/x").cautions[0]
    assert open_target("ftp://host/x", {"tls": True}).cautions == open_target("memory://x").cautions == ()


async def test_an_option_that_the_driver_refuses_is_said(ftp_server: FtpServer) -> None:
    async with open_target(
        ftp_server.url, {"password": "hunter2", "host": "127.0.0.1", "acct": {"no": "text"}}
    ) as target:
        with pytest.raises((InvalidUrl, AccessDenied)) as caught:
            await target.stat("object")
    assert "hunter2" not in f"{caught.value}{caught.value.hint}{target!r}"


async def test_a_wrong_password_is_denied(ftp_server: FtpServer) -> None:
    async with open_target(ftp_server.url, {"password": "hunter2"}) as target:
        with pytest.raises(AccessDenied) as caught:
            await target.put("object", pieces(b"x"))
    assert "credentials" in caught.value.hint
    assert "hunter2" not in f"{caught.value}"


async def test_a_server_that_is_not_there_is_unavailable() -> None:
    async with open_target("ftp://127.0.0.1:1/x") as target:
        with pytest.raises(TargetUnavailable) as caught:
            await target.stat("object")
    assert caught.value.hint


async def test_a_directory_is_made_only_when_asked_for(ftp_server: FtpServer) -> None:
    name = uuid4().hex
    options = {"password": ftp_server.password}
    async with open_target(f"{ftp_server.url}/{name}", options) as target:
        with pytest.raises(StorageError):
            await target.put("object", pieces(b"x"))
    assert not (ftp_server.directory / name).exists()
    async with open_target(f"{ftp_server.url}/{name}", options | {"auto_mkdir": True}) as target:
        assert await keys(target) == []
        await target.put("object", pieces(b"x"))
        assert await keys(target) == ["object"]
    assert (ftp_server.directory / name / "object").read_bytes() == b"x"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OSError(28, "No space left on device"), TargetFull),
        (OSError(122, "Disk quota exceeded"), TargetFull),
        (PermissionError(13, "Permission denied"), AccessDenied),
        (type("AuthenticationException", (Exception,), {})("no"), AccessDenied),
        (ConnectionResetError(104, "Connection reset by peer"), TargetUnavailable),
        (NotImplementedError(), InvalidUrl),
        (RuntimeError("the key is s3cr3t"), TargetUnavailable),
    ],
)
async def test_what_a_driver_raises_is_mapped(strange: str, error: Exception, kind: type[StorageError]) -> None:
    async with open_target(strange, {"error": error, "secret_key": "s3cr3t"}) as target:
        with pytest.raises(kind) as caught:
            await target.put("object", pieces(b"x"))
    assert caught.value.hint
    assert caught.value.__cause__ is error
    assert "s3cr3t" not in f"{caught.value}{target!r}"


async def test_a_driver_that_hangs_gives_control_back(strange: str) -> None:
    let_go = threading.Event()
    try:
        async with open_target(strange, {"hangs": let_go, "call_timeout": 0.3}) as target:
            with pytest.raises(TargetUnavailable, match=r"did not answer within 0.3 s"):
                await target.stat("object")
    finally:
        let_go.set()


async def test_an_upload_that_fails_is_not_completed_later(strange: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaving a file of fsspec's as a context manager would complete it."""

    async def data() -> AsyncIterator[bytes]:
        yield b"half"
        raise ValueError

    async with open_target(strange) as target:
        for _ in range(3):
            with pytest.raises(ValueError, match=r"^$"):
                await target.put("object", data())
        await target.put("other", pieces(b"whole"))
        assert await keys(target) == ["other"]


async def test_a_driver_that_loses_bytes_is_found_out(strange: str, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Strange._open

    def losing(self: Strange, path: str, *args: Any, **options: Any) -> Any:
        file = honest(self, path, *args, **options)
        write = file.write
        file.write = lambda piece: write(piece[:-1]) + 1
        return file

    monkeypatch.setattr(Strange, "_open", losing)
    async with open_target(strange) as target:
        with pytest.raises(StorageError, match="not there as it was written"):
            await target.put("object", pieces(b"whole"))
        assert await keys(target) == []


async def test_a_driver_that_neither_renames_nor_commits_is_refused(
    strange: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Plain:
        def write(self, piece: bytes) -> int:
            return len(piece)

        def close(self) -> None:
            pass

    monkeypatch.setattr(Strange, "_open", lambda self, path, *args, **options: Plain())
    async with open_target(strange) as target:
        with pytest.raises(InvalidUrl, match="neither renames nor commits"):
            await target.put("object", pieces(b"x"))


async def test_backends_of_one_process_do_not_replace_each_others_objects(strange: str) -> None:
    async with open_target(strange) as one, open_target(strange) as other:

        async def data() -> AsyncIterator[bytes]:
            yield b"second"
            await one.put("object", pieces(b"first"))

        with pytest.raises(ObjectExists):
            await other.put("object", data())
        assert (await one.stat("object")).size == len(b"first")
        assert isinstance(one, GenericBackend)


def renaming(monkeypatch: pytest.MonkeyPatch, *, before: bool, then: Callable[[Strange], None] | None = None) -> None:
    """Have the driver rename, and fail before or after it has done so; `then` happens meanwhile."""

    def mv(self: Strange, source: str, target: str, **_: Any) -> None:
        if not before:
            self.store[target] = self.store.pop(source)
        if then is not None:
            then(self)
        raise ConnectionResetError(104, "Connection reset by peer")

    monkeypatch.setattr(Strange, "mv", mv)


async def test_a_rename_that_happened_although_it_failed_is_a_success(
    strange: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    renaming(monkeypatch, before=False)
    async with open_target(strange) as target:
        info = await target.put("object", pieces(b"x" * 200_000))
        assert (info.size, await keys(target)) == (200_000, ["object"])


async def test_a_rename_that_failed_leaves_nothing(strange: str, monkeypatch: pytest.MonkeyPatch) -> None:
    renaming(monkeypatch, before=True)
    async with open_target(strange) as target:
        with pytest.raises(TargetUnavailable, match="reset"):
            await target.put("object", pieces(b"x"))
        assert Strange.store == {}


async def test_the_object_of_somebody_else_is_neither_taken_for_ours_nor_removed(
    strange: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the same size, at the very same moment."""
    renaming(monkeypatch, before=True, then=lambda fs: fs.pipe_file(fs._strip_protocol(f"{strange}/object"), b"B" * 10))
    async with open_target(strange) as target:
        with pytest.raises(ObjectExists):
            await target.put("object", pieces(b"A" * 10))
        assert [file.getvalue() for file in Strange.store.values()] == [b"B" * 10]


async def test_when_nobody_can_see_what_a_rename_did_it_is_said(strange: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(self: Strange, path: str, **_: Any) -> None:
        raise ConnectionResetError(104, "Connection reset by peer")

    renaming(monkeypatch, before=False, then=lambda _: monkeypatch.setattr(Strange, "info", gone))
    async with open_target(strange) as target:
        with pytest.raises(TargetUnavailable) as caught:
            await target.put("object", pieces(b"x"))
    assert "may be there, whole" in caught.value.hint


@pytest.mark.parametrize("happened", [False, True])
async def test_a_commit_that_fails_is_looked_at(
    strange: str, monkeypatch: pytest.MonkeyPatch, *, happened: bool
) -> None:
    honest = Strange.end_transaction

    def failing(self: Strange) -> None:
        if happened:
            honest(self)
        raise ConnectionResetError(104, "Connection reset by peer")

    monkeypatch.setattr(Strange, "end_transaction", failing)
    async with open_target(strange) as target:
        if happened:
            assert (await target.put("object", pieces(b"x"))).size == 1
        else:
            with pytest.raises(TargetUnavailable, match="reset"):
                await target.put("object", pieces(b"x"))
        assert await keys(target) == (["object"] if happened else [])


@pytest.mark.parametrize(
    ("on", "to_server", "there"),
    [
        (b"250 Renaming ok", False, True),  # the reply is lost
        (b"RNTO", True, False),  # the request is lost
        (b"350 Ready for destination", False, False),
        (b"226 Transfer complete", False, False),
    ],
)
async def test_a_connection_that_breaks_while_the_name_is_given_leaves_the_object_or_nothing(
    ftp_server: FtpServer, on: bytes, there: bool, *, to_server: bool
) -> None:
    name = uuid4().hex
    (ftp_server.directory / name).mkdir()
    parts = urlsplit(ftp_server.url)
    fault = Fault("reset", to_server=to_server, on=on)
    async with TcpProxy(f"ftp://127.0.0.1:{parts.port}", [fault]) as proxy:
        url = f"ftp://{parts.username}@{urlsplit(proxy.endpoint).netloc}/{name}"
        async with open_target(url, {"password": ftp_server.password}) as target:
            if there:
                assert (await target.put("object", pieces(b"x" * 200_000))).size == 200_000
            else:
                with pytest.raises(StorageError):
                    await target.put("object", pieces(b"x" * 200_000))
        assert [path.name for path in (ftp_server.directory / name).iterdir()] == ["object"] * there
