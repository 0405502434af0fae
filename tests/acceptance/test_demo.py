"""The README's first command, as a user runs it, on little data."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from demo.compare import diff, fingerprint
from demo.debian_schemas import debian_schemas
from demo.postgresql_server import PostgresqlServer
from demo.public_schemas import public_schemas
from demo.targets import KINDS
from tests.recipes import Installation

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("target", KINDS)
async def test_the_demo_ends_with_restore_successfully(target: str) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "demo", "--scale", "0.002", "--target", target),
        cwd=ROOT,
        env={key: value for key, value in os.environ.items() if not key.startswith("PG")},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    told = output.decode()
    assert process.returncode == 0, told
    assert told.strip().splitlines()[-1] == "Restore successfully"


@pytest.mark.parametrize("schemas", [public_schemas, debian_schemas])
async def test_databases_that_this_project_did_not_design_come_back_equal(
    own_postgresql: PostgresqlServer, workspace: Path, schemas: object
) -> None:
    assert callable(schemas)
    names = await schemas(own_postgresql)
    installation = Installation(own_postgresql, workspace)
    before = await fingerprint(own_postgresql, names)
    archive = (await installation.backup()).name
    for name in names:
        await own_postgresql.execute(f'DROP DATABASE "{name}"')
    await installation.restore(archive)
    await installation.commit()
    assert diff(before, await fingerprint(own_postgresql, names)) == []
