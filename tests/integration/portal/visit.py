"""The portal as a process of its own, and a visitor that does what a browser does with cookies and forms."""

from __future__ import annotations

import contextlib
import html
import json
import os
import re
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
import yaml
from yarl import URL

START_SECONDS = 60.0
TOKENS = {"admin": "admin-token-of-the-tests-0123456789", "read": "reader-token-of-the-tests-0123456789"}


@dataclass(slots=True)
class PortalProcess:
    """`deviceon-backup portal` before the service at `service_socket`; `with` starts and stops it."""

    directory: Path
    service_socket: Path
    settings: dict[str, Any] = field(default_factory=dict)
    """Keys of portal.yaml that differ."""
    module: str = "service"
    """What is run; `tests.integration.portal.hasty` has less patience."""
    process: subprocess.Popen[bytes] | None = None
    port: int = 0

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return (self.directory / "portal.log").read_text()

    def said(self, message: str) -> list[dict[str, Any]]:
        """Return the records of the log whose message begins so."""
        whole = self.log.rpartition("\n")[0].splitlines()
        records = [json.loads(line) for line in whole if line.startswith("{")]
        return [record for record in records if record["message"].startswith(message)]

    def write(self) -> Path:
        """Write portal.yaml and the tokens; return its path."""
        self.directory.mkdir(exist_ok=True)
        files = {role: self.directory / f"{role}.token" for role in TOKENS}
        for role, file in files.items():
            file.write_text(f"{TOKENS[role]}\n")
        document = {
            "listen": "127.0.0.1:0",
            "service": {"socket": str(self.service_socket)},
            "access": {"token": {f"{role}_file": str(file) for role, file in files.items()}},
        }
        document = {key: value for key, value in (document | self.settings).items() if value is not None}
        path = self.directory / "portal.yaml"
        path.write_text(yaml.safe_dump(document))
        return path

    def __enter__(self) -> Self:
        self.start()
        return self

    def start(self) -> None:
        """Start it; return when it listens."""
        config = self.write()
        before = len(self.said("ready on")) if (self.directory / "portal.log").exists() else 0
        with (self.directory / "portal.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", self.module, "portal", "--config", str(config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=Path(__file__).parents[3],
                env=os.environ | {"PYTHONUNBUFFERED": "1"},
            )
        deadline = time.monotonic() + START_SECONDS
        while len(ready := self.said("ready on")) == before:
            assert self.process.poll() is None, self.log
            assert time.monotonic() < deadline, self.log
            time.sleep(0.02)
        self.port = ready[-1]["fields"].get("port") or 0

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and wait for the end; return the exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(START_SECONDS)

    def __exit__(self, *_: object) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def visitor(self, **headers: str) -> Visitor:
        """Return somebody who visits; `headers` go with every request, `_` stands for `-`."""
        return Visitor(self.origin, {name.replace("_", "-"): value for name, value in headers.items()})

    @contextlib.asynccontextmanager
    async def logged_in(self, role: str = "admin") -> AsyncIterator[Visitor]:
        """Give a visitor who has logged in with the token of a role."""
        async with self.visitor() as visitor:
            page = await visitor.log_in(TOKENS[role])
            assert page.status == 200, page.text
            yield visitor


@dataclass(frozen=True, slots=True)
class Page:
    """An answer."""

    status: int
    text: str
    headers: Mapping[str, str]
    path: str

    @property
    def words(self) -> str:
        """Return what a reader sees, without the marks."""
        return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", self.text)))

    def field(self, name: str) -> str:
        """Return the value of the first hidden field with this name."""
        found = re.search(rf'<input type="hidden" name="{name}" value="([^"]*)"', self.text)
        assert found is not None, f"no field {name} in {self.path}"
        return html.unescape(found[1])


class Visitor:
    """A browser's cookies, redirects and forms, without its script."""

    def __init__(
        self,
        origin: str,
        headers: Mapping[str, str] | None = None,
        *,
        socket: Path | None = None,
        authority: Path | None = None,
    ) -> None:
        self.origin = origin
        self._tls = ssl.create_default_context(cafile=authority) if authority else True
        self._headers = dict(headers or {})
        self._socket = socket
        self.last: Page | None = None

    async def __aenter__(self) -> Self:
        connector = (
            aiohttp.UnixConnector(str(self._socket)) if self._socket else aiohttp.TCPConnector(limit=0, ssl=self._tls)
        )
        self.jar = aiohttp.CookieJar(unsafe=True, treat_as_secure_origin=[URL(self.origin)])
        self.session = aiohttp.ClientSession(self.origin, connector=connector, cookie_jar=self.jar)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.session.close()

    @property
    def cookies(self) -> dict[str, str]:
        """Return the cookies that are kept."""
        return {cookie.key: cookie.value for cookie in self.jar}

    async def get(self, path: str, *, follow: bool = True, **headers: str) -> Page:
        """Fetch a page; redirects are followed unless `follow` is False."""
        given = self._headers | {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.session.get(path, headers=given, allow_redirects=follow) as answer:
            page = Page(answer.status, await answer.text(), answer.headers, answer.url.path_qs)
        if page.headers.get("Content-Type", "").startswith("text/html"):
            self.last = page
        return page

    async def post(
        self,
        path: str,
        fields: Mapping[str, str] | None = None,
        *,
        headers: Mapping[str, str | None] | None = None,
        follow: bool = True,
    ) -> Page:
        """Send a form with the hidden fields of the last page, as its button would; `headers`: None leaves one out."""
        given: dict[str, str | None] = {"Origin": self.origin, "Sec-Fetch-Site": "same-origin"}
        given |= self._headers | dict(headers or {})
        hidden = {} if self.last is None else {"csrf": self.last.field("csrf")}
        if self.last is not None and 'name="idempotency_key"' in self.last.text:
            hidden["idempotency_key"] = self.last.field("idempotency_key")
        async with self.session.post(
            path,
            data=hidden | dict(fields or {}),
            headers={name: value for name, value in given.items() if value is not None},
            allow_redirects=follow,
        ) as answer:
            page = Page(answer.status, await answer.text(), answer.headers, answer.url.path_qs)
        if page.headers.get("Content-Type", "").startswith("text/html"):
            self.last = page
        return page

    async def log_in(self, token: str, *, path: str = "/login") -> Page:
        """Log in with a token; return the page that follows."""
        await self.get(path)
        return await self.post("/login", {"token": token})
