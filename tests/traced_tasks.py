"""A plugin of pytest for `make coverage`: tasks that coverage can follow.

asyncio hands a failure to a task by `throw`. When a coroutine deep in it handles that and returns, Python 3.11 goes on
in the one that awaited it without telling the tracer, and the lines that follow there are lost. A task that is woken up
plainly meets the same failure where it waited, since a future raises it there. Cancellations are thrown as ever.
"""

from __future__ import annotations

import asyncio
from asyncio import tasks


class TracedTask(tasks._PyTask):  # type: ignore[name-defined, misc]
    """asyncio's task in Python, woken up plainly."""

    def _Task__wakeup(self, _: object) -> None:  # noqa: N802 - the name that Python makes of __wakeup
        self._Task__step()


tasks.Task = asyncio.Task = TracedTask  # type: ignore[misc]
