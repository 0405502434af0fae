"""Progress tells how long each stage took."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from service.progress import Progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    yield now


def test_each_stage_is_timed_from_its_beginning_to_the_next(clock: list[float]) -> None:
    progress = Progress()
    progress.begin("snapshot", "Looking")
    clock[0] += 2
    progress.begin("dump", "Writing")
    clock[0] += 5.5
    assert progress.end() == {"snapshot": 2.0, "dump": 5.5}
    clock[0] += 1
    assert progress.end() == {"snapshot": 2.0, "dump": 5.5}


def test_the_time_to_go_is_not_told_before_the_rate_says_something(clock: list[float]) -> None:
    progress = Progress()
    progress.begin("dump", "Writing", expected_raw=100)
    progress.raw += 10
    clock[0] += 0.5
    assert progress.eta is None
    clock[0] += 0.5
    assert progress.eta == 9


def test_a_part_is_timed_beside_its_stage_and_leaves_the_counters(clock: list[float]) -> None:
    progress = Progress()
    progress.begin("stage", "Restoring", expected_raw=10)
    with progress.part("rows"):
        progress.raw += 3
        clock[0] += 1
    clock[0] += 1
    with pytest.raises(KeyError), progress.part("rows"):
        clock[0] += 2
        raise KeyError
    assert (progress.raw, progress.expected_raw) == (3, 10)
    assert progress.end() == {"rows": 3.0, "stage": 4.0}
