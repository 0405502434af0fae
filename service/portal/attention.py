"""What needs somebody's attention, the worst first, each with a way to act. Pure: made of what the socket has told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from service.job import ADDING

Kind = Literal["bad", "warn", "info"]
_ORDER: dict[Kind, int] = {"bad": 0, "warn": 1, "info": 2}


class Say(Protocol):
    """Gives a text in the viewer's language."""

    def __call__(self, text: str, /, **values: object) -> str:
        """Return the text with the values in it."""


@dataclass(frozen=True, slots=True)
class Action:
    """What can be done about it: go to a page, or with `method` ask for a job."""

    label: str
    path: str
    method: str = ""


@dataclass(frozen=True, slots=True)
class Notice:
    """One thing to know. `hint` is what the service itself says to do."""

    kind: Kind
    title: str
    text: str = ""
    hint: str = ""
    actions: tuple[Action, ...] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """How the backups stand, in one sentence."""

    kind: Literal["good", "warn", "bad", "new"]
    title: str


PROVEN = ("verified", "restorable")


def last_proven(jobs: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Return the newest job whose archive was read back and authenticated in one place at least.

    `jobs` are backups and baselines, the newest first.
    """
    return next(
        (job for job in jobs if any(each["evidence"] in PROVEN for each in (job["result"] or {}).get("targets", ()))),
        None,
    )


def verdict(
    found: Sequence[Notice],
    info: Mapping[str, Any],
    settings: Mapping[str, Any],
    proven: Mapping[str, Any] | None,
    _: Say,
) -> Verdict:
    """Return how the backups stand; `proven` is the last one of which an archive is proven."""
    if settings["target"] is None:
        return Verdict("new", _("Backups are not set up yet"))
    if any(notice.kind == "bad" for notice in found):
        return Verdict("bad", _("Backups need you now"))
    if proven is None:
        at_work = info["active"] is not None and info["active"]["kind"] in ADDING
        return Verdict(
            "new", _("The first backup is at work") if at_work else _("Everything is ready for the first backup")
        )
    if any(notice.kind == "warn" for notice in found):
        return Verdict("warn", _("Backups work; something needs your attention"))
    return Verdict("good", _("Backups are in good order"))


def notices(
    info: Mapping[str, Any],
    settings: Mapping[str, Any],
    days: Sequence[Mapping[str, Any]],
    last: Mapping[str, Any] | None,
    proven: Mapping[str, Any] | None,
    _: Say,
) -> list[Notice]:
    """Return what needs attention.

    `days` are those of history.days, `last` is the last backup that has ended, `proven` the last proven one.
    """
    run_now = Action(_("Back up now"), "/jobs/backup", "backup.start")
    to_settings = Action(_("Open the settings"), "/settings")
    found: list[Notice] = []
    if info["restore"] is not None:
        found.append(
            Notice(
                "warn",
                _("A restore waits for your decision"),
                _(
                    "%(archive)s was restored. Look whether the server works, then keep it or go back.",
                    archive=info["restore"]["archive"],
                ),
                actions=(Action(_("Keep it or go back"), "/restore/pending"),),
            )
        )
    if settings["target"] is None:
        found.append(
            Notice(
                "info", _("No destination is set"), _("Archives need a place to be kept in."), actions=(to_settings,)
            )
        )
    else:
        found += _last_backup(last, run_now, _)
        found += _left_out(days, run_now, _)
        if not settings["enabled"] or settings["schedule"] is None:
            switched_off = _("Scheduled backups are switched off") if not settings["enabled"] else ""
            found.append(
                Notice(
                    "warn",
                    switched_off or _("No schedule is set"),
                    _("Backups are made only when somebody asks for one."),
                    actions=(to_settings,),
                )
            )
    found += _standing(info, proven, _)
    return sorted(found, key=lambda notice: _ORDER[notice.kind])


def _last_backup(last: Mapping[str, Any] | None, run_now: Action, _: Say) -> list[Notice]:
    if last is None:
        return [Notice("info", _("No backup was made yet"), actions=(run_now,))]
    look = Action(_("See what happened"), f"/jobs/{last['id']}")
    error = last["error"] or {}
    told = {"text": error.get("message", ""), "hint": error.get("hint", "")}
    if last["state"] in ("failed", "interrupted"):
        title = _("The last backup failed") if last["state"] == "failed" else _("The last backup was interrupted")
        return [Notice("bad", title, **told, actions=(run_now, look))]
    if last["state"] == "partial":
        return [Notice("warn", _("The last backup was not done completely"), **told, actions=(look,))]
    if last["state"] == "cancelled":
        return [Notice("warn", _("The last backup was cancelled"), actions=(run_now, look))]
    return []


def _left_out(days: Sequence[Mapping[str, Any]], run_now: Action, _: Say) -> list[Notice]:
    """Tell that backups were due since the last one that went well, and did not come."""
    without = 0
    for day in reversed(days):
        if day["state"] in ("succeeded", "partial"):
            break
        without += day["state"] in ("missed", "failed")
    missed = any(day["state"] == "missed" for day in days[-2:])
    if without < 2 and not missed:
        return []
    text = _("Days in a row on which a backup was due and none was made: %(days)s.", days=without)
    if without >= 2:
        return [Notice("bad", _("Backups have stopped coming"), text, actions=(run_now,))]
    recent = any(day["state"] in ("succeeded", "partial") for day in days[-1:])
    return [] if recent else [Notice("warn", _("A backup was missed"), text, actions=(run_now,))]


def _standing(info: Mapping[str, Any], proven: Mapping[str, Any] | None, _: Say) -> list[Notice]:
    """Tell what is not right with the service itself."""
    found: list[Notice] = []
    if info["not_ready"] is not None:
        found.append(
            Notice("info", _("The service is starting"), _("It takes no jobs until it has put its house in order."))
        )
    recovery = info["recovery"]
    if recovery is not None and recovery["warning"]:
        found.append(
            Notice(
                "warn",
                _("If this machine dies, its archives die with it"),
                _("They open on this machine's TPM only: nobody has chosen a recovery key."),
                _("On the server, run %(command)s and choose a recovery key.", command="deviceon-backup provision"),
                actions=(Action(_("Sealing and recovery"), "/settings"),),
            )
        )
    if info["clock_doubted_since"] is not None:
        found.append(
            Notice(
                "warn",
                _("The server's clock has jumped"),
                _("Until it has gone steadily for a day, no archive is removed by a rule that goes by dates."),
            )
        )
    drill = info["last_drill"]
    if drill is not None and drill["state"] in ("failed", "partial"):
        error = drill["error"] or {}
        see = Action(_("See what happened"), f"/jobs/{drill['id']}")
        if error.get("code") == "PIN_REQUIRED":
            found.append(
                Notice(
                    "warn",
                    _("The last drill did not try its archive: it opens with the restore PIN"),
                    _("Nobody is there to type it when a drill starts by schedule. Start one yourself."),
                    actions=(Action(_("Go to the drills"), "/drills"), see),
                )
            )
        else:
            title = _("The last drill failed: that archive would not have restored")
            found.append(Notice("bad", title, error.get("message", ""), error.get("hint", ""), actions=(see,)))
    elif drill is None and proven is not None:
        found.append(
            Notice(
                "info",
                _("Nobody has tried yet whether an archive restores"),
                _("A drill restores one beside the live data, compares it, and drops it again."),
                actions=(Action(_("Go to the drills"), "/drills"),),
            )
        )
    return found
