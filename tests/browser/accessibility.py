"""What WCAG 2.2 AA asks of a page, as far as a machine can tell: axe, room to reflow, the keyboard, and names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Page

TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22a", "wcag22aa", "best-practice"]
NARROW = 320
"""CSS pixels: 1280 pixels at a zoom of 400 %, which is what WCAG 1.4.10 asks for. It also holds 200 % on a phone."""

_axe = Axe()


def told(violations: list[dict[str, Any]]) -> str:
    """Return axe's findings as a person reads them."""
    lines = []
    for violation in violations:
        lines.append(f"{violation['id']} ({violation['impact']}): {violation['help']}")
        for node in violation["nodes"]:
            lines += [f"  at {' '.join(map(str, node['target']))}", f"     {node['html'][:200]}"]
            lines += [f"     {line}" for line in node["failureSummary"].splitlines()]
    return "\n".join(lines)


async def examine(page: Page, what: str) -> None:
    """Hold the page as it is against all that a machine can tell: axe in both schemes, reflow, names."""
    await require_accessible(page, what)
    await require_reflow(page, what)
    missing = names_missing(await page.locator("body").aria_snapshot())
    assert not missing, f"{what}: a screen reader has no name for {missing}"


async def require_accessible(page: Page, what: str) -> None:
    """Fail when axe finds a violation in the page as it is, in the light and in the dark scheme."""
    dark, still = await page.evaluate(
        "() => ['(prefers-color-scheme: dark)', '(prefers-reduced-motion: reduce)'].map((q) => matchMedia(q).matches)"
    )
    schemes: tuple[Literal["light"], Literal["dark"]] = ("light", "dark")
    for scheme in schemes:
        await page.emulate_media(color_scheme=scheme, reduced_motion="reduce")  # no colour is half way to another
        found = await _axe.run(page, options={"runOnly": TAGS, "resultTypes": ["violations"]})
        violations = found.response["violations"]
        assert not violations, f"{what}, {scheme}:\n{told(violations)}"
    await page.emulate_media(
        color_scheme="dark" if dark else "light", reduced_motion="reduce" if still else "no-preference"
    )


async def require_reflow(page: Page, what: str) -> None:
    """Fail when the page has to be scrolled sideways at a width of 320 pixels."""
    before = page.viewport_size
    assert before is not None
    await page.set_viewport_size({"width": NARROW, "height": 640})
    wide = await page.evaluate(_TOO_WIDE, NARROW)
    await page.set_viewport_size(before)
    assert not wide, f"{what} is wider than {NARROW} pixels:\n" + "\n".join(wide)


_TOO_WIDE = """(most) => {
  if (document.documentElement.scrollWidth <= most) return [];
  const scrolls = (element) => {
    for (let e = element.parentElement; e && e !== document.documentElement; e = e.parentElement)
      if (['auto', 'scroll', 'hidden', 'clip'].includes(getComputedStyle(e).overflowX)) return true;
    return false;
  };
  const found = [...document.querySelectorAll('body *')].filter(
    (e) => !scrolls(e) && (e.getBoundingClientRect().right > most + 0.5 ||
      (!e.children.length && e.scrollWidth > e.clientWidth && getComputedStyle(e).overflowX === 'visible')));
  return [`the document: ${document.documentElement.scrollWidth}`, ...found.slice(0, 8).map(
    (e) => `${Math.round(e.getBoundingClientRect().right)}: ${e.outerHTML.slice(0, 160)}`)];
}"""


@dataclass(frozen=True, slots=True)
class Stop:
    """Where the focus is after one press of Tab."""

    name: str
    role: str
    visible: bool
    """It differs from what it is without focus: outline, shadow, border or background."""
    inside: bool
    """No part of the page lies over it, and it is in view."""


async def tab_stops(page: Page, *, most: int = 200) -> list[Stop]:
    """Press Tab from the beginning of the page to its end; return where the focus was each time."""
    await page.evaluate(_UNFOCUSED)
    stops: list[Stop] = []
    for _ in range(most):
        await page.keyboard.press("Tab")
        found = await page.evaluate(_FOCUSED)
        if found is None:
            return stops
        stops.append(Stop(**found))
    raise AssertionError(f"the focus never leaves the page: {stops}")


_UNFOCUSED = """() => {
  document.activeElement?.blur();
  getSelection()?.removeAllRanges();
  scrollTo(0, 0);
  window.looks = (e) => { const s = getComputedStyle(e); return [s.outlineStyle === 'none' ? '' : s.outlineWidth +
    s.outlineColor, s.boxShadow, s.borderColor, s.backgroundColor, s.textDecorationLine].join('|'); };
  window.unfocused = new Map([...document.querySelectorAll('*')].map((e) => [e, window.looks(e)]));
  window.visited = new Set();
}"""

_FOCUSED = """() => {
  const e = document.activeElement;
  if (!e || e === document.body || e === document.documentElement || window.visited.has(e)) return null;
  window.visited.add(e);
  const box = e.getBoundingClientRect();
  const on_top = document.elementFromPoint(
    Math.min(Math.max(box.left + box.width / 2, 0), innerWidth - 1),
    Math.min(Math.max(box.top + Math.min(box.height / 2, 10), 0), innerHeight - 1));
  const own = [e, ...(e.labels ?? [])];
  return {
    name: (e.getAttribute('aria-label') || e.labels?.[0]?.innerText || e.innerText || e.title || e.name || '').trim(),
    role: e.getAttribute('role') || e.tagName.toLowerCase() + (e.type ? ':' + e.type : ''),
    visible: window.looks(e) !== window.unfocused.get(e),
    inside: on_top !== null && own.some((o) => o === on_top || o.contains(on_top) || on_top.contains(o) &&
      on_top !== document.body && on_top !== document.documentElement),
  };
}"""


def names_missing(snapshot: str) -> list[str]:
    """Return the lines of an accessibility snapshot (`aria_snapshot`) that a screen reader would read as nothing."""
    needs = ("button", "link", "textbox", "combobox", "checkbox", "radio", "spinbutton", "img", "heading", "dialog",
             "progressbar", "table")  # fmt: skip
    found = []
    for line in snapshot.splitlines():
        role, _, rest = line.strip().removeprefix("- ").partition(" ")
        if role.rstrip(":") in needs and not rest.startswith(('"', "/")):
            found.append(line.strip())
    return found


# Shifts of layout, as the browser itself scores them (https://web.dev/articles/cls): those that no input caused.
WATCH_SHIFTS = """() => {
  window.shifts = [];
  new PerformanceObserver((list) => { for (const entry of list.getEntries()) if (!entry.hadRecentInput)
    window.shifts.push({value: entry.value, what: entry.sources.map((s) => s.node?.outerHTML?.slice(0, 120) ?? '?')});
  }).observe({type: 'layout-shift', buffered: true});
}"""


async def require_still(page: Page, what: str, *, most: float = 0.02) -> None:
    """Fail when things have moved since `WATCH_SHIFTS` was evaluated in the page, by more than `most` in sum."""
    shifts = await page.evaluate("() => window.shifts")
    moved = sum(shift["value"] for shift in shifts)
    assert moved < most, f"{what} jumps by {moved:.3f}: {shifts}"
