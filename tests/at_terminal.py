"""A program with somebody at a terminal; stdout is apart, to see what a script would."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import subprocess
import time
from collections.abc import Mapping, Sequence


class Terminal:
    """One run of a program. `shown` is what was on the terminal."""

    def __init__(self, argv: Sequence[str], environment: Mapping[str, str]) -> None:
        self._leader, follower = pty.openpty()
        self.shown = ""
        self._read_to = 0
        self.process = subprocess.Popen(
            ["setsid", "--ctty", *argv],  # so that Ctrl-C reaches the program
            stdin=follower,
            stderr=follower,
            stdout=subprocess.PIPE,
            text=True,
            env=dict(environment),
        )
        os.close(follower)

    def answer(self, question: str, answer: str) -> None:
        """Wait for a question that was not answered yet, and type."""
        deadline = time.monotonic() + 60
        while (at := self.shown.find(question, self._read_to)) < 0:
            assert time.monotonic() < deadline, self.shown
            assert self.process.poll() is None, self.shown
            if select.select([self._leader], [], [], 0.1)[0]:
                self.shown += os.read(self._leader, 4096).decode(errors="replace")
        self._read_to = at + len(question)
        os.write(self._leader, answer.encode())

    def press_until_it_ends(self, key: str) -> None:
        """Press a key again as a person would: one that comes just before the program reads is seen after the next."""
        deadline = time.monotonic() + 30
        while self.process.poll() is None:
            assert time.monotonic() < deadline, self.shown
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(1)
                return
            os.write(self._leader, key.encode())

    def finish(self) -> tuple[int, str]:
        """Return the exit code and what was on stdout."""
        stdout, _ = self.process.communicate(timeout=120)
        with contextlib.suppress(OSError):
            while piece := os.read(self._leader, 4096):
                self.shown += piece.decode(errors="replace")
        os.close(self._leader)
        return self.process.returncode, stdout
