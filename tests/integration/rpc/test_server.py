"""The server and its client over a real UNIX socket, on both event loops: calls, roles, errors, events, its end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from service.client import Client, ConnectionLost, NoAnswer, RemoteError
from service.rpc.limits import Limits
from service.rpc.peers import AllowedUsers
from tests.integration.rpc.service import ME, NOBODY, as_another_user, serving, until

GROUP = 54321
READER = AllowedUsers(admin=frozenset({ME}), read=frozenset({NOBODY}))


async def test_both_event_loops_are_tested(request: pytest.FixtureRequest) -> None:
    loop = type(asyncio.get_running_loop())
    assert f"[{loop.__module__.partition('.')[0]}]" in request.node.name


async def test_calls_are_answered_also_side_by_side(path: Path) -> None:
    async with serving(path) as service, Client.unix(path) as client:
        assert await client.call("echo", a=1, b=["ü", None]) == {"a": 1, "b": ["ü", None]}
        waiting = asyncio.ensure_future(client.call("wait"))
        await until(lambda: service.methods.begun)
        assert await client.call("echo") == {}
        service.methods.gate.set()
        assert await waiting == "opened"
        answers = await asyncio.gather(*(client.call("echo", number=number) for number in range(50)))
        assert answers == [{"number": number} for number in range(50)]


async def test_an_answer_of_almost_the_limit_arrives_and_a_longer_one_is_an_error(path: Path) -> None:
    async with serving(path), Client.unix(path) as client:
        assert len(await client.call("big", size=1024 * 1024 - 100)) == 1024 * 1024 - 100
        with pytest.raises(RemoteError, match="limit") as refused:
            await client.call("big", size=1024 * 1024)
        assert refused.value.code == "TOO_LARGE"


async def test_errors_of_the_service_arrive_with_code_and_hint(path: Path) -> None:
    async with serving(path), Client.unix(path) as client:
        with pytest.raises(RemoteError, match="a backup is running") as refused:
            await client.call("refuse")
        assert refused.value.code == "JOB_REFUSED"
        assert refused.value.hint == "Wait until it has finished."
        with pytest.raises(RemoteError) as refused:
            await client.call("full")
        assert (refused.value.code, refused.value.hint) == ("TARGET_FULL", "Make room.")
        with pytest.raises(RemoteError) as refused:
            await client.call("no.such.method")
        assert refused.value.code == "METHOD_NOT_FOUND"


@pytest.mark.parametrize("method", ["break", "await_cancelled", "unwritable"])
async def test_an_unexpected_error_tells_nothing_but_the_log_does(
    path: Path, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(path), Client.unix(path) as client:
        with pytest.raises(RemoteError) as broken:
            await client.call(method)
        assert broken.value.code == "INTERNAL_ERROR"
        assert "swordfish" not in json.dumps(broken.value.data)
        assert "Traceback" in caplog.text
        assert await client.call("echo") == {}


async def test_a_user_in_no_list_is_told_so_and_closed(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    request = {"jsonrpc": "2.0", "id": 1, "method": "echo"}
    async with serving(path, group=GROUP):
        for _ in range(2):
            told = await as_another_user(path, request, uid=NOBODY, group=GROUP)
            assert told["id"] is None
            assert told["error"]["data"]["code"] == "NOT_ALLOWED"
            assert told["error"]["message"] == "user 65534 may not use this service"
    assert caplog.text.count("user 65534 tried to connect") == 1


async def test_a_reader_may_look_but_not_command(path: Path) -> None:
    async with serving(path, group=GROUP, allowed=READER):
        request: dict[str, Any] = {"jsonrpc": "2.0", "id": 1, "method": "whoami"}
        told = await as_another_user(path, request, uid=NOBODY, group=GROUP)
        assert told["result"] == ["uid 65534", "read"]
        told = await as_another_user(path, request | {"method": "command"}, uid=NOBODY, group=GROUP)
        assert told["error"]["data"]["code"] == "NOT_ALLOWED"
        async with Client.unix(path) as client:
            assert await client.call("whoami") == [f"uid {ME}", "admin"]
            assert await client.call("command") == "done"


async def test_malformed_lines_are_answered_and_the_20th_closes(path: Path) -> None:
    async with serving(path) as service:
        with await service.raw() as client:
            for _ in range(19):
                await client.send(b"hello\n")
                told = await client.read()
                assert told is not None
                assert (told["id"], told["error"]["code"]) == (None, -32700)
            assert await client.call("echo") == {"jsonrpc": "2.0", "id": 1, "result": {}}
            await client.send(b'{"jsonrpc":"2.0","id":"x","method":"echo","params":[]}\n')
            told = await client.read()
            assert told is not None
            assert (told["id"], told["error"]["code"]) == ("x", -32602)
            assert await client.refusal() == "INVALID_REQUEST"


async def test_a_client_that_ends_its_side_still_gets_its_answers(path: Path) -> None:
    async with serving(path) as service:
        with await service.raw() as client:
            await client.ask("echo", 1)
            await client.ask("wait", 2)
            client.end_output()
            service.methods.gate.set()
            told = [await client.read(), await client.read()]
            assert sorted(each["id"] for each in told if each) == [1, 2]
            assert await client.read() is None


async def test_at_most_four_requests_of_a_connection_are_carried_out_at_once(path: Path) -> None:
    async with serving(path) as service:
        with await service.raw() as client:
            for number in range(7):
                await client.ask("wait", number)
            await until(lambda: service.methods.begun == 4)
            async with Client.unix(path) as other:  # which also gives the server time to do wrong
                assert await other.call("echo") == {}
            await asyncio.sleep(0.1)
            assert service.methods.begun == 4
            service.methods.gate.set()
            told = [await client.read() for _ in range(7)]
            assert sorted(each["id"] for each in told if each) == list(range(7))


async def test_what_a_client_asked_for_is_done_although_it_has_gone(path: Path) -> None:
    async with serving(path) as service:
        with await service.raw() as client:
            for number in range(3):
                await client.ask("wait", number)
            await until(lambda: service.methods.begun == 3)
        async with Client.unix(path) as other:
            assert await other.call("echo") == {}
            service.methods.gate.set()
            await until(lambda: service.methods.ended == 3)
            assert await other.call("echo") == {}
        assert service.methods.cancelled == 0


# Events


async def test_events_follow_the_subscription_and_end_with_it(path: Path) -> None:
    async with serving(path) as service, Client.unix(path) as client:
        service.hub.publish("before")
        async with contextlib.aclosing(client.events()) as events:
            first = await anext(events)
            assert (first["type"], first["seq"], first["boot_id"]) == ("subscribed", 1, "boot")
            assert first["data"] == {"gap": False}
            service.hub.publish("told", job_id="7", data={"a": 1})
            service.hub.progress("7", {"bytes": 5})
            told = await anext(events)
            assert (told["seq"], told["type"], told["job_id"], told["data"]) == (2, "told", "7", {"a": 1})
            told = await anext(events)
            assert (told["seq"], told["type"], told["data"]) == (None, "progress", {"bytes": 5})
        service.hub.publish("unheard")
        async with contextlib.aclosing(client.events()) as events:
            assert (await anext(events))["seq"] == 3
            service.hub.publish("told")
            assert (await anext(events))["seq"] == 4


async def test_the_answer_comes_before_what_is_replayed_and_that_before_what_is_new(path: Path) -> None:
    async with serving(path) as service:
        for _ in range(600):
            service.hub.publish("old")
        with await service.raw() as client:
            await client.ask("events.subscribe", since=100)
            await client.ask("publish", 2)
            answer = await client.read()
            assert answer == {"jsonrpc": "2.0", "id": 1, "result": {"boot_id": "boot", "seq": 600, "gap": False}}
            seen = []
            while 601 not in seen:
                told = await client.read()
                assert told is not None
                if "method" in told:
                    assert told["method"] == "event"
                    seen.append(told["params"]["seq"])
            assert seen == list(range(101, 602))


@pytest.mark.parametrize(("since", "gap", "first"), [(0, True, 501), (500, False, 501), (1501, True, None)])
async def test_a_gap_is_told_when_what_was_missed_is_not_kept(
    path: Path, since: int, gap: bool, first: int | None
) -> None:
    async with serving(path) as service, Client.unix(path) as client:
        for _ in range(1500):
            service.hub.publish("old")
        async with contextlib.aclosing(client.events(since)) as events:
            assert (await anext(events))["data"] == {"gap": gap}
            service.hub.publish("new")
            assert (await anext(events))["seq"] == (first or 1501)


async def test_nothing_comes_after_the_answer_to_unsubscribe(path: Path) -> None:
    async with serving(path) as service:
        with await service.raw() as client:
            await client.call("events.subscribe")
            service.hub.publish("told")
            await client.ask("events.unsubscribe", 2)
            while (told := await client.read()) and "id" not in told:
                assert told["params"]["seq"] == 1
            assert told == {"jsonrpc": "2.0", "id": 2, "result": {}}
            service.hub.publish("unheard")
            assert await client.call("echo", 3) == {"jsonrpc": "2.0", "id": 3, "result": {}}
            assert (await client.call("events.unsubscribe", 4)) == {"jsonrpc": "2.0", "id": 4, "result": {}}


@pytest.mark.parametrize("params", [{"since": -1}, {"since": True}, {"since": "1"}, {"since": 1.0}, {"until": 1}])
async def test_wrong_params_of_a_subscription_are_refused(path: Path, params: dict[str, Any]) -> None:
    async with serving(path) as service, Client.unix(path) as client:
        with pytest.raises(RemoteError) as refused:
            await client.call("events.subscribe", **params)
        assert refused.value.code == "INVALID_PARAMS"
        with pytest.raises(RemoteError) as refused:
            await client.call("events.unsubscribe", why="so")
        assert refused.value.code == "INVALID_PARAMS"
        with await service.raw() as raw:
            assert await raw.call("events.subscribe", since=None) is not None


async def test_a_connection_has_one_subscription_and_a_peer_four(path: Path) -> None:
    async with serving(path) as service, contextlib.AsyncExitStack() as clients:
        for _ in range(4):
            client = await clients.enter_async_context(Client.unix(path))
            await client.call("events.subscribe")
        with pytest.raises(RemoteError, match="subscribed already"):
            await client.call("events.subscribe")
        with await service.raw() as fifth:
            told = await fifth.call("events.subscribe")
            assert told is not None
            assert told["error"]["data"]["code"] == "BUSY"
            await client.call("events.unsubscribe")
            told = await fifth.call("events.subscribe")
            assert told is not None
            assert told["result"]["gap"] is False
            service.hub.publish("told")
            told = await fifth.read()
            assert told is not None
            assert told["params"]["seq"] == 1


# The end


async def test_leaving_the_block_lets_requests_end_and_closes(path: Path) -> None:
    async with contextlib.AsyncExitStack() as clients:
        async with serving(path, limits=Limits(stop_seconds=60)) as service:
            client = await clients.enter_async_context(Client.unix(path))
            idle = await clients.enter_async_context(Client.unix(path))
            listener = await clients.enter_async_context(Client.unix(path))
            events = await clients.enter_async_context(contextlib.aclosing(listener.events()))
            await anext(events)
            waiting = asyncio.ensure_future(client.call("wait"))
            await until(lambda: service.methods.begun)
            asyncio.get_running_loop().call_later(0.2, service.methods.gate.set)
            began = time.monotonic()
        assert time.monotonic() - began < 30, "it waited for those who ask nothing"
        assert await waiting == "opened"
        assert not path.exists()
        for lost in (client, idle):
            with pytest.raises(ConnectionLost):
                await lost.call("echo")
        with pytest.raises(ConnectionLost):
            await anext(events)
        with pytest.raises(ConnectionLost, match="cannot be reached"):
            await clients.enter_async_context(Client.unix(path))


async def test_a_request_that_does_not_end_is_cancelled_when_the_server_stops(path: Path) -> None:
    before = asyncio.all_tasks()
    async with contextlib.AsyncExitStack() as clients:
        async with serving(path, limits=Limits(stop_seconds=0.2)) as service:
            client = await clients.enter_async_context(Client.unix(path))
            waiting = asyncio.ensure_future(client.call("wait"))
            await until(lambda: service.methods.begun)
            await client.call("events.subscribe")
        assert service.methods.cancelled == 1
        with pytest.raises(ConnectionLost):
            await waiting
    assert asyncio.all_tasks() == before


async def test_cancelling_the_server_leaves_nothing_behind(path: Path) -> None:
    before = asyncio.all_tasks()
    ready = asyncio.Event()

    async def run() -> None:
        async with serving(path, limits=Limits(stop_seconds=0.2)):
            ready.set()
            await asyncio.sleep(60)

    task = asyncio.ensure_future(run())
    await ready.wait()
    async with Client.unix(path) as client:
        waiting = asyncio.ensure_future(client.call("wait"))
        await client.call("echo")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(ConnectionLost):
            await waiting
    assert not path.exists()
    assert asyncio.all_tasks() == before


# The client


async def test_a_call_that_is_not_answered_in_time_is_given_up(path: Path) -> None:
    async with serving(path) as service, Client.unix(path, timeout=0.2) as client:
        with pytest.raises(NoAnswer, match=r"no answer to wait within 0\.2 s"):
            await client.call("wait")
        service.methods.gate.set()
        assert await client.call("echo") == {}


async def test_a_request_beyond_the_limit_is_not_sent(path: Path) -> None:
    async with serving(path), Client.unix(path) as client:
        with pytest.raises(ValueError, match="65536"):
            await client.call("echo", text="x" * 65536)
        assert await client.call("echo") == {}


async def test_a_client_whose_service_goes_away_says_so(path: Path) -> None:
    async with serving(path, limits=Limits(idle_seconds=0.2)), Client.unix(path) as client:
        await until(client_lost(client))
        with pytest.raises(ConnectionLost, match=r"nothing was asked for 0\.2 s"):
            await client.call("echo")


async def test_a_client_listens_once_at_a_time(path: Path) -> None:
    async with serving(path), Client.unix(path) as client, contextlib.aclosing(client.events()) as events:
        await anext(events)
        with pytest.raises(RuntimeError, match="listens already"):
            await anext(client.events())


async def test_a_client_that_takes_no_events_is_told_and_its_calls_are_still_answered(path: Path) -> None:
    async with serving(path), Client.unix(path) as client, contextlib.aclosing(client.events()) as events:
        await anext(events)
        for _ in range(4200 // 100):
            await client.call("publish", times=100)
        with pytest.raises(RemoteError) as slow:
            async for _ in events:
                pass
        assert slow.value.code == "SLOW_CONSUMER"
        assert await client.call("echo") == {}


def client_lost(client: Client) -> Callable[[], bool]:
    return lambda: client._lost is not None
