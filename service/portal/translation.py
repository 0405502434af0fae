"""Languages. English texts are the message ids; locale/*.po are read at the start, nothing is compiled beforehand."""

from __future__ import annotations

import io
from functools import cache
from gettext import NullTranslations
from pathlib import Path
from typing import Final

from aiohttp import web
from babel import Locale
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po
from babel.support import Translations

LANGUAGES: Final = {"en": "English", "zh_TW": "繁體中文"}
COOKIE: Final = "deviceon-backup-language"
DIRECTORY: Final = Path(__file__).parent / "locale"


def N_(text: str) -> str:  # noqa: N802 - gettext's name for it
    """Mark a text that is translated later."""
    return text


@cache
def translations(language: str) -> NullTranslations:
    """Return the texts of a language of LANGUAGES."""
    file = DIRECTORY / f"{language}.po"
    if language == "en":
        return NullTranslations()
    with file.open("rb") as source:
        catalog = read_po(source, locale=language)
    compiled = io.BytesIO()
    write_mo(compiled, catalog)
    compiled.seek(0)
    return Translations(compiled)


@cache
def locale_of(language: str) -> Locale:
    """Return how a language writes numbers and dates; English with the 24-hour clock of the rest of the world."""
    return Locale.parse("en_GB" if language == "en" else language)


def language_of(request: web.BaseRequest, fixed: str | None) -> str:
    """Return the language of a page: the configured one, else the viewer's choice, else the browser's."""
    if fixed is not None:
        return fixed
    chosen = request.cookies.get(COOKIE, "")
    if chosen in LANGUAGES:
        return chosen
    return _accepted(request.headers.get("Accept-Language", ""))


def _accepted(header: str) -> str:
    """Return the language that a browser likes best, of those that there are."""
    wanted = []
    for part in header[:500].split(","):
        tag, _, quality = part.strip().partition(";q=")
        try:
            wanted.append((float(quality or 1), tag.lower()))
        except ValueError:
            continue
    for weight, tag in sorted(wanted, key=lambda item: -item[0]):
        if weight <= 0:
            continue
        if tag == "en" or tag.startswith("en-"):
            return "en"
        if tag == "zh" or tag.startswith("zh-"):
            return "zh_TW"
    return "en"


def html_language(language: str) -> str:
    """Return the tag for `lang`."""
    return {"zh_TW": "zh-Hant-TW"}.get(language, language)
