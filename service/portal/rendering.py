"""Templates: Jinja2 with everything escaped, and filters that write numbers and times as the viewer's language does."""

from __future__ import annotations

import hashlib
import mimetypes
import re
import secrets
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from aiohttp import web
from babel.dates import format_date, format_datetime, format_timedelta
from babel.numbers import format_decimal
from jinja2 import Environment, FileSystemLoader, StrictUndefined, pass_context
from jinja2.runtime import Context
from markupsafe import Markup, escape

from service.portal.translation import locale_of, translations

HERE: Final = Path(__file__).parent
ZONE_COOKIE: Final = "deviceon-backup-zone"
THEME_COOKIE: Final = "deviceon-backup-theme"
THEMES: Final = ("auto", "light", "dark")

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


class Static:
    """The files below static/, read once. Their URLs change with their content, so browsers may keep them."""

    def __init__(self) -> None:
        self.files: dict[str, tuple[bytes, str, str]] = {}
        for path in sorted((HERE / "static").iterdir()):
            content = path.read_bytes()
            kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
            text = kind.startswith("text/") or kind.endswith("javascript")
            kind = f"{kind}; charset=utf-8" if text else kind
            self.files[path.name] = (content, kind, hashlib.sha256(content).hexdigest()[:16])

    def version(self, name: str) -> str:
        """Return what tells this content of a file from others."""
        return self.files[name][2]

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """Answer a request for a file."""
        found = self.files.get(request.match_info["name"])
        if found is None:
            raise web.HTTPNotFound
        content, kind, version = found
        same = request.query.get("v") == version
        headers = {
            "Content-Type": kind,
            "Cache-Control": "public, max-age=31536000, immutable" if same else "no-cache",
            "ETag": f'"{version}"',
        }
        if request.headers.get("If-None-Match") == f'"{version}"':
            return web.Response(status=304, headers=headers)
        return web.Response(body=content, headers=headers)


def environment() -> Environment:
    """Return the templates; each page gives `language` and `zone` in its values."""
    made = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.i18n", "jinja2.ext.loopcontrols", "jinja2.ext.do"],
    )
    made.install_gettext_callables(  # type: ignore[attr-defined]  # the extension's
        pass_context(_gettext), pass_context(_ngettext), newstyle=True
    )
    made.filters |= {
        "bytes": pass_context(_bytes),
        "number": pass_context(_number),
        "duration": pass_context(_duration),
        "moment": pass_context(_moment),
        "day": pass_context(_day),
        "clock": pass_context(_clock),
        "at": _datetime,
        "pattern": _pattern,
        "code": _code,
    }
    made.globals |= {"idempotency_key": lambda: secrets.token_hex(16)}
    return made


def _code(text: object) -> Markup:
    """Write a sentence of the service's; what it puts between backticks is code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))  # noqa: S704  # it is escaped


def _pattern(text: str) -> str:
    """Write a text as the attribute `pattern` takes it; only what is special there may be escaped."""
    return re.sub(r"[\^$.*+?()\[\]{}|/\\]", r"\\\g<0>", text)


def zone_of(name: str, default: str) -> ZoneInfo:
    """Return the time zone that a browser has told, if there is such a one."""
    return _zone(name) or ZoneInfo(default)


@lru_cache(maxsize=256)
def _zone(name: str) -> ZoneInfo | None:
    try:
        return ZoneInfo(name) if 0 < len(name) <= 64 else None
    except (ValueError, OSError, ZoneInfoNotFoundError):
        return None


def _gettext(context: Context, text: str) -> str:
    return translations(context["language"]).gettext(text)


def _ngettext(context: Context, singular: str, plural: str, number: int) -> str:
    return translations(context["language"]).ngettext(singular, plural, number)


def _number(context: Context, value: float) -> str:
    return format_decimal(value, locale=locale_of(context["language"]))


def _bytes(context: Context, value: float | None) -> str:
    """Write a size with three digits: 1.53 GB."""
    if value is None:
        return "–"
    amount, unit = float(value), 0
    while abs(amount) >= 999.5 and unit < len(_UNITS) - 1:
        amount, unit = amount / 1000, unit + 1
    pattern = "#,##0" if unit == 0 or abs(amount) >= 99.95 else "0.0" if abs(amount) >= 9.995 else "0.00"
    return f"{format_decimal(amount, pattern, locale=locale_of(context['language']))} {_UNITS[unit]}"


def _duration(context: Context, seconds: float | None) -> str:
    """Write a time span with its two largest parts: 1 h 5 min."""
    if seconds is None:
        return "–"
    whole = round(seconds)
    parts = [
        (whole // 86400, _gettext(context, "%(n)s d")),
        (whole // 3600 % 24, _gettext(context, "%(n)s h")),
        (whole // 60 % 60, _gettext(context, "%(n)s min")),
        (whole % 60, _gettext(context, "%(n)s s")),
    ]
    first = next((at for at, (count, _) in enumerate(parts) if count), len(parts) - 1)
    told = [text % {"n": count} for count, text in parts[first : first + 2] if count]
    if not told:
        return (parts[-1][1] % {"n": 0}) if seconds <= 0 else "< " + parts[-1][1] % {"n": 1}
    return " ".join(told)


def _moment(
    context: Context, when: str | datetime | None, *, relative: bool = False, seconds: bool = False, zone: str = ""
) -> str:
    """Write a time in the viewer's zone (or another one), as <time>; `relative`: as "5 minutes ago", the time itself is
    in its title.
    """
    if when is None:
        return Markup('<span class="none">–</span>')
    at = _datetime(when)
    within, locale = _zone_for(at, _zone(zone) or context["zone"]), locale_of(context["language"])
    written = format_datetime(at, "medium" if seconds else _minutes(context["language"]), tzinfo=within, locale=locale)
    named = f"{written} {_zone_name(at, within)}"
    exact = at.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if relative:
        told = format_timedelta(at - datetime.now(UTC), add_direction=True, locale=locale)
        return Markup('<time datetime="{}" title="{}" data-relative>{}</time>').format(exact, named, told)
    return Markup('<time datetime="{}" title="{}">{}</time>').format(exact, named, written)


def _clock(context: Context, when: str | datetime) -> str:
    """Write the time of day in the viewer's zone, to the second; the whole time is in the title."""
    at = _datetime(when)
    zone = _zone_for(at, context["zone"])
    at = at.astimezone(zone)
    exact = at.astimezone(UTC).isoformat().replace("+00:00", "Z")
    return Markup('<time datetime="{}" title="{} {}">{}</time>').format(
        exact, at.date(), _zone_name(at, zone), f"{at:%H:%M:%S}"
    )


def _day(context: Context, when: str | datetime) -> str:
    at = _datetime(when)
    day = at.astimezone(_zone_for(at, context["zone"])).date()
    told = format_date(day, "medium", locale=locale_of(context["language"]))
    return Markup('<time datetime="{}">{}</time>').format(day.isoformat(), told)


def _zone_for(at: datetime, zone: ZoneInfo) -> ZoneInfo:
    """Return the zone to show a time in: UTC when the calendar does not have it there, as a forged archive may tell."""
    try:
        at.astimezone(zone)
    except OverflowError:
        return ZoneInfo("UTC")
    return zone


def _minutes(language: str) -> str:
    return "y年M月d日 HH:mm" if language == "zh_TW" else "d MMM y, HH:mm"


def _zone_name(at: datetime, zone: ZoneInfo) -> str:
    offset = at.astimezone(zone).utcoffset() or timedelta()
    minutes = round(offset.total_seconds() / 60)
    sign = "+" if minutes >= 0 else "−"
    hours = f"{sign}{abs(minutes) // 60:02}:{abs(minutes) % 60:02}" if minutes else ""
    return f"UTC{hours}" if zone.key == "UTC" or not hours else f"UTC{hours} ({zone.key})"


def _datetime(when: str | datetime) -> datetime:
    at = when if isinstance(when, datetime) else datetime.fromisoformat(when)
    return at if at.tzinfo else at.replace(tzinfo=UTC)
