"""Progress for people: units, the moving line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import io
import os
import pty
import time
from typing import TextIO

import pytest

from service.progress import Progress
from service.terminal import counted, duration, plain, reporting, size, status


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (123_456, "123 kB"),
        (1.44e6, "1.4 MB"),
        (2e9, "2.0 GB"),
        (5e15, "5000.0 TB"),
    ],
)
def test_bytes_are_told_in_powers_of_1000(count: float, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.4, "0:59"), (61, "1:01"), (3723, "1:02:03")])
def test_durations_are_told_as_clocks_do(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_control_characters_are_replaced() -> None:
    assert plain("a\x1b[2Jb\nc\u202ed é") == "a\ufffd[2Jb\ufffdc\ufffdd é"


def test_the_status_has_bytes_rate_and_time_to_go() -> None:
    progress = Progress(stage="dump", raw=1_000_000, stored=200_000, expected_raw=3_000_000)
    progress.started = time.monotonic() - 2
    assert status(progress) == "dump: 1.0 MB of 3.0 MB, 200 kB in the archive, 500 kB/s, 0:04 to go"


def test_elsewhere_each_sentence_is_a_line() -> None:
    stream = io.StringIO()
    with reporting(stream=stream) as progress:
        progress.begin("dump", "Writing it")
        progress.raw = 10**9
        progress.say("table a\x1b[31m is locked")
    assert stream.getvalue() == "Writing it\ntable a\ufffd[31m is locked\n"


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with reporting(quiet=True) as progress:
        progress.begin("dump", "Writing it")
    assert capsys.readouterr() == ("", "")


def test_a_reader_that_went_away_does_not_stop_the_job() -> None:
    reading, writing = os.pipe()
    stream = os.fdopen(writing, "w")
    os.close(reading)
    with reporting(stream=stream) as progress:
        progress.say("nobody hears this")
    with pytest.raises(BrokenPipeError):
        stream.close()  # what was kept back proves that the pipe was broken


@pytest.fixture
def terminal() -> tuple[TextIO, int]:
    leader, follower = pty.openpty()
    return os.fdopen(follower, "w"), leader


def shown(terminal: tuple[TextIO, int]) -> str:
    stream, leader = terminal
    stream.close()
    pieces = []
    try:
        while piece := os.read(leader, 4096):
            pieces.append(piece)
    except OSError:  # the end, as terminals say it
        pass
    os.close(leader)
    return b"".join(pieces).decode()


@pytest.fixture(autouse=True)
def _ordinary_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")


def test_on_a_terminal_one_line_moves_and_sentences_stay(terminal: tuple[TextIO, int]) -> None:
    with reporting(stream=terminal[0]) as progress:
        progress.begin("dump", "Writing [bold]it[/bold]", expected_raw=2_000_000)
        progress.raw = 1_000_000
        time.sleep(1.4)
    text = shown(terminal)
    assert "Writing [bold]it[/bold]" in text, "names are never taken for markup"
    assert "1.0 MB of 2.0 MB" in text
    assert "to go" in text


def test_a_terminal_that_went_away_does_not_stop_the_job(terminal: tuple[TextIO, int]) -> None:
    stream, leader = terminal
    with reporting(stream=stream) as progress:
        progress.begin("dump", "Writing it", expected_raw=10)
        os.close(leader)
        progress.raw = 5
        time.sleep(0.5)
        progress.say("nobody hears this")
    with pytest.raises(OSError, match="Input/output"):
        stream.close()


def test_what_is_counted_has_its_plural() -> None:
    assert [counted(n, "table") for n in (0, 1, 2, 3154)] == ["0 tables", "1 table", "2 tables", "3,154 tables"]
    assert counted(2, "policy", "policies") == "2 policies"
