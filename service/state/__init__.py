"""What the service remembers, in one SQLite file of its state directory.

Settings, jobs, events, what was about to be done to targets, what is known of archives, and the answers to requests
that may be repeated. The targets are the truth about archives: losing this file loses history, never an archive.
"""

from __future__ import annotations

from service.state.archives import Archives
from service.state.database import FILE_NAME, Database, opened_if_there, set_aside
from service.state.history import History
from service.state.values import Values

__all__ = ["FILE_NAME", "Archives", "Database", "History", "Values", "opened_if_there", "set_aside"]
