"""Calls of the socket's methods in this process, held against the published schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from service.api import Api
from service.api.schema import schema
from service.rpc.codec import RpcError
from service.rpc.peers import Peer
from tests.service_parts import ADMIN

SECRET = "hunter2-correct-horse"
BY_THE_TRANSPORT = {"events.subscribe", "events.unsubscribe"}
METHODS: dict[str, Any] = {name: told for name, told in schema()["methods"].items() if name not in BY_THE_TRANSPORT}
DAILY = {"frequency": "daily", "at": "02:30"}


def call_checked(api: Api) -> Any:
    """Return a function that calls a method and holds params and result against the published schema."""

    async def call(method: str, peer: Peer = ADMIN, **params: Any) -> Any:
        jsonschema.validate(params, METHODS[method]["params"])
        result = await api.call(method, params, peer)
        jsonschema.validate(json.loads(json.dumps(result, allow_nan=False)), METHODS[method]["result"])
        return result

    return call


async def refused(api: Api, method: str, peer: Peer = ADMIN, **params: Any) -> RpcError:
    with pytest.raises(RpcError) as caught:
        await api.call(method, params, peer)
    return caught.value


def target_at(directory: Path, **options: Any) -> dict[str, Any]:
    return {"url": f"file://{directory}", "storage_options": options}
