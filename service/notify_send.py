"""Sends one notification or ping: a program of its own, run by `service.notify` for each and gone when it is done.

Apprise takes a quarter of a second and 32 MiB to load, which would stay in the service for good; and it works in
threads that cannot be stopped, which end with this process. The order is one JSON object on stdin, because the
arguments and the environment of a process are not for secrets:

    {"seconds": 30, "urls": ["mailtos://...", ...], "title": "...", "body": "...", "type": "failure"}
    {"seconds": 30, "ping": "https://hc-ping.com/<uuid>/fail", "body": "..."}

Each URL is answered with one line when it is done: {"number": 0, "said": ""}; `said` is why it failed, without any
piece of the URL.
"""

from __future__ import annotations

import http.client
import json
import logging
import os
import re
import signal
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextvars import ContextVar
from urllib.parse import unquote

ATTEMPTS = (0.0, 1.0, 3.0)
"""Seconds to wait before each attempt of a ping: one that is lost is a false alarm."""
ATTEMPT_SECONDS = 8.0
LONGEST_REASON = 500


def main() -> None:
    """Carry out the order on stdin."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the service stops, and this is the message that says so
    order = json.load(sys.stdin)
    signal.alarm(order["seconds"] + 5)  # should the service be gone, which ends this after `seconds`
    if "ping" in order:
        answer(0, order["ping"], lambda: ping(order["ping"], order["body"]))
        return
    notify = notifier(order["title"], order["body"], order["type"])
    threads = [
        threading.Thread(target=answer, args=(number, url, lambda url=url: notify(url)))
        for number, url in enumerate(order["urls"])
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def answer(number: int, url: str, send: Callable[[], str]) -> None:
    """Send, and write the line that answers for it."""
    try:
        said = send()
    except Exception as error:  # the other URLs are to be answered for, too
        said = f"{type(error).__name__}: {error}"
    line = json.dumps({"number": number, "said": without(url, said)[:LONGEST_REASON]})
    os.write(sys.stdout.fileno(), f"{line}\n".encode())


def without(url: str, text: str) -> str:
    """Return `text` without any piece of the URL: which of them are secret differs with each service."""
    rest = url.partition("://")[2]
    pieces = {piece for whole in (rest, unquote(rest)) for piece in re.split(r"[/?&=:@#,;\s]+", whole)}
    for piece in sorted((rest, *pieces), key=len, reverse=True):
        if len(piece) >= 4:
            text = text.replace(piece, "***")
    return re.sub(r"://\S+", "://***", text)


def notifier(title: str, body: str, kind: str) -> Callable[[str], str]:
    """Return a function that sends this message to one Apprise URL and returns why that failed, or nothing."""
    import apprise  # noqa: PLC0415 - a ping does without

    collected = Collected()
    logger = logging.getLogger("apprise")
    logger.addHandler(collected)
    logger.propagate = False
    asset = apprise.AppriseAsset(
        app_id="DeviceOn Backup",
        app_desc="DeviceOn Backup",
        app_url="",
        async_mode=False,  # in this thread, or in one that is given its context: `Collected` asks for that
        storage_mode="memory",
    )

    def notify(url: str) -> str:
        collected.begin(url)
        service = apprise.Apprise(asset=asset)
        if not service.add(url):
            return "Apprise does not know such a URL"
        # Plain text: Apprise escapes it for services that take HTML or Markdown.
        if service.notify(body=body, title=title, notify_type=kind, body_format=apprise.NotifyFormat.TEXT):
            return ""
        return collected.said(url) or "it was not accepted"

    return notify


class Collected(logging.Handler):
    """What was logged from level warning on, for each URL."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._url: ContextVar[str] = ContextVar("url", default="")
        self._said: dict[str, list[str]] = {}

    def begin(self, url: str) -> None:
        """Take what is logged in this context from now on as about the URL."""
        self._url.set(url)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a message."""
        self._said.setdefault(self._url.get(), []).append(record.getMessage())

    def said(self, url: str) -> str:
        """Return what was logged about the URL."""
        return " | ".join(self._said.get(url, []))


def ping(url: str, body: str) -> str:
    """Request the URL, by POST when there is a body; return why that failed, or nothing."""
    headers = {"User-Agent": "deviceon-backup"}
    request = urllib.request.Request(url, data=body.encode() or None, headers=headers)  # noqa: S310 - see DeadManSettings
    said = ""
    for pause in ATTEMPTS:
        time.sleep(pause)
        try:
            with urllib.request.urlopen(request, timeout=ATTEMPT_SECONDS):  # noqa: S310
                return ""
        except urllib.error.HTTPError as error:
            said = f"HTTP status {error.code}"
            error.close()
            if error.code < 500:
                break
        except (OSError, http.client.HTTPException) as error:
            said = str(error) or type(error).__name__
    return said


if __name__ == "__main__":
    main()
