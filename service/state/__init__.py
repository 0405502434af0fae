"""What the service remembers, in one SQLite file of its state directory.

Settings, jobs and what they said, what was missed, events, what was about to be done to targets, what is known of
archives, and the answers to requests that may be repeated. The targets are the truth about archives: losing this file
loses history, never an archive.
"""

from __future__ import annotations

from service.state.archives import Archives
from service.state.database import ASIDE, FILE_NAME, Database, opened_if_there, set_aside
from service.state.gaps import Gap
from service.state.history import History, Stub
from service.state.values import Values

__all__ = [
    "ASIDE",
    "FILE_NAME",
    "Archives",
    "Database",
    "Gap",
    "History",
    "Stub",
    "Values",
    "opened_if_there",
    "set_aside",
]
