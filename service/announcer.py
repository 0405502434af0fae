"""Events that are told to subscribers at once, and remembered."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from typing import Any

from service.errors import StateError
from service.events import EventHub
from service.job import Job
from service.state import History

log = logging.getLogger(__name__)


class Announcer:
    """Tells of what happened. Each type of event is described in `service.api.schema`."""

    def __init__(self, hub: EventHub, history: History) -> None:
        self._hub = hub
        self._history = history

    async def tell(self, kind: str, data: Mapping[str, Any], *, job_id: str | None = None) -> None:
        """Publish an event and remember it."""
        event = self._hub.publish(kind, job_id=job_id, data=dict(data))
        if event.seq is not None:
            with _logged("an event"):
                await self._history.add_event(event.seq, event.as_json())

    async def job(self, job: Job) -> None:
        """Remember how a job stands, and tell it. A memory that cannot be written does not stop the job."""
        with _logged(f"that {job.kind} {job.id} is {job.state}"):
            await self._history.save_job(job)
        await self.tell(f"job.{job.state}", job.as_json(), job_id=job.id)

    def progress(self, job_id: str, data: Mapping[str, Any]) -> None:
        """Tell how far a job is. That is not remembered."""
        self._hub.progress(job_id, dict(data))


@contextlib.contextmanager
def _logged(what: str) -> Iterator[None]:
    try:
        yield
    except StateError as error:
        log.error("cannot remember %s: %s", what, error)
