"""The reverse proxy's word on who it is: believed from it, and from nobody else."""

from __future__ import annotations

import pwd
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.portal.visit import TOKENS, PortalProcess, Visitor
from tests.service_process import ServiceProcess

ORIGIN = "https://deviceon.example"
HEADER: dict[str, Any] = {
    "user_header": "X-Portal-User",
    "roles_header": "X-Portal-Roles",
    "admins": ["alice"],
    "admin_roles": ["operators"],
    "reader_roles": ["staff"],
}
PROXY_USER, OTHER_USER = "www-data", "nobody"

# Run as another user, so by a Python that everybody may read.
_ASK = """
import http.client, socket, sys
connection = http.client.HTTPConnection("localhost")
connection.sock = socket.socket(socket.AF_UNIX)
connection.sock.connect(sys.argv[1])
connection.request("GET", "/backup/jobs", headers={"Host": "deviceon.example", "X-Portal-User": "alice"})
answer = connection.getresponse()
print(answer.status, answer.getheader("Location"))
"""


@pytest.fixture(scope="module")
def behind(service: ServiceProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PortalProcess]:
    """Give a portal behind a proxy on 127.0.0.1; 127.0.0.2 is somebody else."""
    settings = {"listen": "0.0.0.0:0", "origins": None, "proxy": {"peers": ["127.0.0.1"]}}
    with PortalProcess(
        tmp_path_factory.mktemp("behind"), service.socket, settings | {"access": {"header": HEADER}}
    ) as portal:
        yield portal


async def seen(portal: PortalProcess, **headers: str) -> str:
    """Return what a visitor with these headers gets to see: the page, the login, or why not."""
    async with portal.visitor(**headers) as visitor:
        page = await visitor.get("/jobs")
        return page.words if page.path == "/jobs" else f"outside: {page.words}"


@pytest.mark.parametrize(
    ("headers", "told"),
    [
        ({"X_Portal_User": "alice"}, "You may look and change."),
        ({"X_Portal_User": "carol", "X_Portal_Roles": "guests, operators"}, "You may look and change."),
        ({"X_Portal_User": "carol", "X_Portal_Roles": "staff"}, "change nothing"),
        ({"X_Portal_User": "carol", "X_Portal_Roles": "staff;operators"}, "You may look and change."),
        ({"X_Portal_User": "carol", "X_Portal_Roles": "staffs,operator"}, "outside: "),
        ({"X_Portal_User": "Alice"}, "outside: "),
        ({"X_Portal_User": ""}, "outside: "),
        ({"X_Portal_User": "x" * 300, "X_Portal_Roles": "operators"}, "outside: "),
        ({"X_Remote_User": "alice"}, "outside: "),
        ({}, "outside: "),
    ],
    ids=str,
)
async def test_the_proxy_tells_who_it_is(behind: PortalProcess, headers: dict[str, str], told: str) -> None:
    assert told in await seen(behind, **headers)


async def test_who_has_no_role_is_told_under_which_name_he_is_known(behind: PortalProcess) -> None:
    text = await seen(behind, X_Portal_User="<b>carol</b>")
    assert "known as <b>carol</b>" in text
    assert text.startswith("outside: ")


async def test_two_user_headers_are_nobody(behind: PortalProcess) -> None:
    """A proxy that adds its header to the client's, instead of replacing it, must not make the client an admin."""
    async with (
        behind.visitor() as visitor,
        visitor.session.get("/jobs", headers=[("X-Portal-User", "alice"), ("X-Portal-User", "carol")]) as answer,
    ):
        assert answer.url.path == "/login"


async def test_the_header_of_anybody_else_is_not_believed(service: ServiceProcess, tmp_path: Path) -> None:
    settings = {"proxy": {"peers": ["127.0.0.2", "10.0.0.0/8"]}, "access": {"header": HEADER}}
    with PortalProcess(tmp_path, service.socket, settings) as portal:
        assert (await seen(portal, X_Portal_User="alice", X_Portal_Roles="operators")).startswith("outside: ")
        assert "alice" not in await seen(portal, X_Portal_User="alice")


async def test_a_client_that_is_gone_before_it_was_asked_who_it_is_is_no_mistake(behind: PortalProcess) -> None:
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", behind.port)) as hasty:
            hasty.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # ends with a reset
            hasty.sendall(
                f"GET /jobs HTTP/1.1\r\nHost: 127.0.0.1:{behind.port}\r\nX-Portal-User: alice\r\n\r\n".encode()
            )
    assert "You may look" in await seen(behind, X_Portal_User="alice")
    assert "Traceback" not in behind.log


async def test_forms_of_somebody_whom_the_proxy_names_need_his_token(behind: PortalProcess) -> None:
    async with (
        behind.visitor(X_Portal_User="alice") as alice,
        behind.visitor(X_Portal_User="carol", X_Portal_Roles="staff") as carol,
    ):
        await alice.get("/jobs")
        page = await carol.get("/jobs")
        preferences = {"theme": "dark", "next": "/jobs"}
        assert (await alice.post("/preferences", preferences)).status == 200
        await alice.get("/jobs")
        assert (await alice.post("/preferences", preferences | {"csrf": page.field("csrf")})).status == 403


async def test_the_proxys_word_on_addresses_counts_failures_and_a_clients_own_does_not(
    service: ServiceProcess, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.write_text(TOKENS["read"])
    access = {"access": {"token": {"read_file": str(token)}}}

    async def tries(visitor: Visitor, number: int) -> list[int]:
        await visitor.get("/login")
        return [(await visitor.post("/login", {"token": f"wrong-{n}"})).status for n in range(number)]

    with PortalProcess(tmp_path / "a", service.socket, access | {"proxy": {"peers": ["127.0.0.1"]}}) as portal:
        async with portal.visitor(X_Forwarded_For="198.51.100.1, 192.0.2.1") as one:
            assert (await tries(one, 6))[-1] == 429
        async with portal.visitor(X_Forwarded_For="198.51.100.1, 192.0.2.2, 127.0.0.1") as two:
            assert await tries(two, 1) == [403], "another client of the same proxy"
        async with portal.visitor(X_Forwarded_For="198.51.100.9, 192.0.2.1") as one:
            assert await tries(one, 1) == [429], "what a client puts before changes nothing"
        assert {record["fields"]["peer"] for record in portal.said("a login failed")} == {"192.0.2.1", "192.0.2.2"}
    with PortalProcess(tmp_path / "b", service.socket, access) as portal:
        for number in range(6):
            async with portal.visitor(X_Forwarded_For=f"192.0.2.{number}") as forger:
                statuses = await tries(forger, 1)
        assert statuses == [429], "without a proxy, a forged address is none"


async def test_on_a_unix_socket_the_kernel_says_who_the_proxy_is(service: ServiceProcess, workspace: Path) -> None:
    """Below a base path, as a product's own portal embeds it."""
    socket = workspace / "run" / "portal.sock"
    settings = {
        "listen": None,
        "socket": str(socket),
        "socket_group": "nogroup",
        "origins": [ORIGIN],
        "base_path": "/backup",
        "proxy": {"users": [PROXY_USER]},
        "access": {"header": HEADER},
    }
    with PortalProcess(workspace / "portal", service.socket, settings):
        assert socket.stat().st_mode & 0o777 == 0o660
        assert socket.parent.stat().st_mode & 0o777 == 0o750
        socket.parent.chmod(0o755)
        socket.chmod(0o666)
        asked = {}
        for name in (PROXY_USER, OTHER_USER):
            user = pwd.getpwnam(name)
            asked[name] = subprocess.run(
                ["/usr/bin/python3", "-c", _ASK, str(socket)],
                user=user.pw_uid,
                group=user.pw_gid,
                extra_groups=[],
                capture_output=True,
                text=True,
                timeout=60,
                check=True,
            ).stdout.strip()
        assert asked == {PROXY_USER: "200 None", OTHER_USER: "303 /backup/login?next=%2Fbackup%2Fjobs"}


async def test_below_a_base_path_every_link_stays_below_it(service: ServiceProcess, workspace: Path) -> None:
    settings = {"base_path": "/manage/backup"}
    with PortalProcess(workspace / "portal", service.socket, settings) as portal:
        async with portal.visitor() as visitor:
            page = await visitor.get("/manage/backup")
            assert page.path.startswith("/manage/backup/login")
            page = await visitor.post("/manage/backup/login", {"token": TOKENS["admin"]})
            assert page.status == 200
            for path in ("", "/jobs", "/archives", "/settings", "/drills"):
                page = await visitor.get(f"/manage/backup{path}")
                assert page.status == 200
                for attribute in (' href="', ' action="', ' src="', ' data-events="'):
                    for link in page.text.split(attribute)[1:]:
                        assert link.startswith(("/manage/backup", "#")), link[:60]
            assert (await visitor.get("/jobs")).status == 404
            assert (await visitor.get("/healthz")).status == 200
