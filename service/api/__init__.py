"""What clients of the socket may ask: methods by name, checked, allowed by role, and carried out."""

from __future__ import annotations

from typing import Any

from service.api.context import Context
from service.api.methods import all_methods
from service.api.registry import WrongParams
from service.errors import ServiceError
from service.failure import as_json
from service.rpc.codec import Code, RpcError
from service.rpc.peers import Peer
from storage_backends.base import StorageError

__all__ = ["Api", "Context"]


class Api:
    """Dispatches requests (`service.rpc.connection.Dispatcher`)."""

    def __init__(self, context: Context) -> None:
        self._methods = all_methods(context)

    async def call(self, method: str, params: dict[str, Any], peer: Peer) -> Any:
        """Carry out a request; return JSON values. Raises RpcError."""
        found = self._methods.get(method)
        if found is None:
            raise RpcError(Code.METHOD_NOT_FOUND, f"there is no method {method!r}", hint="See `system.schema`.")
        if found.admin and peer.role != "admin":
            raise RpcError(Code.NOT_ALLOWED, f"{peer.name} may look, but not call {method}")
        try:
            return found.as_json(await found.call(found.parse(params)))
        except WrongParams as error:
            raise RpcError(Code.INVALID_PARAMS, str(error), hint="See `system.schema`.") from None
        except (ServiceError, StorageError) as error:
            told = as_json(error)
            raise RpcError(
                Code.FAILED,
                told.pop("message"),
                hint=told.pop("hint"),
                transient=told.pop("transient"),
                reason=told.pop("code"),
                more=told,
            ) from error
