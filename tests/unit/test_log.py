"""The log: one line a record, no secret, nothing that a record did not say on purpose, and it never stops anybody."""

from __future__ import annotations

import asyncio
import contextvars
import io
import json
import logging
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from service import secret
from service.errors import ConfigError
from service.log import JsonFormatter, LastingHandler, TextFormatter, current_job
from service.secret import remember

CANARY = 'canary-Zx81"hunter2'


@pytest.fixture(autouse=True)
def _one_secret() -> Iterator[None]:
    secret._remembered.clear()
    remember(CANARY)
    remember("message")
    yield
    secret._remembered.clear()


def logged(say: Callable[[logging.Logger], object], formatter: logging.Formatter) -> str:
    """Return what a logger of ours writes."""
    stream = io.StringIO()
    handler = LastingHandler(stream)
    handler.setFormatter(formatter)
    logger = logging.Logger("service.test_log", logging.DEBUG)  # not in the tree, where pytest listens, too
    logger.addHandler(handler)
    say(logger)
    return stream.getvalue()


def as_json(say: Callable[[logging.Logger], object]) -> dict[str, Any]:
    (line,) = logged(say, JsonFormatter()).splitlines()
    content: dict[str, Any] = json.loads(line)
    return content


def as_text(say: Callable[[logging.Logger], object]) -> str:
    (line,) = logged(say, TextFormatter()).splitlines()
    return line


def failing(error: BaseException) -> Callable[[logging.Logger], None]:
    def say(logger: logging.Logger) -> None:
        try:
            raise error  # noqa: TRY301 - it gets a traceback
        except BaseException:
            logger.exception("it failed")

    return say


def test_a_record_has_the_documented_members_and_no_others() -> None:
    token = current_job.set("j-1")
    try:
        said = as_json(
            lambda logger: logger.info("%d archives", 2, extra={"fields": {"a": 1.5, "b": None}, "password": "x"})
        )
    finally:
        current_job.reset(token)
    moment = said.pop("time")
    assert len(moment) == len("2026-01-31T02:00:00.123Z")
    assert moment.endswith("Z")
    assert said == {
        "level": "info",
        "logger": "service.test_log",
        "message": "2 archives",
        "job": "j-1",
        "fields": {"a": 1.5, "b": None},
    }


def test_there_is_no_job_outside_of_one() -> None:
    assert set(as_json(lambda logger: logger.info("x"))) == {"time", "level", "logger", "message"}


def test_fields_are_scalars_and_what_is_none_is_named_only() -> None:
    fields = {"nan": float("nan"), "inf": float("-inf"), "list": [CANARY], "error": ValueError(CANARY), "yes": True}
    said = as_json(lambda logger: logger.info("x", extra={"fields": fields}))
    assert said["fields"] == {"nan": "nan", "inf": "-inf", "list": "<list>", "error": "<ValueError>", "yes": True}
    assert "fields" not in as_json(lambda logger: logger.info("x", extra={"fields": "no mapping"}))


@pytest.mark.parametrize("formatter", [JsonFormatter(), TextFormatter()], ids=["json", "text"])
@pytest.mark.parametrize(
    "say",
    [
        lambda logger: logger.info(CANARY),
        lambda logger: logger.info("%s", CANARY),
        lambda logger: logger.info("%s", {"key": CANARY}),
        lambda logger: logger.info("%d", CANARY),
        lambda logger: logger.info("x", extra={"fields": {CANARY: f"<{CANARY}>"}}),
        failing(ValueError(CANARY)),
        failing(ConfigError(CANARY, hint=CANARY)),
        failing(ExceptionGroup("group", [KeyError(CANARY)])),
    ],
)
def test_no_secret_is_logged(say: Callable[[logging.Logger], object], formatter: logging.Formatter) -> None:
    line = logged(say, formatter)
    assert line.count("\n") == 1
    assert "canary" not in line
    assert "hunter2" not in line


def test_a_secret_that_is_a_word_of_the_form_does_not_break_it() -> None:
    assert as_json(lambda logger: logger.info("the message"))["message"] == "the ***"


def test_arguments_that_do_not_fit_are_told_and_not_printed_elsewhere(capfd: pytest.CaptureFixture[str]) -> None:
    class Broken:
        def __str__(self) -> str:
            raise RuntimeError(CANARY)

    assert as_json(lambda logger: logger.info("%d", "x"))["message"] == "%d (its arguments do not fit)"
    assert as_json(lambda logger: logger.info("%s", Broken()))["message"] == "%s (its arguments do not fit)"
    assert logged(lambda logger: logger.info(Broken()), JsonFormatter()) == ""
    assert capfd.readouterr() == ("", "")


NASTY = "a\nb\rc\x1b[31md\x00e\u2028f\x85g\u202eh\udc80i\x7f"


def test_a_record_is_one_line_whatever_is_in_it() -> None:
    assert as_json(lambda logger: logger.info(NASTY))["message"] == NASTY
    line = as_text(lambda logger: logger.info(NASTY, extra={"fields": {"x\n": NASTY}}))
    assert line.isprintable()
    assert r"a\nb\rc\x1b[31md\x00e\u2028f\x85g\u202eh\udc80i\x7f" in line
    assert as_text(failing(ValueError(NASTY))).isprintable()


def test_text_has_time_level_logger_job_fields_and_error() -> None:
    def say(logger: logging.Logger) -> None:
        token = current_job.set("j-1")
        failing(ConfigError("no such file", hint="Make it."))(logger)
        current_job.reset(token)

    time, rest = as_text(say).split(" ", 1)
    assert time.endswith("Z")
    assert rest.startswith("ERROR   service.test_log [j-1] it failed | ConfigError: no such file (Make it.)")


def test_an_error_tells_its_notes_and_if_it_is_ours_its_code_and_hint() -> None:
    error = ConfigError("no such file", hint="Make it.")
    error.add_note("And run it again.")
    assert as_json(failing(error))["error"] == {
        "type": "ConfigError",
        "message": "no such file\nAnd run it again.",
        "code": "CONFIG",
        "hint": "Make it.",
    }
    assert as_json(failing(ValueError("x")))["error"] == {"type": "ValueError", "message": "x"}


def test_only_unexpected_errors_have_a_traceback_unless_the_level_is_debug() -> None:
    ours = logging.getLogger("service")
    before = ours.level
    try:
        ours.setLevel(logging.INFO)
        assert "test_log.py" in as_json(failing(ValueError("x")))["traceback"]
        assert "traceback" not in as_json(failing(ConfigError("x")))
        ours.setLevel(logging.DEBUG)
        assert "test_log.py" in as_json(failing(ConfigError("x")))["traceback"]
    finally:
        ours.setLevel(before)


async def test_the_job_is_known_in_tasks_and_threads_of_the_job_but_not_in_bare_executors() -> None:
    """What `service.log` says of asyncio; a change of it would be good to know."""
    loop = asyncio.get_running_loop()

    async def in_task() -> str | None:
        return current_job.get()

    token = current_job.set("j-1")
    try:
        assert await asyncio.create_task(in_task()) == "j-1"
        assert await asyncio.to_thread(current_job.get) == "j-1"
        assert await loop.run_in_executor(None, current_job.get) is None
        assert await loop.run_in_executor(None, contextvars.copy_context().run, current_job.get) == "j-1"
    finally:
        current_job.reset(token)


def run(program: str, *, read: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a program with stderr as a pipe; without `read`, nobody reads it."""
    command = [sys.executable, "-W", "always", "-c", textwrap.dedent(program)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None and process.stdout is not None
    if not read:
        process.stderr.close()
        with process.stdout:
            return subprocess.CompletedProcess(command, process.wait(), process.stdout.read(), "")
    out, err = process.communicate(timeout=60)
    return subprocess.CompletedProcess(command, process.returncode, out, err)


HEAD = """
import asyncio, logging, os, sys, threading, warnings
from service.log import configure
from service.secret import remember
remember("canary-Zx81")
"""


def test_libraries_are_heard_from_warning_on_and_ours_from_the_level_that_is_set() -> None:
    libraries = (
        *("botocore.auth", "aiobotocore", "boto3", "s3fs", "smbprotocol.connection", "smbclient", "spnego", "asyncio"),
        *("aiohttp.access", "aiohttp.server", "apprise", "urllib3.connectionpool", "requests", "asyncpg", "fsspec"),
    )
    program = f"""
        configure("json", "debug")
        for name in {libraries}:
            logging.getLogger(name).info("too much")
            logging.getLogger(name).warning("heard")
        logging.getLogger("service.backup").debug("ours")
        logging.getLogger("storage_backends.s3").debug("ours")
    """
    said = [json.loads(line) for line in run(HEAD + textwrap.dedent(program)).stderr.splitlines()]
    assert [record["message"] for record in said] == ["heard"] * len(libraries) + ["ours", "ours"]
    assert [record["logger"] for record in said[: len(libraries)]] == list(libraries)
    program = 'configure("json", "error")\nfor name in ("botocore", "service"): logging.getLogger(name).warning("x")'
    assert run(HEAD + program).stderr == ""


def test_what_python_prints_by_itself_is_logged_instead() -> None:
    program = """
        configure("text", "info"), configure("json", "info")
        warnings.warn("warned of canary-Zx81")
        def fail():
            raise ValueError("of canary-Zx81")
        thread = threading.Thread(target=fail)
        thread.start(), thread.join()
        async def forgotten():
            asyncio.ensure_future(asyncio.to_thread(fail))
            await asyncio.sleep(0.05)
        asyncio.run(forgotten())
        fail()
    """
    result = run(HEAD + textwrap.dedent(program))
    said = [json.loads(line) for line in result.stderr.splitlines()]
    assert "warned of ***" in said[0]["message"]
    assert [record["message"].split(":")[0] for record in said[1:]] == [
        "uncaught exception in a thread",
        "Task exception was never retrieved\nfuture",
        "uncaught exception",
    ]
    assert [record["error"]["message"] for record in said[1:]] == ["of ***"] * 3
    assert "canary" not in result.stdout + result.stderr
    assert result.returncode == 1


@pytest.mark.parametrize("form", ["json", "text"])
def test_a_log_that_nobody_reads_stops_nobody(form: str) -> None:
    program = f"""
        configure("{form}", "info")
        while True:
            logging.getLogger("service").info("x" * 1000)
            try:
                os.write(2, b"x")
            except BrokenPipeError:
                break
        for _ in range(1000):
            logging.getLogger("service").info("y" * 1000)
        print("done")
    """
    result = run(HEAD + textwrap.dedent(program), read=False)
    assert result.stdout == "done\n"
    assert result.returncode == 0
