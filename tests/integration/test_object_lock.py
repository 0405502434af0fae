"""Archives that a real S3 server locks for as long as retention may keep them."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from service.app import App
from service.job import JobKind
from service.progress import Progress
from service.rpc.codec import RpcError
from tests import s3_servers
from tests.service_parts import ADMIN, Clock, Place


@pytest.fixture
def bucket() -> str:
    name = f"lock-{secrets.token_hex(4)}"
    s3_servers.ceph().create_bucket(name, object_lock=True)
    return name


@pytest.fixture
def place(tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch) -> Place:
    options = s3_servers.ceph_options(tls=True, object_lock_mode="COMPLIANCE")
    for name in ("key", "secret"):
        monkeypatch.setenv(f"LOCK_{name.upper()}", options[name])
        options[name] = {"env": f"LOCK_{name.upper()}"}
    settings = {
        "target": {"url": f"file://{tmp_path}/archives"},
        "copies": [{"url": f"s3://{bucket}/a", "storage_options": options}],
        "retention": {"keep_last": 1, "keep_daily": 2},
        "schedule": {"frequency": "daily", "at": "02:30"},
    }
    return Place(tmp_path, Clock(datetime.now(UTC)), settings)


@pytest.fixture
async def app(place: Place) -> AsyncIterator[App]:
    async with place.app() as app:
        yield app


async def run(app: App, kind: JobKind, **params: Any) -> dict[str, Any]:
    job = await app.jobs.run_now(kind, params, Progress())
    assert job.state == "succeeded" and job.result, job.error
    return job.result


def locked(bucket: str, name: str) -> tuple[str, timedelta]:
    client = s3_servers.ceph().client()
    described = client.head_object(Bucket=bucket, Key=name)
    client.close()
    return described["ObjectLockMode"], described["ObjectLockRetainUntilDate"].astimezone(UTC) - datetime.now(UTC)


async def test_a_backup_and_a_copy_are_locked_as_long_as_retention_may_keep_them_and_no_prune_removes_them(
    place: Place, app: App, bucket: str
) -> None:
    """By a clock that is ahead of the server's: retention would let the first go."""
    url = f"s3://{bucket}/a"
    names = []
    for _ in range(4):
        made = await run(app, "backup")
        names.append(str(made["name"]))
        place.clock.go(days=1)
    for name in names:
        mode, left = locked(bucket, f"a/{name}")
        assert mode == "COMPLIANCE"
        assert timedelta(days=1, hours=23, minutes=50) < left <= timedelta(days=2)
    assert place.names() == set(names[-2:]), "the other target lets them go"
    kept = (await run(app, "prune", target=url))["targets"][0]["kept_by_target"]
    assert kept.keys() == set(names[:2])
    assert all("locked by Object Lock: COMPLIANCE until" in why for why in kept.values())
    assert any("should have been removed" in warning for warning in made["warnings"])

    s3 = place.document["copies"][0]
    place.settings = place.settings | {"copies": [{**s3, "url": f"{url}2"}]}
    async with place.app() as other:
        await run(other, "copy", archive=names[-1], target=f"{url}2")
    assert locked(bucket, f"a2/{names[-1]}")[0] == "COMPLIANCE"


async def test_how_long_archives_will_be_locked_is_told(place: Place, app: App) -> None:
    findings = await app.api.call("target.test", {}, ADMIN)
    (told,) = [found["message"] for found in findings if found["name"] == "object lock"]
    assert "each archive is locked (COMPLIANCE) for 2 days" in told and "keep_daily: 2 days" in told


async def test_a_policy_that_does_not_tell_how_long_is_refused_and_what_is_there_can_be_read(
    place: Place, app: App, bucket: str
) -> None:
    name = (await run(app, "backup"))["name"]
    place.settings = place.settings | {"retention": None, "schedule": None}
    async with place.app() as other:
        with pytest.raises(RpcError, match="object_lock_mode is set, and nothing says for how long"):
            await other.api.call("settings.update", {"retention": {"keep_last": 3}}, ADMIN)
        findings = await other.api.call("target.test", {}, ADMIN)
        assert [found["ok"] for found in findings if "for how long" in found["message"]] == [False]
        place.clock.go(days=1)
        job = await other.jobs.run_now("backup", {}, Progress())
        assert job.state == "partial" and job.error and "for how long" in job.error["message"]
        assert (await run(other, "verify", archive=name, target=f"s3://{bucket}/a"))["good"] is True
        await other.api.call("settings.update", {"retention": {"keep_within": 3}}, ADMIN)
        place.clock.go(days=1)
        await run(other, "backup")
