"""What an S3 target can be told, and that what it is not told is refused without giving secrets away."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from storage_backends import InvalidUrl, open_target
from storage_backends.s3 import S3Backend
from storage_backends.s3.connection import Connection
from storage_backends.s3.options import S3Options, parse_options
from storage_backends.s3.parts import MIB

UNCLEAR: list[Any] = [0, "", " ", "false", "no", "0", 0.0, []]
SECRET = "hunter2-secret"


def opened(url: str, options: Mapping[str, Any] | None = None) -> S3Options:
    target = open_target(url, options)
    assert isinstance(target, S3Backend)
    return target.connection.options


@pytest.mark.parametrize(
    ("url", "bucket", "prefix", "shown"),
    [
        ("s3://bucket", "bucket", "", "s3://bucket"),
        ("s3://bucket/", "bucket", "", "s3://bucket"),
        ("s3a://bucket/backups/deviceon/", "bucket", "backups/deviceon/", "s3://bucket/backups/deviceon"),
        ("S3://my.bucket-1/ä b/100%20", "my.bucket-1", "ä b/100%20/", "s3://my.bucket-1/ä b/100%20"),
    ],
)
def test_the_url_names_bucket_and_prefix(url: str, bucket: str, prefix: str, shown: str) -> None:
    options = opened(url)
    assert (options.bucket, options.prefix, options.url) == (bucket, prefix, shown)


@pytest.mark.parametrize(
    "url",
    ["s3://", "s3:///x", "s3://b", f"s3://key:{SECRET}@bucket/x", "s3://bucket//x", "s3://bucket/a//b",
     "s3://bucket/../x", "s3://bucket/a/./b", "s3://bucket/a\nb", "s3://bucket/" + "x" * 600],
)  # fmt: skip
def test_a_url_that_names_no_place_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(InvalidUrl) as caught:
        open_target(url)
    assert caught.value.hint
    assert SECRET not in f"{caught.value} {caught.value.hint}"


def test_options_of_s3fs_reach_the_client() -> None:
    options = opened(
        "s3://bucket",
        {
            "key": "AK", "secret": SECRET, "token": "T", "endpoint_url": "https://s3.example.com:9000", "use_ssl": True,
            "client_kwargs": {"region_name": "eu-central-1", "verify": False},
            "config_kwargs": {"max_pool_connections": 7, "s3": {"payload_signing_enabled": True}},
        },
    )  # fmt: skip
    assert options.client == {
        "aws_access_key_id": "AK", "aws_secret_access_key": SECRET, "aws_session_token": "T",
        "endpoint_url": "https://s3.example.com:9000", "use_ssl": True, "region_name": "eu-central-1", "verify": False,
    }  # fmt: skip
    config = Connection(options)._config
    assert config.max_pool_connections == 7
    assert config.s3 == {"payload_signing_enabled": True, "addressing_style": "auto"}
    assert config.request_checksum_calculation == "when_required"


def test_own_options_have_their_defaults() -> None:
    options = opened("s3://bucket")
    assert (options.sizes.first_bytes, options.sizes.most, options.sizes.equal) == (8 * MIB, 10_000, False)
    assert (options.in_flight_bytes, options.timeout, options.retry_seconds) == (40 * MIB, 60.0, 60.0)
    assert options.lock_period is None


def test_own_options_are_taken(tmp_path: Path) -> None:
    options = opened(
        "s3://bucket",
        {
            "region": "eu-west-1", "verify": str(tmp_path), "addressing_style": "virtual", "part_bytes": 64 * MIB,
            "parts_in_flight": 2, "max_parts": 1000, "equal_parts": True, "timeout": 5, "retry_seconds": 0,
            "object_lock_mode": "COMPLIANCE", "object_lock_days": 30, "server_side_encryption": "aws:kms",
            "sse_kms_key_id": "alias/backup", "profile": "backup",
        },
    )  # fmt: skip
    assert options.client == {"region_name": "eu-west-1", "verify": str(tmp_path)}
    assert (options.sizes.first_bytes, options.sizes.most, options.sizes.equal) == (64 * MIB, 1000, True)
    assert (options.in_flight_bytes, options.timeout, options.retry_seconds) == (128 * MIB, 5, 0)
    assert (options.lock_mode, options.lock_period) == ("COMPLIANCE", timedelta(days=30))
    assert (options.encryption, options.kms_key_id, options.profile) == ("aws:kms", "alias/backup", "backup")


def test_parts_are_what_the_endpoint_is_known_to_need() -> None:
    r2 = parse_options("bucket", {"endpoint_url": "https://account.r2.cloudflarestorage.com"})
    assert r2.sizes.equal
    assert parse_options("bucket", {"endpoint_url": "https://s3.fr-par.scw.cloud"}).sizes.most == 1000


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"password": SECRET}, "password"),
        ({"key": "AK", "secret": SECRET, "acces_style": "path"}, "acces_style"),
        ({"client_kwargs": {"config": SECRET}}, "config"),
        ({"config_kwargs": {"no_such_setting": 1}}, "no_such_setting"),
        ({"config_kwargs": [SECRET]}, "config_kwargs must be a mapping"),
        ({"secret": 5}, "secret must be text"),
        ({"key": "", "secret": SECRET}, "key is empty"),
        ({"secret": SECRET}, "key and secret go together"),
        ({"anon": "yes"}, "anon must be true or false"),
        ({"anon": True, "key": "AK", "secret": SECRET}, "anon"),
        ({"anon": True, "profile": "x"}, "anon"),
        ({"part_bytes": 1 << 20}, "part_bytes must be a whole number from 5242880 to 5368709120"),
        ({"part_bytes": True}, "part_bytes"),
        ({"part_bytes": 6e6}, "part_bytes"),
        ({"parts_in_flight": 0}, "parts_in_flight"),
        ({"max_parts": 10_001}, "max_parts"),
        ({"timeout": 0}, "timeout"),
        ({"addressing_style": "dns"}, "one of auto, path, virtual"),
        ({"object_lock_mode": "compliance", "object_lock_days": 1}, "one of GOVERNANCE, COMPLIANCE"),
        ({"object_lock_days": 3}, "object_lock_days needs object_lock_mode"),
        ({"server_side_encryption": "DES"}, "one of AES256, aws:kms"),
        ({"server_side_encryption": "AES256", "sse_kms_key_id": "k"}, "sse_kms_key_id needs"),
        ({"endpoint_url": "s3.example.com"}, "endpoint_url"),
        ({"endpoint_url": f"https://user:{SECRET}@s3.example.com"}, "endpoint_url"),
        ({"endpoint_url": "https://s3.example.com:port"}, "endpoint_url"),
        ({"verify": "/no/such/file.pem"}, "/no/such/file.pem"),
        *(({"verify": value}, "verify") for value in UNCLEAR),
        *(({"client_kwargs": {"verify": value}}, "verify") for value in [*UNCLEAR, 1, None]),
        *(({"client_kwargs": {"use_ssl": value}}, "use_ssl") for value in (0, "", "no", None)),
        ({"timeout": float("nan")}, "timeout"),
        ({"retry_seconds": float("inf")}, "retry_seconds"),
        ({"config_kwargs": {"connect_timeout": float("nan")}}, "config_kwargs.connect_timeout"),
        ({"config_kwargs": {"read_timeout": -1}}, "config_kwargs.read_timeout"),
    ],
)
def test_a_wrong_option_is_named_and_no_secret_repeated(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidUrl) as caught:
        open_target("s3://bucket", options)
    assert said in str(caught.value)
    assert SECRET not in f"{caught.value} {caught.value.hint}"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, ""),
        ({"verify": True}, ""),
        ({"verify": False}, "certificate is not checked"),
        ({"client_kwargs": {"verify": False}}, "certificate is not checked"),
        ({"endpoint_url": "http://127.0.0.1:9000"}, "not encrypted"),
        ({"use_ssl": False}, "not encrypted"),
        ({"endpoint_url": "https://s3.example.com", "use_ssl": False}, ""),
    ],
)
def test_what_is_left_unprotected_is_told(options: dict[str, Any], told: str) -> None:
    cautions = open_target("s3://bucket", options).cautions
    assert len(cautions) == bool(told)
    assert told in "".join(cautions)


def test_an_unknown_option_is_answered_with_those_that_are_known() -> None:
    with pytest.raises(InvalidUrl) as caught:
        open_target("s3://bucket", {"passwd": "x"})
    for name in ("key", "secret", "endpoint_url", "part_bytes", "object_lock_mode", "config_kwargs"):
        assert name in caught.value.hint


def test_nothing_that_is_shown_holds_a_secret() -> None:
    target = open_target("s3://bucket/x", {"key": "AK", "secret": SECRET, "token": SECRET})
    assert isinstance(target, S3Backend)
    assert SECRET not in f"{target!r} {target.url} {target.connection.options!r} {vars(target)!r}"


def test_what_may_be_in_the_given_options_is_not_changed() -> None:
    given = {"client_kwargs": {"region_name": "x"}, "config_kwargs": {"s3": {"addressing_style": "path"}}}
    opened("s3://bucket", given)
    assert given == {"client_kwargs": {"region_name": "x"}, "config_kwargs": {"s3": {"addressing_style": "path"}}}
