"""`deviceon-backup` with a portal whose clock is ahead: `python -m tests.browser.late_portal SECONDS portal ...`.

Pictures show the same times whenever they are taken. Everything else is the real portal.
"""

from __future__ import annotations

import sys
from datetime import datetime, timedelta, tzinfo

from service.cli import main
from service.portal import rendering


def run() -> None:
    """Take the first argument for the clock, and the others as the command line."""
    ahead = timedelta(seconds=float(sys.argv.pop(1)))

    class Shown(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            return datetime.now(tz) + ahead

    rendering.datetime = Shown  # type: ignore[attr-defined]
    main()


if __name__ == "__main__":
    run()
