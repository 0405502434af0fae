"""Who carries out a command: the service when one runs, else this process, by the same methods and jobs."""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from service.cli.failures import Interrupted
from service.client import Client, ConnectionLost, RemoteError
from service.errors import ConfigError, ServiceError
from service.opening import NOTHING, Opening
from service.progress import Progress
from storage_backends.base import StorageError

if TYPE_CHECKING:
    from service.app import App
    from service.config import ConfigFile
    from service.job import JobKind

JOBS: dict[str, JobKind] = {
    "backup.start": "backup",
    "baseline.take": "baseline",
    "reset.start": "reset",
    "archive.verify": "verify",
    "archive.delete": "delete",
    "archive.copy": "copy",
    "key.add": "keys",
    "key.remove": "keys",
    "selftest.start": "selftest",
    "drill.start": "drill",
    "restore.start": "restore",
    "restore.tables": "tables",
    "restore.commit": "commit",
    "restore.rollback": "rollback",
    "retention.apply": "prune",
}

ANSWER_SECONDS = 600.0
"""A plan or a diagnosis asks the TPM, PostgreSQL and the target; each has time-outs of its own."""


class Commander(Protocol):
    """Carries out methods of the socket."""

    async def call(self, method: str, /, **params: Any) -> Any:
        """Return a method's result as JSON values. Raises ServiceError, StorageError."""

    async def job(
        self, method: str, params: dict[str, Any], progress: Progress, opening: Opening = NOTHING
    ) -> dict[str, Any]:
        """Start a job, wait for its end, and return it as JSON values. When cancelled, the job is cancelled first.

        `opening` is for a method that opens an archive.
        """
        ...


@contextlib.asynccontextmanager
async def commanding(
    config: ConfigFile | None, socket: Path | None = None, *, here: bool = False
) -> AsyncIterator[Commander]:
    """Give whoever carries out commands for this configuration: its service, or this process (`here`: in any case).

    Without a configuration it has to be a service. Raises ConfigError, JobRefused.
    """
    path = None if here else socket or (config.service.socket if config else None)
    async with contextlib.AsyncExitStack() as stack:
        service = await _service(stack, path, config) if path else None
        if service is not None:
            yield service
        elif socket is not None and not here:
            raise ConfigError(f"no service answers on {socket}", hint="Start it, or name the right socket.")
        elif config is None:
            raise ConfigError("there is neither a configuration nor a service", hint="Name one of them.")
        else:
            from service.app import opened  # noqa: PLC0415 - all recipes and their libraries

            yield _Here(await stack.enter_async_context(opened(config)))


async def _service(stack: contextlib.AsyncExitStack, path: Path, config: ConfigFile | None) -> Commander | None:
    """Return the service on a socket, when it is the one of this configuration."""
    try:
        client = await stack.enter_async_context(Client.unix(path, timeout=ANSWER_SECONDS))
    except ConnectionLost as error:
        if isinstance(error.__cause__, PermissionError) and error.__cause__.errno == errno.EACCES:
            raise ConfigError(
                f"a service runs, but this user may not use its socket {path}",
                hint="Run as root or as the service's user, or have this user named in service.admins and let into"
                " service.socket_group.",
            ) from error
        return None
    try:
        info = await client.call("system.info")
    except ConnectionLost as error:
        if "may not use" not in str(error):
            raise
        hint = "Have this user named in service.admins or service.readers, or run as root."
        raise ConfigError(f"a service runs, but {error}", hint=hint) from error
    if config is not None and Path(info["state_dir"]) != config.state_dir:
        return None
    return _There(client)


def _wrong_option(method: str, said: str) -> ConfigError:
    """Return a refused parameter as somebody at a terminal knows it: as an option of a command."""
    return ConfigError(said.removeprefix(f"{method}: "), hint="See the command's --help.")


class _There:
    """The service."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def call(self, method: str, /, **params: Any) -> Any:
        try:
            return await self._client.call(method, **params)
        except RemoteError as error:
            if error.code != "INVALID_PARAMS":
                raise
            raise _wrong_option(method, str(error)) from error

    async def job(
        self, method: str, params: dict[str, Any], progress: Progress, opening: Opening = NOTHING
    ) -> dict[str, Any]:
        events = self._client.events()
        async with contextlib.aclosing(events):
            await anext(events)  # subscribed, so that nothing of the job is missed
            job: dict[str, Any] = await self.call(method, **params, **opening.as_params())
            ended = asyncio.ensure_future(self._followed(job["id"], events, progress))
            return await _or_cancel(ended, self._client.call("job.cancel", id=job["id"]))

    async def _followed(self, identifier: str, events: Any, progress: Progress) -> dict[str, Any]:
        active = (await self._client.call("system.info"))["active"]
        first = f"; {active['kind']} {active['id']} has to end first" if active and active["id"] != identifier else ""
        progress.say(f"The service does this as job {identifier}{first}")
        return await self._ended(identifier, events, progress)

    async def _ended(self, identifier: str, events: Any, progress: Progress) -> dict[str, Any]:
        while True:
            try:
                event = await anext(events)
            except ConnectionLost as error:
                hint = f"`deviceon-backup job show {identifier}` tells how it ended."
                raise ConnectionLost(f"{error}; the job may go on", hint=hint) from error
            if event["job_id"] != identifier:
                continue
            if event["type"] == "progress":
                _show(event["data"], progress)
            elif event["data"].get("omitted"):  # too long for a line
                return dict(await self._client.call("job.get", id=identifier))
            elif event["data"]["ended"] is not None:
                return dict(event["data"])


async def _or_cancel(ended: asyncio.Future[dict[str, Any]], cancel: Awaitable[Any]) -> dict[str, Any]:
    """Wait for a job's end; when this task is cancelled, cancel the job and wait all the same."""
    try:
        try:
            return await asyncio.shield(ended)
        except asyncio.CancelledError:
            try:
                await cancel
            except RemoteError as error:
                ended.cancel()
                raise Interrupted(
                    f"{error}; the service goes on with it", hint="`deviceon-backup job list` tells how it ends."
                ) from None
            else:
                await asyncio.wait({ended})
            raise
    finally:
        if asyncio.iscoroutine(cancel):
            cancel.close()


def _show(data: dict[str, Any], progress: Progress) -> None:
    message = data.get("message")
    if data["stage"] != progress.stage:
        progress.begin(data["stage"], message or data["stage"])
    elif message:
        progress.say(message)
    progress.raw, progress.stored = data["raw_bytes"], data["stored_bytes"]
    progress.expected_raw = data["expected_raw_bytes"] or 0


class _Here:
    """This process."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def call(self, method: str, /, **params: Any) -> Any:
        from service.rpc.codec import Code, RpcError  # noqa: PLC0415
        from service.rpc.peers import Peer  # noqa: PLC0415

        try:
            return await self._app.api.call(method, params, Peer("the command line", "admin"))
        except RpcError as error:
            if isinstance(error.__cause__, ServiceError | StorageError):
                raise error.__cause__ from None
            if error.code != Code.INVALID_PARAMS:
                raise ConfigError(error.message, hint=error.hint) from error
            raise _wrong_option(method, error.message) from error

    async def job(
        self, method: str, params: dict[str, Any], progress: Progress, opening: Opening = NOTHING
    ) -> dict[str, Any]:
        from service.jobs import ends  # noqa: PLC0415

        ends.disabled = True  # a failure is what the command itself tells; without this Python would print it as well
        try:
            return (await self._app.jobs.run_now(JOBS[method], params, progress, opening=opening)).as_json()
        finally:
            ends.disabled = False
