"""Wording of what is wrong with a configuration: the key's dotted path, its line, and the key that was meant.

Messages never quote a value: it might be a secret in the wrong place.
"""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

Path = tuple[str | int, ...]

# A password written out is the one unknown key whose remedy is known.
_INSTEAD = {
    "password": "passwords are not written here: name a file with password_file, or a variable with password_env"
}


def describe(model: type[BaseModel], error: ValidationError, *, name: str, lines: Mapping[Path, int]) -> str:
    """Return one sentence for each problem, in the order of the file's lines."""
    told = []
    for problem in error.errors(include_url=False, include_input=False, include_context=True):
        path = _file_path(problem["loc"])
        line = next((lines[path[:end]] for end in range(len(path), 0, -1) if path[:end] in lines), None)
        where = f"line {line}: " if line else ""
        told.append((line or 0, f"{where}{_sentence(model, path, problem)}"))
    sentences = [sentence for _, sentence in sorted(told, key=lambda item: item[0])]
    if len(sentences) == 1:
        return f"{name}: {sentences[0]}"
    return "\n".join([f"{name} has {len(sentences)} problems:", *(f"  {sentence}" for sentence in sentences)])


def dotted(path: Path) -> str:
    """Return `sources[0].port` for ("sources", 0, "port")."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _file_path(loc: Path) -> Path:
    """Drop what is not in the file: the tag that pydantic inserts after an item of `sources`."""
    if loc[:1] == ("sources",) and len(loc) > 2:
        return (*loc[:2], *loc[3:])
    return loc


def _sentence(model: type[BaseModel], path: Path, problem: ErrorDetails) -> str:  # noqa: PLR0911  (a table)
    key = dotted(path)
    match problem["type"]:
        case "extra_forbidden":
            return f"{key} is not a known key; {_suggestion(model, problem['loc'])}"
        case "missing":
            return f"{key} is required"
        case "union_tag_not_found":
            return f"{key}.type is required: postgresql, tree or sqlite"
        case "union_tag_invalid":
            return f"{key}.type must be postgresql, tree or sqlite"
        case "string_type":
            return f"{key} must be text; put it in quotes"
        case "string_pattern_mismatch":
            pattern = problem["ctx"]["pattern"]
            return f"{key} must be {_SHAPES[pattern]}" if pattern in _SHAPES else f"{key} must match {pattern}"
        case "value_error":
            reason = str(problem["ctx"]["error"])
            return f"{key}: {reason}" if key else reason
        case _:
            reason = problem["msg"]
            return f"{key}: {reason[0].lower()}{reason[1:]}"


_SHAPES = {
    r"^Backup_[0-9]{8}_[0-9]{4}Z\.zip$": "the name of an archive, such as Backup_20261124_0200Z.zip",
    r"^KEY [A-Z2-7]{4}(?:-[A-Z2-7]{4}){3}$": "a whole fingerprint, such as KEY 7Q4F-K2M7-XYZ2-ABCD",
    r"^[0-9a-f]{16}$": "the id of a job, as `job list` shows it",
    r"^[0-9]{8}T[0-9]{6}Z-[0-9a-f]{8}$": "the id of a drill, as `drill --list` shows it",
    r"^([01][0-9]|2[0-3]):[0-5][0-9]$": "a time of day, such as 02:00",
    r"^[a-z][a-z0-9+.-]*://[^\x00-\x1f\x7f]*$": "a URL, such as file:///var/backups/deviceon",
}
"""What people call the patterns that they may meet."""


def _suggestion(model: type[BaseModel], loc: Path) -> str:
    unknown = str(loc[-1])
    if unknown in _INSTEAD:
        return _INSTEAD[unknown]
    siblings = _fields_at(model, loc[:-1])
    near = difflib.get_close_matches(unknown, siblings, n=1, cutoff=0.6)
    if near:
        return f"did you mean {near[0]}?"
    elsewhere = [dotted(path) for path in _all_paths(model) if path[-1] == unknown]
    if elsewhere:
        return f"it belongs to {' or '.join(elsewhere)}"
    return f"known here: {', '.join(siblings)}"


def _fields_at(model: type[BaseModel], loc: Path) -> list[str]:
    here: type[BaseModel] | None = model
    for part in loc:
        if isinstance(part, int) or here is None:
            continue
        if part in here.model_fields:
            inner = list(_models_in(here.model_fields[part].annotation))
            here = inner[0] if len(inner) == 1 else here
        else:  # the tag of a source
            kinds = _models_in(model.model_fields["sources"].annotation)
            here = next((kind for kind in kinds if kind.model_fields["type"].default == part), None)
    return list(here.model_fields) if here else []


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) in (Union, types.UnionType, list, Annotated):
        for inner in get_args(annotation):
            yield from _models_in(inner)


def _all_paths(model: type[BaseModel], prefix: Path = ()) -> Iterator[Path]:
    for name, field in model.model_fields.items():
        yield (*prefix, name)
        inner = list(_models_in(field.annotation))
        if len(inner) == 1:
            yield from _all_paths(inner[0], (*prefix, name))
