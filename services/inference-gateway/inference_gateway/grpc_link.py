"""One gRPC connection for an event loop: unary calls, bytes out, bytes in, without threads (docs/adr/0015).

The gateway makes one call to the model server a micro-batch. Through grpc.aio each wakes two threads several times;
here a call is one write and one read on the loop, as it is with Redis (feature_store.redis_link). Only what a client of
known methods needs is here: streams with flow control, gRPC's five bytes before a message, its trailers.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Mapping
from typing import cast
from urllib.parse import unquote

from inference_gateway import http2 as h2

INVALID_ARGUMENT, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, INTERNAL, UNAVAILABLE = 3, 4, 8, 13, 14

_LARGEST_REPLY = 4 << 20
#: A connection that is asked and has not given a byte for so long is given up; the next call makes another.
_SILENCE_S = 2.0
_CONNECT_S = 2.0


class CallFailed(Exception):
    """No message came back. `code`: gRPC's status; `details`: its text; `untouched`: the server says it did nothing."""

    def __init__(self, code: int, details: str, untouched: bool = False) -> None:
        super().__init__(details)
        self.code, self.details, self.untouched = code, details, untouched


class GrpcLink:
    """Connects to `address` (HOST:PORT) when first used, and again after a failure. Owned by one event loop."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit():
            raise ValueError(f"address of the model server: need HOST:PORT, found {address!r}")
        self._host, self._port = host.strip("[]"), int(port)
        self._connection: _Connection | None = None
        self._connecting: asyncio.Task[_Connection] | None = None

    def method(self, path: str) -> bytes:
        """What `call` wants to be told of a method, e.g. "/package.Service/Method"."""
        headers = {
            ":method": "POST", ":scheme": "http", ":path": path, ":authority": f"{self._host}:{self._port}",
            "te": "trailers", "content-type": "application/grpc", "user-agent": "trine",
        }  # fmt: skip
        return h2.encoded_headers(headers)

    async def call(self, method: bytes, message: bytes, timeout_s: float) -> bytes:
        """The reply to a serialised `message`. Raises CallFailed, after `timeout_s` at the latest."""
        until = asyncio.get_running_loop().time() + timeout_s
        try:
            return await self._call(method, message, until)
        except CallFailed as error:
            if not error.untouched:
                raise
        # The end of a connection and this call have crossed.
        return await self._call(method, message, until)

    async def _call(self, method: bytes, message: bytes, until: float) -> bytes:
        connection = self._connection
        if connection is None or connection.gone is not None:
            connection = await self._connected(until - asyncio.get_running_loop().time())
        call = connection.begin(method, message, until)
        try:
            return await call.done
        except asyncio.CancelledError:
            connection.cancel(call)
            raise

    async def close(self) -> None:
        """Give up the connection; calls under way fail."""
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.wait([self._connecting])
        if self._connection is not None:
            self._connection.give_up("closed")

    async def _connected(self, timeout_s: float) -> _Connection:
        # Several calls at once wait for one connection; one that is cancelled does not take it from the others.
        if self._connecting is None:
            self._connecting = asyncio.get_running_loop().create_task(self._connect())
            self._connecting.add_done_callback(self._connect_ended)
        try:
            return await asyncio.wait_for(asyncio.shield(self._connecting), timeout_s)
        except TimeoutError:
            raise CallFailed(DEADLINE_EXCEEDED, "not connected in time") from None
        except OSError as error:
            raise CallFailed(UNAVAILABLE, f"no connection to {self._host}:{self._port}: {error}") from error

    def _connect_ended(self, task: asyncio.Task[_Connection]) -> None:
        self._connecting = None
        if not task.cancelled():
            task.exception()  # every caller has it already; nobody may be left to look

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_CONNECT_S):
                _, self._connection = await loop.create_connection(_Connection, self._host, self._port)
        except TimeoutError as error:
            raise OSError(f"not within {_CONNECT_S:g} s") from error
        return self._connection


class _Call:
    """A stream. `unsent`: what the peer's window has no room for yet; `window`: bytes that it has room for."""

    __slots__ = ("block", "done", "id", "message", "timer", "unsent", "window")

    def __init__(self, id_: int, done: asyncio.Future[bytes], unsent: bytes, window: int) -> None:
        self.id, self.done, self.unsent, self.window = id_, done, unsent, window
        self.message = b""
        self.block = b""
        self.timer: asyncio.TimerHandle | None = None


class _Connection(asyncio.Protocol):
    """`gone`: why it takes no more calls. One that the peer is ending (GOAWAY) finishes those under way."""

    def __init__(self) -> None:
        self.gone: str | None = None
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._calls: dict[int, _Call] = {}
        self._blocked: list[_Call] = []
        self._next = 1
        self._window = self._stream_window = h2.DEFAULT_WINDOW
        self._frame = h2.DEFAULT_FRAME
        self._consumed = 0
        self._rest = b""
        self._asked_at: float | None = None

    def begin(self, method: bytes, message: bytes, until: float) -> _Call:
        """Send a call; its future `done` has the reply or CallFailed, by `until` on the loop's clock."""
        done: asyncio.Future[bytes] = self._loop.create_future()
        body = b"\0" + h2.NUMBER.pack(len(message)) + message
        call = _Call(self._next, done, body, self._stream_window)
        if self.gone is not None or self._transport is None:
            done.set_exception(CallFailed(UNAVAILABLE, self.gone or "not connected"))
            return call
        now = self._loop.time()
        if until <= now:
            done.set_exception(CallFailed(DEADLINE_EXCEEDED, "no time left"))
            return call
        self._next += 2
        if self._next >= h2.LARGEST_WINDOW:
            self.gone = "all of its stream numbers were used"
        self._calls[call.id] = call
        if self._asked_at is None:
            self._asked_at = now
        call.timer = self._loop.call_at(until, self._overdue, call)
        self._transport.write(h2.frame(h2.HEADERS, h2.END_HEADERS, call.id, method) + self._sendable(call))
        if call.unsent:
            self._blocked.append(call)
        return call

    def cancel(self, call: _Call, outcome: CallFailed | None = None) -> None:
        """Tell the peer that nobody waits for this call any more."""
        if self._calls.get(call.id) is call:
            self._write(h2.frame(h2.RST_STREAM, 0, call.id, h2.NUMBER.pack(h2.CANCEL)))
            self._end(call, outcome)

    def give_up(self, reason: str) -> None:
        """Close, and tell everyone who waits."""
        self.gone = self.gone or reason
        if self._transport is not None:
            self._transport.abort()
        for call in list(self._calls.values()):
            self._end(call, CallFailed(UNAVAILABLE, reason))

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._write(h2.greeting())

    def data_received(self, data: bytes) -> None:
        self._asked_at = None
        if self._rest:
            data = self._rest + data
        at, have = 0, len(data)
        try:
            while have - at >= h2.FRAME_HEAD:
                end = at + h2.FRAME_HEAD + int.from_bytes(data[at : at + 3], "big")
                if end > have:
                    break
                (id_,) = h2.NUMBER.unpack_from(data, at + 5)
                self._take(data[at + 3], data[at + 4], id_ & h2.LARGEST_WINDOW, data[at + h2.FRAME_HEAD : end])
                at = end
        except (h2.MalformedHeaders, struct.error, ValueError, IndexError, OverflowError) as error:
            self.give_up(f"not HTTP/2: {error}")
        self._rest = data[at:]

    def connection_lost(self, error: Exception | None) -> None:
        self.give_up(f"connection lost{f': {error}' if error else ''}")

    # Frames in

    def _take(self, kind: int, flags: int, id_: int, payload: bytes) -> None:
        if kind == h2.DATA:
            self._replenish(len(payload))
            if (call := self._calls.get(id_)) is not None:
                self._take_data(call, h2.unpadded(payload, flags), flags)
        elif kind in (h2.HEADERS, h2.CONTINUATION):
            if (call := self._calls.get(id_)) is not None:
                self._take_headers(call, kind, flags, payload)
        elif kind == h2.SETTINGS and not flags & h2.ACK:
            self._take_settings(payload)
        elif kind == h2.PING and not flags & h2.ACK:
            self._write(h2.frame(h2.PING, h2.ACK, 0, payload))
        elif kind == h2.WINDOW_UPDATE:
            more = h2.NUMBER.unpack(payload)[0] & h2.LARGEST_WINDOW
            if id_ == 0:
                self._window += more
            elif (call := self._calls.get(id_)) is not None:
                call.window += more
            self._send_blocked()
        elif kind == h2.RST_STREAM:
            if (call := self._calls.get(id_)) is not None:
                self._end(call, CallFailed(UNAVAILABLE, f"stream reset, code {h2.NUMBER.unpack(payload)[0]}"))
        elif kind == h2.GOAWAY:
            self.gone = "the server is ending this connection"
            last = h2.NUMBER.unpack_from(payload)[0] & h2.LARGEST_WINDOW
            for call in [c for c in self._calls.values() if c.id > last]:
                self._end(call, CallFailed(UNAVAILABLE, self.gone, untouched=True))
            if not self._calls:
                self.give_up(self.gone)

    def _take_data(self, call: _Call, payload: bytes, flags: int) -> None:
        call.message += payload
        if len(call.message) > _LARGEST_REPLY:
            self.cancel(call, CallFailed(RESOURCE_EXHAUSTED, "the reply is too large"))
        elif flags & h2.END_STREAM:
            self._end(call, CallFailed(INTERNAL, "the reply has no trailers"))

    def _take_headers(self, call: _Call, kind: int, flags: int, payload: bytes) -> None:
        if kind == h2.HEADERS:
            payload = h2.unpadded(payload, flags)
            if flags & h2.PRIORITY:
                payload = payload[5:]
            # Whether these are trailers is said at their beginning, whatever follows them.
            call.block = b"T" if flags & h2.END_STREAM else b"H"
        call.block += payload
        if flags & h2.END_HEADERS and call.block[:1] == b"T":
            self._finish(call, h2.decoded_headers(call.block[1:]))

    def _finish(self, call: _Call, trailers: Mapping[bytes, bytes]) -> None:
        code = int(trailers.get(b"grpc-status", b"2"))
        message = call.message
        if code:
            self._end(call, CallFailed(code, unquote(trailers.get(b"grpc-message", b"").decode(errors="replace"))))
        elif len(message) < 5 or message[0] or h2.NUMBER.unpack_from(message, 1)[0] != len(message) - 5:
            self._end(call, CallFailed(INTERNAL, "the reply is not one plain message"))
        else:
            self._end(call, message[5:])

    def _take_settings(self, payload: bytes) -> None:
        for number, value in h2.SETTING.iter_unpack(payload):
            if number == h2.INITIAL_WINDOW:
                for call in self._calls.values():
                    call.window += value - self._stream_window
                self._stream_window = value
            elif number == h2.MAX_FRAME:
                self._frame = value
        self._write(h2.frame(h2.SETTINGS, h2.ACK, 0))
        self._send_blocked()

    # Frames out

    def _sendable(self, call: _Call) -> bytes:
        """As much of the call's body as windows let through, as frames."""
        frames = []
        while call.unsent and (size := min(len(call.unsent), self._frame, self._window, call.window)) > 0:
            part, call.unsent = call.unsent[:size], call.unsent[size:]
            self._window -= size
            call.window -= size
            frames.append(h2.frame(h2.DATA, 0 if call.unsent else h2.END_STREAM, call.id, part))
        return b"".join(frames)

    def _send_blocked(self) -> None:
        if self._blocked:
            self._write(b"".join([self._sendable(call) for call in self._blocked]))
            self._blocked = [call for call in self._blocked if call.unsent]

    def _replenish(self, size: int) -> None:
        self._consumed += size
        if self._consumed > h2.LARGEST_WINDOW // 2:
            self._write(h2.frame(h2.WINDOW_UPDATE, 0, 0, h2.NUMBER.pack(self._consumed)))
            self._consumed = 0

    def _write(self, data: bytes) -> None:
        if data and self._transport is not None:
            self._transport.write(data)

    # Ends of calls

    def _overdue(self, call: _Call) -> None:
        asked_at = self._asked_at
        self.cancel(call, CallFailed(DEADLINE_EXCEEDED, "no answer in time"))
        if asked_at is not None and self._loop.time() - asked_at > _SILENCE_S:
            self.give_up(f"no byte came for {_SILENCE_S:g} s")

    def _end(self, call: _Call, outcome: bytes | CallFailed | None = None) -> None:
        self._calls.pop(call.id, None)
        if call.timer is not None:
            call.timer.cancel()
        if call.unsent:
            call.unsent = b""
            self._blocked = [c for c in self._blocked if c is not call]
        if outcome is not None and not call.done.done():
            if isinstance(outcome, CallFailed):
                call.done.set_exception(outcome)
            else:
                call.done.set_result(outcome)
        if self.gone is not None and not self._calls and self._transport is not None:
            self._transport.close()
