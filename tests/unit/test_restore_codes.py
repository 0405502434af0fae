"""docs/RESTORE.md has every code that a plan may tell, with its remedy, and none that there is not."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from service import key_slots, provisioning  # with all below them: they bring errors of their own
from service.errors import SealError
from service.restore_plan import MAY_BE_ALLOWED
from service.sealing import age
from service.sealing.tpm import faults

ROOT = Path(__file__).parents[2]
EVERY_ERROR_IS_KNOWN = (age, faults, key_slots, provisioning)
ELSEWHERE = {"SEAL", "TPM_CHANGED", "SEAL_SLOTS_FULL", "SEAL_RECOVERY_NOT_PROVEN"}
"""The root of such errors, what only a backup meets, and what only the adding and the proving of a key meet."""


def made(*names: str) -> Iterator[str]:
    """The codes that the code makes something of: obstacles, points of a report."""
    for path in (ROOT / "service").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
                continue
            if node.func.id in names and node.args and isinstance(node.args[0], ast.Constant):
                yield str(node.args[0].value)


def told() -> Iterator[str]:
    """The codes that the code makes obstacles of: by name, or from an error of sealing."""
    yield from made("Obstacle", "_obstacle")
    pending = [SealError]
    while pending:
        error = pending.pop()
        yield error.code
        pending += error.__subclasses__()


def documented(*, cells: tuple[int, ...] = (3, 4)) -> dict[str, list[str]]:
    rows = [line.strip("|").split(" | ") for line in (ROOT / "docs/RESTORE.md").read_text().splitlines()]
    rows = [row for row in rows if len(row) in cells]
    return {found[1]: row for row in rows if (found := re.fullmatch(r" ?`([A-Z_]+)`", row[0]))}


def test_every_point_of_a_report_is_documented_and_every_documented_one_exists() -> None:
    assert set(documented(cells=(2,))) == set(made("Attention"))


def test_every_code_is_documented_and_every_documented_one_exists() -> None:
    assert set(documented()) == set(told()) - ELSEWHERE


def test_the_table_says_which_can_be_allowed_and_gives_each_a_remedy() -> None:
    rows = documented()
    assert {code for code, row in rows.items() if row[-1].strip() == "yes"} == MAY_BE_ALLOWED
    assert all(all(cell.strip() for cell in row) for row in rows.values())
