"""Which part of an archive is wanted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from service.errors import ConfigError
from service.selection import NotInArchive, Selection, cautions
from service.sources.base import StoredSource, StoredStream


def stream(number: int, kind: str, **labels: str) -> StoredStream:
    return StoredStream(id=number, source="", kind=kind, labels=labels, chunks=1, bytes=1, sha256="0" * 64, details={})


def server(name: str, *databases: str, foreign: Sequence[str] = ()) -> StoredSource:
    streams = [stream(0, "postgresql.globals")]
    streams += [stream(at + 1, "postgresql.schema", database=each) for at, each in enumerate(databases)]
    facts: dict[str, Any] = {
        "databases": [{"name": each, "objects": {"relation:f": 1} if each in foreign else {}} for each in databases]
    }
    return StoredSource(name=name, type="postgresql", facts=facts, streams=streams)


SERVER = server("main", "app", "other", "roles")
TREE = StoredSource(
    name="etc", type="tree", facts={"path": "/etc/app"}, streams=[stream(0, "tree.tar", path="/etc/app")]
)
FILE = StoredSource(name="grafana", type="sqlite", facts={"path": "/g.db"}, streams=[stream(0, "sqlite.file")])
ALL = [SERVER, TREE, FILE]


def wanted(stored: Sequence[StoredSource] = ALL, **said: Any) -> dict[str, list[str]]:
    """Return the databases (or nothing) of each source that is wanted."""
    return {part.name: [d["name"] for d in part.facts.get("databases", ())] for part in Selection(**said).of(stored)}


def test_nothing_said_is_everything_as_it_is() -> None:
    assert Selection().of(ALL) == ALL
    assert all(part.whole for part in Selection().of(ALL))


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"sources": ("etc",)}, {"etc": []}),
        ({"sources": ("main", "grafana")}, {"main": ["app", "other", "roles"], "grafana": []}),
        ({"databases": ("app",)}, {"main": ["app"]}),
        ({"databases": ("roles", "app")}, {"main": ["app", "roles"]}),
        ({"databases": ("app",), "only": "databases"}, {"main": ["app"]}),
        ({"only": "config"}, {"etc": []}),
        ({"only": "roles"}, {"main": []}),
        ({"only": "databases"}, {"main": ["app", "other", "roles"], "grafana": []}),
        ({"only": "databases", "sources": ("grafana",)}, {"grafana": []}),
    ],
)
def test_what_is_said_narrows(said: dict[str, Any], expected: dict[str, list[str]]) -> None:
    assert wanted(**said) == expected


def test_a_whole_source_is_not_narrowed_and_a_part_of_one_says_so() -> None:
    assert Selection(sources=("main",)).of(ALL) == [SERVER]
    assert [part.whole for part in Selection(only="databases").of(ALL)] == [False, True]


def test_only_the_streams_of_what_is_wanted_are_left_and_the_roles() -> None:
    (part,) = Selection(databases=("other",)).of(ALL)
    assert [(each.kind, dict(each.labels)) for each in part.streams] == [
        ("postgresql.globals", {}),
        ("postgresql.schema", {"database": "other"}),
    ]
    (part,) = Selection(only="roles").of(ALL)
    assert [each.kind for each in part.streams] == ["postgresql.globals"]


@pytest.mark.parametrize(
    ("said", "message", "hint"),
    [
        ({"sources": ("min",)}, "no source min", "It has: etc, grafana, main."),
        ({"databases": ("App", "app")}, "no database App", "It has: app, other, roles."),
        ({"databases": ("app",), "sources": ("etc",)}, "no database app", "It has no database."),
        ({"only": "roles", "sources": ("etc",)}, "nothing of the kind roles", "It has: etc (tree)."),
    ],
)
def test_what_is_not_there_is_told_with_what_is(said: dict[str, Any], message: str, hint: str) -> None:
    with pytest.raises(NotInArchive, match=message) as caught:
        wanted(**said)
    assert caught.value.hint == hint


def test_databases_and_another_kind_contradict_each_other() -> None:
    with pytest.raises(ConfigError, match="only roles wanted"):
        wanted(databases=("app",), only="roles")


def test_a_server_without_databases_has_nothing_of_that_kind() -> None:
    """No databases are how a part says that it is the roles."""
    assert wanted([server("empty"), SERVER], only="databases") == {"main": ["app", "other", "roles"]}
    with pytest.raises(NotInArchive, match="nothing of the kind databases"):
        wanted([server("empty")], only="databases")
    assert wanted([server("empty")], only="roles") == {"empty": []}


def test_the_parameters_of_a_request_are_read_back() -> None:
    said = Selection(sources=("main",), databases=("app",), only="databases")
    assert Selection.of_params(said.as_params()) == said
    assert Selection().as_params() == {}
    assert Selection.of_params({"archive": "x"}).everything


def test_cautions_tell_what_is_of_another_time() -> None:
    def told(stored: Sequence[StoredSource] = ALL, **said: Any) -> str:
        return "\n".join(cautions(stored, Selection(**said).of(stored), "then"))

    assert told() == ""
    assert told([SERVER], sources=("main",)) == ""
    one = told(databases=("app",))
    assert "In main, app will be of then beside other and roles of now." in one
    assert "What is restored of main will be of then beside etc and grafana of now." in one
    assert "Roles that are there stay as they are" in one
    assert "passwords and memberships of then" in told(only="roles")
    assert "foreign tables" not in one
    assert "Database app has foreign tables" in told([server("main", "app", foreign=["app"])], databases=("app",))
