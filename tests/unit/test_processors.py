"""How many processors a process may use, by what its control groups say."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from service import processors
from service.pipeline.threads import Threads
from service.processors import quotas


def groups(directory: Path, own: str, files: dict[str, str]) -> list[float]:
    (directory / "own").write_text(own)
    for name, text in files.items():
        path = directory / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return list(quotas(directory / "cgroup", directory / "own"))


def test_a_container_sees_its_own_limit(tmp_path: Path) -> None:
    assert groups(tmp_path, "0::/\n", {"cpu.max": "200000 100000\n"}) == [2.0]


def test_limits_of_groups_above_count_too(tmp_path: Path) -> None:
    files = {"cpu.max": "max 100000", "a.slice/cpu.max": "150000 100000", "a.slice/b.service/cpu.max": "50000 100000"}
    assert groups(tmp_path, "0::/a.slice/b.service\n", files) == [0.5, 1.5]


def test_version_1_is_read_where_the_container_does_not_see_its_path(tmp_path: Path) -> None:
    files = {"cpu,cpuacct/cpu.cfs_quota_us": "100000\n", "cpu,cpuacct/cpu.cfs_period_us": "50000\n"}
    own = "9:name=systemd:/x\n3:cpu,cpuacct:/pods/of/the/host\n2:cpuset:/pods\n"
    assert groups(tmp_path, own, files) == [2.0]


def test_no_limit_limits_nothing(tmp_path: Path) -> None:
    files = {"cpu.max": "max 100000\n", "cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}
    assert groups(tmp_path, "0::/\n1:cpu:/\n", files) == []
    assert list(quotas(tmp_path, tmp_path / "none")) == []


@pytest.mark.parametrize(("limit", "expected"), [([0.1], 1), ([1.5, 64.0], 2), ([], None)])
def test_threads_are_as_many_as_the_limit_rounded_up(
    limit: list[float], expected: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(processors, "quotas", lambda *_: iter(limit))
    processors.processors.cache_clear()
    try:
        assert Threads(more=1).count == (expected or 8) + 1
    finally:
        processors.processors.cache_clear()
