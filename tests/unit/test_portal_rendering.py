"""What the portal's templates make of values that others choose."""

from __future__ import annotations

from zoneinfo import ZoneInfo

import pytest

from service.portal.rendering import environment


def rendered(template: str, zone: str = "UTC", **values: object) -> str:
    return environment().from_string(template).render(language="en", zone=ZoneInfo(zone), **values)


@pytest.mark.parametrize("how", ["moment", "moment(relative=true)", "day", "clock"])
@pytest.mark.parametrize(
    ("when", "zone"), [("0001-01-01T00:00:00Z", "America/New_York"), ("9999-12-31T23:59:59Z", "Asia/Taipei")]
)
def test_a_time_at_the_edge_of_the_calendar_takes_no_page_with_it(how: str, when: str, zone: str) -> None:
    shown = rendered(f"{{{{ when|{how} }}}}", zone, when=when)
    assert (when[:10] in shown and "UTC" in shown) or how == "day"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Run `deviceon-backup list`, then `x`.", "Run <code>deviceon-backup list</code>, then <code>x</code>."),
        ("`<img src=x>` and <b>", "<code>&lt;img src=x&gt;</code> and &lt;b&gt;"),
        ("one ` alone & nothing", "one ` alone &amp; nothing"),
    ],
)
def test_what_the_service_quotes_is_code_and_nothing_else_of_it_is_markup(text: str, shown: str) -> None:
    assert rendered("{{ text|code }}", text=text) == shown
    assert rendered("{{ _('%(t)s', t=text)|code }}", text=text) == shown, "what was escaped is not escaped twice"


@pytest.mark.parametrize(
    ("done", "words"),
    [(30, "30 B of about 40 B"), (40, "40 B of about 40 B"), (50, "50 B, which is more than last time")],
)
def test_more_than_was_expected_is_told_as_that(done: int, words: str) -> None:
    how_far = {"stage": "dump", "raw_bytes": done, "expected_raw_bytes": 40, "eta_seconds": None, "rate": 0}
    how_far |= {"stored_bytes": 0}
    page = rendered("{% import 'parts.html' as parts with context %}{{ parts.progress(how_far) }}", how_far=how_far)
    assert words in page
