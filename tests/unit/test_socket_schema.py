"""What is published of the socket: true, complete, and the same in the documentation."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema

from service.api.methods import FAMILIES
from service.api.params import Mutation
from service.api.registry import methods_of
from service.api.schema import markdown, schema

ROOT = Path(__file__).parents[2]


def test_the_documentation_holds_the_schema() -> None:
    published = json.loads((ROOT / "docs/socket-schema.json").read_text())
    assert published == schema(), "run `deviceon-backup serve --schema > docs/socket-schema.json`"


def test_the_documentation_lists_every_method_and_event() -> None:
    assert markdown() in (ROOT / "docs/SOCKET.md").read_text(), "paste what service.api.schema.markdown() returns"


def test_every_part_of_the_schema_is_a_schema() -> None:
    told = schema()
    for found in told["methods"].values():
        jsonschema.Draft202012Validator.check_schema(found["params"])
        jsonschema.Draft202012Validator.check_schema(found["result"])
    for event in told["events"].values():
        jsonschema.Draft202012Validator.check_schema(event["data"])


def test_every_method_says_what_it_does_and_refuses_unknown_parameters() -> None:
    for name, found in schema()["methods"].items():
        assert found["description"], name
        assert found["params"]["additionalProperties"] is False, name
        for key, member in found["params"]["properties"].items():
            assert name.startswith("events.") or member.get("description"), f"{name}: {key}"


def test_whatever_changes_something_is_for_admins_and_can_be_repeated() -> None:
    looking = {
        "archive.read",
        "key.prove",
        "provision.begin",
        "provision.status",
        "reset.plan",
        "restore.plan",
        "system.doctor",
        "target.test",
        "job.cancel",
    }
    for name, found in methods_of(*FAMILIES).items():
        assert found.admin == (issubclass(found.params, Mutation) or name in looking), name
