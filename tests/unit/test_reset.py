"""What a reset keeps, as globs of each tree."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from service.config import Config, ConfigFile
from service.reset_keep import keeping, kept_in
from service.sources.base import StoredSource
from service.sources.selection import translate


@pytest.mark.parametrize(
    ("keep", "globs"),
    [
        (["licence/**", "*.lic"], ["licence/**", "*.lic"]),
        (["/opt/d/etc/net.conf"], ["net.conf"]),
        (["/opt/d/etc/**/own"], ["**/own"]),
        (["/opt/d/etcetera/x", "/opt/d"], []),
    ],
)
def test_globs_are_relative_to_each_tree_or_have_the_trees_path_in_front(keep: list[str], globs: list[str]) -> None:
    assert kept_in(Path("/opt/d/etc"), keep, []) == globs


def test_own_files_in_a_tree_are_named_literally(tmp_path: Path) -> None:
    tree = tmp_path / "etc"
    tree.mkdir()
    (tmp_path / "link").symlink_to(tree)
    odd = "a*b?[c]!^{d}.yaml"
    (tree / odd).touch()
    for root in (tree, tmp_path / "link"):
        for own in (tree / odd, tmp_path / "link" / odd):
            [glob] = kept_in(root, [], [own, Path("/elsewhere/x")])
            assert re.fullmatch(translate(glob), odd)
            assert not re.fullmatch(translate(glob), "axbyc!^{d}.yaml")


def test_a_file_that_is_a_link_is_kept_with_what_it_links_to(tmp_path: Path) -> None:
    (tmp_path / "real").touch()
    (tmp_path / "link").symlink_to("real")
    assert kept_in(tmp_path, [], [tmp_path / "link"]) == ["link", "real"]


def test_what_lies_in_no_tree_cannot_be_kept() -> None:
    document = {
        "server": {"version": "1"},
        "sources": [{"type": "tree", "path": "/opt/d/etc"}],
        "reset": {"keep": ["/opt/d/other"]},
    }
    with pytest.raises(ValueError, match="lies in no tree"):
        ConfigFile.model_validate(document)


def test_a_server_that_only_the_baseline_knows_keeps_nothing_here() -> None:
    document = {
        "server": {"version": "1"},
        "target": {"url": "file:///srv/backup"},
        "sources": [{"type": "tree", "path": "/opt/d/etc"}],
        "reset": {"keep": ["*.lic"]},
    }
    stored = [
        StoredSource(name="postgresql", type="postgresql", facts={}, streams=[]),
        StoredSource(name="grafana", type="tree", facts={"path": "/etc/grafana"}, streams=[]),
    ]
    kept = keeping(Config.model_validate(document), stored).sources
    assert [(each.name, each.exclude) for each in kept if each.type == "tree"] == [
        ("config", ["*.lic"]),
        ("grafana", ["*.lic"]),
    ]
    assert len(kept) == 2
