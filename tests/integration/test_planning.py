"""What the System Backup page asks before it saves: what a policy or a schedule that is only tried would do."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.service_parts import Place
from tests.socket_calls import DAILY, call_checked, refused


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


async def test_a_policy_is_tried_in_the_time_zone_of_the_schedule_that_is_tried_with_it(place: Place) -> None:
    async with place.app() as app:
        place.clock.now = datetime(2026, 3, 2, 15, 30, tzinfo=UTC)  # 23:30 in Taipei
        first = await place.backup(app.archives, after=timedelta(0))
        second = await place.backup(app.archives, after=timedelta(hours=3))
        call = call_checked(app.api)

        async def kept(**more: object) -> set[str]:
            told = await call("retention.preview", retention={"keep_daily": 5}, **more)
            return {verdict["name"] for verdict in told["targets"][0]["verdicts"] if verdict["keep"]}

        assert await kept() == {second}
        assert await kept(schedule=DAILY | {"timezone": "Asia/Taipei"}) == {first, second}
        assert (await call("settings.get"))["settings"]["schedule"] is None


async def test_further_targets_are_told_with_the_settings(place: Place) -> None:
    elsewhere = place.root / "elsewhere"
    place.settings = {"copies": [{"url": f"file://{elsewhere}"}]}
    async with place.app() as app:
        assert (await call_checked(app.api)("settings.get"))["copies"] == [f"file://{elsewhere}"]


@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        ({"frequency": "daily"}, "at is required for frequency daily"),
        ({"frequency": "daily", "at": "25:00"}, "schedule.at must be a time of day, such as 02:00"),
        ({"frequency": "cron", "cron": "61 * * * *"}, "schedule.cron: is not a cron expression"),
        ({"frequency": "cron", "cron": "0 2"}, "must have five fields: minute, hour, day of month, month, day of week"),
        ({"frequency": "cron", "cron": "0 2 30 2 *"}, "is not a cron expression: bad day-of-month"),
        ({"frequency": "weekly", "at": "02:00", "weekdays": []}, "schedule.weekdays"),
        ({"frequency": "monthly", "at": "02:00", "day": 32}, "schedule.day"),
        ({"frequency": "daily", "at": "02:00", "timezone": "Mars"}, "is not a known time zone"),
    ],
)
async def test_a_schedule_that_is_being_typed_is_told_what_it_lacks_in_words(
    place: Place, schedule: dict[str, object], words: str
) -> None:
    async with place.app() as app:
        error = await refused(app.api, "schedule.preview", schedule=schedule)
        assert words in error.message
        assert error.reason == "CONFIG"
