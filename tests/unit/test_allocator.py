"""What the C library is told about memory, seen in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys

_ARENAS = """
import ctypes, threading
from service.allocator import use_one_arena
if {told}:
    use_one_arena()
together = threading.Barrier(4)
def work():
    together.wait()
    kept = [bytes(50_000) for _ in range(20)]
    together.wait()
threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
ctypes.CDLL(None).malloc_stats()
"""

_FREED = """
from service.allocator import give_back
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 // 2**20
kept = []
for _ in range(1000):
    large, small = bytearray(100_000), bytearray(1000)
    kept.append((large, small))
kept = [small for _, small in kept]
del large
before = resident()
give_back()
print(before - resident())
"""


def run(program: str) -> subprocess.CompletedProcess[str]:
    told = ("MALLOC_ARENA_MAX", "GLIBC_TUNABLES")
    environment = {name: value for name, value in os.environ.items() if name not in told}
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)


def test_all_threads_share_one_arena_when_that_is_asked_for() -> None:
    assert run(_ARENAS.format(told=False)).stderr.count("Arena ") > 1
    assert run(_ARENAS.format(told=True)).stderr.count("Arena ") == 1


def test_memory_that_was_freed_goes_back_to_the_system() -> None:
    assert int(run(_FREED).stdout) > 50, "MiB, of 95"
