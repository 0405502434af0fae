"""Every text of the portal is in Traditional Chinese too, with the same values in it."""

from __future__ import annotations

import re
import subprocess
from functools import cache
from pathlib import Path

import pytest
from babel.messages.catalog import Catalog, Message
from babel.messages.pofile import read_po

from service.portal.translation import LANGUAGES, translations

ROOT = Path(__file__).parents[2]
OTHERS = [language for language in LANGUAGES if language != "en"]


@cache
def catalog(file: Path) -> Catalog:
    with file.open("rb") as source:
        return read_po(source, locale=file.stem if file.suffix == ".po" else None)


def messages(language: str) -> list[Message]:
    return [message for message in catalog(ROOT / f"service/portal/locale/{language}.po") if message.id]


def ids_of(message: Message) -> list[str]:
    return [message.id] if isinstance(message.id, str) else list(message.id)


def texts(message: Message) -> list[str]:
    return [message.string] if isinstance(message.string, str) else list(message.string or [""])


def values(text: str) -> set[str]:
    return set(re.findall(r"%\((\w+)\)[sd]", text))


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Collect the texts of the code anew."""
    file = tmp_path_factory.mktemp("texts") / "portal.pot"
    subprocess.run([ROOT / "scripts/translations", file], check=True, timeout=120)
    return {str(message.id) for message in catalog(file) if message.id}


@pytest.mark.parametrize("language", OTHERS)
def test_the_texts_of_the_code_are_those_of_the_catalogue(collected: set[str], language: str) -> None:
    known = {str(message.id) for message in messages(language)}
    assert collected - known == set(), "run `make translations`, and translate what is new"
    assert known - collected == set(), "run `make translations`: these are gone"
    assert len(collected) > 300


@pytest.mark.parametrize("language", OTHERS)
def test_every_text_is_translated_with_the_same_values(language: str) -> None:
    wrong = []
    for message in messages(language):
        ids = ids_of(message)
        wanted = set[str]().union(*(values(text) for text in ids))
        for text in texts(message):
            missing, surplus = wanted - values(text), values(text) - wanted
            plural = len(ids) > 1 and missing <= {"num"}  # "one archive" needs no number
            if not text.strip() or surplus or (missing and not plural):
                wrong.append(ids[0])
    assert wrong == []


@pytest.mark.parametrize("language", OTHERS)
def test_nothing_in_a_translation_is_markup_or_a_guess(language: str) -> None:
    assert [message.id for message in messages(language) if message.fuzzy] == []
    assert [text for message in messages(language) for text in texts(message) if re.search(r"[<>]", text)] == []


@pytest.mark.parametrize("language", OTHERS)
def test_a_percent_sign_that_is_no_value_is_doubled(language: str) -> None:
    """Texts with values are formatted; a lone % would end a page."""
    for message in messages(language):
        for text in (*ids_of(message), *texts(message)):
            rest = re.sub(r"%\(\w+\)[sd]|%%", "", text)
            assert "%" not in rest, text


def test_numbers_choose_between_one_and_more_in_english_and_not_in_chinese() -> None:
    assert translations("en").ngettext("one", "more", 1) == "one"
    assert translations("en").ngettext("one", "more", 2) == "more"
    plurals = [message for message in messages("zh_TW") if len(ids_of(message)) == 2]
    assert plurals
    for message in plurals:
        one, more = ids_of(message)
        told = {translations("zh_TW").ngettext(one, more, number) for number in (1, 2, 11)}
        assert told == set(texts(message))
