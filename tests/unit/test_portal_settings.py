"""portal.yaml: what it may say, how mistakes are told, and that its documentation is true."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from service.cli.app import command_line
from service.config_reference import markdown
from service.errors import ConfigError
from service.portal.access import Access
from service.portal.settings import SECTIONS, PortalSettings, RoleSettings, read

ROOT = Path(__file__).parents[2]
TOKEN = {"token": {"admin_file": "/run/token"}}
GOOD: dict[str, Any] = {"listen": "127.0.0.1:8480", "access": TOKEN}


def said_of(tmp_path: Path, document: dict[str, Any] | str) -> str:
    """Return what is said of a file; empty when it is good."""
    file = tmp_path / "portal.yaml"
    file.write_text(document if isinstance(document, str) else yaml.safe_dump(document))
    try:
        read(file)
    except ConfigError as error:
        return f"{error} | {error.hint}"
    return ""


def test_the_example_is_good_and_has_every_way_in() -> None:
    text = (ROOT / "examples/portal.yaml").read_text()
    assert read(ROOT / "examples/portal.yaml").base_path == "/backup"
    for word in ("token:", "header:", "oidc:", "embed_in:", "socket_group:"):
        assert word in text


def test_the_documented_keys_are_those_there_are() -> None:
    table = markdown(PortalSettings.model_json_schema(), SECTIONS).strip()
    assert table in (ROOT / "docs/PORTAL.md").read_text(), "run `deviceon-backup portal --reference` and paste it"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"listen": None}, "give exactly one of listen and socket"),
        ({"socket": "/run/p.sock"}, "give exactly one of listen and socket"),
        ({"listen": None, "socket": "/run/p.sock"}, "origins is required with a socket"),
        ({"listen": "8480"}, "must be an address and a port"),
        ({"access": None}, "access is required"),
        ({"access": {}}, "give at least one of token, header, oidc"),
        ({"access": {"token": {}}}, "give admin_file or read_file"),
        ({"access": {"tokens": {}}}, "did you mean token?"),
        ({"access": {"header": {}}}, "access.header needs proxy"),
        ({"access": {"header": {}}, "proxy": {}}, "give peers, or with a socket users"),
        ({"access": {"header": {}}, "proxy": {"peers": ["localhost"]}}, "must be an address or a network"),
        ({"origins": ["http://deviceon.example"]}, "must begin with https://"),
        ({"origins": ["https://deviceon.example/backup"]}, "without a path or user"),
        ({"origins": ["https://user@deviceon.example"]}, "without a path or user"),
        ({"base_path": "/backup/"}, "without / at its end"),
        ({"base_path": "backup"}, "must be empty or a path"),
        ({"embed_in": ["*"]}, "must be an origin"),
        ({"embed_in": ["https://a.example; script-src *"]}, "must be an origin"),
        ({"timezone": "Asia/Taipeh"}, "must be a time zone"),
        ({"access": {"oidc": {"issuer": "http://id.example", "client_id": "x"}}}, "must be an https:// URL"),
        (
            {"access": {"oidc": {"issuer": "https://id.example", "client_id": "x", "scopes": ["profile"]}}},
            "have openid",
        ),
        ({"lisen": "x"}, "did you mean listen?"),
    ],
    ids=str,
)
def test_a_mistake_is_told_with_its_place(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    assert said_of(tmp_path, GOOD) == ""
    document = {key: value for key, value in (GOOD | change).items() if value is not None}
    said = said_of(tmp_path, document)
    assert told in said
    assert "portal.yaml" in said


@pytest.mark.parametrize("host", ["localhost:8480", "127.0.0.1", "127.5.5.5:1", "[::1]:8480"])
def test_this_machine_needs_no_tls(tmp_path: Path, host: str) -> None:
    assert said_of(tmp_path, GOOD | {"origins": [f"http://{host}"]}) == ""


@pytest.mark.parametrize(
    ("tokens", "told"),
    [
        ({"admin": "short"}, "fewer than 20 characters"),
        ({"admin": "x" * 30, "read": "x" * 30}, "are the same"),
        ({"admin": ""}, "is empty"),
        ({}, "cannot read"),
    ],
    ids=["short", "the same", "empty", "missing"],
)
def test_a_token_that_is_none_stops_the_portal(tmp_path: Path, tokens: dict[str, str], told: str) -> None:
    for role, token in tokens.items():
        (tmp_path / role).write_text(token)
    files = {f"{role}_file": str(tmp_path / role) for role in tokens or ["admin"]}
    settings = PortalSettings.model_validate(GOOD | {"access": {"token": files}})
    with pytest.raises(ConfigError, match=told) as caught:
        Access(settings)
    assert "xxx" not in str(caught.value)


def test_who_is_in_both_lists_is_an_admin_and_names_are_compared_whole() -> None:
    roles = RoleSettings(admins=["ann"], readers=["ann", "rob"], admin_roles=["ops"], reader_roles=["staff"])
    assert roles.role("ann", []) == "admin"
    assert roles.role("rob", []) == "read"
    assert roles.role("zoe", ["staff", "ops"]) == "admin"
    assert roles.role("an", ["op", "sta"]) is None
    assert RoleSettings(others="read").role("anybody", []) == "read"


def test_the_command_checks_and_explains_its_file(tmp_path: Path) -> None:
    runner = CliRunner()
    (tmp_path / "token").write_text("x" * 40)
    file = tmp_path / "portal.yaml"
    file.write_text(yaml.safe_dump(GOOD | {"access": {"token": {"admin_file": str(tmp_path / "token")}}}))
    good = runner.invoke(command_line, ["portal", "--check", "--config", str(file)])
    assert (good.exit_code, good.output) == (0, f"{file} is good\n")
    file.write_text("listen: 127.0.0.1:1\nacces: {}\n")
    bad = runner.invoke(command_line, ["portal", "--check", "--config", str(file)])
    assert bad.exit_code == 2
    assert "line 2: acces is not a known key; did you mean access?" in bad.output
    assert runner.invoke(command_line, ["portal", "--check", "-c", "/nowhere"]).exit_code == 2
