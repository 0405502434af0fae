"""The steps under an exchange on a real file system: what is somebody else's is never moved over, lost or removed."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.errors import SwapFailed
from service.sources import exchange
from service.sources.directories import Descent, mounts, opened, remove_tree, sync_file_system
from service.sources.exchange import ChangedMeanwhile, Group, Plan, Unit, carry_out, identity_in, is_complete, take_back
from tests.trees import NOBODY, as_nobody


@pytest.fixture
def area(tmp_path: Path) -> Iterator[int]:
    with opened(tmp_path) as fd:
        yield fd


def test_what_is_removed_may_be_absent_a_file_or_a_link_whose_target_stays(tmp_path: Path, area: int) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").touch()
    (tmp_path / "link").symlink_to("kept")
    (tmp_path / "file").touch()
    for name in ("absent", "link", "file"):
        remove_tree(name, dir_fd=area)
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))] == ["kept", "kept/file"]


def test_a_file_system_that_is_mounted_inside_is_not_emptied(tmp_path: Path, area: int) -> None:
    inside = tmp_path / "old" / "mounted"
    inside.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "none", inside], check=True)
    try:
        (inside / "data").write_text("not ours")
        with pytest.raises(OSError, match="another file system is mounted there") as caught:
            remove_tree("old", dir_fd=area)
        assert caught.value.errno == errno.EXDEV
        assert (inside / "data").read_text() == "not ours"
    finally:
        subprocess.run(["umount", inside], check=True)
    remove_tree("old", dir_fd=area)
    assert not (tmp_path / "old").exists()


def test_what_cannot_be_removed_is_an_error_and_no_endless_walk(tmp_path: Path, area: int) -> None:
    held = tmp_path / "old" / "file"
    held.parent.mkdir()
    held.touch()
    subprocess.run(["mount", "--bind", held, held], check=True)
    try:
        with pytest.raises(OSError, match="busy"):
            remove_tree("old", dir_fd=area)
    finally:
        subprocess.run(["umount", held], check=True)


def test_a_directory_that_is_moved_away_while_a_walk_is_deep_in_it_ends_the_walk(tmp_path: Path) -> None:
    """Far levels are let go and opened again through `..`, which leads elsewhere then."""
    path = tmp_path / "top"
    for _ in range(80):
        path /= "d"
    path.mkdir(parents=True)
    with Descent(os.open(tmp_path / "top", os.O_RDONLY | os.O_DIRECTORY)) as descent:
        for _ in range(80):
            descent.enter("d")
        (tmp_path / "top" / "d" / "d").rename(tmp_path / "elsewhere")
        with pytest.raises(OSError, match="moved while it was read") as caught:
            for _ in range(80):
                descent.leave()
        assert caught.value.errno == errno.ESTALE


def test_a_walk_goes_down_again_from_where_it_has_come_up_to(tmp_path: Path) -> None:
    path = tmp_path
    for _ in range(80):
        path /= "d"
    path.mkdir(parents=True)
    with Descent(os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)) as descent:
        for down, up in ((80, 5), (5, 80)):
            for _ in range(down):
                descent.enter("d")
            for _ in range(up):
                descent.leave()
        assert os.path.samestat(os.fstat(descent.fd), tmp_path.stat())


def test_without_a_mount_table_nothing_is_known_to_be_mounted(monkeypatch: pytest.MonkeyPatch) -> None:
    assert mounts()

    def absent(path: Path) -> bytes:
        raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "read_bytes", absent)
    assert mounts() == []


def test_who_may_not_remove_what_lies_in_a_directory_is_told(workspace: Path) -> None:
    held = workspace / "old" / "theirs" / "file"
    held.parent.mkdir(parents=True)
    held.touch()
    os.chown(workspace / "old", NOBODY, NOBODY)
    with as_nobody(), opened(workspace) as fd, pytest.raises(PermissionError):
        remove_tree("old", dir_fd=fd)
    assert held.exists()


def test_a_file_system_that_cannot_be_made_durable_is_an_error() -> None:
    with pytest.raises(OSError, match="Bad file descriptor"):
        sync_file_system(-1)


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """A file and a name that is new, to be exchanged."""
    live, staged = tmp_path / "live", tmp_path / "staged"
    for directory, names in ((live, ["conf"]), (staged, ["conf", "new"])):
        directory.mkdir()
        for name in names:
            (directory / name).write_text(f"{directory.name} {name}")
    units = [Unit(name, identity_in(str(live), name), identity_in(str(staged), name)) for name in ("conf", "new")]
    return Plan([Group(str(live), str(staged), units)], [], [])


def contents(tmp_path: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in (tmp_path / "live").iterdir()}


def test_an_exchange_is_complete_when_every_unit_is_and_not_before(tmp_path: Path, plan: Plan) -> None:
    assert not is_complete(plan)
    carry_out(plan)
    assert is_complete(plan)
    assert contents(tmp_path) == {"conf": "staged conf", "new": "staged new"}
    take_back(plan)
    assert not is_complete(plan)
    assert contents(tmp_path) == {"conf": "live conf"}


def test_an_exchange_by_three_renames_that_stopped_in_the_middle_is_not_complete(
    tmp_path: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_flags(monkeypatch)
    move, moves = exchange.move, list[str]()

    def stops(name: str, *rest: object) -> None:
        moves.append(name)
        if len(moves) == 3:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        move(name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(exchange, "move", stops)
    plan.groups[0].units.pop()
    with pytest.raises(OSError, match="Input/output"):
        carry_out(plan)
    assert contents(tmp_path) == {"conf": "staged conf"}
    assert not is_complete(plan)
    take_back(plan)
    assert contents(tmp_path) == {"conf": "live conf"}


def test_what_comes_between_the_look_and_the_exchange_is_live_again(
    tmp_path: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    swap_names = exchange.swap_names

    def slowly(name: str, live: int, staged: int) -> None:
        if name == "conf" and contents(tmp_path)["conf"] == "live conf":
            (tmp_path / "written").write_text("written meanwhile")
            (tmp_path / "written").rename(tmp_path / "live" / "conf")
        swap_names(name, live, staged)

    monkeypatch.setattr(exchange, "swap_names", slowly)
    with pytest.raises(ChangedMeanwhile, match="changed while the restore was under way"):
        carry_out(plan)
    assert contents(tmp_path) == {"conf": "written meanwhile"}


def test_an_old_state_that_somebody_has_removed_is_told_and_the_new_one_stays(tmp_path: Path, plan: Plan) -> None:
    carry_out(plan)
    (tmp_path / "staged" / "conf").unlink()
    with pytest.raises(SwapFailed, match="conf cannot be found"):
        take_back(plan)
    assert contents(tmp_path)["conf"] == "staged conf"


def refuse_flags(monkeypatch: pytest.MonkeyPatch, code: int = errno.EINVAL) -> None:
    """As on NFS: renameat2 knows no flags."""

    def refuses(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(exchange, "renameat2", refuses)


def test_without_flags_of_rename_nothing_is_moved_onto_what_is_there(
    tmp_path: Path, area: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_flags(monkeypatch)
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    with pytest.raises(FileExistsError):
        exchange.move("a", area, "b", area)
    assert (tmp_path / "b").read_text() == "b"
    exchange.move("a", area, "c", area)
    assert (tmp_path / "c").read_text() == "a"


def test_a_rename_that_fails_for_another_reason_is_not_tried_in_another_way(
    tmp_path: Path, area: int, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_flags(monkeypatch, errno.EACCES)
    with pytest.raises(PermissionError):
        exchange.move("live", area, "elsewhere", area)
    with pytest.raises(PermissionError):
        carry_out(plan)
    assert contents(tmp_path) == {"conf": "live conf"}


def test_parents_that_another_source_has_made_or_uses_by_now_are_fine(tmp_path: Path, plan: Plan) -> None:
    above = tmp_path / "opt"
    above.mkdir()
    plan.parents = [str(above), str(above / "server")]
    carry_out(plan)
    assert (above / "server").is_dir()
    (above / "of another").touch()
    take_back(plan)
    assert [path.name for path in above.iterdir()] == ["of another"]


def test_a_parent_that_cannot_be_removed_is_an_error(tmp_path: Path, plan: Plan) -> None:
    plan.parents = [str(tmp_path / "opt")]
    carry_out(plan)
    subprocess.run(["mount", "--bind", tmp_path / "opt", tmp_path / "opt"], check=True)
    try:
        with pytest.raises(OSError, match="busy"):
            take_back(plan)
    finally:
        subprocess.run(["umount", tmp_path / "opt"], check=True)
    take_back(plan)
    assert not (tmp_path / "opt").exists()
    assert contents(tmp_path) == {"conf": "live conf"}
