"""A real OpenID Connect provider (Debian's glewlwyd, on SQLite) with users of its own, who log in there."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qsl, urlsplit

import aiohttp
import httpx
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from demo.s3_server import free_ports

START_SECONDS = 30.0
SCHEMA = Path("/usr/share/dbconfig-common/data/glewlwyd/install/sqlite3")
CLIENT, SECRET = "deviceon-backup", "secret-of-the-client-0123456789"
PASSWORD = "password-of-a-user"


@dataclass
class OidcProvider:
    """`with` starts it; `redirect_uri` is where it may send browsers. `users`: name -> groups."""

    directory: Path
    redirect_uri: str
    users: dict[str, list[str]] = field(default_factory=dict)
    port: int = field(default_factory=lambda: free_ports(1)[0])
    process: subprocess.Popen[bytes] | None = None

    @property
    def issuer(self) -> str:
        return f"http://localhost:{self.port}/api/oidc"

    def __enter__(self) -> Self:
        program = shutil.which("glewlwyd")
        assert program is not None, "There is no glewlwyd: install the Debian package (apt-get install glewlwyd)"
        self.directory.mkdir(exist_ok=True)
        self._write()
        with (self.directory / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [program, "--config-file", str(self.directory / "glewlwyd.conf")], stdout=log, stderr=log
            )
        try:
            self._configure()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def _write(self) -> None:
        database = sqlite3.connect(self.directory / "database")
        database.executescript(SCHEMA.read_text())
        users = json.dumps(
            {
                "use-glewlwyd-connection": True,
                "data-format": {"groups": {"multiple": True, "read": True, "write": True, "profile-read": True}},
            }
        )
        database.execute("UPDATE g_user_module_instance SET gumi_parameters = ?", (users,))
        database.commit()
        database.close()
        (self.directory / "glewlwyd.conf").write_text(f"""
            port={self.port}
            bind_address="127.0.0.1"
            external_url="http://localhost:{self.port}"
            api_prefix="api"
            login_url="login.html"
            log_mode="console"
            log_level="INFO"
            cookie_secure=0
            session_expiration=3600
            session_key="GLEWLWYD"
            admin_scope="g_admin"
            profile_scope="g_profile"
            allow_origin="*"
            user_module_path="/usr/lib/glewlwyd/user"
            client_module_path="/usr/lib/glewlwyd/client"
            user_auth_scheme_module_path="/usr/lib/glewlwyd/scheme"
            plugin_module_path="/usr/lib/glewlwyd/plugin"
            hash_algorithm="SHA512"
            database = {{ type="sqlite3" path="{self.directory / "database"}" }};
        """)

    def _configure(self) -> None:
        """Make the plugin, the client and the users, as its administrator would by hand."""
        with httpx.Client(base_url=f"http://localhost:{self.port}/api", trust_env=False) as admin:
            deadline = time.monotonic() + START_SECONDS
            while True:
                try:
                    answer = admin.post("/auth/", json={"username": "admin", "password": "password"})
                    break
                except httpx.TransportError:
                    assert self.process is not None and self.process.poll() is None, self._log()
                    assert time.monotonic() < deadline, self._log()
                    time.sleep(0.05)
            assert answer.status_code == 200, answer.text
            for path, document in self._documents():
                answer = admin.post(path, json=document)
                assert answer.status_code == 200, f"{path}: {answer.status_code} {answer.text} {self._log()}"

    def _documents(self) -> list[tuple[str, dict[str, Any]]]:
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        public = key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        plugin: dict[str, Any] = {
            "iss": self.issuer,
            "jwt-type": "rsa",
            "jwt-key-size": "256",
            "key": private.decode(),
            "cert": public.decode(),
            "access-token-duration": 3600,
            "refresh-token-duration": 3600,
            "code-duration": 600,
            "refresh-token-rolling": True,
            "allow-non-oidc": False,
            "auth-type-code-enabled": True,
            "auth-type-token-enabled": False,
            "auth-type-id-token-enabled": True,
            "auth-type-none-enabled": False,
            "auth-type-password-enabled": False,
            "auth-type-client-enabled": False,
            "auth-type-refresh-enabled": False,
            "jwks-show": True,
            "pkce-allowed": True,
            "pkce-method-plain-allowed": False,
            "pkce-required": True,
            "subject-type": "public",
            "claims": [
                {"name": "groups", "user-property": "groups", "type": "string", "mandatory": True, "on-demand": False},
                {"name": "preferred_username", "user-property": "username", "type": "string", "mandatory": True},
            ],
            "name-claim": "no",
            "email-claim": "no",
        }
        client = {
            "client_id": CLIENT,
            "name": "System Backup",
            "confidential": True,
            "client_secret": SECRET,
            "password": SECRET,
            "redirect_uri": [self.redirect_uri],
            "authorization_type": ["code"],
            "token_endpoint_auth_method": ["client_secret_basic"],
            "scope": ["openid"],
            "enabled": True,
        }
        documents: list[tuple[str, dict[str, Any]]] = [
            ("/mod/plugin/", {"module": "oidc", "name": "oidc", "display_name": "OIDC", "parameters": plugin}),
            ("/client/", client),
        ]
        for name, groups in self.users.items():
            user: dict[str, Any] = {"username": name, "name": name, "password": PASSWORD, "groups": groups}
            documents.append(("/user/", user | {"scope": ["openid", "g_profile"], "enabled": True}))
        return documents

    async def log_in(self, user: str, authorization_url: str) -> str:
        """Log in as a user and agree, as its page would; return where the browser is sent then."""
        query = dict(parse_qsl(urlsplit(authorization_url).query))
        jar = aiohttp.CookieJar(unsafe=True)
        async with aiohttp.ClientSession(f"http://localhost:{self.port}", cookie_jar=jar) as session:
            async with session.post("/api/auth/", json={"username": user, "password": PASSWORD}) as answer:
                assert answer.status == 200, await answer.text()
            async with session.put(f"/api/auth/grant/{CLIENT}", json={"scope": query["scope"]}) as answer:
                assert answer.status == 200, await answer.text()
            async with session.get(f"{authorization_url}&g_continue", allow_redirects=False) as answer:
                assert answer.status == 302, await answer.text()
                return answer.headers["Location"]

    def _log(self) -> str:
        return (self.directory / "log").read_text(errors="replace")
