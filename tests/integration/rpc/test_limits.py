"""Clients that take too much, or do nothing: each meets its limit, and meanwhile others are answered."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from pathlib import Path

import pytest

from service.client import Client, RemoteError
from service.rpc.limits import Limits
from service.rpc.peers import AllowedUsers
from tests.integration.rpc.service import ME, NOBODY, Raw, Serving, connect_as, serving, until

BOTH = AllowedUsers(admin=frozenset({ME}), read=frozenset({NOBODY, NOBODY - 1}))
REQUEST = b'{"jsonrpc":"2.0","id":1,"method":"echo"}\n'


async def answers(service: Serving) -> None:
    """Check that whoever comes now is answered."""
    async with Client.unix(service.path) as client:
        assert await client.call("whoami") == [f"uid {ME}", "admin"]


def unread(service: Serving) -> int:
    return sum(each.unread_bytes for each in service.server._seats)


# Bytes and time


async def test_a_line_of_exactly_the_limit_is_read_and_one_byte_more_closes(path: Path) -> None:
    async with serving(path) as service:
        with await service.raw() as client:
            await client.send(REQUEST[:-1] + b" " * (65536 - len(REQUEST)) + b"\n")
            told = await client.read()
            assert told is not None
            assert told["result"] == {}
            await client.send(REQUEST[:-1] + b" " * (65537 - len(REQUEST)) + b"\n")
            assert await client.refusal() == "PARSE_ERROR"
        await answers(service)


async def test_a_line_of_5_megabytes_is_refused_once_64_kib_of_it_came(path: Path) -> None:
    async with serving(path) as service:
        with await service.raw() as client:
            sending = asyncio.ensure_future(client.send(b"x" * 5_000_000))
            assert await client.refusal() == "PARSE_ERROR"
            with contextlib.suppress(ConnectionError):
                await sending
        await answers(service)


async def test_lines_are_read_whole_however_they_are_cut(path: Path) -> None:
    async with serving(path) as service:
        with await service.raw() as client:
            for start in range(0, len(REQUEST), 7):
                await client.send(REQUEST[start : start + 7])
                await asyncio.sleep(0.002)
            await client.send(REQUEST * 3 + REQUEST[:5])
            for _ in range(4):
                told = await client.read()
                assert told is not None
                assert told["result"] == {}
            await client.send(REQUEST[5:])
            assert await client.read() == told


async def test_who_writes_a_byte_now_and_then_is_closed_and_whole_requests_keep_the_time_anew(path: Path) -> None:
    async with serving(path, limits=Limits(partial_line_seconds=0.4)) as service:
        with await service.raw() as slow, await service.raw() as steady:

            async def drip() -> None:
                with contextlib.suppress(ConnectionError):
                    for byte in REQUEST * 100:
                        await slow.send(bytes([byte]))
                        await asyncio.sleep(0.02)

            dripping = asyncio.ensure_future(drip())
            for _ in range(10):
                await steady.send(REQUEST[:9])
                await asyncio.sleep(0.1)
                await steady.send(REQUEST[9:])
                assert await steady.read() is not None
            assert await slow.refusal() == "TIMED_OUT"
            await dripping
        await answers(service)


async def test_a_line_that_waits_because_four_requests_run_is_not_late(path: Path) -> None:
    async with serving(path, limits=Limits(partial_line_seconds=0.2, requests_in_flight=1)) as service:
        with await service.raw() as client:
            await client.ask("wait", 1)
            await client.send(REQUEST[:9])
            await asyncio.sleep(0.6)
            service.methods.gate.set()
            assert await client.read() == {"jsonrpc": "2.0", "id": 1, "result": "opened"}
            await client.send(REQUEST[9:])
            assert await client.read() == {"jsonrpc": "2.0", "id": 1, "result": {}}


async def test_who_asks_nothing_and_listens_to_nothing_is_closed_in_the_end(path: Path) -> None:
    async with serving(path, limits=Limits(idle_seconds=0.3)) as service:
        with await service.raw() as idle, await service.raw() as listener, await service.raw() as waiting:
            await listener.call("events.subscribe")
            await waiting.ask("wait")
            assert await idle.refusal() == "TIMED_OUT"
            await asyncio.sleep(0.5)
            service.hub.publish("told")
            assert await listener.read() is not None
            service.methods.gate.set()
            assert await waiting.read() is not None
            assert await waiting.refusal() == "TIMED_OUT"


async def test_who_does_not_read_its_answers_is_closed(path: Path) -> None:
    async with serving(path, limits=Limits(unread_seconds=0.4)) as service:
        with await service.raw() as client:
            for number in range(4):
                await client.ask("big", number, size=900_000)
            await until(lambda: unread(service))
            await answers(service)
            await until(lambda: not service.server._seats)
            with pytest.raises(ConnectionError):
                await client.ask("echo")
        await answers(service)


async def test_who_reads_late_but_reads_is_served(path: Path) -> None:
    async with serving(path) as service:
        with await service.raw() as client:
            for number in range(12):
                await client.ask("big", number, size=500_000)
            await asyncio.sleep(0.3)
            told = [await client.read() for _ in range(12)]
            assert sorted(each["id"] for each in told if each and len(each["result"]) == 500_000) == list(range(12))


async def test_large_answers_that_nobody_reads_are_bounded_for_each_peer(path: Path) -> None:
    limits = Limits(unread_bytes_per_peer=2_000_000)
    async with serving(path, limits=limits) as service:
        with await service.raw() as first, await service.raw() as second:
            for client in (first, second):
                for number in range(4):
                    await client.ask("big", number, size=900_000)
            await until(lambda: unread(service) > 1_000_000)
            await answers(service)
            assert unread(service) <= 2_000_000
            told = [await client.read() for client in (first, second) for _ in range(4)]
            codes = [each["error"]["data"]["code"] for each in told if each and "error" in each]
            assert codes == ["BUSY"] * 6
            assert len(told) == 8


async def test_a_stalled_client_makes_room_for_the_answers_of_others(path: Path) -> None:
    async with serving(path, limits=Limits(unread_bytes_per_peer=2_000_000)) as service:
        with await service.raw() as stalled:
            for number in range(4):
                await stalled.ask("big", number, size=900_000)
            await until(lambda: unread(service) > 1_000_000)
            await asyncio.sleep(1.1)
            async with Client.unix(path) as client:
                assert len(await client.call("big", size=900_000)) == 900_000
            with pytest.raises(ConnectionError):
                await stalled.ask("echo")


# Events


async def test_a_listener_that_does_not_read_is_told_when_it_does_and_others_hear_everything(path: Path) -> None:
    async with serving(path) as service, Client.unix(path) as client:
        with await service.raw() as slow:
            assert await slow.call("events.subscribe") is not None
            async with contextlib.aclosing(client.events()) as events:
                await anext(events)
                for number in range(1, 1001):
                    service.hub.publish("told", data={"text": "x" * 1000})
                    assert (await anext(events))["seq"] == number
            seen = 0
            while (told := await slow.read()) and "params" in told:
                seen += 1
                assert told["params"]["seq"] == seen
            assert told is not None
            assert (told["id"], told["error"]["data"]["code"]) == (None, "SLOW_CONSUMER")
            assert 0 < seen < 1000
            # the connection goes on, and so can the listener
            answer = await slow.call("events.subscribe", 2, since=seen)
            assert answer == {"jsonrpc": "2.0", "id": 2, "result": {"boot_id": "boot", "seq": 1000, "gap": False}}
            told = await slow.read()
            assert told is not None
            assert told["params"]["seq"] == seen + 1


async def test_a_listener_that_never_reads_again_is_closed(path: Path) -> None:
    async with serving(path, limits=Limits(unread_seconds=0.4)) as service:
        with await service.raw() as slow:
            assert await slow.call("events.subscribe") is not None
            while service.server._seats:
                service.hub.publish("told", data={"text": "x" * 1000})
                await asyncio.sleep(0.001)
        await answers(service)


async def test_progress_is_dropped_for_a_slow_listener_and_what_counts_is_not(path: Path) -> None:
    async with serving(path) as service:
        with await service.raw() as slow:
            assert await slow.call("events.subscribe") is not None
            for number in range(2000):
                service.hub.progress(f"job {number % 300}", {"text": "x" * 1000, "number": number})
                if number % 20 == 0:
                    service.hub.publish("told")
                await asyncio.sleep(0)
            seqs: list[int] = []
            while len(seqs) < 100:
                told = await slow.read()
                assert told is not None
                if told["params"]["seq"] is not None:
                    seqs.append(told["params"]["seq"])
            assert seqs == list(range(1, 101))


# Connections


async def test_the_ninth_connection_takes_the_place_of_the_longest_silent_one(path: Path) -> None:
    async with serving(path) as service, contextlib.AsyncExitStack() as stack:
        clients = [stack.enter_context(await service.raw()) for _ in range(8)]
        for client in clients[:4]:
            assert await client.call("echo") is not None
        await until(lambda: len(service.server._seats) == 8)
        for loser in (4, 5, 6, 7, 0, 1):  # silent ones first, then who spoke longest ago
            newcomer = stack.enter_context(await service.raw())
            assert await newcomer.call("echo") is not None
            assert await clients[loser].refusal() == "BUSY"
        assert await clients[2].call("echo") is not None
        assert len(service.server._seats) == 8


async def test_who_works_or_listens_keeps_its_place_and_the_newcomer_is_refused(path: Path) -> None:
    async with serving(path) as service, contextlib.AsyncExitStack() as stack:
        clients = [stack.enter_context(await service.raw()) for _ in range(8)]
        for client in clients[:4]:
            assert await client.call("events.subscribe") is not None
        for client in clients[4:]:
            await client.ask("wait")
        await until(lambda: service.methods.begun == 4)
        assert await stack.enter_context(await service.raw()).refusal() == "BUSY"
        service.methods.gate.set()
        for client in clients[4:]:
            assert await client.read() is not None
        assert await stack.enter_context(await service.raw()).call("echo") is not None
        service.hub.publish("told")
        for client in clients[:4]:
            assert await client.read() is not None


async def test_callers_that_read_nothing_lose_their_place_to_whoever_comes(path: Path) -> None:
    async with serving(path) as service, contextlib.AsyncExitStack() as stack:
        for _ in range(8):
            client = stack.enter_context(await service.raw())
            for number in range(8):
                await client.ask("big", number, size=60_000)
        await until(lambda: len([each for each in service.server._seats if each.lines.unread_since]) == 8)
        for _ in range(3):
            await answers(service)


async def test_a_seat_is_free_again_when_its_client_has_gone(path: Path) -> None:
    async with serving(path, limits=Limits(connections_per_peer=1)) as service:
        for _ in range(20):
            with await service.raw() as client:
                await client.call("events.subscribe")
            await until(lambda: not service.server._seats)


async def test_when_all_seats_are_taken_a_peer_that_has_more_gives_one_up(path: Path) -> None:
    limits = Limits(connections=6, connections_per_peer=5)
    async with serving(path, limits=limits, allowed=BOTH) as service, contextlib.AsyncExitStack() as stack:
        greedy = [stack.enter_context(await connect_as(path, NOBODY)) for _ in range(5)]
        modest = stack.enter_context(await connect_as(path, NOBODY - 1))
        assert await modest.call("echo") is not None
        admin = stack.enter_context(await service.raw())
        assert await admin.call("echo") is not None
        assert await greedy[0].refusal() == "BUSY"
        for client in greedy[1:]:
            await client.ask("wait")
        await until(lambda: service.methods.begun == 4)
        newcomer = stack.enter_context(await connect_as(path, NOBODY - 1))  # those that have more all work
        assert await newcomer.call("echo") is not None
        assert await modest.refusal() == "BUSY"
        assert await admin.call("echo") is not None
        newcomer = stack.enter_context(await connect_as(path, NOBODY))
        assert await newcomer.refusal() == "BUSY"
        service.methods.gate.set()


async def test_a_thousand_silent_connections_keep_nobody_out(path: Path) -> None:
    async with serving(path) as service, contextlib.AsyncExitStack() as stack:
        for number in range(1000):
            stack.enter_context(await service.raw())
            if number % 100 == 50:
                await answers(service)
        await answers(service)
        await until(lambda: len(service.server._seats) <= 8)


async def test_others_have_their_turn_while_many_are_let_in(path: Path) -> None:
    async with serving(path) as service, contextlib.AsyncExitStack() as stack:
        for _ in range(300):  # without giving the server a turn
            last = stack.enter_context(socket.socket(socket.AF_UNIX))
            last.connect(str(path))
        last.sendall(REQUEST)
        last.setblocking(False)
        answer = asyncio.ensure_future(Raw(last).read())
        turns = 0
        while not answer.done():
            await asyncio.sleep(0)
            turns += 1
        assert (await answer) is not None
        assert turns > 100
        await answers(service)


async def test_a_thousand_connections_of_an_unlisted_user_keep_nobody_out(path: Path) -> None:
    async with serving(path) as service, contextlib.AsyncExitStack() as stack, Client.unix(path) as admin:
        strangers = [stack.enter_context(await connect_as(path, NOBODY)) for _ in range(1000)]
        assert await admin.call("echo") == {}
        assert await strangers[-1].refusal() == "NOT_ALLOWED"
        assert len(service.server._seats) == 1
        await answers(service)


async def test_an_evicted_client_is_told_why(path: Path) -> None:
    async with serving(path, limits=Limits(connections_per_peer=1)) as service, Client.unix(path) as client:
        assert await client.call("echo") == {}
        with await service.raw() as newcomer:
            assert await newcomer.call("echo") is not None
            with pytest.raises(Exception, match="took the place of this idle one"):
                await client.call("echo")


async def test_busy_says_that_a_retry_may_help(path: Path) -> None:
    async with serving(path, limits=Limits(subscribers_per_peer=0)), Client.unix(path) as client:
        with pytest.raises(RemoteError) as busy:
            await client.call("events.subscribe")
        assert busy.value.transient
        assert json.dumps(busy.value.data)
