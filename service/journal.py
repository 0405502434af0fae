"""The restore journal: one small file a restore, from which anybody can undo or commit it, also after a crash.

    staging     copies are being made beside the live data              -> crash: undo
    stopping    the stop hook runs; nothing is exchanged                -> crash: start hook, undo
    swapping    live and staged are being exchanged                     -> crash: stop hook, undo, start hook
    starting    all is exchanged; start hook and health probe run       -> crash: stop hook, undo, start hook
    swapped     restored and well; the old state is kept beside         -> waits for commit or rollback
    undoing     the old state is being brought back                     -> crash: undo again
    committing  the old state is being removed                          -> crash: commit again

The file goes when the restore was undone or committed. It holds the roles' password verifiers: mode 0600.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, get_args

from service.blocking import run_in_thread
from service.errors import RestoreError
from service.sources.base import Record
from service.state_directory import prepare, remove_file, replace_file, told_as_state

RESTORES = "restores"

State = Literal["staging", "stopping", "swapping", "starting", "swapped", "undoing", "committing"]


@dataclass(slots=True)
class Journal:
    """One restore. `participants` are one object a source: its name, settings, paths to preserve, and its record.

    `hooks_begun`: the server may have been stopped, so that whoever undoes this stops it before and starts it after.
    `swapped` is the time (UTC, ISO 8601) since which the old state is kept; empty before.
    """

    path: Path
    id: str
    archive: str
    started: str
    state: State
    participants: list[dict[str, Any]]
    hooks_begun: bool = False
    swapped: str = ""

    @classmethod
    def begin(cls, state_dir: Path, *, archive: str, started: str, folder: str = RESTORES) -> Self:
        """Start a journal with no participant. Nothing is written before `save`. Drills have their own `folder`."""
        identifier = secrets.token_hex(4)
        return cls(_directory(state_dir, folder) / f"{identifier}.json", identifier, archive, started, "staging", [])

    def add(self, name: str, settings: Mapping[str, Any], preserve: list[str]) -> Record:
        """Add a participant and return its record, which knows the id of the restore."""
        record: Record = {"id": self.id}
        self.participants.append({"name": name, "settings": dict(settings), "preserve": preserve, "record": record})
        return record

    async def save(self, state: State | None = None) -> None:
        """Make the journal durable as it is now, in `state` when given. Raises StateError."""
        self.state = state or self.state
        content = json.dumps(
            {
                "id": self.id,
                "archive": self.archive,
                "started": self.started,
                "state": self.state,
                "participants": self.participants,
                "hooks_begun": self.hooks_begun,
                "swapped": self.swapped,
            }
        )
        # a cancelled caller waits for the write: the next one must not meet it half-way
        with told_as_state(self.path):
            await run_in_thread(replace_file, self.path, content.encode())

    async def remove(self) -> None:
        """Forget this restore. Raises StateError."""
        with told_as_state(self.path):
            await run_in_thread(remove_file, self.path)


def journals(state_dir: Path, *, folder: str = RESTORES) -> list[Journal]:
    """Read all journals, the oldest first. Raises RestoreError when one cannot be read."""
    found = []
    for path in sorted(_directory(state_dir, folder).glob("[0-9a-f]" * 8 + ".json")):
        try:
            found.append(_read(path))
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise RestoreError(
                f"the restore journal {path} cannot be read: {error}",
                hint="Keep this file: it says where the old state of a restore is. Look for databases named *__old_*.",
            ) from error
    return sorted(found, key=lambda journal: journal.started)


def _read(path: Path) -> Journal:
    journal = Journal(path=path, **json.loads(path.read_bytes()))
    texts = (journal.id, journal.archive, journal.started, journal.swapped)
    if not all(isinstance(text, str) for text in texts) or journal.state not in get_args(State):
        raise ValueError("it is not what a restore writes")
    for participant in journal.participants:
        Path(participant["name"]), dict(participant["settings"]), list(participant["preserve"])
        if not isinstance(participant["record"], dict):
            raise TypeError("a record is not what a restore writes")
    return journal


def _directory(state_dir: Path, folder: str) -> Path:
    return prepare(prepare(state_dir) / folder)
