"""One line of a diagnosis."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """What was looked at and how it is. A red finding (`ok` False) always has a remedy."""

    name: str
    """What was looked at, a word or three."""
    ok: bool | None
    """True: good. False: has to be put right. None: for information, or could not be told."""
    message: str
    remedy: str = ""
    """What the operator does about it; empty when nothing is to be done."""

    @property
    def word(self) -> str:
        """`ok`, `FAIL` or `note`, for plain output."""
        return {True: "ok", False: "FAIL", None: "note"}[self.ok]
