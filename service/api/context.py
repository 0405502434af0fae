"""What the methods of the socket work with, and what they have in common."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from pydantic import SecretStr

from service.announcer import Announcer
from service.api import params as p
from service.api.registry import Params
from service.api.views import (
    Pending,
)
from service.config import Config, ConfigFile, complete
from service.job import Job, JobKind
from service.jobs import Jobs
from service.ledger import Ledger
from service.old_state import expires
from service.restore import pending
from service.scheduler import Scheduler
from service.settings import StoredSettings
from service.state import History
from service.state.history import Request
from service.targets_at_hand import TargetsAtHand

T = TypeVar("T")


@dataclass(slots=True)
class Context:
    """What the methods work with. `file` and `stored` are looked at anew for each call."""

    file: Callable[[], ConfigFile]
    stored: StoredSettings
    jobs: Jobs
    history: History
    ledger: Ledger
    scheduler: Scheduler
    announcer: Announcer
    clock: Callable[[], datetime]
    boot_id: str
    started: datetime
    not_ready: Callable[[], str | None]
    schema: Callable[[], dict[str, Any]]
    targets: TargetsAtHand

    def config(self) -> Config:
        """Return the configuration in force. Raises ConfigError when there is no target."""
        return complete(self.file(), self.stored.value)

    def chosen(self, params: p.OfTarget) -> Config:
        """Return the configuration with the target that is asked about alone, with all when none is named."""
        config = self.config()
        return config if params.target is None else config.at(params.target)

    async def submit(self, kind: JobKind, name: str, params: p.Mutation) -> Job:
        """Queue a job for the request `name`. Raises JobRefused, ConfigError."""
        given = params.model_dump(exclude={"idempotency_key", *_secrets(params)})
        config = self.config()  # a job that cannot even find its target is refused at once
        for url in filter(None, (given.get("target"), given.get("source"))):
            config.at(url)
        return await self.jobs.submit(
            kind, given, origin="socket", request=_request(name, params), opening=p.opening(params)
        )

    async def once(self, name: str, params: p.Mutation, do: Callable[[], Awaitable[T]], *, again: Callable[[], T]) -> T:
        """Do something, unless the same request was answered before: then return what `again` gives."""
        request = _request(name, params)
        if request is not None and await self.history.answer_before(request, self.clock()) is not None:
            return again()
        answer = await do()
        if request is not None:
            await self.history.remember_answer(request, {}, self.clock())
        return answer


class Family:
    """Methods that belong together."""

    def __init__(self, context: Context) -> None:
        self.context = context


def waiting_restore(file: ConfigFile) -> Pending | None:
    """Return the restore that waits for commit or rollback; None when there is none."""
    journal = pending(file)
    if journal is None:
        return None
    names = [str(participant["name"]) for participant in journal.participants]
    return Pending(journal.id, journal.archive, journal.started, journal.state, names, expires(journal, file.restore))


def _secrets(params: p.Mutation) -> set[str]:
    """Return the parameters that are never remembered."""
    return {name for name, value in params if _holds_secret(value)}


def _holds_secret(value: object) -> bool:
    if isinstance(value, list):
        return any(map(_holds_secret, value))
    if isinstance(value, Params):
        return any(_holds_secret(member) for _, member in value)
    return isinstance(value, SecretStr)


def _request(name: str, params: p.Mutation) -> Request | None:
    if params.idempotency_key is None:
        return None
    # Only what was given: to leave a setting as it is and to take it away are two requests.
    given = params.model_dump(mode="json", exclude={"idempotency_key", *_secrets(params)}, exclude_unset=True)
    return Request(params.idempotency_key, name, given)
