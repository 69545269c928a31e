"""One multiplexed connection to Redis for an event loop: packed bytes out, parsed replies in, in order.

The gateway's hot path makes two calls a micro-batch; through a general client each costs more Python than the script
costs Redis (benchmarks/README.md). So: hiredis packs and parses, one write carries all that is due, a call waits on
one future. What nobody waits for (`later`) travels with the next call, or alone after `PATIENCE_S`.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Sequence
from typing import Any, cast

import hiredis
from redis.connection import SSLConnection, parse_url

Command = Sequence[str | bytes | int]
#: What is sent with `later` waits so long for a call to travel with.
PATIENCE_S = 0.002
_INCOMPLETE = object()


class LinkDown(Exception):
    """Redis cannot be reached, or has not answered in time; nothing is known of what it did."""


class _Waiting:
    """Replies that somebody waits for."""

    __slots__ = ("count", "done", "due", "replies")

    def __init__(self, count: int, due: float, done: asyncio.Future[list[Any]]) -> None:
        self.count, self.due, self.done = count, due, done
        self.replies: list[Any] = []


class RedisLink:
    """Connects when first used, and again after a failure. Owned by one event loop.

    `url` as redis-py reads it (redis://, rediss://, unix://). No call takes longer than `timeout_s`: then the
    connection is given up, and with it every call under way. A command that Redis refuses gives a hiredis.ReplyError
    in its place among the replies.
    """

    def __init__(self, url: str, timeout_s: float) -> None:
        self._url, self._timeout_s = url, timeout_s
        self._stream: _Stream | None = None
        self._connecting: asyncio.Task[_Stream] | None = None
        self._loop = asyncio.get_running_loop()

    async def call(self, *command: str | bytes | int) -> Any:
        """The reply to one command. Raises LinkDown, hiredis.ReplyError."""
        reply = (await self.calls([command]))[0]
        if isinstance(reply, hiredis.ReplyError):
            raise reply
        return reply

    async def calls(self, commands: Sequence[Command]) -> list[Any]:
        """The replies to several commands, sent together; none to none. Raises LinkDown."""
        if not commands:
            return []
        stream = self._stream
        if stream is None or stream.gone is not None:
            stream = await self._connected()
        return await stream.send(packed(commands), len(commands))

    async def later(self, commands: Sequence[Command]) -> list[Any]:
        """As `calls`, for what may wait for a call to travel with."""
        if not commands:
            return []
        stream = self._stream
        if stream is None or stream.gone is not None:
            stream = await self._connected()
        return await stream.send_later(packed(commands), len(commands))

    async def close(self) -> None:
        """Give up the connection; calls under way raise LinkDown."""
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.wait([self._connecting])
        if self._stream is not None:
            self._stream.give_up("closed")

    async def _connected(self) -> _Stream:
        # Several calls at once wait for one connection; one that is cancelled does not take it from the others.
        if self._connecting is None:
            self._connecting = self._loop.create_task(self._connect())
            self._connecting.add_done_callback(self._connect_ended)
        return await asyncio.shield(self._connecting)

    def _connect_ended(self, task: asyncio.Task[_Stream]) -> None:
        self._connecting = None
        if not task.cancelled():
            task.exception()  # every caller has it already; nobody may be left to look

    async def _connect(self) -> _Stream:
        stream: _Stream | None = None
        try:
            async with asyncio.timeout(self._timeout_s):
                stream = await _opened(self._url, self._timeout_s)
                greeting = _greeting(parse_url(self._url))  # type: ignore[no-untyped-call]
                for reply in await stream.send(packed(greeting), len(greeting)) if greeting else ():
                    if isinstance(reply, hiredis.ReplyError):
                        raise LinkDown(f"Redis refuses the connection: {reply}")
        except (OSError, TimeoutError) as error:
            if stream is not None:
                stream.give_up("not connected in time")
            raise LinkDown(f"no connection to Redis: {error or 'not in time'}") from error
        except BaseException:
            if stream is not None:
                stream.give_up("refused")
            raise
        self._stream = stream
        return stream


def packed(commands: Sequence[Command]) -> bytes:
    """Commands in Redis's protocol."""
    return b"".join([hiredis.pack_command(tuple(command)) for command in commands])  # type: ignore[arg-type]  # stub


class _Stream(asyncio.Protocol):
    """An open connection. `gone`: why it is no longer."""

    def __init__(self, timeout_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._timeout_s = timeout_s
        self._reader = hiredis.Reader(replyError=hiredis.ReplyError, notEnoughData=_INCOMPLETE)
        self._transport: asyncio.Transport | None = None
        self._waiting: deque[_Waiting] = deque()
        self._unsent: list[bytes] = []
        self._flush: asyncio.TimerHandle | None = None
        self._watch: asyncio.TimerHandle | None = None
        self.gone: str | None = None

    def send(self, data: bytes, count: int) -> asyncio.Future[list[Any]]:
        """`count` replies to what `data` asks."""
        done = self._expect(count)
        if self.gone is None and self._transport is not None:
            if self._unsent:
                self._unsent.append(data)
                self._send_unsent()
            else:
                self._transport.write(data)
        return done

    def send_later(self, data: bytes, count: int) -> asyncio.Future[list[Any]]:
        """As `send`, with the next one or after PATIENCE_S."""
        done = self._expect(count)
        self._unsent.append(data)
        if self._flush is None:
            self._flush = self._loop.call_later(PATIENCE_S, self._send_unsent)
        return done

    def _expect(self, count: int) -> asyncio.Future[list[Any]]:
        done: asyncio.Future[list[Any]] = self._loop.create_future()
        if self.gone is not None:
            done.set_exception(LinkDown(self.gone))
            return done
        self._waiting.append(_Waiting(count, self._loop.time() + self._timeout_s, done))
        if self._watch is None:
            self._watch = self._loop.call_later(self._timeout_s, self._look)
        return done

    def _send_unsent(self) -> None:
        if self._flush is not None:
            self._flush.cancel()
            self._flush = None
        data, self._unsent = b"".join(self._unsent), []
        if self._transport is not None and self.gone is None:
            self._transport.write(data)

    def _look(self) -> None:
        """Whether the oldest call has waited for too long."""
        self._watch = None
        if not self._waiting:
            return
        left = self._waiting[0].due - self._loop.time()
        if left <= 0:
            self.give_up(f"Redis has not answered within {self._timeout_s:g} s")
        else:
            self._watch = self._loop.call_later(left, self._look)

    def give_up(self, reason: str) -> None:
        """Close, and tell everyone who waits."""
        if self.gone is not None:
            return
        self.gone = reason
        for timer in (self._flush, self._watch):
            if timer is not None:
                timer.cancel()
        if self._transport is not None:
            self._transport.abort()
        for waiting in self._waiting:
            if not waiting.done.done():
                waiting.done.set_exception(LinkDown(reason))
        self._waiting.clear()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        reader, waiting = self._reader, self._waiting
        reader.feed(data)
        try:
            while (reply := reader.gets()) is not _INCOMPLETE:
                if not waiting:
                    self.give_up(f"Redis sent what nobody asked for: {str(reply)[:80]}")
                    return
                first = waiting[0]
                first.replies.append(reply)
                if len(first.replies) == first.count:
                    waiting.popleft()
                    if not first.done.done():
                        first.done.set_result(first.replies)
        except hiredis.ProtocolError as error:
            self.give_up(f"not Redis's protocol: {error}")

    def connection_lost(self, error: Exception | None) -> None:
        self.give_up(f"Redis closed the connection{f': {error}' if error else ''}")


async def _opened(url: str, timeout_s: float) -> _Stream:
    options: dict[str, Any] = parse_url(url)  # type: ignore[no-untyped-call]
    loop = asyncio.get_running_loop()
    if "path" in options:
        _, stream = await loop.create_unix_connection(lambda: _Stream(timeout_s), options["path"])
        return stream
    secure = _tls(options) if options.get("connection_class") is SSLConnection else None
    host, port = options.get("host", "localhost"), options.get("port", 6379)
    _, stream = await loop.create_connection(lambda: _Stream(timeout_s), host, port, ssl=secure)
    return stream


def _tls(options: dict[str, Any]) -> ssl.SSLContext:  # Any: as redis-py parses a URL
    """As redis-py reads ssl_ca_certs, ssl_certfile, ssl_keyfile, ssl_cert_reqs and ssl_check_hostname of a URL."""
    context = ssl.create_default_context(cafile=options.get("ssl_ca_certs"))
    if options.get("ssl_certfile"):
        context.load_cert_chain(options["ssl_certfile"], options.get("ssl_keyfile"))
    if str(options.get("ssl_check_hostname", True)).lower() in ("false", "0", "no"):
        context.check_hostname = False
    if options.get("ssl_cert_reqs") == "none":
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def _greeting(options: dict[str, Any]) -> list[Command]:  # Any: as redis-py parses a URL
    commands: list[Command] = []
    if options.get("password"):
        user = [options["username"]] if options.get("username") else []
        commands.append(("AUTH", *user, options["password"]))
    if options.get("db"):
        commands.append(("SELECT", int(options["db"])))
    return commands
