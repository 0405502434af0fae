"""Retention by example: what is kept, what goes, and in which words."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from service.retention import Candidate, RetentionSettings, Verdict, clock_jumped, decide

NOW = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)


def archive(seq: int | None, created: str | datetime, **changes: Any) -> Candidate:
    moment = datetime.fromisoformat(created).replace(tzinfo=UTC) if isinstance(created, str) else created
    values = {"name": f"Backup_{moment:%Y%m%d_%H%M}Z.zip", "seq": seq, "created": moment, "verified": True}
    return Candidate(**(values | changes))


def policy(**keys: int) -> RetentionSettings:
    return RetentionSettings(**keys)


def told(archives: list[Candidate], rules: RetentionSettings, **changes: Any) -> list[tuple[bool, str]]:
    verdicts = decide(archives, rules, **({"now": NOW} | changes))
    assert [verdict.name for verdict in verdicts] == [candidate.name for candidate in archives]
    return [(verdict.keep, "; ".join(verdict.reasons)) for verdict in verdicts]


def kept(archives: list[Candidate], rules: RetentionSettings, **changes: Any) -> list[int | None]:
    verdicts = decide(archives, rules, **({"now": NOW} | changes))
    return [candidate.seq for candidate, verdict in zip(archives, verdicts, strict=True) if verdict.keep]


def one_a_day(count: int) -> list[Candidate]:
    return [archive(n, NOW - (count - n) * DAY - HOUR) for n in range(1, count + 1)]


def test_a_week_keeps_its_newest_archive_and_its_newest_restorable_one_a_day_does_not() -> None:
    archives = [
        archive(1, "2026-11-16T02:30", restorable=True),
        archive(2, "2026-11-17T02:30", restorable=True),
        archive(3, "2026-11-18T02:30"),
        archive(4, "2026-11-22T02:30"),
        archive(5, "2026-11-24T02:30", restorable=True),
        archive(6, "2026-11-24T14:30"),
    ]
    assert told(archives, policy(keep_weekly=2)) == [
        (False, "no rule keeps it"),
        (True, "newest restorable of week 2026-W47"),
        (False, "no rule keeps it"),
        (True, "newest of week 2026-W47 (2 of 2)"),
        (True, "newest restorable of week 2026-W48"),
        (True, "newest of week 2026-W48 (1 of 2)"),
    ]
    assert kept(archives, policy(keep_daily=2)) == [4, 5, 6], "and the newest restorable one, whatever the rules"


def test_the_newest_restorable_archive_is_kept_however_old_it_is() -> None:
    archives = [replace(each, restorable=each.seq in (1, 2)) for each in one_a_day(30)]
    assert kept(archives, policy(keep_last=3)) == [2, 28, 29, 30]
    assert told(archives, policy(keep_last=3))[1] == (True, "the newest restorable archive is always kept")
    unusable = [replace(each, usable=each.seq != 2) for each in archives]
    assert kept(unusable, policy(keep_last=3)) == [1, 2, 28, 29, 30], "one that is damaged since is not the last"


def test_an_empty_policy_is_refused_in_plain_words() -> None:
    with pytest.raises(ValidationError) as caught:
        policy()
    assert caught.value.errors()[0]["msg"] == (
        "Value error, give at least one rule, such as keep_last; a policy without any would remove everything"
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [(f"keep_{rule}", value) for rule in ("last", "daily", "weekly", "monthly", "yearly") for value in (0, -1, 10001)]
    + [("keep_within", 0), ("keep_within", 36501)],
)
def test_numbers_out_of_range_are_refused(key: str, value: int) -> None:
    with pytest.raises(ValidationError):
        policy(**{key: value})


def test_the_newest_are_kept_and_each_archive_is_told_why() -> None:
    assert told(one_a_day(4), policy(keep_last=2)) == [
        (False, "no rule keeps it"),
        (False, "no rule keeps it"),
        (True, "one of the 2 newest"),
        (True, "one of the 2 newest"),
    ]
    assert told(one_a_day(2), policy(keep_last=1)) == [(False, "no rule keeps it"), (True, "the newest")]


def test_every_rule_that_keeps_an_archive_is_told() -> None:
    rules = policy(keep_last=1, keep_daily=2, keep_weekly=2, keep_monthly=2, keep_yearly=2, keep_within=1)
    assert told([archive(1, "2025-12-31 23:59"), archive(2, "2026-11-25 03:00")], rules) == [
        (
            True,
            "newest of day 2025-12-31 (2 of 2); newest of week 2026-W01 (2 of 2); newest of month 2025-12 (2 of 2);"
            " newest of year 2025 (2 of 2)",
        ),
        (
            True,
            "the newest; newest of day 2026-11-25 (1 of 2); newest of week 2026-W48 (1 of 2);"
            " newest of month 2026-11 (1 of 2); newest of year 2026 (1 of 2); made within a day",
        ),
    ]


def test_days_without_an_archive_do_not_count() -> None:
    archives = [
        archive(1, "2026-01-01 02:30"),
        archive(2, "2026-06-01 02:30"),
        archive(3, "2026-11-20 02:30"),
        archive(4, "2026-11-20 14:30"),
        archive(5, "2026-11-25 02:30"),
    ]
    assert kept(archives, policy(keep_daily=3)) == [2, 4, 5]


def test_weeks_begin_on_monday_and_may_span_two_years() -> None:
    days = ["2024-12-29 12:00", "2024-12-30 12:00", "2025-01-01 12:00", "2025-01-05 23:59", "2025-01-06 00:00"]
    archives = [archive(n, day) for n, day in enumerate(days)]
    assert kept(archives, policy(keep_weekly=3)) == [0, 3, 4]


def test_months_and_years_keep_their_newest() -> None:
    days = ["2024-12-31 23:59", "2025-11-30 23:59", "2025-12-01 00:00", "2025-12-31 23:59", "2026-01-01 00:00"]
    archives = [archive(n, day) for n, day in enumerate(days)]
    assert kept(archives, policy(keep_monthly=2)) == [3, 4]
    assert kept(archives, policy(keep_monthly=3)) == [1, 3, 4]
    assert kept(archives, policy(keep_yearly=3)) == [0, 3, 4]


def test_days_are_those_of_the_time_zone() -> None:
    archives = [archive(1, "2026-11-24 22:30"), archive(2, "2026-11-24 23:30")]
    assert kept(archives, policy(keep_daily=2)) == [2]
    assert kept(archives, policy(keep_daily=2), timezone="Europe/Berlin") == [1, 2]


def test_an_archive_as_old_as_keep_within_is_kept_and_a_moment_older_is_not() -> None:
    archives = [
        archive(1, NOW - 7 * DAY - timedelta.resolution, name="a"),
        archive(2, NOW - 7 * DAY, name="b"),
        archive(3, NOW, name="c"),
    ]
    assert kept(archives, policy(keep_within=7)) == [2, 3]
    assert told(archives, policy(keep_within=7))[1] == (True, "made within 7 days")


def test_the_newest_verified_archive_stays_when_no_rule_keeps_it() -> None:
    archives = [archive(1, "2020-01-01 00:00"), archive(2, "2020-01-02 00:00"), archive(3, NOW, verified=False)]
    assert told(archives, policy(keep_within=30)) == [
        (False, "no rule keeps it"),
        (True, "the newest verified archive is always kept"),
        (True, "not verified yet: does not count, is not removed"),
    ]


def test_what_is_not_verified_or_not_usable_neither_counts_nor_goes() -> None:
    archives = [
        archive(1, NOW - 5 * DAY),
        archive(2, NOW - 4 * DAY),
        archive(3, NOW - 3 * DAY, verified=False),
        archive(4, NOW - 2 * DAY, usable=False),
        archive(None, NOW - 1 * DAY),
        replace(archive(6, NOW), created=None),
    ]
    assert told(archives, policy(keep_last=1)) == [
        (False, "no rule keeps it"),
        (True, "the newest"),
        (True, "not verified yet: does not count, is not removed"),
        (True, "cannot be used: does not count, is not removed"),
        (True, "cannot be used: does not count, is not removed"),
        (True, "cannot be used: does not count, is not removed"),
    ]


def test_a_held_archive_stays_and_changes_nothing_for_the_rest() -> None:
    archives = one_a_day(4)
    held = [replace(one, held=one.seq in (1, 4)) for one in archives]
    assert kept(archives, policy(keep_last=2)) == [3, 4]
    assert told(held, policy(keep_last=2)) == [
        (True, "held"),
        (False, "no rule keeps it"),
        (True, "one of the 2 newest"),
        (True, "held; one of the 2 newest"),
    ]


def test_order_is_by_seq_and_not_by_the_clock() -> None:
    archives = [archive(1, "2026-11-24 00:00"), archive(2, "2026-11-23 00:00"), archive(3, "2026-11-22 00:00")]
    assert kept(archives, policy(keep_last=1)) == [3]
    assert kept(archives, policy(keep_daily=2)) == [2, 3]


def test_archives_with_one_seq_each_count_and_the_name_decides() -> None:
    archives = [
        archive(7, "2026-11-24 02:00", name="b"),
        archive(7, "2026-11-24 01:00", name="a"),
        archive(7, "2026-11-24 03:00", name="c"),
        archive(8, "2026-11-24 04:00", name="a8"),
    ]
    assert told(archives, policy(keep_last=3)) == [
        (True, "one of the 3 newest"),
        (False, "no rule keeps it"),
        (True, "one of the 3 newest"),
        (True, "one of the 3 newest"),
    ]


CLOCK_RULES = [{"keep_daily": 1}, {"keep_weekly": 1}, {"keep_monthly": 1}, {"keep_yearly": 1}, {"keep_within": 1}]


@pytest.mark.parametrize("rule", CLOCK_RULES)
def test_a_policy_that_goes_by_a_clock_in_doubt_removes_nothing(rule: dict[str, int]) -> None:
    archives = [archive(n, NOW - (10 - n) * timedelta(days=400)) for n in range(1, 10)]
    reason = "the clock is in doubt: nothing is removed by a policy that goes by it"
    assert len(kept(archives, policy(**rule))) == 1
    assert told(archives, policy(**rule, keep_last=2), clock_suspect=True) == [
        *[(True, reason)] * 7,
        (True, "one of the 2 newest"),
        (True, "one of the 2 newest"),
    ]


def test_an_archive_from_the_future_puts_the_clock_in_doubt_and_is_named() -> None:
    archives = one_a_day(3)
    early = NOW - HOUR - timedelta.resolution  # the newest was made a moment later
    assert kept(archives, policy(keep_daily=1), now=NOW - HOUR) == [3]
    assert told(archives, policy(keep_daily=1), now=early)[0] == (
        True,
        "the clock is in doubt, for Backup_20261125_1100Z.zip was made after now: nothing is removed by a policy that"
        " goes by it",
    )
    old_one_from_the_future = [archive(0, NOW + DAY), *archives]
    assert kept(old_one_from_the_future, policy(keep_daily=1)) == [0, 1, 2, 3]


def test_an_archive_that_does_not_count_puts_no_clock_in_doubt() -> None:
    archives = [*one_a_day(3), archive(4, NOW + DAY, verified=False), archive(5, NOW + 2 * DAY, usable=False)]
    assert kept(archives, policy(keep_daily=1)) == [3, 4, 5]


def test_a_policy_of_the_last_alone_does_not_mind_the_clock() -> None:
    archives = [*one_a_day(3), archive(4, NOW + 1000 * DAY)]
    assert kept(archives, policy(keep_last=2), clock_suspect=True) == [3, 4]


def test_no_archives_have_no_verdicts() -> None:
    assert decide([], policy(keep_last=1), now=NOW) == []


def test_verdicts_are_given_by_name_so_a_name_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="same name"):
        decide([archive(1, NOW), archive(2, NOW)], policy(keep_last=1), now=NOW)


def test_times_without_a_zone_are_refused() -> None:
    naive = datetime(2026, 11, 25)
    for refused in (
        lambda: decide([], policy(keep_last=1), now=naive),
        lambda: decide([archive(1, naive)], policy(keep_last=1), now=NOW),
        lambda: clock_jumped(None, naive),
        lambda: clock_jumped(naive, NOW),
    ):
        with pytest.raises(ValueError, match="without a time zone"):
            refused()


@pytest.mark.parametrize(
    ("last_seen", "jumped"),
    [
        (None, False),
        (NOW, False),
        (NOW + timedelta.resolution, True),
        (NOW - DAY, False),
        (NOW - DAY - timedelta.resolution, True),
    ],
)
def test_a_clock_that_went_back_or_on_by_more_than_a_day_has_jumped(last_seen: datetime | None, jumped: bool) -> None:
    assert clock_jumped(last_seen, NOW) is jumped


def test_a_verdict_is_a_plain_value() -> None:
    assert decide([archive(1, NOW, name="x")], policy(keep_last=1), now=NOW) == [Verdict("x", True, ["the newest"])]


def test_a_time_that_the_zone_s_calendar_does_not_have_stops_no_retention() -> None:
    """A forged archive of the first hour of the year 1, west of Greenwich."""
    archives = [archive(0, datetime(1, 1, 1, tzinfo=UTC)), *one_a_day(3)]
    assert kept(archives, policy(keep_daily=2), timezone="America/New_York") == [2, 3]
