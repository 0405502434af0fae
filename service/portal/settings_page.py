"""The System Backup settings: changed, tried before they are saved, and what the file on the server fixes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from zoneinfo import available_timezones

from aiohttp import web

from service.client import ConnectionLost, NoAnswer, RemoteError
from service.portal.portal import Portal
from service.portal.settings_form import (
    FREQUENCIES,
    KINDS,
    NEW_SECRETS,
    RULES,
    WEEKDAYS,
    Values,
    Wrong,
    kept_secrets,
    kind_of,
    retention_of,
    schedule_of,
    secrets_typed,
    shown_again,
    target_of,
    typed,
    values_of,
)
from service.portal.translation import N_
from service.secret import is_place_of_secret

RUNS = 5
SETTINGS = ("enabled", "target", "schedule", "retention")


@dataclass(slots=True)
class _Shown:
    """What the page shows beside the settings in force."""

    values: Values
    wrong: dict[str, str] = field(default_factory=dict)
    """What is wrong with a field, by name."""
    error: RemoteError | None = None
    findings: list[dict[str, Any]] | None = None
    """What a test of the destination has found."""
    retention: Any = None
    """What retention.preview tells, when it was asked for."""
    trouble: Exception | None = None
    """Why that cannot be told."""
    runs: list[str] = field(default_factory=list)


def routes(portal: Portal) -> list[web.RouteDef]:
    """Return the routes of this family."""

    async def show(request: web.Request) -> web.StreamResponse:
        found = await portal.call(request, "settings.get")
        shown = _Shown(values_of(found["settings"]))
        if request.query.get("show") == "retention":
            await _preview_retention(portal, request, shown, {})
        return await _page(portal, request, found, shown)

    async def change(request: web.Request) -> web.StreamResponse:
        found = await portal.call(request, "settings.get")
        fields = [(name, value) for name, value in (await request.post()).items() if isinstance(value, str)]
        values = typed(fields)
        for name in found["fixed"]:
            values |= {key: value for key, value in values_of(found["settings"]).items() if _part(key) == name}
        shown = _Shown(values)
        wanted = _wanted(portal, request, found, shown, secrets_typed(fields))
        shown.values = shown_again(values)
        action = values.get("action", "save")
        if action == "save" and not shown.wrong:
            changes = {name: value for name, value in wanted.items() if not _same(value, found["settings"][name])}
            if not changes:
                return portal.redirect(request, "/settings", notice=portal.text(request, N_("Nothing was changed.")))
            try:
                key = values.get("idempotency_key")
                await portal.call(request, "settings.update", idempotency_key=key, **changes)
            except RemoteError as error:
                shown.error = error
            else:
                return portal.redirect(request, "/settings", notice=portal.text(request, N_("The settings are saved.")))
        elif action == "test" and not _of(shown.wrong, "target"):
            await _test(portal, request, shown, wanted.get("target"))
        elif action == "retention" and not _of(shown.wrong, "retention"):
            await _preview_retention(portal, request, shown, wanted)
        return await _page(portal, request, found, shown, wanted, status=422 if action == "save" else 200)

    return [web.get("/settings", show), web.post("/settings", change)]


def _wanted(
    portal: Portal, request: web.Request, found: Mapping[str, Any], shown: _Shown, secrets: Mapping[str, str]
) -> dict[str, Any]:
    """Return the settings that the fields speak of; what is wrong with them is told in `shown`."""
    values, settings = shown.values, found["settings"]
    makers: dict[str, Callable[[], Any]] = {
        "enabled": lambda: bool(values["enabled"]),
        "target": lambda: target_of(values, secrets, settings["target"]),
        "schedule": lambda: schedule_of(values),
        "retention": lambda: retention_of(values),
    }
    wanted: dict[str, Any] = {}
    for name, make in makers.items():
        if name in found["fixed"]:
            continue
        if name == "target" and settings["target"] is None and _untouched(values):
            continue  # set up bit by bit: the place may come later
        try:
            wanted[name] = make()
        except Wrong as wrong:
            shown.wrong[wrong.field] = portal.text(request, str(wrong))
    return wanted


def _untouched(values: Values) -> bool:
    kind = values.get("kind", "")
    return values.get("action") == "save" and not any(
        value for name, value in values.items() if name.startswith(f"{kind}:") and isinstance(value, str)
    )


def _same(wanted: Any, stored: Any) -> bool:
    """Tell whether nothing would change; what a stored setting leaves out is what it is when left out."""
    if isinstance(wanted, dict) and isinstance(stored, dict):
        return all(_same(wanted.get(name), stored.get(name)) for name in {*wanted, *stored})
    return bool(wanted == stored)


async def _test(portal: Portal, request: web.Request, shown: _Shown, target: Any) -> None:
    try:
        given = {} if target is None else {"target": target}
        shown.findings = await portal.call(request, "target.test", **given)
    except RemoteError as error:
        shown.error = error


async def _preview_retention(portal: Portal, request: web.Request, shown: _Shown, wanted: Mapping[str, Any]) -> None:
    """Tell what would be kept and removed; a target that does not answer must not take the page with it."""
    given = {name: wanted[name] for name in ("retention", "schedule") if wanted.get(name) is not None}
    if "retention" in wanted and wanted["retention"] is None:
        return
    try:
        shown.retention = await portal.call(request, "retention.preview", **given)
    except (RemoteError, ConnectionLost, NoAnswer) as error:
        shown.trouble = error


async def _page(
    portal: Portal,
    request: web.Request,
    found: Mapping[str, Any],
    shown: _Shown,
    wanted: Mapping[str, Any] | None = None,
    *,
    status: int = 200,
) -> web.StreamResponse:
    settings = found["settings"]
    schedule = settings["schedule"] if wanted is None else wanted.get("schedule", settings["schedule"])
    info, pin, _ = await asyncio.gather(
        portal.call(request, "system.info"), _pin(portal, request), _next_runs(portal, request, shown, schedule)
    )
    kind = kind_of(settings["target"]["url"]) if settings["target"] else None
    return portal.render(
        request,
        "settings.html",
        status=status,
        settings=settings,
        fixed=found["fixed"],
        copies=found["copies"],
        v=_Fields(shown.values),
        wrong=shown.wrong,
        shown=shown,
        info=info,
        pin=pin,
        schedule=schedule,
        kept_kind=kind,
        kept=[] if kind is None else _kept(settings["target"]["storage_options"]),
        more_secrets={each: kept_secrets(settings["target"], each) for each in KINDS},
        new_secrets=NEW_SECRETS,
        frequencies=FREQUENCIES,
        weekdays=WEEKDAYS,
        rules=RULES,
        more_rules=any(shown.values.get(rule) for rule in RULES[1:]),
        timezones=_timezones(),
        changeable=portal.may(request, "settings.update") and len(found["fixed"]) < len(SETTINGS),
    )


class _Fields(dict[str, Any]):
    """Fields for a template: one that was not sent is empty."""

    def __missing__(self, name: str) -> str:
        return ""


def _kept(options: Mapping[str, Any]) -> list[str]:
    return [name for name, value in options.items() if is_place_of_secret(value)]


async def _pin(portal: Portal, request: web.Request) -> Any:
    """Return how the restore PIN stands; None where there is none to be had."""
    try:
        return await portal.call(request, "pin.status")
    except RemoteError:
        return None


async def _next_runs(portal: Portal, request: web.Request, shown: _Shown, schedule: Any) -> None:
    """Tell when a schedule would have backups made, or what is wrong with it."""
    if schedule is None:
        return
    try:
        shown.runs = await portal.call(request, "schedule.preview", schedule=schedule, count=RUNS)
    except RemoteError as error:
        if error.code not in ("CONFIG", "INVALID_PARAMS"):
            raise
        message = str(error).removeprefix("the settings: ")
        key = message.removeprefix("schedule.").partition(":")[0].partition(" ")[0]
        shown.wrong[key if key in ("at", "cron", "day", "timezone", "jitter", "catch_up") else "frequency"] = message
        if shown.error is not None and str(shown.error) == str(error):
            shown.error = None  # nothing else is wrong: told once, at its field


def _part(name: str) -> str:
    """Return which setting a field belongs to."""
    if name == "enabled":
        return "enabled"
    if name in RULES:
        return "retention"
    return "target" if name == "kind" or ":" in name else "schedule"


def _of(wrong: Mapping[str, str], setting: str) -> bool:
    return any(_part(name) == setting for name in wrong)


@cache
def _timezones() -> list[str]:
    return sorted(name for name in available_timezones() if "/" in name or name == "UTC")
