"""Random jumps of the clock between backups and retention: the order stays, and exactly what the policy says goes.

Years ahead and back, an hour, a leap into the next day, the same minute again; a guard looks at the clock as the
service's scheduler does.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from service.app import App
from service.archive.names import archive_name
from service.backup import backup
from service.clock_guard import ClockGuard
from service.progress import Progress
from service.prune import prune
from service.retention import Candidate, RetentionSettings, decide
from tests.scoreboard import counted
from tests.service_parts import Place
from tests.sizes import SEED, size

LIVES = size("CLOCK_LIVES", 4)
STEPS = 12
JUMPS = (
    *(timedelta(hours=1), timedelta(hours=-1), timedelta(days=1), timedelta(days=-1), timedelta(days=3652)),
    *(timedelta(days=-3652), timedelta(seconds=1), timedelta(seconds=-1), timedelta(minutes=7), timedelta(days=31)),
)
POLICIES: tuple[dict[str, int], ...] = (
    *({"keep_last": 2}, {"keep_daily": 3}, {"keep_within": 2}, {"keep_last": 1, "keep_weekly": 2}),
    *({"keep_monthly": 2, "keep_daily": 1}, {"keep_yearly": 3}),
)


class Clockwork:
    """One installation, the guard of its clock, and which archives there have to be."""

    def __init__(self, root: Path, dice: random.Random) -> None:
        self.place = Place(root, settings={"retention": dice.choice(POLICIES)})
        self.dice, self.guard = dice, ClockGuard()
        self.made: dict[str, datetime] = {}
        """When each was made, in their order."""
        self.counts: Counter[str] = Counter()

    def look(self) -> bool:
        """Look at the clock, as the scheduler does; tell whether it is in doubt."""
        self.guard = self.guard.look(self.place.clock())
        return self.guard.suspects(self.place.clock())

    async def live(self, app: App) -> None:
        for _ in range(STEPS):
            if self.dice.random() < 0.5:
                self.place.clock.now += self.dice.choice(JUMPS)
                self.counts["jumps"] += 1
            else:
                for _ in range(self.dice.choice((1, 30))):  # a day or a month on which nothing is odd
                    self.place.clock.go(hours=23)
                    self.look()
            suspect = self.look()
            await self._back_up(app)
            await self._prune(app, suspect=suspect)

    async def _back_up(self, app: App) -> None:
        while (self.place.target / archive_name(self.place.clock())).exists():
            self.place.clock.go(seconds=20)  # the recipe waits for the next minute, and this clock stands still
            self.counts["same_minute"] += 1
        made = await backup(self.place.config, progress=Progress(), ledger=app.archives, clock=self.place.clock)
        self.made[made.name] = self.place.clock()
        self.counts["backups"] += 1

    async def _prune(self, app: App, *, suspect: bool) -> None:
        policy: dict[str, Any] = self.place.settings["retention"]
        goes = self._goes(policy, suspect=suspect)
        result = await prune(
            self.place.config, ledger=app.archives, clock=self.place.clock, progress=Progress(), clock_suspect=suspect
        )
        ahead = any(created > self.place.clock() for created in self.made.values())
        if set(policy) != {"keep_last"} and (suspect or ahead):
            assert result.removed == [], "a rule that goes by the clock was carried out by one in doubt"
            self.counts["suspended"] += 1
        assert set(result.removed) == goes, "retention did not do what the policy says"
        self.made = {name: created for name, created in self.made.items() if name not in goes}
        self.counts["removed"] += len(goes)
        listed = await self.place.archives(app.archives)
        assert list(listed) == list(self.made), "the order is not the one in which they were made, or one is lost"

    def _goes(self, policy: dict[str, Any], *, suspect: bool) -> set[str]:
        """Return what has to go, from what was made and when, and not from what the archives or the memory say."""
        archives = [
            Candidate(name=name, seq=number, created=created, verified=True)
            for number, (name, created) in enumerate(self.made.items(), start=1)
        ]
        verdicts = decide(archives, RetentionSettings(**policy), now=self.place.clock(), clock_suspect=suspect)
        return {verdict.name for verdict in verdicts if not verdict.keep}


@pytest.mark.timeout(3600)
def test_no_jump_of_the_clock_takes_an_archive_too_many_or_changes_the_order(
    record_property: Callable[[str, object], None],
) -> None:
    counts: Counter[str] = Counter()
    for number in range(LIVES):
        directory = Path(tempfile.mkdtemp(prefix="clock-", dir="/dev/shm"))
        clockwork = Clockwork(directory, random.Random(SEED + number))

        async def live(clockwork: Clockwork = clockwork) -> None:
            async with clockwork.place.app() as app:
                await clockwork.live(app)

        try:
            asyncio.run(live())
        except AssertionError as error:
            raise AssertionError(f"life {number} of seed {SEED}: {error}") from error
        finally:
            shutil.rmtree(directory)
        counts += clockwork.counts
    assert counts["removed"] and counts["suspended"]
    record_property("counted", counted(counts["jumps"], f"{LIVES} lives", counts, seed=SEED))
