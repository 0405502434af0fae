"""What `make mutation` breaks, and that it leaves nothing out of what it is for."""

from __future__ import annotations

import ast
import signal

import pytest

from mutation.__main__ import described
from mutation.mutants import mutants_of
from mutation.running import PROJECT, _outcome

SOURCE = '''
"""Text."""
from x import y
LIMIT: Final = 7

class Part(Base):
    """Text."""
    size: Annotated[int, Field(ge=1)]

    @field_validator("size")
    @classmethod
    async def check(cls, value: int = 5) -> int:
        assert value
        if value > LIMIT and not value.odd:
            raise CorruptArchive(f"{value + 1} is too large")
        log.info("x", value + 1)
        try:
            await value.send()
        except (OSError, ValueError):
            pass
        async for each in value[:4]:
            yield each + 1
'''
FOUND = {mutant.name for mutant in mutants_of(ast.parse(SOURCE))}


@pytest.mark.parametrize(
    "name",
    [
        "LIMIT: Final = 7 → LIMIT: Final = 8",
        "Part: size: Annotated[int, Field(ge=1)] → size: Annotated[int, Field()]",
        "Part: size: Annotated[int, Field(ge=1)] → size: Annotated[int, Field(ge=0)]",
        "Part: @field_validator('size') → ",
        "Part.check: if value > LIMIT and (not value.odd) → if False",
        "Part.check: if value > LIMIT and (not value.odd) → if True",
        "Part.check: if value > LIMIT and (not value.odd) → if value > LIMIT",
        "Part.check: if value > LIMIT and (not value.odd) → if not value.odd",
        "Part.check: value > LIMIT and (not value.odd) → value >= LIMIT and (not value.odd)",
        "Part.check: value > LIMIT and (not value.odd) → value > LIMIT and value.odd",
        "Part.check: CorruptArchive(f'{value + 1} is too large') → UnsupportedArchive",
        "Part.check: await value.send() → pass",
        "Part.check: except (OSError, ValueError) → except ()",
        "Part.check: except (OSError, ValueError) → except (ValueError,)",
        "Part.check: value[:4] → value[:5]",
        "Part.check: each + 1 → each + 2",
    ],
)
def test_whatever_can_be_a_check_is_broken(name: str) -> None:
    assert name in FOUND


def test_texts_for_people_logs_and_assertions_are_left_alone() -> None:
    assert not [name for name in FOUND if "value + 2" in name or "log" in name or "assert" in name]


@pytest.mark.parametrize("module", described())
def test_every_mutant_of_a_module_has_its_own_name_compiles_and_goes_away_again(module: str) -> None:
    tree = ast.parse((PROJECT / module).read_text())
    before = ast.dump(tree)
    mutants = mutants_of(tree)
    assert len({mutant.name for mutant in mutants}) == len(mutants) > 0
    for mutant in mutants[::40]:
        mutant.swap()
        assert ast.dump(tree) != before, mutant.name
        compile(ast.fix_missing_locations(tree), module, "exec")
        mutant.swap()
        assert ast.dump(tree) == before, mutant.name


def test_what_is_told_of_the_modules_is_there() -> None:
    known = described()
    for module, told in known.items():
        names = {mutant.name for mutant in mutants_of(ast.parse((PROJECT / module).read_text()))}
        assert told.explained.keys() <= names, f"{module} has no such mutants"
        assert all((PROJECT / test).is_file() for test in told.tests)
        assert all(len(why) > 10 for why in told.explained.values())


def test_a_mutant_is_killed_by_a_test_that_fails_or_cannot_be_imported_and_by_nothing_else() -> None:
    assert [_outcome(code << 8, "x") for code in (0, 1, 2)] == ["survives", "killed", "killed"]
    assert [_outcome(number, "x") for number in (signal.SIGSEGV, signal.SIGALRM)] == ["killed", "hangs"]
    for code in (3, 4, 5, 70):  # pytest's own error, no such option, no tests, the fork's own error
        with pytest.raises(RuntimeError, match="x: its tests were not run"):
            _outcome(code << 8, "x")
