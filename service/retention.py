"""Which archives are kept: a pure decision, with a reason for each archive.

* Archives are ordered by `seq`, then by name; never by a clock.
* Only verified archives count towards a rule. One that is not verified, or that has a problem, is not removed here and
  makes nobody else go or stay.
* A held archive is kept, and counts like any other: putting a hold on one, or lifting it, changes nothing for the rest.
* The newest verified archive is always kept.
* An archive that a drill has restored is verified and more. The newest of them is always kept. A week, month or year
  that a rule keeps by its newest archive keeps its newest restorable one as well, when that is another: in the long
  run, one that is known to restore is worth more than one that is some days newer, but never takes its place. So
  evidence only ever makes more archives stay.
* Rules that go by a clock (all but `keep_last`) are suspended while the clock is in doubt. Which archives they would
  keep by the right time is then unknown, so a policy that has one removes nothing at all; a policy of `keep_last` alone
  goes on. So nothing is removed in doubt that would be kept by the right time.

The clock is in doubt when the caller says so, or when an archive that counts was made after `now`. Such an archive
keeps everything until its time has come, or somebody removes it: its name is in the reasons. A time of creation that is
wrong but past is not noticed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice
from typing import Annotated, Self
from zoneinfo import ZoneInfo

from pydantic import Field, model_validator

from service.config_types import Settings

LONGEST_SILENCE = timedelta(hours=24)
"""A clock that went on by more than this between two looks may have been set forward."""

NOT_USABLE = "cannot be used: does not count, is not removed"
NOT_VERIFIED = "not verified yet: does not count, is not removed"
HELD = "held"
NO_RULE = "no rule keeps it"
NEWEST = "the newest verified archive is always kept"
NEWEST_RESTORABLE = "the newest restorable archive is always kept"

_PERIODS = (
    ("day", "keep_daily", "%Y-%m-%d"),
    ("week", "keep_weekly", "%G-W%V"),
    ("month", "keep_monthly", "%Y-%m"),
    ("year", "keep_yearly", "%Y"),
)
_LONG = frozenset({"week", "month", "year"})

Number = Annotated[int, Field(ge=1, le=10000)]


class RetentionSettings(Settings):
    """Which archives are kept: those that at least one of these rules keeps. Only verified archives count."""

    keep_last: Number | None = None
    """Keep this many of the newest archives, whenever they were made."""
    keep_daily: Number | None = None
    """Keep the newest archive of each of this many days. Days without an archive do not count, here and below; days
    begin at midnight in the schedule's time zone."""
    keep_weekly: Number | None = None
    """Keep the newest archive of each of this many weeks, which begin on Monday (ISO 8601). A week, and likewise a
    month and a year, keeps also its newest archive that a drill has restored."""
    keep_monthly: Number | None = None
    """Keep the newest archive of each of this many months."""
    keep_yearly: Number | None = None
    """Keep the newest archive of each of this many years."""
    keep_within: Annotated[int, Field(ge=1, le=36500)] | None = None
    """Keep all archives of this many days (of 24 hours) before now."""

    @model_validator(mode="after")
    def _keeps_something(self) -> Self:
        if all(getattr(self, name) is None for name in type(self).model_fields):
            raise ValueError("give at least one rule, such as keep_last; a policy without any would remove everything")
        return self

    @property
    def goes_by_clock(self) -> bool:
        """Tell whether a wrong clock could make this policy keep other archives than it should."""
        return any(getattr(self, name) is not None for name in type(self).model_fields if name != "keep_last")


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """What the decision needs to know of one archive. `seq` and `created` are None where they cannot be read.

    `usable` is false for an archive that has a problem, such as a header that cannot be read.
    """

    name: str
    seq: int | None
    created: datetime | None
    verified: bool
    restorable: bool = False
    """Whether a drill has restored it; then it is verified, too."""
    held: bool = False
    usable: bool = True


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether an archive is kept, and why (at least one reason)."""

    name: str
    keep: bool
    reasons: list[str]


@dataclass(frozen=True, slots=True)
class _Counting:
    """An archive that counts: everything is known of it."""

    seq: int
    name: str
    created: datetime
    restorable: bool


def decide(
    archives: Sequence[Candidate],
    policy: RetentionSettings,
    *,
    now: datetime,
    timezone: str = "UTC",
    clock_suspect: bool = False,
) -> list[Verdict]:
    """Return the verdict on each of a target's archives, in the order given. `timezone` tells where days begin.

    Raises ValueError when a time is naive, or two archives have one name, since a verdict is carried out by name.
    """
    _check(archives, now)
    newest_first = sorted(_counting(archives), key=lambda archive: (archive.seq, archive.name), reverse=True)
    reasons: dict[str, list[str]] = {archive.name: _reasons_of_its_own(archive) for archive in archives}
    doubt = _doubt(newest_first, now, clock_suspect) if policy.goes_by_clock else None
    for name, reason in _kept_by_rules(newest_first, policy, now, ZoneInfo(timezone), by_clock=doubt is None):
        reasons[name].append(reason)
    if newest_first and not reasons[newest_first[0].name]:
        reasons[newest_first[0].name].append(NEWEST)
    restorable = next((archive.name for archive in newest_first if archive.restorable), None)
    if restorable is not None and not reasons[restorable]:
        reasons[restorable].append(NEWEST_RESTORABLE)
    return [
        Verdict(name, keep=bool(found) or doubt is not None, reasons=found or [doubt or NO_RULE])
        for name, found in reasons.items()
    ]


def clock_jumped(last_seen: datetime | None, now: datetime) -> bool:
    """Tell whether the clock may have been set since it was last looked at; `last_seen` is None at the first look.

    It was set back when `now` is earlier. It was perhaps set forward when `now` is more than 24 hours later: who looks
    every minute cannot tell that from a machine that was off or asleep. Pruning can wait for either to be cleared up;
    whoever asks has to remember the doubt, for the look after a jump finds nothing odd. Raises ValueError when a time
    is naive.
    """
    _require_aware(now)
    if last_seen is None:
        return False
    _require_aware(last_seen)
    return not timedelta(0) <= now - last_seen <= LONGEST_SILENCE


def _check(archives: Sequence[Candidate], now: datetime) -> None:
    _require_aware(now)
    for archive in archives:
        if archive.created is not None:
            _require_aware(archive.created)
    if len({archive.name for archive in archives}) < len(archives):
        raise ValueError("two archives have the same name")


def _require_aware(moment: datetime) -> None:
    if moment.utcoffset() is None:
        raise ValueError("a time without a time zone was given")


def _counting(archives: Sequence[Candidate]) -> Iterator[_Counting]:
    for archive in archives:
        if archive.verified and archive.usable and archive.seq is not None and archive.created is not None:
            yield _Counting(archive.seq, archive.name, archive.created, archive.restorable)


def _reasons_of_its_own(archive: Candidate) -> list[str]:
    """Return why an archive is kept whatever the policy says."""
    reasons = [HELD] if archive.held else []
    if not archive.usable or archive.seq is None or archive.created is None:
        reasons.append(NOT_USABLE)
    elif not archive.verified:
        reasons.append(NOT_VERIFIED)
    return reasons


def _doubt(newest_first: list[_Counting], now: datetime, clock_suspect: bool) -> str | None:
    """Return why the clock is in doubt; None when it is not."""
    if clock_suspect:
        return "the clock is in doubt: nothing is removed by a policy that goes by it"
    future = [archive.name for archive in newest_first if archive.created > now]
    if future:
        return (
            f"the clock is in doubt, for {future[0]} was made after now: nothing is removed by a policy that goes by it"
        )
    return None


def _kept_by_rules(
    newest_first: list[_Counting], policy: RetentionSettings, now: datetime, zone: ZoneInfo, *, by_clock: bool
) -> Iterator[tuple[str, str]]:
    """Yield the name of an archive and the reason, for each rule that keeps it."""
    last = policy.keep_last or 0
    for archive in newest_first[:last]:
        yield archive.name, f"one of the {last} newest" if last > 1 else "the newest"
    if by_clock:
        for kind, rule, form in _PERIODS:
            yield from _newest_of_periods(newest_first, kind, getattr(policy, rule) or 0, form, zone)
        if policy.keep_within is not None:
            yield from _made_within(newest_first, policy.keep_within, now)


def _newest_of_periods(
    newest_first: list[_Counting], kind: str, most: int, form: str, zone: ZoneInfo
) -> Iterator[tuple[str, str]]:
    newest: dict[str, str] = {}
    restorable: dict[str, str] = {}
    for archive in newest_first:
        period = _local(archive.created, zone).strftime(form)
        newest.setdefault(period, archive.name)
        if archive.restorable:
            restorable.setdefault(period, archive.name)
    for number, (period, name) in enumerate(islice(newest.items(), most), start=1):
        yield name, f"newest of {kind} {period} ({number} of {most})"
        if kind in _LONG and restorable.get(period, name) != name:
            yield restorable[period], f"newest restorable of {kind} {period}"


def _local(created: datetime, zone: ZoneInfo) -> datetime:
    """Return a time in a zone; as it is when the calendar does not have it there, as on the first day of the year 1."""
    try:
        return created.astimezone(zone)
    except OverflowError:
        return created


def _made_within(newest_first: list[_Counting], days: int, now: datetime) -> Iterator[tuple[str, str]]:
    reach = "a day" if days == 1 else f"{days} days"
    for archive in newest_first:
        if now - archive.created <= timedelta(days=days):
            yield archive.name, f"made within {reach}"
