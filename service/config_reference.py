"""The reference of all configuration keys as Markdown, from the models; docs/CONFIGURATION.md holds it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from service.config import json_schema

_SECTIONS = {
    "ServerSettings": "server",
    "TargetSettings": "target and copies[]",
    "ScheduleSettings": "schedule",
    "RetentionSettings": "retention",
    "SealingSettings": "sealing",
    "CompressionSettings": "compression",
    "PostgresqlSettings": "sources[] of type postgresql",
    "TreeSettings": "sources[] of type tree",
    "SqliteSettings": "sources[] of type sqlite",
    "RestoreSettings": "restore",
    "RestoreHooks": "restore.hooks",
    "HookSettings": "restore.hooks.stop and start",
    "HealthSettings": "restore.hooks.health",
    "ResetSettings": "reset",
    "DrillSettings": "drill",
    "ServiceSettings": "service",
    "TlsSettings": "service.tls",
    "HttpSettings": "http",
    "LogSettings": "log",
    "NotificationSettings": "notifications",
    "DeadManSettings": "dead_man",
}


def markdown(schema: Mapping[str, Any] | None = None, sections: Mapping[str, str] = _SECTIONS) -> str:
    """Return one table for the top of the file and one for each section; of another file with its schema."""
    schema = schema or json_schema()
    tables = [_table("Top of the file", schema)]
    tables += [_table(f"`{title}`", schema["$defs"][model]) for model, title in sections.items()]
    return "\n".join(tables)


def _table(title: str, model: Mapping[str, Any]) -> str:
    lines = [f"### {title}", "", model["description"], "", "| Key | Value | Default | Meaning |", "|---|---|---|---|"]
    for key, field in model["properties"].items():
        meaning = " ".join(field.get("description", "").split())
        lines.append(f"| `{key}` | {_kind(field)} | {_default(key, field, model)} | {meaning} |")
    return "\n".join([*lines, ""])


def _default(key: str, field: Mapping[str, Any], model: Mapping[str, Any]) -> str:
    if key in model.get("required", ()):
        return "required"
    default = field.get("default")
    if default is None:
        return "none"
    if isinstance(default, dict):
        return "see below" if default else "none"
    if isinstance(default, list):
        return ", ".join(f"`{item}`" for item in default) or "none"
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


def _kind(field: Mapping[str, Any]) -> str:  # noqa: PLR0911  (a table)
    if "$ref" in field:
        return "section"
    if "anyOf" in field:
        return " or ".join(_kind(choice) for choice in field["anyOf"] if choice.get("type") != "null")
    if "enum" in field:
        return " or ".join(f"`{value}`" for value in field["enum"])
    if "const" in field:
        return f"`{field['const']}`"
    match field.get("type"):
        case "array":
            sections = {"discriminator", "$ref"} & field["items"].keys()
            return "list of sections" if sections else f"list of {_kind(field['items'])}"
        case "object":
            return "mapping"
        case "boolean":
            return "`true` or `false`"
        case "integer" | "number":
            return _range(field)
        case _:
            return "absolute path" if field.get("format") == "path" else "text"


def _range(field: Mapping[str, Any]) -> str:
    low = field.get("minimum", f"more than {field.get('exclusiveMinimum')}")
    return f"{low} to {field['maximum']}"
