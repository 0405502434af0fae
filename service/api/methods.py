"""The methods of the socket, by family. Each is a few lines: parameters are checked before, work is done below.

A method that takes long gives a job, which goes on whatever becomes of the client; `job.get` and events tell of it.
"""

from __future__ import annotations

from service.api.archives import ArchiveMethods
from service.api.context import Context, Family
from service.api.drills import DrillMethods
from service.api.history import HistoryMethods
from service.api.jobs import JobMethods
from service.api.keys import KeyMethods
from service.api.planning import Planning
from service.api.provisioning import ProvisionMethods
from service.api.registry import Method, methods_of
from service.api.resetting import ResetMethods
from service.api.restore_pin import PinMethods
from service.api.restoring import RestoreMethods
from service.api.selftest import SelfTestMethods
from service.api.settings import SystemBackupSettings
from service.api.system import System

FAMILIES: tuple[type[Family], ...] = (
    System,
    SystemBackupSettings,
    JobMethods,
    HistoryMethods,
    ArchiveMethods,
    KeyMethods,
    ProvisionMethods,
    RestoreMethods,
    DrillMethods,
    ResetMethods,
    Planning,
    PinMethods,
    SelfTestMethods,
)


def all_methods(context: Context) -> dict[str, Method]:
    """Return every method, ready to be called, by name."""
    return methods_of(*(family(context) for family in FAMILIES))
