"""Whom the portal believes that he stands for somebody else: real requests over real connections."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from multidict import CIMultiDict

from service.portal.proxy import LONGEST_NAME, Proxy
from service.portal.settings import HeaderSettings, ProxySettings

LOOPBACK = ProxySettings(peers=["127.0.0.0/8"])
ME = ProxySettings(users=[os.getuid()])
WHO = HeaderSettings(admins=["anna"], reader_roles=["staff"], roles_header="X-Roles")


async def seen(proxy: Proxy, directory: Path, *headers: tuple[str, str], over_tcp: bool = True) -> Mapping[str, Any]:
    """Send a request; return what the proxy's rules make of it."""

    async def answer(request: web.Request) -> web.Response:
        user = proxy.user(request, WHO)
        role = user and user[1] and user[1].role
        return web.json_response({"client": proxy.client(request), "user": user and user[0], "role": role})

    async def serve(request: web.BaseRequest) -> web.StreamResponse:
        return await answer(request)  # type: ignore[arg-type]

    runner = web.ServerRunner(web.Server(serve))
    await runner.setup()
    try:
        path = str(directory / "portal.sock")
        await (web.TCPSite(runner, "127.0.0.1", 0) if over_tcp else web.UnixSite(runner, path)).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}" if over_tcp else "http://portal"
        connector = aiohttp.TCPConnector() if over_tcp else aiohttp.UnixConnector(path)
        async with (
            aiohttp.ClientSession(connector=connector) as visitor,
            visitor.get(url, headers=CIMultiDict(headers)) as found,
        ):
            told: Mapping[str, Any] = await found.json()
            return told
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(
    ("settings", "over_tcp", "believed"),
    [(None, True, False), (ME, True, False), (LOOPBACK, True, True), (LOOPBACK, False, False), (ME, False, True)],
)
async def test_only_the_proxy_is_believed(
    tmp_path: Path, settings: ProxySettings | None, over_tcp: bool, believed: bool
) -> None:
    headers = (("X-Forwarded-For", "203.0.113.7"), ("X-Remote-User", "anna"))
    told = await seen(Proxy(settings), tmp_path, *headers, over_tcp=over_tcp)
    direct = "127.0.0.1" if over_tcp else "socket"
    assert told["client"] == ("203.0.113.7" if believed else direct)
    assert (told["user"], told["role"]) == (("anna", "admin") if believed else (None, None))


@pytest.mark.parametrize(
    ("forwarded", "client"),
    [
        ([], "127.0.0.1"),
        (["203.0.113.7, 198.51.100.1"], "198.51.100.1"),
        (["203.0.113.7", "198.51.100.1"], "198.51.100.1"),
        (["203.0.113.7, 127.0.0.2"], "203.0.113.7"),
        (["203.0.113.7, 127.0.0.3; 127.0.0.2"], "203.0.113.7"),
        (["127.0.0.3, 127.0.0.2"], "127.0.0.1"),
        (["203.0.113.7, unknown"], "127.0.0.1"),
        (["[2001:db8::1]"], "2001:db8::1"),
        (["::ffff:203.0.113.7"], "203.0.113.7"),
    ],
)
async def test_the_client_is_the_last_that_is_not_the_proxys_own(
    tmp_path: Path, forwarded: list[str], client: str
) -> None:
    told = await seen(Proxy(LOOPBACK), tmp_path, *(("X-Forwarded-For", each) for each in forwarded))
    assert told["client"] == client


@pytest.mark.parametrize(
    ("headers", "name", "role"),
    [
        ([("X-Remote-User", "anna")], "anna", "admin"),
        ([("X-Remote-User", " bert "), ("X-Roles", "guests; staff")], "bert", "read"),
        ([("X-Remote-User", "bert"), ("X-Roles", "guests"), ("X-Roles", "staff")], "bert", "read"),
        ([("X-Remote-User", "bert"), ("X-Roles", ", guests")], "bert", None),
        ([("X-Remote-User", "")], None, None),
        ([("X-Remote-User", "x" * (LONGEST_NAME + 1))], None, None),
        ([("X-Remote-User", "anna"), ("X-Remote-User", "anna")], None, None),
    ],
)
async def test_a_named_user_has_the_role_of_his_name_or_groups_and_of_two_names_neither(
    tmp_path: Path, headers: list[tuple[str, str]], name: str | None, role: str | None
) -> None:
    told = await seen(Proxy(LOOPBACK), tmp_path, *headers)
    assert (told["user"], told["role"]) == (name, role)
