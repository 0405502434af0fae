"""JSON-RPC 2.0 over JSON lines: bytes in, requests out; results, errors and events in, bytes out. Pure.

Stricter than JSON-RPC where being lenient helps nobody: a request has an `id` (nothing stays unanswered), its `params`
are an object, batches are refused, and so is every member that means nothing.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final, TypeGuard

from service.errors import ServiceError
from service.events import Event
from service.strict_json import SURROGATE, strict_loads
from storage_backends.base import StorageError

MAX_REQUEST: Final = 64 * 1024
"""Bytes of a request line with its newline."""
MAX_ANSWER: Final = 1024 * 1024
"""Bytes of every line to a client, with its newline."""
MAX_NAME: Final = 64
"""Characters of a method, and of an id that is text."""

Id = str | int

logger = logging.getLogger(__name__)


class Code(IntEnum):
    """Numbers of errors. Those of JSON-RPC, then those of this service."""

    PARSE_ERROR = -32700
    INVALID_REQUEST = -32600
    METHOD_NOT_FOUND = -32601
    INVALID_PARAMS = -32602
    INTERNAL_ERROR = -32603
    FAILED = -32000
    """What was asked for could not be done; `data.code` says why."""
    NOT_ALLOWED = -32001
    """This peer may not do that, or may not connect at all."""
    BUSY = -32002
    """Too many connections, subscriptions or unread answers."""
    TOO_LARGE = -32003
    """The answer would be too long for a line."""
    SLOW_CONSUMER = -32004
    """The client reads too slowly."""
    TIMED_OUT = -32005
    """The client said nothing, or did not end a line, for too long."""


class RpcError(Exception):
    """An error for the client. `id` is the request's when it could be read.

    `reason` is stable and stands in `data.code`: the name of the number, or for FAILED the service's own code. `more`
    is further members of `data`.
    """

    def __init__(
        self,
        code: Code,
        message: str,
        *,
        hint: str = "",
        transient: bool = False,
        reason: str | None = None,
        more: dict[str, Any] | None = None,
        id: Id | None = None,  # noqa: A002  (JSON-RPC's own word)
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint
        self.transient = transient
        self.reason = reason or code.name
        self.more = more or {}
        self.id = id

    @property
    def data(self) -> dict[str, Any]:
        """Return the error's `data` member: code, message, hint, transient, and what else is known."""
        told = {"code": self.reason, "message": self.message, "hint": self.hint, "transient": self.transient}
        return self.more | told


def failed(error: ServiceError | StorageError, **more: Any) -> RpcError:
    """Return what a client is told of an error of the service or of a target; `more` goes into `data`."""
    return RpcError(
        Code.FAILED, str(error), hint=error.hint, transient=error.transient, reason=error.code, more=dict(more)
    )


@dataclass(frozen=True, slots=True)
class Request:
    """One call. Its params are checked by whoever carries it out."""

    id: Id
    method: str
    params: dict[str, Any]


def parse(line: bytes) -> Request:
    """Return the request in a line. Raises RpcError, and nothing else."""
    try:
        value = strict_loads(line, parse_int=_int64)
    except ValueError as exc:
        reason = "not UTF-8" if isinstance(exc, UnicodeDecodeError) else str(exc)[:200]
        raise RpcError(Code.PARSE_ERROR, f"this line is no JSON text: {reason}") from exc
    if isinstance(value, list):
        raise RpcError(Code.INVALID_REQUEST, "batches are not supported", hint="Send one request a line.")
    if not isinstance(value, dict):
        raise RpcError(Code.INVALID_REQUEST, "a request is a JSON object")
    identifier = value.get("id")
    if not _is_id(identifier):
        raise RpcError(
            Code.INVALID_REQUEST,
            "a request needs an id: a 64-bit integer, or text of 1 to 64 characters",
            hint="Notifications are not taken; give each request an id of its own.",
        )
    problem = _problem(value)
    if problem is not None:
        problem.id = identifier
        raise problem
    return Request(identifier, value["method"], value.get("params", {}))


def encode_result(identifier: Id, result: Any) -> bytes:
    """Return the line of an answer. Raises RpcError TOO_LARGE; TypeError or ValueError for what is no JSON value."""
    line = _encode({"jsonrpc": "2.0", "id": identifier, "result": result})
    if len(line) > MAX_ANSWER:
        raise RpcError(
            Code.TOO_LARGE,
            f"the answer has {len(line)} bytes, {MAX_ANSWER} are the limit",
            hint="Ask for less at a time.",
            id=identifier,
        )
    return line


def encode_error(error: RpcError, identifier: Id | None = None) -> bytes:
    """Return the line of an error: an answer to the request `identifier` or else `error.id`; null is to no request."""
    told = {"code": int(error.code), "message": error.message, "data": error.data}
    shown = error.id if identifier is None else identifier
    line = _encode({"jsonrpc": "2.0", "id": shown, "error": told})
    if len(line) > MAX_ANSWER:
        short = RpcError(error.code, error.message[:1000], hint=error.hint[:1000], reason=error.reason)
        return encode_error(short, shown)
    return line


def encode_event(event: Event) -> bytes:
    """Return the line of an event. One that cannot be sent keeps its number but loses its data, which is logged."""
    told = event.as_json()
    try:
        line = _encode({"jsonrpc": "2.0", "method": "event", "params": told})
        problem = f"{len(line)} bytes" if len(line) > MAX_ANSWER else None
    except (TypeError, ValueError, RecursionError) as exc:
        problem = str(exc)
    if problem is not None:
        logger.error("the data of event %s (%s) cannot be sent: %s", event.seq, event.type, problem)
        line = _encode({"jsonrpc": "2.0", "method": "event", "params": told | {"data": {"omitted": True}}})
    return line


def _problem(value: dict[str, Any]) -> RpcError | None:
    unknown = value.keys() - {"jsonrpc", "id", "method", "params"}
    if unknown:
        return RpcError(Code.INVALID_REQUEST, f"a request has no member {min(unknown)[:MAX_NAME]!r}")
    if value.get("jsonrpc") != "2.0":
        return RpcError(Code.INVALID_REQUEST, 'the member jsonrpc must be "2.0"')
    method = value.get("method")
    if not (isinstance(method, str) and 0 < len(method) <= MAX_NAME):
        return RpcError(Code.INVALID_REQUEST, f"the method is text of 1 to {MAX_NAME} characters")
    if not isinstance(value.get("params", {}), dict):
        return RpcError(Code.INVALID_PARAMS, "params are an object: every parameter has a name")
    return None


def _is_id(value: Any) -> TypeGuard[Id]:
    if isinstance(value, str):
        return 0 < len(value) <= MAX_NAME
    return isinstance(value, int) and not isinstance(value, bool)


def _int64(digits: str) -> int:
    number = int(digits) if len(digits) <= 20 else 2**63
    if not -(2**63) <= number < 2**63:
        raise ValueError("an integer does not fit into 64 bits")
    return number


def _encode(message: dict[str, Any]) -> bytes:
    text = json.dumps(message, separators=(",", ":"), allow_nan=False)
    if "\\ud" in text:  # perhaps half a character, from a file name that is not UTF-8: strict readers refuse it
        whole = SURROGATE.sub("\ufffd", json.dumps(message, ensure_ascii=False, allow_nan=False))
        text = json.dumps(json.loads(whole), separators=(",", ":"))
    text += "\n"  # before encoding: lines are long, and each copy of one counts
    return text.encode("ascii")
