"""The form of the System Backup settings: what is stored as fields, and fields as what is sent. Pure.

A secret travels one way. What is stored shows as "kept"; an empty field keeps it, what is typed goes to the service as
{"secret": ...}, and never into a page.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

from service import strict_yaml
from service.errors import ConfigError
from service.portal.translation import N_
from service.secret import SECRET_WORD, is_place_of_secret

KINDS: Final = ("local", "smb", "s3", "other")
FREQUENCIES: Final = ("daily", "monthly", "weekly", "cron", "never")
WEEKDAYS: Final = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
RULES: Final = ("keep_last", "keep_daily", "keep_weekly", "keep_monthly", "keep_yearly", "keep_within")
NEW_SECRETS: Final = ("1", "2")
"""Rows for secrets of a driver that the form does not know."""

_LOCAL = re.compile(r"(?:file|local)://(?P<directory>/.*)")
_SMB = re.compile(r"smb://(?P<server>[^/@;]+)/(?P<share>[^/]+)(?:/(?P<directory>.*))?")
_S3 = re.compile(r"s3://(?P<bucket>[^/@]+)(?:/(?P<prefix>.*))?")
_PATTERNS: Final = {"local": _LOCAL, "smb": _SMB, "s3": _S3}
_TEXTS: Final[dict[str, tuple[str, ...]]] = {
    "local": (),
    "smb": ("username",),
    "s3": ("endpoint_url", "region", "key"),
    "other": (),
}
"""Options with a field of their own."""
_FLAGS: Final[dict[str, tuple[str, ...]]] = {"local": ("auto_mkdir",), "smb": ("auto_mkdir",), "s3": (), "other": ()}
_SECRETS: Final[dict[str, tuple[str, ...]]] = {"local": (), "smb": ("password",), "s3": ("secret",), "other": ()}
_SECRET_LINE = re.compile(rf"[\s\"'{{]*[^:]*(?:{SECRET_WORD.pattern})[^:]*:", re.I)
_PASSWORD_IN_URL = re.compile(r"(://[^/@:]*):[^@]*@")
_OPTION_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")

Values = dict[str, Any]
"""Fields by name: text, or True for a box that is ticked; `weekdays` is a list."""


class Wrong(Exception):
    """A field that makes no sense. The message is a text to be translated."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


def values_of(settings: Mapping[str, Any]) -> Values:
    """Return the fields for settings as settings.get tells them."""
    values: Values = {"enabled": bool(settings["enabled"])}
    values |= _target_values(settings["target"])
    values |= _schedule_values(settings["schedule"])
    retention = settings["retention"] or {}
    return values | {rule: _text(retention.get(rule)) for rule in RULES}


def typed(fields: Sequence[tuple[str, str]]) -> Values:
    """Return what was typed, but for the fields of secrets."""
    values: Values = {name: value for name, value in fields if not name.startswith("secret:")}
    values["weekdays"] = [value for name, value in fields if name == "weekdays"]
    for box in ("enabled", "local:auto_mkdir", "smb:auto_mkdir"):
        values[box] = box in values
    return values


def shown_again(values: Values) -> Values:
    """Return what was typed without what looks like a secret in a field that is none: no page has it again."""
    again = dict(values)
    for kind in KINDS:
        lines = str(values.get(f"{kind}:options", "")).splitlines()
        again[f"{kind}:options"] = "\n".join(line for line in lines if not _SECRET_LINE.match(line))
    again["other:url"] = _PASSWORD_IN_URL.sub(r"\1@", str(values.get("other:url", "")))
    return again


def secrets_typed(fields: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Return the secrets that were typed, by field."""
    return {name: value for name, value in fields if name.startswith("secret:") and value}


def kept_secrets(target: Mapping[str, Any] | None, kind: str) -> list[str]:
    """Return the names of options whose secret is kept, beside those that have a field of their own."""
    if target is None or kind_of(target["url"]) != kind:
        return []
    return [
        name
        for name, value in target["storage_options"].items()
        if is_place_of_secret(value) and name not in _SECRETS[kind]
    ]


def kind_of(url: str) -> str:
    """Return which of KINDS shows a URL whole."""
    return next((kind for kind, pattern in _PATTERNS.items() if pattern.fullmatch(url)), "other")


def target_of(values: Values, secrets: Mapping[str, str], stored: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the target that fields speak of; secrets that were not typed are the stored ones'. Raises Wrong."""
    kind = values.get("kind", "")
    if kind not in KINDS:
        raise Wrong("kind", N_("Choose a kind of place."))
    before: Mapping[str, Any] = {} if stored is None else stored["storage_options"]
    url, options = _url(values, kind), _extra(values, kind)
    for name in _TEXTS[kind]:
        text = values.get(f"{kind}:{name}", "").strip()
        if text:
            options[name] = text
        elif is_place_of_secret(before.get(name)):
            options[name] = dict(before[name])
    options |= {name: True for name in _FLAGS[kind] if values.get(f"{kind}:{name}")}
    for name in [*_SECRETS[kind], *kept_secrets(stored, kind)]:
        given = secrets.get(f"secret:{kind}:{name}")
        if given:
            options[name] = {"secret": given}
        elif is_place_of_secret(before.get(name)) and not values.get(f"forget:{kind}:{name}"):
            options[name] = dict(before[name])
    options |= _new_secrets(values, secrets, kind)
    target = {"url": url, "storage_options": options}
    kept = next((name for name, value in options.items() if is_place_of_secret(value)), None)
    if kept is not None and stored is not None and not _same_place(target, stored):
        raise Wrong(f"secret:{kind}:{kept}", N_("Type it again: the place or one of its options has changed."))
    return target


def _new_secrets(values: Values, secrets: Mapping[str, str], kind: str) -> dict[str, Any]:
    found = {}
    for row in NEW_SECRETS:
        name, given = values.get(f"{kind}:secret_name_{row}", "").strip(), secrets.get(f"secret:{kind}:new_{row}")
        if given and not _OPTION_NAME.fullmatch(name):
            raise Wrong(f"{kind}:secret_name_{row}", N_("Give the name of the option that this secret is for."))
        if given:
            found[name] = {"secret": given}
    return found


def _same_place(target: Mapping[str, Any], stored: Mapping[str, Any]) -> bool:
    """Tell whether a secret goes where it went before: the service sends it nowhere else (`service.settings`)."""
    one, other = (urlsplit(each["url"]) for each in (target, stored))
    plain = [
        {name: value for name, value in each["storage_options"].items() if not _is_secret(value)}
        for each in (target, stored)
    ]
    return (one.scheme, one.netloc) == (other.scheme, other.netloc) and plain[0] == plain[1]


def _is_secret(value: object) -> bool:
    return is_place_of_secret(value) or (isinstance(value, Mapping) and set(value) == {"secret"})


def schedule_of(values: Values) -> dict[str, Any] | None:
    """Return the schedule that fields speak of; None for never. Raises Wrong."""
    frequency = values.get("frequency", "")
    if frequency not in FREQUENCIES:
        raise Wrong("frequency", N_("Choose how often."))
    if frequency == "never":
        return None
    found: dict[str, Any] = {
        "frequency": frequency,
        "at": None,
        "weekdays": None,
        "day": None,
        "cron": None,
        "timezone": values.get("timezone", "").strip() or "UTC",
        "jitter": _number(values, "jitter") or 0,
        "catch_up": 24 if (late := _number(values, "catch_up")) is None else late,
    }
    if frequency == "cron":
        found["cron"] = " ".join(values.get("cron", "").split())
    else:
        found["at"] = values.get("at", "").strip()
        if not found["at"]:
            raise Wrong("at", N_("Give a time of day."))
    if frequency == "weekly":
        found["weekdays"] = [day for day in WEEKDAYS if day in values.get("weekdays", ())]
        if not found["weekdays"]:
            raise Wrong("weekdays", N_("Choose at least one day of the week."))
    if frequency == "monthly":
        found["day"] = _number(values, "day")
        if found["day"] is None:
            raise Wrong("day", N_("Give a day of the month."))
    return {name: value for name, value in found.items() if value is not None}


def retention_of(values: Values) -> dict[str, Any] | None:
    """Return the policy that fields speak of; None to keep everything. Raises Wrong."""
    found = {rule: number for rule in RULES if (number := _number(values, rule)) is not None}
    return found or None


def _target_values(target: Mapping[str, Any] | None) -> Values:
    if target is None:
        return {"kind": "local", "local:auto_mkdir": True}
    url, options = target["url"], target["storage_options"]
    kind = kind_of(url)
    pattern = _PATTERNS.get(kind)
    found = pattern.fullmatch(url) if pattern else None
    parts = found.groupdict() if found else {"url": url}
    own = {*_TEXTS[kind], *_FLAGS[kind], *_SECRETS[kind]}
    extra = {name: value for name, value in options.items() if name not in own and not is_place_of_secret(value)}
    values: Values = {"kind": kind, f"{kind}:options": "".join(f"{k}: {json.dumps(v)}\n" for k, v in extra.items())}
    values |= {f"{kind}:{name}": value or "" for name, value in parts.items()}
    values |= {
        f"{kind}:{name}": "" if is_place_of_secret(options.get(name)) else _text(options.get(name))
        for name in _TEXTS[kind]
    }
    return values | {f"{kind}:{name}": options.get(name) is True for name in _FLAGS[kind]}


def _schedule_values(schedule: Mapping[str, Any] | None) -> Values:
    if schedule is None:
        return {"frequency": "never", "at": "02:00", "timezone": "", "weekdays": []}
    values: Values = {name: _text(value) for name, value in schedule.items() if name != "weekdays"}
    return values | {"weekdays": schedule["weekdays"] or [], "at": schedule["at"] or "02:00"}


def _url(values: Values, kind: str) -> str:
    def given(name: str, message: str) -> str:
        text: str = values.get(f"{kind}:{name}", "").strip()
        if not text:
            raise Wrong(f"{kind}:{name}", message)
        return text

    if kind == "local":
        directory = given("directory", N_("Give a directory."))
        if not directory.startswith("/"):
            raise Wrong("local:directory", N_("Give the whole path, which begins with a slash."))
        return f"file://{directory}"
    if kind == "smb":
        server, share = given("server", N_("Give the server's name.")), given("share", N_("Give the share's name."))
        return _joined(f"smb://{server}/{share.strip('/')}", values.get("smb:directory", ""))
    if kind == "s3":
        bucket = given("bucket", N_("Give the name of the bucket."))
        return _joined(f"s3://{bucket}", values.get("s3:prefix", ""))
    url = given("url", N_("Give a URL."))
    try:
        password = urlsplit(url).password
    except ValueError:
        raise Wrong("other:url", N_("This is not a URL.")) from None
    if password is not None:
        raise Wrong("other:url", N_("Take the password out of the URL, and give it as a secret below."))
    return url


def _joined(url: str, path: str) -> str:
    path = path.strip().strip("/")
    return f"{url}/{path}" if path else url


def _extra(values: Values, kind: str) -> dict[str, Any]:
    field = f"{kind}:options"
    text = values.get(field, "")
    if not text.strip():
        return {}
    if any(_SECRET_LINE.match(line) and "{" not in line.partition(":")[2] for line in text.splitlines()):
        raise Wrong(field, N_("Give a password or key as a secret below, not as an option."))
    try:
        document, _ = strict_yaml.parse(text.encode(), name="options")
    except ConfigError:
        raise Wrong(field, N_("Write one option a line, such as verify: true.")) from None
    if not isinstance(document, dict):
        raise Wrong(field, N_("Write one option a line, such as verify: true."))
    return document


def _number(values: Values, name: str) -> int | None:
    text = values.get(name, "").strip()
    if not text:
        return None
    if not re.fullmatch(r"[0-9]{1,6}", text, re.ASCII):
        raise Wrong(name, N_("Give a whole number."))
    return int(text)


def _text(value: object) -> str:
    return "" if value is None else str(value)
