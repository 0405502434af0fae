"""Names of files that are made of names from an archive."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from service.sources.private_files import safe_name, write_text

NAMES = st.text(st.characters(exclude_categories=()), max_size=300)


@given(NAMES)
@example("..")
@example(".")
@example("")
@example("a/../b")
@example("line\nbreak")
@example("con\\sole:*?")
@example("\udcff")
@example("x" * 5000)
def test_any_text_becomes_one_name_that_can_be_written(text: str) -> None:
    name = safe_name(text)
    assert name not in ("", ".", "..") and not name.startswith(".")
    assert not set(name) & set('/\\:*?"<>|\0\n')
    assert len(name.encode()) <= 218


@given(st.lists(NAMES, min_size=1, max_size=3), st.lists(NAMES, min_size=1, max_size=3))
@example(["a.b", "c"], ["a", "b.c"])
@example(["%"], [""])
@example(["x" * 300], ["x" * 301])
def test_different_parts_have_different_names(one: list[str], other: list[str]) -> None:
    if len(one) == len(other) and one != other:
        assert safe_name(*one) != safe_name(*other)


def test_usual_names_stay_as_they_are() -> None:
    assert safe_name("public", "orders_2024") == "public.orders_2024"
    assert safe_name("Größe") == "Größe"


def test_nothing_is_overwritten_and_nobody_else_may_read(tmp_path: Path) -> None:
    write_text(tmp_path / "new", "text")
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o600
    with pytest.raises(FileExistsError):
        write_text(tmp_path / "new", "other")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError):
        write_text(tmp_path / "link", "other")
    assert (tmp_path / "new").read_text() == "text"
