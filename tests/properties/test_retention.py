"""Whatever archives there are and whatever the policy: retention never removes what it must not."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.retention import Candidate, RetentionSettings, Verdict, decide

# Nothing here is timed: other work on the machine must not fail a test.
UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
NOW = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)
RULES = ["keep_last", "keep_daily", "keep_weekly", "keep_monthly", "keep_yearly", "keep_within"]
ZONES = ["UTC", "Europe/Berlin", "Pacific/Apia", "America/Sao_Paulo"]

# Near each other as well as years apart, and on the edges of days.
ages = st.one_of(
    st.timedeltas(timedelta(0), timedelta(days=3)),
    st.timedeltas(timedelta(0), timedelta(days=3000)),
    st.integers(0, 6).map(lambda days: timedelta(days=days)),
    st.integers(0, 60).map(lambda days: timedelta(days=days, hours=12)),
)
past = ages.map(lambda age: NOW - age)
any_time = past | ages.map(lambda age: NOW + age)


@st.composite
def archive_lists(draw: st.DrawFn, created: st.SearchStrategy[datetime], *, odd: bool = True) -> list[Candidate]:
    """Draw archives in any order; with `odd` also such as do not count, or are held."""
    number = draw(st.integers(0, 14))
    names = draw(st.permutations([f"Backup_{n:02}.zip" for n in range(number)]))
    mostly = st.sampled_from([True] * 12 + [False]) if odd else st.just(True)
    return [
        Candidate(
            name=name,
            seq=draw(st.integers(0, 12)) if draw(mostly) else None,
            created=draw(created) if draw(mostly) else None,
            verified=draw(mostly),
            restorable=odd and draw(st.booleans()),
            held=not draw(mostly),
            usable=draw(mostly),
        )
        for name in names
    ]


numbers = st.integers(1, 5) | st.just(10000)


@st.composite
def policies(draw: st.DrawFn) -> RetentionSettings:
    return RetentionSettings(**draw(st.dictionaries(st.sampled_from(RULES), numbers, min_size=1)))


clocks = st.fixed_dictionaries(
    {"now": st.just(NOW), "timezone": st.sampled_from(ZONES), "clock_suspect": st.booleans()}
)


def counts(archive: Candidate) -> bool:
    return archive.verified and archive.usable and archive.seq is not None and archive.created is not None


def removed(verdicts: list[Verdict]) -> set[str]:
    return {verdict.name for verdict in verdicts if not verdict.keep}


def oracle(archives: list[Candidate], policy: RetentionSettings, *, now: datetime, timezone: str) -> set[str]:
    """Tell what is removed, one archive at a time, by counting what is newer than it. The clock is right."""
    zone = ZoneInfo(timezone)

    def order(archive: Candidate) -> tuple[int, str]:
        assert archive.seq is not None
        return archive.seq, archive.name

    def period(archive: Candidate, rule: str) -> Any:
        assert archive.created is not None
        local = archive.created.astimezone(zone)
        return {
            "keep_daily": local.date(),
            "keep_weekly": local.date() - timedelta(days=local.weekday()),
            "keep_monthly": (local.year, local.month),
            "keep_yearly": local.year,
        }[rule]

    gone = set()
    for archive in filter(counts, archives):
        assert archive.created is not None
        newer = [other for other in archives if counts(other) and order(other) > order(archive)]
        keep = archive.held or not newer
        keep |= archive.restorable and not any(other.restorable for other in newer)
        keep |= policy.keep_last is not None and len(newer) < policy.keep_last
        keep |= policy.keep_within is not None and archive.created >= now - timedelta(days=policy.keep_within)
        for rule in ("keep_daily", "keep_weekly", "keep_monthly", "keep_yearly"):
            number = getattr(policy, rule)
            newer_periods = {period(other, rule) for other in newer}
            mine = period(archive, rule)
            newest = max(order(other) for other in archives if counts(other) and period(other, rule) == mine)
            before = {period(other, rule) for other in newer if order(other) > newest}
            reached = number is not None and len(before) < number
            keep |= reached and mine not in newer_periods
            better = {period(other, rule) for other in newer if other.restorable}
            keep |= reached and rule != "keep_daily" and archive.restorable and mine not in better
        if not keep:
            gone.add(archive.name)
    return gone


@settings(UNHURRIED, max_examples=500)
@given(archives=archive_lists(past), policy=policies(), zone=st.sampled_from(ZONES))
def test_what_is_removed_is_what_counting_the_newer_ones_says(
    archives: list[Candidate], policy: RetentionSettings, zone: str
) -> None:
    found = removed(decide(archives, policy, now=NOW, timezone=zone))
    assert found == oracle(archives, policy, now=NOW, timezone=zone)


@settings(UNHURRIED, max_examples=300)
@given(archives=archive_lists(any_time), policy=policies(), clock=clocks)
def test_nothing_that_must_stay_is_removed_and_each_archive_has_a_reason(
    archives: list[Candidate], policy: RetentionSettings, clock: dict[str, Any]
) -> None:
    verdicts = decide(archives, policy, **clock)
    assert [verdict.name for verdict in verdicts] == [archive.name for archive in archives]
    assert all(verdict.reasons and all(verdict.reasons) for verdict in verdicts)
    for archive, verdict in zip(archives, verdicts, strict=True):
        assert verdict.keep or (counts(archive) and not archive.held)
    counting = [(archive.seq, archive.name) for archive in archives if counts(archive)]
    if counting:
        assert max(counting)[1] not in removed(verdicts)


@settings(UNHURRIED, max_examples=300)
@given(archives=archive_lists(any_time), policy=policies(), clock=clocks)
def test_the_newest_restorable_archive_stays_and_what_drills_have_found_never_makes_an_archive_go(
    archives: list[Candidate], policy: RetentionSettings, clock: dict[str, Any]
) -> None:
    gone = removed(decide(archives, policy, **clock))
    undrilled = [replace(archive, restorable=False) for archive in archives]
    assert gone <= removed(decide(undrilled, policy, **clock))
    restorable = [(archive.seq, archive.name) for archive in archives if counts(archive) and archive.restorable]
    if restorable:
        assert max(restorable)[1] not in gone


@settings(UNHURRIED, max_examples=300)
@given(archives=archive_lists(past), policy=policies(), zone=st.sampled_from(ZONES), data=st.data())
def test_one_more_drill_removes_nothing_but_what_only_its_evidence_kept(
    archives: list[Candidate], policy: RetentionSettings, zone: str, data: st.DataObject
) -> None:
    """A drill of one archive lets go at most archives that stayed for having been drilled before."""
    if not archives:
        return
    drilled = data.draw(st.sampled_from([archive.name for archive in archives]))
    after = [replace(archive, restorable=archive.restorable or archive.name == drilled) for archive in archives]
    clock: dict[str, Any] = {"now": NOW, "timezone": zone}
    newly = removed(decide(after, policy, **clock)) - removed(decide(archives, policy, **clock))
    assert newly <= {archive.name for archive in archives if archive.restorable}


@settings(UNHURRIED, max_examples=300)
@given(archives=archive_lists(any_time), policy=policies(), clock=clocks, rule=st.sampled_from(RULES), more=numbers)
def test_a_larger_number_or_one_more_rule_never_removes_more(
    archives: list[Candidate], policy: RetentionSettings, clock: dict[str, Any], rule: str, more: int
) -> None:
    old = getattr(policy, rule)
    larger = policy.model_copy(update={rule: min((old or 0) + more, 10000)})
    assert removed(decide(archives, larger, **clock)) <= removed(decide(archives, policy, **clock))


@settings(UNHURRIED, max_examples=300)
@given(
    archives=archive_lists(any_time),
    policy=policies(),
    clock=clocks,
    kind=st.sampled_from([{"verified": False}, {"usable": False}, {"seq": None}, {"created": None}]),
    seq=st.integers(0, 12),
    created=any_time,
    name=st.sampled_from(["Backup_00a.zip", "Backup_06a.zip", "Backup_99a.zip"]),
    held=st.booleans(),
)
def test_one_more_archive_that_does_not_count_changes_nothing_for_the_rest(
    archives: list[Candidate],
    policy: RetentionSettings,
    clock: dict[str, Any],
    kind: dict[str, Any],
    seq: int,
    created: datetime,
    name: str,
    held: bool,
) -> None:
    added = replace(Candidate(name=name, seq=seq, created=created, verified=True, held=held), **kind)
    *rest, last = decide([*archives, added], policy, **clock)
    assert rest == decide(archives, policy, **clock)
    assert last.keep


@settings(UNHURRIED, max_examples=200)
@given(archives=archive_lists(any_time), policy=policies(), clock=clocks, data=st.data())
def test_a_hold_changes_nothing_for_the_rest(
    archives: list[Candidate], policy: RetentionSettings, clock: dict[str, Any], data: st.DataObject
) -> None:
    held = data.draw(st.sets(st.sampled_from([archive.name for archive in archives]))) if archives else set()
    without = [replace(archive, held=False) for archive in archives]
    holding = [replace(archive, held=archive.name in held) for archive in archives]
    assert removed(decide(holding, policy, **clock)) == removed(decide(without, policy, **clock)) - held


@settings(UNHURRIED, max_examples=200)
@given(archives=archive_lists(any_time), policy=policies(), clock=clocks, data=st.data())
def test_the_order_in_which_archives_are_listed_does_not_matter(
    archives: list[Candidate], policy: RetentionSettings, clock: dict[str, Any], data: st.DataObject
) -> None:
    shuffled = data.draw(st.permutations(archives))
    by_name = {verdict.name: verdict for verdict in decide(archives, policy, **clock)}
    assert decide(shuffled, policy, **clock) == [by_name[archive.name] for archive in shuffled]


@settings(UNHURRIED, max_examples=200)
@given(archives=archive_lists(any_time, odd=False), number=st.integers(1, 20), clock=clocks)
def test_keep_last_alone_keeps_exactly_that_many(archives: list[Candidate], number: int, clock: dict[str, Any]) -> None:
    verdicts = decide(archives, RetentionSettings(keep_last=number), **clock)
    assert sum(verdict.keep for verdict in verdicts) == min(number, len(archives))


@settings(UNHURRIED, max_examples=200)
@given(
    archives=archive_lists(past, odd=False),
    rule=st.sampled_from(["daily", "weekly", "monthly", "yearly"]),
    number=st.integers(1, 8),
    zone=st.sampled_from(ZONES),
)
def test_a_calendar_rule_alone_keeps_one_archive_of_each_period_it_reaches(
    archives: list[Candidate], rule: str, number: int, zone: str
) -> None:
    verdicts = decide(archives, RetentionSettings(**{f"keep_{rule}": number}), now=NOW, timezone=zone)
    periods = {
        (archive.created or NOW)
        .astimezone(ZoneInfo(zone))
        .strftime({"daily": "%F", "weekly": "%G %V", "monthly": "%Y %m", "yearly": "%Y"}[rule])
        for archive in archives
    }
    assert sum(verdict.keep for verdict in verdicts) == min(number, len(periods))


@settings(UNHURRIED, max_examples=300)
@given(
    archives=archive_lists(past),
    policy=policies(),
    zone=st.sampled_from(ZONES),
    wrong=st.lists(any_time, min_size=14, max_size=14),
    wrong_now=any_time,
)
def test_in_doubt_nothing_is_removed_that_would_be_kept_by_the_right_time(
    archives: list[Candidate], policy: RetentionSettings, zone: str, wrong: list[datetime], wrong_now: datetime
) -> None:
    by_the_right_time = removed(decide(archives, policy, now=NOW, timezone=zone))
    told = [
        replace(archive, created=archive.created and moment) for archive, moment in zip(archives, wrong, strict=False)
    ]
    suspected = decide(told, policy, now=wrong_now, timezone=zone, clock_suspect=True)
    assert removed(suspected) <= by_the_right_time
    last_alone = policy == RetentionSettings(keep_last=policy.keep_last or 1)
    assert removed(suspected) == (by_the_right_time if last_alone else set())
    if any(counts(archive) and archive.created is not None and archive.created > wrong_now for archive in told):
        assert removed(decide(told, policy, now=wrong_now, timezone=zone)) == removed(suspected)
