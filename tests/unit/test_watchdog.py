"""When a job stands still: what counts as getting on, and for how long it may not."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from service.progress import Progress
from service.watchdog import Watchdog


def moved_raw(progress: Progress) -> None:
    progress.raw += 1


def moved_stored(progress: Progress) -> None:
    progress.stored += 1


def another_step(progress: Progress) -> None:
    progress.say("the same sentence")


def another_stage(progress: Progress) -> None:
    progress.stage += "another"


def quiet(progress: Progress) -> None:
    progress.quiet += 1


def nothing(progress: Progress) -> None:
    progress.expected_raw += 1
    progress.past_cancelling = True


@pytest.mark.parametrize(
    ("move", "gets_on"),
    [
        (moved_raw, True),
        (moved_stored, True),
        (another_step, True),
        (another_stage, True),
        (quiet, True),
        (nothing, False),
    ],
)
def test_what_counts_as_getting_on(move: Callable[[Progress], None], gets_on: bool) -> None:
    watchdog, progress = Watchdog(10.0, 10.0), Progress()
    for now in range(0, 50, 5):
        stood = watchdog.standstill(progress, float(now))
        move(progress)
    assert (stood is None) is gets_on


@pytest.mark.parametrize(("now", "stood"), [(109.9, None), (110.0, 10.0), (123.0, 23.0)])
def test_a_standstill_is_told_once_the_timeout_is_reached_with_how_long_it_was(now: float, stood: float | None) -> None:
    watchdog, progress = Watchdog(10.0, 100.0), Progress()
    assert watchdog.standstill(progress, 100.0) is None
    assert watchdog.standstill(progress, now) == stood


def test_a_quiet_part_has_its_own_timeout_which_begins_with_it() -> None:
    watchdog, progress = Watchdog(10.0, 100.0), Progress()
    watchdog.standstill(progress, 0.0)
    with progress.part("indexes", quiet=True):
        assert watchdog.standstill(progress, 9.0) is None
        assert watchdog.standstill(progress, 108.0) is None
        assert watchdog.standstill(progress, 109.0) == 100.0
    assert watchdog.standstill(progress, 110.0) is None
    assert watchdog.standstill(progress, 119.0) is None
    assert watchdog.standstill(progress, 120.0) == 10.0


def test_a_loud_part_is_watched_as_closely_as_the_rest() -> None:
    watchdog, progress = Watchdog(10.0, 100.0), Progress()
    with progress.part("rows"):
        watchdog.standstill(progress, 0.0)
        assert watchdog.standstill(progress, 10.0) == 10.0


def test_a_job_that_got_on_between_two_looks_begins_to_stand_at_the_second() -> None:
    watchdog, progress = Watchdog(10.0, 100.0), Progress()
    watchdog.standstill(progress, 0.0)
    moved_raw(progress)
    assert watchdog.standstill(progress, 500.0) is None
    assert watchdog.standstill(progress, 509.0) is None
    assert watchdog.standstill(progress, 510.0) == 10.0
