"""A configuration file in YAML, read and checked whole."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from service import strict_yaml
from service.config_problems import describe
from service.errors import ConfigError

MAX_FILE_BYTES = 1 << 20

T = TypeVar("T", bound=BaseModel)


def read_settings(
    model: type[T], file: Path, *, what: str, variable: str, examples: str, start: str, explained: str
) -> T:
    """Return what a file says, as `model`. Raises ConfigError that names each line at fault.

    `what` the file is called, and the environment `variable` that names it; the other texts are hints: where `examples`
    are, what to `start` from, and where every key is `explained`.
    """
    try:
        with file.open("rb") as handle:
            data = handle.read(MAX_FILE_BYTES + 1)
    except OSError as exc:
        raise ConfigError(
            f"cannot read {what} {file}: {exc.strerror}", hint=f"Name the file with --config or {variable}; {examples}"
        ) from exc
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(f"{file} is too long for a configuration", hint="Name the right file with --config.")
    document, lines = strict_yaml.parse(data, name=str(file))
    if not isinstance(document, dict):
        raise ConfigError(f"{file} is {'empty' if document is None else 'not a list of keys and values'}", hint=start)
    try:
        return model.model_validate(document)
    except ValidationError as exc:
        raise ConfigError(describe(model, exc, name=str(file), lines=lines), hint=explained) from exc
