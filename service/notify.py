"""Telling people how jobs end (by Apprise) and a dead-man's switch that backups are made.

Both go out in the background: a job neither waits for them nor fails with them, and what cannot be sent is logged.
Each is sent by a short-lived child process, `service.notify_send`: to import Apprise and its first service takes 32 MiB
and a quarter of a second of one processor, and what hangs in it cannot be stopped otherwise.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import sys
from collections.abc import Mapping
from datetime import datetime
from typing import Self

from service.config_monitoring import DeadManSettings, NotificationSettings
from service.job import Job, JobKind
from service.notify_message import Message, expiry_message, failure_reason, job_message, missed_message
from service.outbox import Outbox
from service.secret import redact, safe_environment

SECONDS = 30
"""What one message or ping may take, all its URLs at once."""
CLOSE_SECONDS = 10.0
"""What is still to be sent when the service stops may take this long, all together."""
MOST_OUTPUT = 64 * 1024

# How to reach the network; a company's proxy and certificates.
_NETWORK = (
    *("http_proxy", "https_proxy", "all_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "PYTHONPATH"),
)

_log = logging.getLogger(__name__)


class Notifier:
    """Sends what there is to say while its block runs; leaving the block sends the rest, for a while.

    Its methods only compose and queue, so they return at once and raise nothing.
    """

    def __init__(
        self,
        notifications: NotificationSettings | None,
        dead_man: DeadManSettings | None,
        *,
        server: str,
        seconds: int = SECONDS,
    ) -> None:
        """`server` is what people call this machine. None of the settings: nothing of that kind is sent."""
        self._notifications = notifications
        self._dead_man = dead_man
        self._server = server
        self._seconds = seconds
        # Two, so that a mail server that hangs does not delay the ping, which is waited for.
        self._messages: Outbox[Message] = Outbox(self._send_message)
        self._pings: Outbox[tuple[str, str]] = Outbox(self._send_ping)

    async def __aenter__(self) -> Self:
        self._messages.open()
        self._pings.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(self._messages.close(CLOSE_SECONDS), self._pings.close(CLOSE_SECONDS))

    def job_started(self, job: Job) -> None:
        """Tell the dead-man's switch that a backup has begun."""
        if job.kind == "backup":
            self._ping("/start", "")

    def job_ended(self, job: Job, previous: Job | None = None, *, next_run: datetime | None = None) -> None:
        """Tell how a job ended. `previous`: the last one of its kind before it that ended and was not cancelled."""
        if job.kind == "backup" and job.state == "succeeded":
            self._ping("", "")
        elif job.kind == "backup" and job.state != "cancelled":
            self._ping("/fail", failure_reason(job))
        if self._notifications:
            on = self._notifications.events
            self._tell(job_message(job, previous, on=on, server=self._server, next_run=next_run))

    def missed(self, kind: JobKind, scheduled_for: datetime, reason: str, *, next_run: datetime | None = None) -> None:
        """Tell that a scheduled job did not take place."""
        if self._notifications:
            on = self._notifications.events
            self._tell(missed_message(kind, scheduled_for, reason, on=on, server=self._server, next_run=next_run))

    def expiring(self, archive: str, expires: datetime) -> None:
        """Tell that the state before a restore will be removed by itself."""
        if self._notifications:
            self._tell(expiry_message(archive, expires, on=self._notifications.events, server=self._server))

    def _tell(self, message: Message | None) -> None:
        if message is not None and not self._messages.put(message):
            _log.error("a notification is dropped, too many wait to be sent: %s", message.title)

    def _ping(self, path: str, body: str) -> None:
        if self._dead_man and not self._pings.put((path, body)):
            _log.error("a dead-man ping is dropped, too many wait to be sent")

    async def _send_message(self, message: Message) -> None:
        assert self._notifications is not None
        for problem in await send_message(self._notifications, message, seconds=self._seconds):
            _log.error("notification %r was not sent by %s", message.title, problem)

    async def _send_ping(self, ping: tuple[str, str]) -> None:
        assert self._dead_man is not None
        url = _with_path(self._dead_man.url(), ping[0])
        for problem in await _sent({"ping": url, "body": ping[1]}, [url], seconds=self._seconds):
            _log.error("dead-man ping %s was not sent by %s", ping[0] or "of success", problem)


async def send_message(settings: NotificationSettings, message: Message, *, seconds: int = SECONDS) -> list[str]:
    """Send a message to every URL; return one line for each that failed, without secrets. Raises ConfigError."""
    urls = settings.urls()
    order = {"urls": urls, "title": message.title, "body": message.body, "type": message.severity}
    return await _sent(order, urls, seconds=seconds)


def _with_path(url: str, path: str) -> str:
    """Append to the path of a URL, which may have a query."""
    base, mark, query = url.partition("?")
    return f"{base.rstrip('/') if path else base}{path}{mark}{query}"


async def _sent(order: Mapping[str, object], urls: list[str], *, seconds: int) -> list[str]:
    """Have a child process carry out an order; return a line for each URL that has failed or is not done in time."""
    output = bytearray()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "service.notify_send"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=safe_environment(*_NETWORK),
        start_new_session=True,  # Ctrl-C on a terminal is for the service; this may be the message that it stops
    )
    late = False
    try:
        async with asyncio.timeout(seconds):
            await _talk(process, json.dumps({**order, "seconds": seconds}).encode(), output)
    except TimeoutError:
        late = True
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    return _problems(bytes(output), urls, why=f"no answer within {seconds} seconds" if late else "")


async def _talk(process: asyncio.subprocess.Process, order: bytes, output: bytearray) -> None:
    assert process.stdin is not None and process.stdout is not None
    with contextlib.suppress(ConnectionError):  # it went away; what it said is the better message
        process.stdin.write(order)
        await process.stdin.drain()
    process.stdin.close()
    while piece := await process.stdout.read(4096):
        output += piece[: max(0, MOST_OUTPUT - len(output))]
    await process.wait()


def _problems(output: bytes, urls: list[str], *, why: str) -> list[str]:
    said: dict[int, str] = {}
    noise = ""
    for line in output.decode(errors="replace").splitlines():
        try:
            answer = json.loads(line)
            said[int(answer["number"])] = str(answer["said"])
        except (ValueError, KeyError, TypeError):
            noise = line.strip() or noise
    why = why or f"the sending process ended early: {noise or 'it said nothing'}"
    problems = []
    for number, url in enumerate(urls):
        if problem := said.get(number, why):
            scheme = url.partition("://")[0]
            problems.append(redact(f"URL {number + 1} ({scheme}://...): {problem}"))
    return problems
