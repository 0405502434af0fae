"""A visitor of the portal without a browser: follows links and sends the forms of the pages that came."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any, Self
from urllib.parse import urlencode

import aiohttp
from yarl import URL

from tests.browser.machine import TOKENS

Fields = list[tuple[str, str]]


@dataclass(slots=True)
class Form:
    """One form of a page: what a browser would send if nothing was touched."""

    method: str
    action: str
    fields: Fields = field(default_factory=list)
    boxes: Fields = field(default_factory=list)
    """Check boxes that are not ticked."""
    required: set[str] = field(default_factory=set)


class Page(HTMLParser):
    """A page that came: status, headings, text, links, forms."""

    def __init__(self, status: int, url: URL, content: str) -> None:
        super().__init__()
        self.status, self.url, self.content = status, url, content
        self.text = ""
        self.links: dict[str, str] = {}
        self.forms: list[Form] = []
        self._link: str | None = None
        self._select: str | None = None
        self._area: str | None = None
        self._hidden = 0
        self.feed(content)
        self.text = " ".join(self.text.split())

    def form(self, action: str) -> Form:
        """Return the form that is sent to a path that ends so."""
        found = [form for form in self.forms if form.action.split("?")[0].endswith(action)]
        assert len(found) == 1, (action, [form.action for form in self.forms], self.text)
        return found[0]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        told = {name: value or "" for name, value in attrs}
        if tag == "form":
            self.forms.append(Form(told.get("method", "get"), told["action"]))
        elif tag == "a":
            self._link = told.get("href")
            if self._link and "aria-label" in told:
                self.links.setdefault(told["aria-label"], self._link)
        elif tag in ("style", "script", "title"):
            self._hidden += 1
        elif self.forms and tag in ("input", "textarea", "select"):
            self._control(tag, told)
        elif self.forms and tag == "option" and self._select:
            fields, name = self.forms[-1].fields, self._select
            if "selected" in told:
                fields[:] = [each for each in fields if each[0] != name]
            if "selected" in told or all(each[0] != name for each in fields):
                fields.append((name, told.get("value", "\0")))  # \0: the text that follows

    def _control(self, tag: str, told: Mapping[str, str]) -> None:
        form, name = self.forms[-1], told.get("name", "")
        if not name:
            return
        if "required" in told:
            form.required.add(name)
        if tag == "select":
            self._select = name
        elif told.get("type") in ("checkbox", "radio"):
            (form.fields if "checked" in told else form.boxes).append((name, told.get("value", "on")))
        else:
            form.fields.append((name, told.get("value", "")))

    def handle_endtag(self, tag: str) -> None:
        if tag == "a":
            self._link = None
        elif tag == "select":
            self._select = None
        elif tag in ("style", "script", "title"):
            self._hidden -= 1

    def handle_data(self, data: str) -> None:
        if self._hidden:
            return
        self.text += f" {data}"
        if self._link and data.strip():
            self.links.setdefault(" ".join(data.split()), self._link)
        if self._select and self.forms and self.forms[-1].fields[-1:] == [(self._select, "\0")]:
            self.forms[-1].fields[-1] = (self._select, data.strip())


class Visitor:
    """Somebody with a session of his own."""

    def __init__(self, origin: str, role: str) -> None:
        self.origin, self.role = origin, role

    async def __aenter__(self) -> Self:
        jar = aiohttp.CookieJar(unsafe=True, treat_as_secure_origin=URL(self.origin))
        self.session = aiohttp.ClientSession(cookie_jar=jar, timeout=aiohttp.ClientTimeout(total=120))
        page = await self.get("/login")
        page = await self.send(page.form("/login"), token=TOKENS[self.role])
        assert page.url.path == "/", page.text
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.session.close()

    async def get(self, path: str, **headers: str) -> Page:
        """Open a page."""
        async with self.session.get(URL(f"{self.origin}{path}", encoded=True), headers=headers) as answer:
            return Page(answer.status, answer.url, await answer.text())

    async def follow(self, page: Page, link: str) -> Page:
        """Follow the link with this text or label."""
        assert link in page.links, (link, sorted(page.links))
        return await self.get(page.links[link])

    async def send(self, form: Form, *, tick: Iterable[str] = (), **values: str) -> Page:
        """Send a form as it is, with boxes of these names ticked and these values typed."""
        fields = [(name, values.get(name, value)) for name, value in form.fields]
        fields += [box for box in form.boxes if box[0] in set(tick)]
        known = {name for name, _ in form.fields}
        assert values.keys() <= known, (sorted(values.keys() - known), sorted(known))
        if form.method == "get":
            return await self.get(f"{form.action}?{urlencode(fields)}")
        headers = {"Origin": self.origin}
        async with self.session.post(f"{self.origin}{form.action}", data=fields, headers=headers) as answer:
            return Page(answer.status, answer.url, await answer.text())


@contextlib.asynccontextmanager
async def visiting(origin: str, role: str = "admin") -> AsyncIterator[Visitor]:
    """Give a visitor who has logged in."""
    async with Visitor(origin, role) as visitor:
        yield visitor


async def job_of(client: Any, page: Page, *, seconds: float = 120) -> dict[str, Any]:
    """Wait for the job whose page this is, and return it."""
    from tests.service_process import ended  # noqa: PLC0415

    path = page.url.path
    assert path.startswith("/jobs/"), (page.status, path, page.text)
    return await ended(client, {"id": path.rpartition("/")[2]}, seconds=seconds)
