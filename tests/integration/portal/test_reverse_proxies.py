"""The portal behind real reverse proxies, set up as docs/PORTAL.md shows: TLS, a login of theirs, a path of theirs."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.integration.portal.test_live import try_in_vain
from tests.integration.portal.visit import PortalProcess, Visitor
from tests.service_process import ServiceProcess

DOCUMENT = (Path(__file__).parents[3] / "docs" / "PORTAL.md").read_text()
PASSWORDS = {"alice": "pass-of-alice", "bob": "pass-of-bob"}
START_SECONDS = 30.0
APACHE_MODULES = ["mpm_event", "authn_core", "authn_file", "authz_core", "authz_user", "auth_basic"]
APACHE_MODULES += ["proxy", "proxy_http", "headers", "ssl", "socache_shmcb"]


def shown(after: str) -> str:
    """Return the block of configuration that docs/PORTAL.md shows after a line that begins so."""
    found = re.search(rf"^{after}[^\n]*\n\n```\w*\n(.*?)^```", DOCUMENT, re.M | re.S)
    assert found is not None, after
    return found[1]


def printed(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@dataclass(slots=True)
class Place:
    """Where a proxy finds its things, and where it listens."""

    directory: Path
    certificate: Path
    key: Path
    port: int
    block: str


def nginx(place: Place) -> list[str]:
    users = "".join(f"{name}:{{PLAIN}}{password}\n" for name, password in PASSWORDS.items())
    (place.directory / "users").write_text(users)
    (place.directory / "nginx.conf").write_text(f"""
        daemon off; user root; pid {place.directory}/nginx.pid; error_log stderr; worker_processes 1;
        events {{ }}
        http {{
            access_log off;
            client_body_temp_path {place.directory}/body; proxy_temp_path {place.directory}/proxy;
            fastcgi_temp_path {place.directory}/fastcgi; uwsgi_temp_path {place.directory}/uwsgi;
            scgi_temp_path {place.directory}/scgi;
            server {{
                listen 127.0.0.1:{place.port} ssl;
                ssl_certificate {place.certificate}; ssl_certificate_key {place.key};
                auth_basic "portal"; auth_basic_user_file {place.directory}/users;
                {place.block}
            }}
        }}
    """)
    return ["nginx", "-p", str(place.directory), "-c", str(place.directory / "nginx.conf")]


def apache(place: Place) -> list[str]:
    hashed = {name: printed("openssl", "passwd", "-apr1", password) for name, password in PASSWORDS.items()}
    (place.directory / "users").write_text("".join(f"{name}:{each}\n" for name, each in hashed.items()))
    load = "\n".join(f"LoadModule {each}_module /usr/lib/apache2/modules/mod_{each}.so" for each in APACHE_MODULES)
    (place.directory / "apache.conf").write_text(f"""
{load}
ServerName localhost
DefaultRuntimeDir {place.directory}
PidFile {place.directory}/apache.pid
ErrorLog /dev/stderr
User www-data
Group www-data
Listen 127.0.0.1:{place.port}
<VirtualHost *:{place.port}>
SSLEngine on
SSLCertificateFile {place.certificate}
SSLCertificateKeyFile {place.key}
<Location "/backup/">
AuthType Basic
AuthName portal
AuthUserFile {place.directory}/users
Require valid-user
</Location>
{place.block}
</VirtualHost>
""")
    return ["apache2", "-f", str(place.directory / "apache.conf"), "-DFOREGROUND"]


def caddy(place: Place) -> list[str]:
    hashed = {name: printed("caddy", "hash-password", "--plaintext", each) for name, each in PASSWORDS.items()}
    users = "\n".join(f"{name} {base64.b64encode(each.encode()).decode()}" for name, each in hashed.items())
    (place.directory / "Caddyfile").write_text(f"""
{{
    admin off
    auto_https off
    storage file_system {place.directory}/caddy
}}
https://localhost:{place.port} {{
    bind 127.0.0.1
    tls {place.certificate} {place.key}
    basicauth {{
{users}
    }}
    {place.block}
}}
""")
    return ["caddy", "run", "--config", str(place.directory / "Caddyfile"), "--adapter", "caddyfile"]


PROXIES: dict[str, Callable[[Place], list[str]]] = {"nginx": nginx, "Apache": apache, "Caddy": caddy}


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
    return port


@contextlib.contextmanager
def running(command: list[str], place: Place) -> Iterator[None]:
    """Run a proxy until the block ends."""
    log = place.directory / "proxy.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while True:
            assert process.poll() is None, log.read_text()
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", place.port), 1):
                break
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # Caddy would wait for its connections
        process.wait()


@pytest.fixture(scope="module", params=PROXIES)
def front(request: pytest.FixtureRequest, service: ServiceProcess) -> Iterator[Callable[..., Visitor]]:
    """Give what makes a visitor of a portal behind a proxy, by the name that he logs in with there."""
    directory = Path(tempfile.mkdtemp(prefix="proxy-"))  # in reach of the proxy's own user, unlike pytest's
    directory.chmod(0o755)
    request.addfinalizer(lambda: shutil.rmtree(directory))
    certificate, key = directory / "certificate.pem", directory / "key.pem"
    subprocess.run(
        f"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost"
        f" -addext subjectAltName=DNS:localhost -out {certificate} -keyout {key}",
        shell=True,
        check=True,
        capture_output=True,
    )
    port = free_port()
    settings: dict[str, Any] = {
        "origins": [f"https://localhost:{port}"],
        "base_path": "/backup",
        "proxy": {"peers": ["127.0.0.1"]},
        "access": {"header": {"user_header": "X-Remote-User", "admins": ["alice"], "readers": ["bob"]}},
    }
    with PortalProcess(directory / "portal", service.socket, settings) as portal:
        block = shown(request.param).replace("127.0.0.1:8480", f"127.0.0.1:{portal.port}")
        place = Place(directory, certificate, key, port, block)
        with running(PROXIES[request.param](place), place):

            def visitor(name: str | None, **headers: str) -> Visitor:
                given = {each.replace("_", "-"): value for each, value in headers.items()}
                if name is not None:
                    pair = base64.b64encode(f"{name}:{PASSWORDS[name]}".encode()).decode()
                    given["Authorization"] = f"Basic {pair}"
                return Visitor(f"https://localhost:{port}", given, authority=certificate)

            yield visitor


async def test_who_has_logged_in_at_the_proxy_has_his_role_and_sends_forms(front: Callable[..., Visitor]) -> None:
    async with front("alice") as alice, front("bob") as bob, front(None) as nobody:
        assert "You may look and change." in (await alice.get("/backup/jobs")).words
        assert "You may look, and change nothing." in (await bob.get("/backup/jobs")).words
        assert (await nobody.get("/backup/jobs")).status == 401
        sent = await alice.post("/backup/preferences", {"theme": "dark", "next": "/backup/jobs"})
        assert (sent.status, sent.path) == (200, "/backup/jobs")
        assert 'data-theme="dark"' in sent.text


async def test_a_name_that_the_browser_sends_itself_counts_for_nothing(front: Callable[..., Visitor]) -> None:
    async with front("bob", X_Remote_User="alice") as bob:
        assert "You may look, and change nothing." in (await bob.get("/backup/jobs")).words


async def test_live_updates_come_through_at_once(front: Callable[..., Visitor], service: ServiceProcess) -> None:
    async with front("bob") as bob:
        await bob.get("/backup/jobs")
        bob_headers = {"Authorization": bob._headers["Authorization"], "Accept": "text/event-stream"}
        patience = aiohttp.ClientTimeout(total=None)
        async with bob.session.get("/backup/events", headers=bob_headers, timeout=patience) as answer:
            assert answer.status == 200
            await try_in_vain(service)
            async with asyncio.timeout(10):  # a heartbeat every 15 s would push out what a proxy holds back
                async for line in answer.content:
                    kind, _, value = line.decode().rstrip("\n").partition(": ")
                    if kind == "data" and json.loads(value).get("type") == "job.failed":
                        break
            assert answer.connection is not None
            assert answer.connection.transport is not None
            answer.connection.transport.abort()  # Apache answers no orderly end of TLS while it streams
