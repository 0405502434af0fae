"""The form of the settings: what is stored comes back as it was, what is typed becomes what the service takes."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from service.config import SystemBackup, TargetSettings
from service.portal.settings_form import (
    Wrong,
    kept_secrets,
    kind_of,
    retention_of,
    schedule_of,
    secrets_typed,
    shown_again,
    target_of,
    typed,
    values_of,
)
from service.retention import RetentionSettings
from service.schedule import ScheduleSettings

KEPT = {"file": "/var/lib/deviceon-backup/secrets/0123456789abcdef"}
TARGETS: list[dict[str, Any]] = [
    {"url": "file:///var/backups/deviceon", "storage_options": {}},
    {"url": "file:///var/backups/deviceon", "storage_options": {"auto_mkdir": True, "min_free": 1000}},
    {"url": "smb://nas.example/backups/deviceon", "storage_options": {"username": "deviceon", "password": KEPT}},
    {"url": "smb://nas:1445/backups", "storage_options": {"encrypt": False, "password": {"env": "SMB"}}},
    {"url": "smb://DOMAIN;user@nas/backups", "storage_options": {"password": KEPT}},
    {"url": "s3://bucket", "storage_options": {"key": KEPT, "secret": KEPT, "token": KEPT}},
    {
        "url": "s3://bucket/a/b",
        "storage_options": {
            "endpoint_url": "https://s3.example:9000",
            "region": "eu",
            "key": "AKIA",
            "secret": KEPT,
            "config_kwargs": {"a": [1, "two", None]},
            "verify": False,
        },
    },
    {"url": "sftp://user@host/backups", "storage_options": {"password": KEPT, "known_hosts": "/etc/known"}},
]
SCHEDULES: list[dict[str, Any] | None] = [
    None,
    {"frequency": "daily", "at": "02:30", "timezone": "Asia/Taipei", "jitter": 30, "catch_up": 0},
    {"frequency": "weekly", "at": "23:59", "weekdays": ["monday", "sunday"], "timezone": "UTC"},
    {"frequency": "monthly", "at": "00:00", "day": 31, "timezone": "Europe/Berlin"},
    {"frequency": "cron", "cron": "30 2 * * 1-5", "timezone": "UTC"},
]
POLICIES: list[dict[str, int] | None] = [None, {"keep_last": 7}, {"keep_daily": 3, "keep_within": 30}]


def shown(**settings: Any) -> dict[str, Any]:
    """Settings as the service tells them."""
    return SystemBackup.model_validate(settings).model_dump(mode="json")


def without_nulls(value: dict[str, Any] | None) -> dict[str, Any] | None:
    return None if value is None else {name: each for name, each in value.items() if each is not None}


@pytest.mark.parametrize("target", TARGETS)
def test_a_stored_target_comes_back_from_its_fields_with_its_secrets_kept_and_none_in_sight(
    target: dict[str, Any],
) -> None:
    stored = shown(target=target)["target"]
    values = values_of(shown(target=target))
    assert "secrets/" not in str(values)
    assert target_of(values, {}, stored) == stored
    TargetSettings.model_validate(stored)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_stored_schedule_comes_back_from_its_fields(schedule: dict[str, Any] | None) -> None:
    settings = shown(schedule=schedule)
    made = schedule_of(values_of(settings))
    assert made == without_nulls(settings["schedule"])
    if made is not None:
        ScheduleSettings.model_validate(made)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_stored_policy_comes_back_from_its_fields(policy: dict[str, int] | None) -> None:
    settings = shown(retention=policy)
    made = retention_of(values_of(settings))
    assert made == policy
    if made is not None:
        RetentionSettings.model_validate(made)


def test_a_secret_that_is_typed_is_sent_as_one_and_is_not_among_what_may_be_shown_again() -> None:
    fields = [
        ("kind", "smb"),
        ("smb:server", "nas"),
        ("smb:share", "backups"),
        ("smb:directory", "/a/b/"),
        ("secret:smb:password", "hunter2"),
        ("smb:secret_name_1", "token"),
        ("secret:smb:new_1", "hunter3"),
        ("secret:smb:new_2", ""),
    ]
    values, secrets = typed(fields), secrets_typed(fields)
    assert "hunter" not in str(values)
    assert target_of(values, secrets, None) == {
        "url": "smb://nas/backups/a/b",
        "storage_options": {"password": {"secret": "hunter2"}, "token": {"secret": "hunter3"}},
    }


def test_a_kept_secret_is_not_sent_to_another_place_and_has_to_be_typed_again() -> None:
    stored = TARGETS[2]
    values = values_of(shown(target=stored))
    for name, value in (("smb:server", "evil.example"), ("smb:username", "another"), ("smb:options", "encrypt: false")):
        with pytest.raises(Wrong) as caught:
            target_of(values | {name: value}, {}, stored)
        assert caught.value.field == "secret:smb:password"
        made = target_of(values | {name: value}, {"secret:smb:password": "again"}, stored)
        assert made["storage_options"]["password"] == {"secret": "again"}
    assert target_of(values | {"smb:directory": "elsewhere"}, {}, stored)["storage_options"]["password"] == KEPT


def test_a_kept_secret_without_a_field_of_its_own_is_kept_replaced_or_forgotten() -> None:
    stored = TARGETS[5]
    values = values_of(shown(target=stored))
    assert kept_secrets(stored, "s3") == ["key", "token"]
    assert kept_secrets(stored, "smb") == []
    forgotten = target_of(values | {"forget:s3:token": "1"}, {}, stored)
    assert "token" not in forgotten["storage_options"]
    replaced = target_of(values, {"secret:s3:token": "new"}, stored)
    assert replaced["storage_options"]["token"] == {"secret": "new"}


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"kind": "tape"}, "kind"),
        ({"kind": "local"}, "local:directory"),
        ({"kind": "local", "local:directory": "backups"}, "local:directory"),
        ({"kind": "local", "local:directory": "/a", "local:options": "- list"}, "local:options"),
        ({"kind": "local", "local:directory": "/a", "local:options": "a: [1"}, "local:options"),
        ({"kind": "local", "local:directory": "/a", "local:options": "x: 1\npassword: hunter2"}, "local:options"),
        ({"kind": "smb", "smb:server": "nas"}, "smb:share"),
        ({"kind": "s3"}, "s3:bucket"),
        ({"kind": "other"}, "other:url"),
        ({"kind": "other", "other:url": "sftp://me:hunter2@host/x"}, "other:url"),
        ({"kind": "other", "other:url": "sftp://[::1/x"}, "other:url"),
        ({"kind": "other", "other:url": "sftp://h/x", "other:secret_name_1": "a b"}, "other:secret_name_1"),
    ],
)
def test_a_target_that_makes_no_sense_names_the_field_and_quotes_nothing(values: dict[str, Any], field: str) -> None:
    with pytest.raises(Wrong) as caught:
        target_of(values, {"secret:other:new_1": "hunter2"}, None)
    assert caught.value.field == field
    assert "hunter2" not in str(caught.value)
    assert "hunter2" not in str(shown_again(values))


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({}, "frequency"),
        ({"frequency": "hourly"}, "frequency"),
        ({"frequency": "daily"}, "at"),
        ({"frequency": "weekly", "at": "02:00"}, "weekdays"),
        ({"frequency": "monthly", "at": "02:00"}, "day"),
        ({"frequency": "monthly", "at": "02:00", "day": "last"}, "day"),
        ({"frequency": "daily", "at": "02:00", "jitter": "-1"}, "jitter"),
    ],
)
def test_a_schedule_that_makes_no_sense_names_the_field(values: dict[str, Any], field: str) -> None:
    with pytest.raises(Wrong) as caught:
        schedule_of(values)
    assert caught.value.field == field


def test_a_number_that_is_none_names_its_rule() -> None:
    for text in ("a few", "1.5", "\u0663", "-1"):
        with pytest.raises(Wrong) as caught:
            retention_of({"keep_last": text})
        assert caught.value.field == "keep_last"


def test_each_url_is_shown_by_the_kind_that_shows_it_whole() -> None:
    assert [kind_of(target["url"]) for target in TARGETS] == [
        "local", "local", "smb", "smb", "other", "s3", "s3", "other",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["password", "userpass", "api_key", "connection_string", "aws_secret_access_key"])
def test_an_option_that_the_service_refuses_as_a_secret_is_refused_here_and_is_in_no_page(name: str) -> None:
    with pytest.raises(ValidationError, match="looks like a secret"):
        TargetSettings(url="ftp://host/backups", storage_options={name: "hunter2"})
    values = typed([("kind", "other"), ("other:url", "ftp://host/backups"), ("other:options", f"{name}: hunter2")])
    with pytest.raises(Wrong) as caught:
        target_of(values, {}, None)
    assert caught.value.field == "other:options"
    assert "hunter2" not in str(shown_again(values))
