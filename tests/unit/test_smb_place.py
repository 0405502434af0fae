"""What the URL and the options of an SMB target mean, and what of them is refused."""

from __future__ import annotations

import pytest

from storage_backends import AccessDenied, InvalidUrl, StorageError, TargetFull, TargetUnavailable, open_target
from storage_backends.smb.errors import from_status
from storage_backends.smb.place import SmbPlace, parse

CREDENTIALS = {"username": "user", "password": "hunter2"}


def test_a_url_names_host_share_and_directory() -> None:
    place = parse("smb://nas/backups/deviceon/site 1", CREDENTIALS)
    assert (place.host, place.port, place.share, place.path) == ("nas", 445, "backups", r"deviceon\site 1")
    assert place.unc == r"\\nas\backups\deviceon\site 1"
    assert place.url == "smb://nas/backups/deviceon/site 1"
    assert (place.encrypt, place.auto_mkdir, place.timeout, place.auth_protocol) == (True, False, 60.0, "negotiate")


@pytest.mark.parametrize(
    ("url", "options", "username", "port"),
    [
        ("smb://nas/s", {}, None, 445),
        ("smb://me@nas/s", {}, "me", 445),
        ("smb://nas:1445/s/", {"username": "me"}, "me", 1445),
        ("smb://me@nas/s", {"username": "me", "port": 1445}, "me", 1445),
        ("smb://SITE;me@nas:1445/s//", {"port": 1445}, r"SITE\me", 1445),
        ("smb://me@nas/s", {"domain": "SITE"}, r"SITE\me", 445),
        ("smb://me%40site.example@nas/s", {}, "me@site.example", 445),
    ],
)
def test_user_and_port_come_from_the_url_or_the_options(
    url: str, options: dict[str, object], username: str | None, port: int
) -> None:
    place = parse(url, options)
    assert (place.username, place.port, place.share, place.path) == (username, port, "s", "")


def test_an_address_of_ipv6_is_a_host() -> None:
    place = parse("smb://[fe80::1]:1445/s/x", {})
    assert (place.host, place.port, place.url) == ("fe80::1", 1445, "smb://[fe80::1]:1445/s/x")


@pytest.mark.parametrize(
    "url",
    [
        "smb://", "smb://nas", "smb://nas/", "smb:///share", "smb://user:hunter2@nas/share", "smb://nas:x/share",
        "smb://nas:99999/share", "smb://nas/share/../x", "smb://nas/share/./x", "smb://nas/a:b", "smb://nas/s/a\\b",
        "smb://nas/s/a?b", "smb://nas/s/a\0b", "smb://[nas/s",
    ],
)  # fmt: skip
def test_a_url_that_names_no_directory_of_a_share_is_refused(url: str) -> None:
    with pytest.raises(InvalidUrl) as caught:
        open_target(url, CREDENTIALS)
    assert caught.value.hint
    assert "hunter2" not in f"{caught.value}{caught.value.hint}"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"pasword": "hunter2", "use": 1}, "no option pasword, use"),
        ({"port": "445"}, "port"),
        ({"port": True}, "port"),
        ({"port": 0}, "port"),
        ({"port": 65536}, "port"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": "1"}, "timeout"),
        ({"timeout": -1}, "timeout"),
        ({"encrypt": "no"}, "encrypt"),
        ({"encrypt": None}, "encrypt"),
        ({"auto_mkdir": 1}, "auto_mkdir"),
        ({"auth_protocol": "basic"}, "negotiate, ntlm, kerberos"),
        ({"password": 1}, "password must be text"),
        ({"username": "another"}, "username"),
    ],
)
def test_options_are_checked_and_their_values_not_repeated(options: dict[str, object], told: str) -> None:
    with pytest.raises(InvalidUrl, match=told) as caught:
        open_target("smb://user@nas/share", options)
    assert "hunter2" not in f"{caught.value}{caught.value.hint}"


def test_unknown_options_are_answered_with_those_that_are_known() -> None:
    with pytest.raises(InvalidUrl) as caught:
        open_target("smb://nas/share", {"share_access": "r"})
    for name in ("username", "password", "domain", "port", "encrypt", "timeout", "auto_mkdir", "auth_protocol"):
        assert name in caught.value.hint


def test_no_form_of_a_place_shows_the_password() -> None:
    place = parse("smb://user@nas/share", {"password": "hunter2"})
    assert place.password == "hunter2"
    assert "hunter2" not in f"{place!r}{place}{place.url}{place.unc}"


@pytest.mark.parametrize(
    ("status", "kind", "told"),
    [
        (0xC000007F, TargetFull, "Make room"),
        (0xC0000044, TargetFull, "Make room"),
        (0xC0000022, AccessDenied, "right to read, write and delete"),
        (0xC000006D, AccessDenied, "password"),
        (0xC0000234, AccessDenied, "locked"),
        (0xC0000071, AccessDenied, "expired"),
        (0xC00000CC, InvalidUrl, "share's name"),
        (0xC0000033, InvalidUrl, "directory of the share"),
        (0xC000003A, TargetUnavailable, "auto_mkdir"),
        (0xC0000043, TargetUnavailable, "finished"),
        (0xC0000203, TargetUnavailable, "log"),
        (0xDEADBEEF, TargetUnavailable, "log"),
    ],
)
def test_each_status_says_what_to_do(status: int, kind: type[StorageError], told: str) -> None:
    error = from_status(status, SmbPlace(host="nas", share="share", path=""), "object")
    assert type(error) is kind
    assert told in error.hint
