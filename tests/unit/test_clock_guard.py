"""Whether the clock may have been set: what makes it doubted, for how long, and what is remembered of that."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from service.clock_guard import QUIET, ClockGuard

NOW = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
SECOND, HOUR, DAY = timedelta(seconds=1), timedelta(hours=1), timedelta(days=1)


@pytest.mark.parametrize(
    ("since_last", "doubted"),
    [
        (timedelta(0), False),
        (SECOND, False),
        (DAY, False),
        (DAY + SECOND, True),
        (365 * DAY, True),
        (-SECOND, True),
        (-365 * DAY, True),
    ],
)
def test_a_step_back_or_of_more_than_a_day_makes_the_clock_doubted(since_last: timedelta, doubted: bool) -> None:
    guard = ClockGuard(NOW).look(NOW + since_last)
    assert guard == ClockGuard(NOW + since_last, NOW + since_last if doubted else None)
    assert guard.suspects(NOW + since_last) is doubted


def test_the_first_look_doubts_nothing() -> None:
    assert ClockGuard().look(NOW) == ClockGuard(NOW)
    assert not ClockGuard().suspects(NOW)


def test_a_clock_that_goes_steadily_for_a_day_is_trusted_again_and_not_before() -> None:
    guard = ClockGuard(NOW, NOW)
    for hour in range(1, 24):
        guard = guard.look(NOW + hour * HOUR)
        assert guard.doubted_since == NOW
    assert guard.look(NOW + QUIET - SECOND).doubted_since == NOW
    assert guard.look(NOW + QUIET).doubted_since is None


def test_another_jump_begins_the_doubt_anew() -> None:
    guard = ClockGuard(NOW, NOW).look(NOW + 20 * HOUR).look(NOW + 19 * HOUR)
    assert guard.doubted_since == NOW + 19 * HOUR
    assert guard.look(NOW + 25 * HOUR).doubted_since == NOW + 19 * HOUR


@pytest.mark.parametrize(
    ("guard", "now", "suspect"),
    [
        (ClockGuard(NOW), NOW - SECOND, True),  # behind the last look, which may have been long ago
        (ClockGuard(NOW), NOW + 400 * DAY, False),  # a machine that was off cannot be told from a clock set forward
        (ClockGuard(NOW, NOW), NOW + QUIET - SECOND, True),
        (ClockGuard(NOW, NOW), NOW + QUIET, False),
        (ClockGuard(NOW, NOW), NOW - 9 * DAY, True),
    ],
)
def test_who_asks_without_a_look_learns_of_a_clock_behind_and_of_doubt_that_is_remembered(
    guard: ClockGuard, now: datetime, suspect: bool
) -> None:
    assert guard.suspects(now) is suspect


@pytest.mark.parametrize("guard", [ClockGuard(), ClockGuard(NOW), ClockGuard(NOW, NOW - HOUR)])
def test_what_is_known_comes_back_as_it_was_told(guard: ClockGuard) -> None:
    assert ClockGuard.from_json(guard.as_json()) == guard


def test_without_memory_nothing_is_known() -> None:
    assert ClockGuard.from_json(None) == ClockGuard()


@pytest.mark.parametrize("value", [{}, {"last_seen": "yesterday", "doubted_since": None}, {"last_seen": 5}, []])
def test_what_was_remembered_and_cannot_be_read_is_as_if_nothing_was_known(value: dict[str, Any]) -> None:
    assert ClockGuard.from_json(value) == ClockGuard()
