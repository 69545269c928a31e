"""The connection to Redis that online reads share: order, refusals, silence, loss, authentication."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import hiredis
import pytest
import redis
from feature_store.redis_link import PATIENCE_S, LinkDown, RedisLink
from trine_cli.local.fixtures import PrivateRedis


@asynccontextmanager
async def link_to(url: str, timeout_s: float = 5.0) -> AsyncIterator[RedisLink]:
    link = RedisLink(url, timeout_s)
    try:
        yield link
    finally:
        await link.close()


async def test_many_callers_get_their_own_replies_over_one_connection(redis_url: str) -> None:
    async with link_to(redis_url) as link:
        before = (await link.call("INFO", "clients")).decode()

        async def caller(n: int) -> None:
            for i in range(50):
                value = f"{n}:{i}:" + "x" * (n * i % 3_000)
                written, read = await link.calls([("SET", f"k{n}", value), ("GET", f"k{n}")])
                assert (written, read) == (b"OK", value.encode())

        await asyncio.gather(*(caller(n) for n in range(20)))
        after = (await link.call("INFO", "clients")).decode()
        connected = [line for line in before.splitlines() if line.startswith("connected_clients")]
        assert connected[0] in after, "one connection, however many call"


async def test_a_refused_command_is_told_in_its_place(redis_url: str) -> None:
    async with link_to(redis_url) as link:
        first, second, third = await link.calls([("SET", "text", "a"), ("INCR", "text"), ("GET", "text")])
        assert (first, third) == (b"OK", b"a")
        assert isinstance(second, hiredis.ReplyError)
        with pytest.raises(hiredis.ReplyError, match="not an integer"):
            await link.call("INCR", "text")


async def test_no_commands_have_no_replies(redis_url: str) -> None:
    async with link_to(redis_url) as link:
        assert await link.calls([]) == []
        assert await link.later([]) == []
        assert await link.call("PING") == b"PONG"


async def test_what_may_wait_travels_with_the_next_call_or_soon_alone(redis_url: str) -> None:
    async with link_to(redis_url) as link:
        await link.call("PING")
        waiting = asyncio.ensure_future(link.later([("SET", "later", "1")]))
        await asyncio.sleep(0)
        assert await link.call("GET", "later") == b"1", "sent before the call"
        assert await waiting == [b"OK"]
        began = time.monotonic()
        assert await link.later([("GET", "later")]) == [b"1"]
        assert time.monotonic() - began >= PATIENCE_S / 2


async def test_a_caller_that_gives_up_leaves_the_others_their_replies(redis_url: str) -> None:
    async with link_to(redis_url) as link:
        await link.call("SET", "a", "1")
        given_up = asyncio.ensure_future(link.call("GET", "a"))
        await asyncio.sleep(0)
        given_up.cancel()
        assert await link.call("ECHO", "mine") == b"mine"


async def test_silence_and_loss_end_every_call_in_time_and_the_next_connects_anew(private_redis: PrivateRedis) -> None:
    server = private_redis()
    assert server.pid is not None
    async with link_to(server.url, timeout_s=0.3) as link:
        await link.call("PING")
        os.kill(server.pid, signal.SIGSTOP)
        try:
            began = time.monotonic()
            found = await asyncio.gather(*(link.call("PING") for _ in range(5)), return_exceptions=True)
            assert {type(e) for e in found} == {LinkDown}
            assert time.monotonic() - began < 2
        finally:
            os.kill(server.pid, signal.SIGCONT)
        deadline = time.monotonic() + 10
        while True:
            try:
                assert await link.call("PING") == b"PONG"
                break
            except LinkDown:
                assert time.monotonic() < deadline
        server.kill()
        with pytest.raises(LinkDown):
            await link.call("PING")
        with pytest.raises(LinkDown, match="no connection"):
            await link.call("PING")


async def test_a_password_and_a_database_are_given(private_redis: PrivateRedis) -> None:
    server = private_redis()
    with server.connect() as client:
        client.config_set("requirepass", "secret")
    host = server.address
    async with link_to(f"redis://:secret@{host}/3") as link:
        await link.call("SET", "where", "three")
    with redis.Redis.from_url(f"redis://:secret@{host}/3") as client:
        assert client.get("where") == b"three"
    async with link_to(f"redis://:wrong@{host}/0") as link:
        with pytest.raises(LinkDown, match="refuses the connection: WRONGPASS"):
            await link.call("PING")
