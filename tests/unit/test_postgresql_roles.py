"""Statements that bring roles and databases to their archived state."""

from __future__ import annotations

from typing import Any

import pytest

from service.errors import CorruptArchive
from service.sources.postgresql.needed import only
from service.sources.postgresql.roles import (
    changes,
    database_statements,
    dump_globals,
    load_globals,
    set_statement,
    split_list,
    statements,
)


def role(name: str, **changes: Any) -> dict[str, Any]:
    return {
        "name": name,
        "superuser": False,
        "inherit": True,
        "create_role": False,
        "create_database": False,
        "login": True,
        "replication": False,
        "bypass_rls": False,
        "connection_limit": -1,
        "password": None,
        "valid_until": None,
        "comment": None,
    } | changes


def membership(group: str, member: str, **changes: Any) -> dict[str, Any]:
    return {
        "role": group,
        "member": member,
        "grantor": "postgres",
        "admin": False,
        "inherit": None,
        "set": None,
    } | changes


def cluster(*roles: dict[str, Any], memberships: Any = (), settings: Any = (), parameters: Any = ()) -> dict[str, Any]:
    return {
        "roles": list(roles),
        "memberships": list(memberships),
        "settings": list(settings),
        "parameters": list(parameters),
    }


def parameter(name: str, grantee: str | None, **changes: Any) -> dict[str, Any]:
    return {
        "parameter": name,
        "grantor": "postgres",
        "grantee": grantee,
        "privilege": "SET",
        "grantable": False,
    } | changes


@pytest.mark.parametrize(
    ("stored", "items"),
    [
        ("", []),
        ("public", ["public"]),
        ('"$user", public', ["$user", "public"]),
        ('"a,b", "say ""hi""" ,c', ["a,b", 'say "hi"', "c"]),
        ('""', [""]),
        ('"open', ["open"]),
    ],
)
def test_a_stored_list_is_split_as_postgresql_wrote_it(stored: str, items: list[str]) -> None:
    assert split_list(stored) == items


def test_a_list_setting_is_set_item_by_item_and_another_as_one_value() -> None:
    assert set_statement('DATABASE "d"', 'search_path="$user", public') == (
        """ALTER DATABASE "d" SET "search_path" TO '$user', 'public'"""
    )
    assert set_statement('ROLE "r"', "my.app=a, b'c=d") == """ALTER ROLE "r" SET "my"."app" TO 'a, b''c=d'"""
    assert set_statement('ROLE "r"', "x=back\\slash") == r"""ALTER ROLE "r" SET "x" TO E'back\\slash'"""


def test_nothing_is_said_when_nothing_differs() -> None:
    same = cluster(role("a", password="SCRAM"), memberships=[membership("a", "b")])
    assert statements(same, same, keep=[]) == []


def test_the_role_in_use_keeps_its_attributes() -> None:
    archived, now = cluster(role("postgres", password="old")), cluster(role("postgres", password="new"))
    assert statements(archived, now, keep=["postgres"]) == []
    assert any("PASSWORD 'old'" in statement for statement in statements(archived, now, keep=[]))


def test_roles_that_only_the_server_has_are_left_alone() -> None:
    now = cluster(role("a"), role("newcomer"), memberships=[membership("a", "newcomer")])
    assert statements(cluster(role("a")), now, keep=[]) == []


def test_memberships_come_back_and_extra_ones_among_archived_roles_go() -> None:
    archived = cluster(
        role("a"), role("b"), memberships=[membership("a", "b", admin=True), membership("pg_monitor", "a")]
    )
    now = cluster(role("a"), role("b"), memberships=[membership("b", "a")])
    assert statements(archived, now, keep=[]) == [
        'REVOKE "b" FROM "a"',
        'GRANT "a" TO "b" WITH ADMIN OPTION GRANTED BY "postgres"',
        'GRANT "pg_monitor" TO "a" GRANTED BY "postgres"',
    ]


def test_settings_for_all_roles_come_back() -> None:
    archived = cluster(settings=[{"role": None, "settings": ["work_mem=9MB"]}])
    assert statements(archived, cluster(), keep=[]) == [
        "ALTER ROLE ALL RESET ALL",
        """ALTER ROLE ALL SET "work_mem" TO '9MB'""",
    ]
    assert statements(cluster(), archived, keep=[]) == ["ALTER ROLE ALL RESET ALL"]


def test_privileges_on_parameters_come_back_and_those_of_a_role_about_to_go_are_revoked() -> None:
    archived = cluster(role("a"), parameters=[parameter("my.option", "a", grantable=True)])
    now = cluster(role("a"), parameters=[parameter("work_mem", "a"), parameter("work_mem", "b")])
    assert statements(archived, now, keep=[], forget=["b"]) == [
        'REVOKE SET ON PARAMETER "work_mem" FROM "a" CASCADE',
        'REVOKE SET ON PARAMETER "work_mem" FROM "b" CASCADE',
        'SET LOCAL ROLE "postgres"',
        'GRANT SET ON PARAMETER "my"."option" TO "a" WITH GRANT OPTION',
        "RESET ROLE",
    ]


def test_a_membership_of_postgresql_16_comes_back_with_its_options() -> None:
    archived = cluster(role("a"), role("b"), memberships=[membership("a", "b", inherit=False, set=True)])
    now = cluster(role("a"), role("b"), memberships=[membership("a", "b", inherit=True, set=True)])
    assert statements(archived, now, keep=[]) == [
        'REVOKE "a" FROM "b" GRANTED BY "postgres"',
        'GRANT "a" TO "b" WITH ADMIN FALSE, INHERIT FALSE, SET TRUE GRANTED BY "postgres"',
    ]


def test_passwords_that_cannot_be_seen_are_not_said_to_differ() -> None:
    unseen = role("a", login=False)
    del unseen["password"]
    archived = cluster(role("a", password="SCRAM"), role("new"))
    assert changes(archived, cluster(unseen)) == {"a": ["attributes"]}
    assert changes(archived, cluster(role("a"))) == {"a": ["password"]}


def test_names_are_quoted_everywhere() -> None:
    evil = 'x"; DROP TABLE t; --'
    [statement] = statements(cluster(role(evil, connection_limit=3)), cluster(role(evil)), keep=[])
    assert statement.startswith('ALTER ROLE "x""; DROP TABLE t; --" WITH ')


def test_a_password_that_was_removed_is_removed_again() -> None:
    [statement] = statements(cluster(role("a")), cluster(role("a", password="SCRAM")), keep=[])
    assert statement.endswith("PASSWORD NULL")


def test_privileges_of_a_database_are_granted_by_their_grantors() -> None:
    database = {
        "owner": "boss",
        "connection_limit": 7,
        "comment": "it's",
        "settings": [{"role": None, "settings": ["work_mem=8MB"]}, {"role": "a", "settings": ["search_path=s"]}],
        "acl": [
            {"grantor": "boss", "grantee": None, "privilege": "CONNECT", "grantable": False},
            {"grantor": "a", "grantee": "b", "privilege": "CREATE", "grantable": True},
        ],
    }
    assert database_statements(database, "d") == [
        'ALTER DATABASE "d" CONNECTION LIMIT 7',
        """COMMENT ON DATABASE "d" IS 'it''s'""",
        'REVOKE ALL ON DATABASE "d" FROM PUBLIC, "boss"',
        'GRANT CONNECT ON DATABASE "d" TO PUBLIC',
        'SET LOCAL ROLE "a"',
        'GRANT CREATE ON DATABASE "d" TO "b" WITH GRANT OPTION',
        "RESET ROLE",
        """ALTER DATABASE "d" SET "work_mem" TO '8MB'""",
        """ALTER ROLE "a" IN DATABASE "d" SET "search_path" TO 's'""",
    ]


def test_an_unknown_privilege_in_an_archive_is_refused() -> None:
    database = {"owner": "o", "connection_limit": -1, "comment": None, "settings": []}
    hostile = {"grantor": "o", "grantee": None, "privilege": "ALL; DROP DATABASE x", "grantable": False}
    with pytest.raises(CorruptArchive, match="unknown database privilege"):
        database_statements(database | {"acl": [hostile]}, "d")


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{}", b'{"roles": [{"name": 1}], "memberships": [], "settings": [], "parameters": []}']
)
def test_a_list_of_roles_that_cannot_be_read_is_a_corrupt_archive(data: bytes) -> None:
    with pytest.raises(CorruptArchive):
        load_globals(data)


@pytest.mark.parametrize(
    "changes", [{"admin": "true"}, {"inherit": "true; DROP DATABASE app; --"}, {"set": 1}, {"grantor": 1}]
)
def test_a_membership_that_is_more_than_names_and_flags_is_a_corrupt_archive(changes: dict[str, Any]) -> None:
    good = cluster(role("r"), memberships=[membership("g", "r"), membership("h", "r", inherit=True, set=False)])
    assert load_globals(dump_globals(good)) == good
    with pytest.raises(CorruptArchive):
        load_globals(dump_globals(cluster(role("r"), memberships=[membership("g", "r", **changes)])))


def test_of_single_roles_only_these_and_their_memberships_with_present_ones_are_taken() -> None:
    wanted = cluster(
        role("made"),
        role("there", superuser=True),
        memberships=[membership("made", "there"), membership("there", "gone"), membership("made", "gone")],
        settings=[{"role": None, "settings": ["a=1"]}, {"role": "made", "settings": ["b=2"]}],
        parameters=[parameter("work_mem", "there"), parameter("work_mem", "made")],
    )
    assert only(wanted, ["made"], ["there"]) == cluster(
        role("made"),
        memberships=[membership("made", "there", grantor=None)],
        settings=[{"role": "made", "settings": ["b=2"]}],
        parameters=[parameter("work_mem", "made", grantor=None)],
    )


def test_a_grantor_is_named_only_where_it_is_one_of_the_roles_that_are_made() -> None:
    wanted = cluster(
        role("made"),
        role("chief"),
        memberships=[membership("made", "there", grantor="chief")],
        parameters=[parameter("work_mem", "made", grantor="chief")],
    )
    now = cluster(role("there"))
    alone = statements(only(wanted, ["made"], ["there", "chief"]), now, keep=[], everybody=False)
    assert 'GRANT "made" TO "there"' in alone
    assert not [statement for statement in alone if "chief" in statement]
    both = statements(only(wanted, ["made", "chief"], ["there"]), now, keep=[], everybody=False)
    assert 'GRANT "made" TO "there" GRANTED BY "chief"' in both
    assert 'SET LOCAL ROLE "chief"' in both


def test_nothing_that_holds_for_everybody_changes_when_single_roles_are_restored() -> None:
    now = cluster(settings=[{"role": None, "settings": ["a=1"]}], parameters=[parameter("work_mem", None)])
    assert statements(cluster(), now, keep=[], everybody=False) == []
    assert len(statements(cluster(), now, keep=[])) == 2
