"""What a target in S3 can be told: its URL and `storage_options`, which are those of s3fs and some of our own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from storage_backends.base import InvalidUrl
from storage_backends.s3.parts import EQUAL_BYTES, FIRST_BYTES, LARGEST_PART, MIB, MOST_PARTS, SMALLEST_PART, PartSizes

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")
_SEGMENT = re.compile(r"(?!\.{1,2}$)[^/\x00-\x1f\x7f]+")
_CLIENT_KWARGS = {
    "aws_access_key_id", "aws_secret_access_key", "aws_session_token", "endpoint_url", "region_name", "use_ssl",
    "verify",
}  # fmt: skip
_OF_CLIENT = {
    "key": "aws_access_key_id",
    "secret": "aws_secret_access_key",
    "token": "aws_session_token",
    "endpoint_url": "endpoint_url",
    "region": "region_name",
    "use_ssl": "use_ssl",
    "verify": "verify",
}
_STYLES = ("auto", "path", "virtual")
_LOCK_MODES = ("GOVERNANCE", "COMPLIANCE")
_ENCRYPTIONS = ("AES256", "aws:kms")
IN_FLIGHT_BYTES = 40 * MIB


@dataclass(frozen=True, slots=True)
class S3Options:
    """Where and how, checked. `client` and `config` hold secrets and are never shown."""

    bucket: str
    prefix: str
    """What stands before each key: empty, or ends with a slash."""
    client: Mapping[str, Any] = field(repr=False)
    config: Mapping[str, Any] = field(repr=False)
    anonymous: bool = False
    profile: str | None = None
    addressing_style: str = "auto"
    sizes: PartSizes = field(default_factory=PartSizes)
    in_flight_bytes: int = IN_FLIGHT_BYTES
    """Of the parts that are sent at once; one that is larger is sent alone."""
    timeout: float = 60.0
    retry_seconds: float = 60.0
    lock_mode: str | None = None
    lock_period: timedelta | None = None
    encryption: str | None = None
    kms_key_id: str | None = None

    @property
    def url(self) -> str:
        """Where it is, without a secret."""
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    @property
    def host(self) -> str:
        """Return the endpoint's name; empty for Amazon's own."""
        return (urlsplit(str(self.client.get("endpoint_url") or "")).hostname or "").lower()

    @property
    def cautions(self) -> tuple[str, ...]:
        """Say what is left unprotected."""
        told = []
        endpoint = str(self.client.get("endpoint_url") or "").lower()
        if endpoint.startswith("http:") or (not endpoint and self.client.get("use_ssl") is False):
            told.append("What is sent is not encrypted (http): others can read it, and can change it unnoticed.")
        elif self.client.get("verify") is False:
            told.append("The endpoint's certificate is not checked (verify: false): anybody may pretend to be it.")
        return tuple(told)

    @property
    def amazon(self) -> bool:
        """Say whether it is Amazon's own S3, whose abilities are known."""
        return not self.host or self.host.endswith((".amazonaws.com", ".amazonaws.com.cn"))


def parse_options(path: str, given: Mapping[str, Any]) -> S3Options:
    """Check the part of an s3:// URL after the protocol, and `storage_options`. Raises InvalidUrl."""
    bucket, prefix = _place(path)
    taker = _Taker(dict(given))
    client = taker.mapping("client_kwargs", _CLIENT_KWARGS)
    for name, of_client in _OF_CLIENT.items():
        value = taker.flag_or_text(name) if name in {"use_ssl", "verify"} else taker.text(name)
        if value is not None:
            client[of_client] = value
    _check_client(client)
    sizes = _sizes(taker, str(client.get("endpoint_url") or ""))
    in_flight = taker.number("parts_in_flight", 1, 64, whole=True)
    options = S3Options(
        bucket=bucket,
        prefix=prefix,
        client=client,
        config=taker.mapping("config_kwargs"),
        anonymous=taker.flag("anon") or False,
        profile=taker.text("profile"),
        addressing_style=taker.choice("addressing_style", _STYLES) or "auto",
        sizes=sizes,
        in_flight_bytes=sizes.first_bytes * in_flight if in_flight else IN_FLIGHT_BYTES,
        timeout=taker.number("timeout", 0.1, 3600) or 60.0,
        retry_seconds=taker.number("retry_seconds", 0, 86400, default=60.0),
        lock_mode=taker.choice("object_lock_mode", _LOCK_MODES),
        lock_period=_days(taker.number("object_lock_days", 1e-5, 36500)),
        encryption=taker.choice("server_side_encryption", _ENCRYPTIONS),
        kms_key_id=taker.text("sse_kms_key_id"),
    )
    taker.finish()
    _check_together(options)
    return options


def _place(path: str) -> tuple[str, str]:
    bucket, _, rest = path.partition("/")
    if not _BUCKET.fullmatch(bucket):
        # It may hold a password (s3://key:secret@bucket), so it is not repeated.
        raise InvalidUrl(
            "an s3 URL has no valid name of a bucket",
            hint="Write s3://bucket or s3://bucket/prefix, and credentials in storage_options (key, secret).",
        )
    segments = rest.rstrip("/").split("/") if rest.rstrip("/") else []
    if not all(_SEGMENT.fullmatch(segment) for segment in segments) or len(rest) > 512:
        raise InvalidUrl("the prefix in an s3 URL is not valid", hint="Write s3://bucket/first/second.")
    return bucket, "".join(f"{segment}/" for segment in segments)


def _check_client(client: Mapping[str, Any]) -> None:
    endpoint = client.get("endpoint_url")
    if endpoint is not None:
        try:
            parts = urlsplit(str(endpoint))
            valid = parts.scheme in {"http", "https"} and parts.hostname and "@" not in parts.netloc and not parts.query
            _ = parts.port
        except ValueError:
            valid = False
        if not valid:
            raise InvalidUrl(
                "storage_options: endpoint_url is not the address of a server",
                hint="Write it as https://s3.example.com or http://127.0.0.1:9000.",
            )
    _check_verify(client)
    if bool(client.get("aws_access_key_id")) != bool(client.get("aws_secret_access_key")):
        raise InvalidUrl(
            "storage_options: key and secret go together", hint="Give both, or none for the usual chain of AWS."
        )


def _check_verify(client: Mapping[str, Any]) -> None:
    """Refuse what the library would take for "trust any certificate" though nobody has said so: 0, an empty text."""
    for name in ("use_ssl", "verify"):
        value = client.get(name, True)
        if not isinstance(value, bool) and not (name == "verify" and isinstance(value, str)):
            raise InvalidUrl(f"storage_options: {name} must be true or false{', or a path' * (name == 'verify')}")
    verify = client.get("verify")
    if isinstance(verify, str) and not (verify.strip() and Path(verify).exists()):
        raise InvalidUrl(
            f"storage_options: verify names {verify!r}, which does not exist",
            hint="Name a PEM file with the certificate authority of the endpoint; true and false stand without quotes.",
        )


def _sizes(taker: _Taker, endpoint: str) -> PartSizes:
    host = (urlsplit(endpoint).hostname or "").lower()
    equal = taker.flag("equal_parts")
    if equal is None:
        equal = host.endswith(".r2.cloudflarestorage.com")
    most = taker.number("max_parts", 1, MOST_PARTS, whole=True)
    first = taker.number("part_bytes", SMALLEST_PART, LARGEST_PART, whole=True)
    return PartSizes(
        first_bytes=int(first or (EQUAL_BYTES if equal else FIRST_BYTES)),
        most=int(most or (1000 if host.endswith(".scw.cloud") else MOST_PARTS)),
        equal=equal,
    )


def _days(days: float | None) -> timedelta | None:
    return None if days is None else timedelta(days=days)


def _check_together(options: S3Options) -> None:
    if options.lock_mode is None and options.lock_period is not None:
        raise InvalidUrl(
            "storage_options: object_lock_days needs object_lock_mode", hint="Say how: GOVERNANCE or COMPLIANCE."
        )
    if options.kms_key_id and options.encryption != "aws:kms":
        raise InvalidUrl(
            "storage_options: sse_kms_key_id needs server_side_encryption: aws:kms", hint="Set both, or neither."
        )
    if options.anonymous and (options.client.get("aws_access_key_id") or options.profile):
        raise InvalidUrl("storage_options: anon is for no credentials at all", hint="Remove anon, or key and profile.")


class _Taker:
    """Takes options one by one, so that what is left over is unknown. Its errors never repeat a value."""

    def __init__(self, given: dict[str, Any]) -> None:
        self._given = given
        self._known: set[str] = set()

    def _take(self, name: str, kinds: tuple[type, ...], wanted: str) -> Any:
        self._known.add(name)
        value = self._given.pop(name, None)
        if value is not None and (not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds)):
            raise InvalidUrl(f"storage_options: {name} must be {wanted}")
        return value

    def text(self, name: str) -> str | None:
        value: str | None = self._take(name, (str,), "text")
        if value == "":
            raise InvalidUrl(f"storage_options: {name} is empty")
        return value

    def flag(self, name: str) -> bool | None:
        value: bool | None = self._take(name, (bool,), "true or false")
        return value

    def flag_or_text(self, name: str) -> bool | str | None:
        value: bool | str | None = self._take(name, (bool, str), "true, false or a path")
        return value

    def choice(self, name: str, choices: tuple[str, ...]) -> str | None:
        value: str | None = self._take(name, (str,), f"one of {', '.join(choices)}")
        if value is not None and value not in choices:
            raise InvalidUrl(f"storage_options: {name} must be one of {', '.join(choices)}")
        return value

    def number(self, name: str, least: float, most: float, *, whole: bool = False, default: float | None = None) -> Any:
        wanted = f"a {'whole ' if whole else ''}number from {least} to {most}"
        value: float | None = self._take(name, (int,) if whole else (int, float), wanted)
        if value is None:
            return default
        if not least <= value <= most:
            raise InvalidUrl(f"storage_options: {name} must be {wanted}")
        return value

    def mapping(self, name: str, allowed: set[str] | None = None) -> dict[str, Any]:
        value: Mapping[str, Any] = self._take(name, (Mapping,), "a mapping") or {}
        if allowed is not None and (unknown := sorted(set(map(str, value)) - allowed)):
            raise InvalidUrl(
                f"storage_options: {name} does not know {', '.join(unknown)}",
                hint=f"It knows {', '.join(sorted(allowed))}.",
            )
        return dict(value)

    def finish(self) -> None:
        if self._given:
            names = ", ".join(sorted(map(str, self._given)))
            raise InvalidUrl(
                f"storage_options: s3 has no option {names}", hint=f"It knows {', '.join(sorted(self._known))}."
            )
