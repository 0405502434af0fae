"""The System Backup settings that can be changed while the service runs: checked, tried, then remembered.

They live in the state; a copy in `settings.json` beside it outlives a damaged state. Secrets that come over the socket
are written to files of the state directory (mode 0600) and never come back.
"""

from __future__ import annotations

import contextlib
import json
import logging
import secrets
from collections.abc import Iterable, Mapping, Set
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import ValidationError

from service.blocking import run_in_thread
from service.config import SYSTEM_BACKUP, Config, SystemBackup, TargetSettings, complete, read
from service.config_problems import describe
from service.errors import ConfigError, JobRefused, StateError
from service.state import Database, Values
from service.state.database import FILE_NAME
from service.state.values import loaded
from service.state_directory import only_job, prepare, remove_file, replace_file

log = logging.getLogger(__name__)

NAME, COPY, SECRETS = "system_backup", "settings.json", "secrets"
REJECTED = ".rejected-"


class StoredSettings:
    """The settings in the state of one service. `value` is what is stored now."""

    def __init__(self, values: Values, state_dir: Path) -> None:
        self._values = values
        self._state_dir = state_dir
        self.value = SystemBackup()
        self.rejected: Path | None = None
        """Where what was stored has been kept, when some of it makes no sense any more."""

    async def load(self, now: datetime) -> None:
        """Read what is stored; from the copy when the state has lost it. What makes no sense is left out, and kept."""
        stored, found = await self._values.get(NAME), None
        if stored is None and (found := _copy(self._state_dir)) is not None:
            log.warning("the settings were lost with the state; taking the copy in %s", COPY)
            stored = found
        self.value, problems = _usable(stored)
        try:
            if problems:
                self.rejected = await run_in_thread(_keep_rejected, self._state_dir, stored, now)
                log.error("some settings are not in force; all that were stored are kept as %s", self.rejected)
            if problems or found is not None:
                await self._values.set(NAME, _dumped(self.value))
        except OSError as error:
            log.error("the settings that make no sense cannot be kept elsewhere: %s", error)

    def changed(
        self, fixed: Set[str], changes: Mapping[str, Any], known: Iterable[TargetSettings] = ()
    ) -> tuple[SystemBackup, list[Path]]:
        """Return what would be stored with some settings changed, and the files made for its secrets.

        A target may name the secrets of the stored target and of `known` ones, as long as they go to the same place.
        Raises ConfigError for a setting that is `fixed` by the file, and for values that make no sense.
        """
        if refused := sorted(changes.keys() & fixed):
            raise ConfigError(
                f"{' and '.join(refused)} {'is' if len(refused) == 1 else 'are'} fixed by the configuration file",
                hint="Change the file, or take the setting out of it.",
            )
        made: list[Path] = []
        targets = [*known] if self.value.target is None else [self.value.target, *known]
        document = _dumped(self.value) | dict(changes)
        try:
            if isinstance(document.get("target"), Mapping) and "target" in changes:
                options = document["target"].get("storage_options")
                if isinstance(options, Mapping):
                    same = (each for each in targets if _same_place(each, document["target"].get("url"), options))
                    before = next((each.storage_options for each in same), {})
                    kept = self._with_secrets_in_files(options, before, made)
                    document["target"] = dict(document["target"]) | {"storage_options": kept}
            return parsed(document), made
        except BaseException:
            for path in made:
                remove_file(path)
            raise

    def _with_secrets_in_files(
        self, options: Mapping[str, Any], before: Mapping[str, Any], made: list[Path]
    ) -> dict[str, Any]:
        """Replace each {secret: ...} by a file with it. Other files and variables only as they were before."""
        kept: dict[str, Any] = {}
        for key, value in options.items():
            if isinstance(value, Mapping) and set(value) == {"secret"} and isinstance(value["secret"], str):
                path = prepare(prepare(self._state_dir) / SECRETS) / f"{secrets.token_hex(8)}"
                replace_file(path, value["secret"].encode())
                made.append(path)
                kept[key] = {"file": str(path)}
            elif isinstance(value, Mapping) and set(value) in ({"file"}, {"env"}):
                if before.get(key) != value:
                    raise ConfigError(
                        f"storage_options.{key} names a {next(iter(value))} of this machine",
                        hint='Write {"secret": "..."}, also again when the server or another option changes,'
                        " or name files and variables in the configuration file.",
                    )
                kept[key] = dict(value)
            elif isinstance(value, Mapping):
                inner = before.get(key)
                kept[key] = self._with_secrets_in_files(value, inner if isinstance(inner, Mapping) else {}, made)
            else:
                kept[key] = value
        return kept

    async def store(self, value: SystemBackup, *, idle: bool) -> None:
        """Remember settings; durable when this returns.

        Files of secrets that are in no use any more are removed when the service is `idle`: a job may still read them.
        """
        document = _dumped(value)
        await self._values.set(NAME, document)
        self.value = value
        try:
            await run_in_thread(replace_file, self._state_dir / COPY, json.dumps(document, indent=2).encode())
        except OSError as error:  # they are stored all the same
            log.error("the settings are stored, but their copy %s is not: %s", COPY, error)
        if idle:
            await self.remove_unused_secrets()

    async def remove_unused_secrets(self) -> None:
        """Remove files of secrets that no settings name, unless a job of another process runs."""
        try:
            await run_in_thread(self._remove_unused_secrets)
        except JobRefused:
            pass  # it may read them yet; the next time will do
        except (ConfigError, OSError) as error:
            log.error("files of old secrets cannot be removed: %s", error)

    def _remove_unused_secrets(self) -> None:
        directory = self._state_dir / SECRETS
        if directory.is_dir():
            used = set(_files(self.value.target.storage_options)) if self.value.target else set()
            rejected = "".join(path.read_text() for path in self._state_dir.glob(f"{COPY}{REJECTED}*"))
            with only_job(self._state_dir, "removing old secrets"):
                for path in directory.iterdir():
                    if str(path) not in used and path.name not in rejected:
                        remove_file(path)


def load(path: Path | str | None = None) -> Config:
    """Return the configuration for jobs: the file (`config.read`), and for what it leaves open, what is stored.

    Raises ConfigError.
    """
    file = read(path)
    return complete(file, SystemBackup() if file.fixed == SYSTEM_BACKUP else read_stored(file.state_dir))


def read_stored(state_dir: Path) -> SystemBackup:
    """Return what a service has stored, without one; from the copy when the state is damaged.

    What makes no sense is left out. Raises StateError when it is of a newer version.
    """
    try:
        found = (state_dir / FILE_NAME).exists()
    except PermissionError:
        return SystemBackup()
    if not found:
        return SystemBackup()
    try:
        with contextlib.closing(Database.open(state_dir)) as database:
            row = database.read("SELECT value FROM settings WHERE name = ?", NAME)
    except StateError as error:
        if error.__cause__ is None:
            raise
        row = None
    stored = loaded(row[0], NAME) if row else None
    return _usable(_copy(state_dir) if stored is None else stored)[0]


def shown(value: SystemBackup) -> dict[str, Any]:
    """Return settings for clients: where a secret is kept shows, not what it is."""
    return value.model_dump(mode="json")


def _files(options: Mapping[str, Any]) -> list[str]:
    found = []
    for value in options.values():
        if isinstance(value, Mapping):
            found += [str(value["file"])] if set(value) == {"file"} else _files(value)
    return found


def _same_place(known: TargetSettings, url: Any, options: Mapping[str, Any]) -> bool:
    """Tell whether secrets of a known target go where they went: nobody may have them sent to a server of his own.

    Which of a driver's options lead elsewhere (an endpoint, a proxy, a certificate) only the driver knows: all count.
    """
    if not isinstance(url, str):
        return False
    try:
        one, other = urlsplit(known.url), urlsplit(url)
    except ValueError:
        return False
    same_server = (one.scheme, one.netloc) == (other.scheme, other.netloc)
    return same_server and _without_secrets(known.storage_options) == _without_secrets(options)


def _without_secrets(options: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _without_secrets(value) if isinstance(value, Mapping) else value
        for key, value in options.items()
        if not (isinstance(value, Mapping) and len(value) == 1 and set(value) <= {"secret", "file", "env"})
    }


def _keep_rejected(state_dir: Path, document: Any, now: datetime) -> Path:
    path = state_dir / f"{COPY}{REJECTED}{now:%Y%m%dT%H%M%SZ}"
    replace_file(path, json.dumps(document, indent=2).encode())
    return path


def _copy(state_dir: Path) -> Any:
    try:
        return json.loads((state_dir / COPY).read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        log.error("the copy of the settings cannot be read: %s", error)
        return None


def _dumped(value: SystemBackup) -> dict[str, Any]:
    return value.model_dump(mode="json", exclude_none=True, exclude_unset=True)


def _usable(document: Any) -> tuple[SystemBackup, list[str]]:
    """Return the settings that still make sense, and what is wrong with the others: they must not end the service."""
    try:
        return parsed(document), []
    except ConfigError as error:
        if not isinstance(document, Mapping):
            return SystemBackup(), [str(error)]
    good, problems = dict[str, Any](), []
    for name, value in document.items():
        try:
            parsed({name: value})
            good[name] = value
        except ConfigError as error:
            log.error("a stored setting is not in force: %s", error)
            problems.append(str(error))
    return parsed(good), problems


def parsed(document: Any) -> SystemBackup:
    """Return settings from JSON values. Raises ConfigError."""
    try:
        return SystemBackup.model_validate_json(json.dumps(document or {}))
    except ValidationError as error:
        raise ConfigError(
            describe(SystemBackup, error, name="the settings", lines={}),
            hint="docs/CONFIGURATION.md has the keys.",
        ) from None
