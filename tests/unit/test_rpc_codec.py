"""Which lines are requests, which are refused and how, and that what is written can be read."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from service.errors import JobRefused
from service.events import Event
from service.rpc.codec import (
    MAX_ANSWER,
    Code,
    Request,
    RpcError,
    encode_error,
    encode_event,
    encode_result,
    failed,
    parse,
)

NOW = datetime(2026, 11, 24, 2, 0, tzinfo=UTC)

GOOD = {
    '{"jsonrpc":"2.0","id":1,"method":"a"}\n': Request(1, "a", {}),
    '{"jsonrpc":"2.0","id":1,"method":"a"}\r\n': Request(1, "a", {}),
    ' {"method":"job.get", "params":{"id":"7"}, "id":"x", "jsonrpc":"2.0"} ': Request("x", "job.get", {"id": "7"}),
    '{"jsonrpc":"2.0","id":-9223372036854775808,"method":"a"}': Request(-(2**63), "a", {}),
    '{"jsonrpc":"2.0","id":9223372036854775807,"method":"a"}': Request(2**63 - 1, "a", {}),
    f'{{"jsonrpc":"2.0","id":"{"i" * 64}","method":"{"m" * 64}"}}': Request("i" * 64, "m" * 64, {}),
    '{"jsonrpc":"2.0","id":0,"method":"ü","params":{"a":["\\ud83d\\ude00",1.5,null,true]}}': Request(
        0, "ü", {"a": ["\U0001f600", 1.5, None, True]}
    ),
}


def request(**members: Any) -> bytes:
    """Return a request with some members replaced; those that are `...` are left out."""
    whole = {"jsonrpc": "2.0", "id": 1, "method": "a", "params": {}} | members
    return json.dumps({name: value for name, value in whole.items() if value is not ...}).encode()


def with_params(text: str) -> bytes:
    return b'{"jsonrpc":"2.0","id":1,"method":"a","params":{"p":%s}}' % text.encode("utf-8", "surrogatepass")


PARSE, INVALID = Code.PARSE_ERROR, Code.INVALID_REQUEST

BAD: dict[str, tuple[bytes, Code, int | str | None]] = {
    "empty": (b"\n", PARSE, None),
    "no JSON": (b"hello\n", PARSE, None),
    "two objects": (request() + request(), PARSE, None),
    "byte order mark": (b"\xef\xbb\xbf" + request(), PARSE, None),
    "UTF-16": (request().decode().encode("utf-16"), PARSE, None),
    "UTF-16 without a mark": (request().decode().encode("utf-16-le"), PARSE, None),
    "Latin-1": (with_params('"x"').replace(b"x", b"\xfc"), PARSE, None),
    "overlong UTF-8": (with_params('"x"').replace(b"x", b"\xc0\xaf"), PARSE, None),
    "a surrogate in UTF-8": (with_params('"\ud800"'), PARSE, None),
    "a lone surrogate, escaped": (with_params('"\\ud800"'), PARSE, None),
    "a lone surrogate in a name": (with_params('{"\\udc00":1}'), PARSE, None),
    "a member twice": (b'{"jsonrpc":"2.0","id":1,"id":2,"method":"a"}', PARSE, None),
    "a member twice, deeper": (with_params('[{"a":1,"\\u0061":2}]'), PARSE, None),
    "NaN": (with_params("NaN"), PARSE, None),
    "-Infinity": (with_params("-Infinity"), PARSE, None),
    "a number beyond doubles": (with_params("1e999"), PARSE, None),
    "an integer of 65 bits": (with_params("9223372036854775808"), PARSE, None),
    "an integer of 65 bits, below": (with_params("-9223372036854775809"), PARSE, None),
    "an integer of 5,000 digits": (with_params("9" * 5000), PARSE, None),
    "nested 33 deep": (with_params("[" * 31 + "]" * 31), PARSE, None),
    "nested 30,000 deep": (with_params("[" * 30_000 + "]" * 30_000), PARSE, None),
    "a zero byte": (b'{"jsonrpc":"2.0","id":1,\0"method":"a"}', PARSE, None),
    "a control character in text": (with_params('"\x01"'), PARSE, None),
    "a batch": (b"[" + request() + b"]", INVALID, None),
    "an empty batch": (b"[]", INVALID, None),
    "text": (b'"a"', INVALID, None),
    "null": (b"null", INVALID, None),
    "a notification": (request(id=...), INVALID, None),
    "id null": (request(id=None), INVALID, None),
    "id true": (request(id=True), INVALID, None),
    "id 1.0": (request(id=1.0), INVALID, None),
    "id empty": (request(id=""), INVALID, None),
    "id of 65 characters": (request(id="i" * 65), INVALID, None),
    "id an object": (request(id={}), INVALID, None),
    "no version": (request(jsonrpc=...), INVALID, 1),
    "another version": (request(jsonrpc="1.0"), INVALID, 1),
    "version a number": (request(jsonrpc=2.0), INVALID, 1),
    "no method": (request(method=...), INVALID, 1),
    "method empty": (request(method=""), INVALID, 1),
    "method a number": (request(method=7), INVALID, 1),
    "method of 65 characters": (request(method="m" * 65), INVALID, 1),
    "an unknown member": (request(extra=1), INVALID, 1),
    "an unknown member, id text": (request(extra=1, id="x"), INVALID, "x"),
    "an answer": (b'{"jsonrpc":"2.0","id":1,"result":1}', INVALID, 1),
    "params an array": (request(params=[1]), Code.INVALID_PARAMS, 1),
    "params null": (request(params=None), Code.INVALID_PARAMS, 1),
    "params text": (request(params="x"), Code.INVALID_PARAMS, 1),
}


@pytest.mark.parametrize("text", GOOD)
def test_a_request_is_read(text: str) -> None:
    assert parse(text.encode()) == GOOD[text]


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_request_is_refused(name: str) -> None:
    line, code, identifier = BAD[name]
    with pytest.raises(RpcError) as refused:
        parse(line)
    assert (refused.value.code, refused.value.id) == (code, identifier)
    assert len(encode_error(refused.value)) < 1000


def test_nesting_that_is_allowed_is_read() -> None:
    assert parse(with_params("[" * 30 + "]" * 30)).id == 1


def test_a_batch_and_a_notification_are_told_what_to_do() -> None:
    with pytest.raises(RpcError, match="batches are not supported"):
        parse(b"[]")
    with pytest.raises(RpcError, match="needs an id") as refused:
        parse(request(id=...))
    assert "Notifications" in refused.value.hint


@given(st.binary(max_size=300))
def test_any_bytes_are_a_request_or_an_rpc_error(line: bytes) -> None:
    try:
        assert isinstance(parse(line), Request)
    except RpcError as error:
        assert json.loads(encode_error(error))["error"]["code"] == error.code


VALID = [*(text.encode() for text in GOOD), with_params('[1e9,"\\ud83d\\ude00",{"a":[[]]}]')]


@given(st.sampled_from(VALID), st.data())
def test_any_change_of_a_valid_line_is_a_request_or_an_rpc_error(line: bytes, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(line)))
    end = data.draw(st.integers(start, min(len(line), start + 8)))
    middle = data.draw(
        st.sampled_from([b"", b"\\u", b'"', b"9" * 30, b"[" * 2000, b"\xff", b"NaN"]) | st.binary(max_size=8)
    )
    try:
        assert isinstance(parse(line[:start] + middle + line[end:]), Request)
    except RpcError as error:
        assert json.loads(encode_error(error))["error"]["code"] == error.code


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner),
    max_leaves=20,
)


@given(json_values)
@example("\\ud800 is six characters of ASCII")
@example({"\U0001f600": "\u2028\x7f\n"})
def test_what_is_written_is_one_ascii_line_that_strict_reading_takes(value: Any) -> None:
    line = encode_result(1, value)
    assert line.isascii()
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert json.loads(line) == {"jsonrpc": "2.0", "id": 1, "result": value}
    assert parse(with_params(json.dumps(value))).params == {"p": value}


@given(st.lists(st.sampled_from(["\ud83d", "\ude00", "\udce9", "\U0001f600", "\\", "u", "d800", "ü"])).map("".join))
@example("caf\udce9")
def test_half_characters_never_leave_the_service(text: str) -> None:
    result = json.loads(encode_result(1, {text: text}))["result"]
    expected = "".join("\ufffd" if "\ud800" <= character <= "\udfff" else character for character in text)
    assert result == {expected: expected}


def test_an_answer_beyond_the_limit_is_an_error_that_says_so() -> None:
    frame = len(encode_result(7, ""))
    assert len(encode_result(7, "x" * (MAX_ANSWER - frame))) == MAX_ANSWER
    with pytest.raises(RpcError, match="limit") as refused:
        encode_result(7, "x" * (MAX_ANSWER - frame + 1))
    assert (refused.value.code, refused.value.id) == (Code.TOO_LARGE, 7)
    assert refused.value.hint == "Ask for less at a time."


@pytest.mark.parametrize("value", [float("nan"), NOW, {1, 2}, {"a": float("inf")}])
def test_what_is_no_json_value_is_the_callers_mistake(value: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        encode_result(1, value)


def test_an_error_carries_its_name_and_what_to_do() -> None:
    line = encode_error(RpcError(Code.BUSY, "too many", hint="Wait.", transient=True, more={"limit": 4}), "x")
    assert json.loads(line) == {
        "jsonrpc": "2.0",
        "id": "x",
        "error": {
            "code": -32002,
            "message": "too many",
            "data": {"code": "BUSY", "message": "too many", "hint": "Wait.", "transient": True, "limit": 4},
        },
    }


def test_an_error_of_the_service_keeps_its_own_code() -> None:
    error = json.loads(encode_error(failed(JobRefused("a backup is running", hint="Wait."), job="7"), 1))["error"]
    assert error["code"] == -32000
    assert error["data"] == {
        "code": "JOB_REFUSED",
        "message": "a backup is running",
        "hint": "Wait.",
        "transient": False,
        "job": "7",
    }


def test_an_error_beyond_the_limit_is_cut() -> None:
    line = encode_error(RpcError(Code.FAILED, "x" * MAX_ANSWER, reason="ARCHIVE", more={"all": "y" * MAX_ANSWER}), 1)
    error = json.loads(line)["error"]
    assert len(line) < 4000
    assert (error["code"], error["data"]["code"], error["message"][:3]) == (-32000, "ARCHIVE", "xxx")


def test_an_event_is_a_notification() -> None:
    line = encode_event(Event(5, "b", NOW, "job.ended", "7", {"state": "succeeded"}))
    assert json.loads(line) == {
        "jsonrpc": "2.0",
        "method": "event",
        "params": {
            "seq": 5,
            "boot_id": "b",
            "time": "2026-11-24T02:00:00+00:00",
            "type": "job.ended",
            "job_id": "7",
            "data": {"state": "succeeded"},
        },
    }


@pytest.mark.parametrize("data", [{"a": NOW}, {"a": float("nan")}, {"a": "x" * MAX_ANSWER}])
def test_an_event_that_cannot_be_sent_keeps_its_number_and_is_logged(
    data: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    event = json.loads(encode_event(Event(5, "b", NOW, "job.ended", "7", data)))["params"]
    assert (event["seq"], event["data"]) == (5, {"omitted": True})
    assert "the data of event 5 (job.ended) cannot be sent" in caplog.text
