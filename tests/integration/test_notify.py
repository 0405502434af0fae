"""Notifications and dead-man pings, sent for real to servers on loopback that take, refuse or hang."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import email
import email.policy
import json
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, get_args

import pytest

from service import notify, secret
from service.config_monitoring import DeadManSettings, NotificationSettings, NotifyOn
from service.job import Job, JobState
from service.notify import Notifier, send_message
from service.notify_message import Message
from service.notify_send import answer
from service.outbox import Outbox
from tests.integration.network_sinks import http_sink, mail_sink
from tests.recipes import eventually

NOON = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)
ERROR = {"code": "TARGET_FULL", "message": "the disk is full", "hint": "Make room.", "transient": True}
MESSAGE = Message("edge-7: backup failed", "The backup failed.\n<b>Größe</b> & more", "failure")


@pytest.fixture(autouse=True)
def _nothing_remembered() -> Iterator[None]:
    yield
    secret._remembered.clear()


def ended(state: JobState, **more: Any) -> Job:
    job = Job(id="j-1", kind="backup", origin="schedule", state=state, created=NOON)
    return job.but(started=NOON, ended=NOON + timedelta(seconds=90), **more)


FAILED, GOOD = ended("failed", error=ERROR), ended("succeeded", result={"name": "Backup_20260131_1200Z.zip"})


def to(directory: Path, *urls: str, on: tuple[NotifyOn, ...] = get_args(NotifyOn)) -> NotificationSettings:
    file = directory / "urls"
    file.write_text("# where messages go\n" + "\n".join(urls) + "\n")
    return NotificationSettings(urls_file=file, events=list(on))


def dead_man(directory: Path, url: str) -> DeadManSettings:
    file = directory / "ping"
    file.write_text(url + "\n")
    return DeadManSettings(url_file=file)


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


async def test_a_failure_arrives_as_json(tmp_path: Path) -> None:
    async with http_sink() as sink:
        settings = to(tmp_path, f"json://me:canary-Zx81@{sink.url}/hook")
        async with Notifier(settings, None, server="edge-7") as notifier:
            notifier.job_ended(FAILED, GOOD, next_run=NOON + timedelta(days=1))
        ((method, path, body),) = sink.seen
    sent = json.loads(body)
    assert (method, path) == ("POST", "/hook")
    assert sent["title"] == "edge-7: backup failed"
    assert sent["type"] == "failure"
    assert "Error: the disk is full (TARGET_FULL)\nWhat to do: Make room." in sent["message"]


async def test_a_mail_arrives_as_text_through_smtp(tmp_path: Path) -> None:
    async with mail_sink() as sink:
        url = f"mailto://me:canary-Zx81@127.0.0.1:{sink.port}?from=backup@example.com&to=you@example.com&mode=insecure"
        assert await send_message(to(tmp_path, url), MESSAGE) == []
    (text,) = sink.mails
    mail = email.message_from_string(text, policy=email.policy.default)
    assert mail["Subject"] == MESSAGE.title
    assert "you@example.com" in mail["To"]
    assert "backup@example.com" in mail["From"]
    body = mail.get_body()
    assert body is not None
    assert "Größe" in body.get_content()
    (auth,) = [line.split()[2] for line in sink.said if line.upper().startswith("AUTH")]
    assert base64.b64decode(auth).endswith(b"\x00canary-Zx81")


async def test_a_ping_tells_start_success_and_failure_with_its_reason(tmp_path: Path) -> None:
    async with http_sink() as sink:
        settings = dead_man(tmp_path, f"http://{sink.url}/ping/canary-Zx82?create=1")
        async with Notifier(None, settings, server="edge-7") as notifier:
            notifier.job_started(FAILED)
            notifier.job_ended(FAILED)
            notifier.job_started(GOOD)
            notifier.job_ended(GOOD, FAILED)
            notifier.job_ended(ended("partial", error=ERROR))
            notifier.job_ended(ended("cancelled"))
            notifier.job_started(FAILED.but(kind="verify"))
            notifier.job_ended(FAILED.but(kind="verify"))
    assert sink.seen == [
        ("GET", "/ping/canary-Zx82/start?create=1", ""),
        ("POST", "/ping/canary-Zx82/fail?create=1", "the disk is full\nMake room."),
        ("GET", "/ping/canary-Zx82/start?create=1", ""),
        ("GET", "/ping/canary-Zx82?create=1", ""),
        ("POST", "/ping/canary-Zx82/fail?create=1", "the disk is full\nMake room."),
    ]
    assert set(sink.agents) == {"deviceon-backup"}


async def test_a_ping_is_tried_again_but_not_when_it_is_wrong(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with http_sink(statuses=[503]) as sink:
        async with Notifier(None, dead_man(tmp_path, f"http://{sink.url}/canary-Zx82"), server="s") as notifier:
            notifier.job_ended(GOOD)
        assert len(sink.seen) == 2
        assert caplog.text == ""
        sink.status = 404
        async with Notifier(None, dead_man(tmp_path, f"http://{sink.url}/canary-Zx82"), server="s") as notifier:
            notifier.job_ended(GOOD)
        assert len(sink.seen) == 3
    assert "dead-man ping of success was not sent by URL 1 (http://...): HTTP status 404" in caplog.text
    assert "canary" not in caplog.text


async def test_each_url_that_fails_is_told_apart_and_without_its_secrets(tmp_path: Path) -> None:
    async with http_sink() as good, http_sink(status=401) as refusing, http_sink(hang=True) as hanging:
        urls = [
            f"json://{good.url}",
            f"json://me:canary-Zx81@{refusing.url}/canary-Zx83/canary%20Zx84",
            f"json://me:canary-Zx85@127.0.0.1:{free_port()}/?-X-Token=canary-Zx86",
            f"json://me:canary-Zx87@{hanging.url}/?cto=60&rto=60",
            "mailtos://me:canary-Zx88@127.0.0.1:1/?to=not-an-address",
            "nothing://canary-Zx89",
            "json://canary-Zx90:port/",
        ]
        problems = await send_message(to(tmp_path, *urls), MESSAGE, seconds=6)
        assert len(good.seen) == 1, "the others do not keep it back"
    told = "\n".join(problems)
    assert "canary" not in told
    assert "Zx8" not in told
    heads = [problem.split(":")[0] for problem in problems]
    assert heads[:4] == [f"URL {number} ({scheme}" for number, scheme in enumerate(("json", "json", "json"), 2)] + [
        "URL 5 (mailtos"
    ]
    assert "401" in problems[0]
    assert "Connection" in problems[1]
    assert problems[2].endswith("no answer within 6 seconds")
    assert "does not know" in problems[4]


def test_no_piece_of_a_url_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    url = "tgram://canary:Zx81%40Zx82@host.example/Zx83/?to=Zx84"
    said = "host.example: canary, Zx81%40Zx82, Zx81@Zx82 and Zx83 to Zx84 failed at https://h/Zx85, tgram is down"

    def fail() -> str:
        raise ValueError(said)

    answer(0, url, lambda: said)
    answer(1, url, fail)
    told = "***: ***, ***, ***@*** and *** to *** failed at https://*** tgram is down"
    assert [json.loads(line) for line in capfd.readouterr().out.splitlines()] == [
        {"number": 0, "said": told},
        {"number": 1, "said": f"ValueError: {told}"},
    ]


async def test_a_server_that_hangs_delays_no_job_and_no_other_ping_and_is_given_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with http_sink(hang=True) as hanging, http_sink() as good:
        settings = to(tmp_path, f"json://{hanging.url}/?cto=60&rto=60")
        pings = dead_man(tmp_path, f"http://{good.url}/canary-Zx82")
        async with Notifier(settings, pings, server="s", seconds=3) as notifier:
            began = time.monotonic()
            notifier.job_ended(FAILED)
            assert time.monotonic() - began < 0.5, "it only queues"
            await eventually(lambda: good.seen and hanging.seen)
            assert not caplog.text
            await eventually(lambda: "no answer within 3 seconds" in caplog.text)
    assert children() == []


async def test_leaving_sends_what_waits_but_not_for_ever(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notify, "CLOSE_SECONDS", 1.0)
    before = asyncio.all_tasks()
    async with http_sink(hang=True) as hanging:
        async with Notifier(to(tmp_path, f"json://{hanging.url}/?rto=60"), None, server="s") as notifier:
            notifier.job_ended(FAILED)
            notifier.missed("backup", NOON, "the machine was off")
        assert "2 messages were not sent before the service stopped" in caplog.text
        assert children() == []
        notifier.job_ended(FAILED)
        assert "a notification is dropped" in caplog.text
        assert [task for task in asyncio.all_tasks() - before if "aiohttp" not in repr(task)] == []


async def test_a_job_that_is_cancelled_while_leaving_leaves_no_child_behind(tmp_path: Path) -> None:
    async with http_sink(hang=True) as hanging:

        async def run() -> None:
            async with Notifier(to(tmp_path, f"json://{hanging.url}/?rto=60"), None, server="s") as notifier:
                notifier.job_ended(FAILED)

        task = asyncio.create_task(run())
        await eventually(lambda: hanging.seen)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(asyncio.shield(task), 20)  # by itself the child would end after 35 seconds
        assert children() == []


async def test_settings_that_cannot_be_read_are_logged_and_the_next_message_is_sent(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with http_sink() as sink:
        settings = to(tmp_path, f"json://{sink.url}")
        (tmp_path / "urls").rename(tmp_path / "away")
        async with Notifier(settings, None, server="s") as notifier:
            notifier.job_ended(FAILED)
            await eventually(lambda: "a message could not be sent" in caplog.text)
            (tmp_path / "away").rename(tmp_path / "urls")
            notifier.job_ended(FAILED)
        assert len(sink.seen) == 1


async def test_too_many_messages_are_dropped_and_told() -> None:
    started, go = asyncio.Event(), asyncio.Event()
    sent: list[int] = []

    async def send(item: int) -> None:
        started.set()
        await go.wait()
        sent.append(item)

    outbox = Outbox(send, most=2)
    assert outbox.put(0) is False, "not open yet"
    outbox.open()
    assert outbox.put(1)
    await started.wait()
    assert [outbox.put(number) for number in (2, 3, 4)] == [True, True, False]
    go.set()
    await outbox.close(10)
    assert sent == [1, 2, 3]


async def test_a_child_that_dies_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "service"
    broken.mkdir()
    (broken / "__init__.py").write_text("raise ValueError('canary-Zx91 is out of order')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    secret.remember("canary-Zx91")
    (problem,) = await send_message(to(tmp_path, "json://127.0.0.1:1"), MESSAGE)
    assert problem.endswith("the sending process ended early: ValueError: *** is out of order")


async def test_argument_and_environment_of_the_child_hold_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGPASSWORD", "canary-Zx92")
    monkeypatch.setenv("URLS", "filled in below")
    async with http_sink(hang=True) as sink:
        monkeypatch.setenv("URLS", f"json://me:canary-Zx81@{sink.url}/?rto=60 json://{sink.url}/?rto=60")
        settings = NotificationSettings(urls_env="URLS")
        task = asyncio.create_task(send_message(settings, MESSAGE))
        await eventually(lambda: len(sink.seen) == 2)
        (child,) = children()
        seen = Path(f"/proc/{child}/cmdline").read_bytes() + Path(f"/proc/{child}/environ").read_bytes()
        assert b"service.notify_send" in seen
        assert b"canary" not in seen
        os.kill(child, 15)  # what systemd sends to all that belongs to a service
        await asyncio.sleep(0.1)
        assert children() == [child], "it goes on"
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    assert children() == []


def test_a_child_whose_service_is_gone_ends_by_itself() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        order = {"seconds": -4, "urls": [f"json://127.0.0.1:{port}/?rto=60"], "title": "", "body": "x", "type": "info"}
        program = [sys.executable, "-P", "-m", "service.notify_send"]
        done = subprocess.run(program, check=False, input=json.dumps(order), text=True, capture_output=True, timeout=60)
    assert done.returncode == -14, "SIGALRM"


def children() -> list[int]:
    """Return the children of this process that send."""
    found = []
    for path in Path("/proc/self/task").glob("*/children"):
        for word in path.read_text().split():
            with contextlib.suppress(OSError):
                if b"service.notify_send" in Path(f"/proc/{word}/cmdline").read_bytes():
                    found.append(int(word))
    return found


def test_the_service_does_not_load_what_its_child_does() -> None:
    """Apprise and what it imports: 32 MiB and a quarter of a second."""
    program = "import sys, service.notify; print(sorted({'apprise', 'requests', 'aiohttp'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    assert logging.getLogger("apprise").handlers == []
