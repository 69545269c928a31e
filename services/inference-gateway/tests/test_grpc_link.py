"""The gateway's own gRPC client against gRPC's own server; against TorchServe's in test_model_server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence

import grpc
import pytest
from inference_gateway.grpc_link import DEADLINE_EXCEEDED, UNAVAILABLE, CallFailed, GrpcLink
from trine_cli.local.ports import HOST, free_port

pytestmark = pytest.mark.timeout(60)

PATH = "/test.Echo/"
Context = grpc.aio.ServicerContext[bytes, bytes]


async def _echo(data: bytes, context: Context) -> bytes:
    return data


async def _refuse(data: bytes, context: Context) -> bytes:
    await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not so: ü 100%\nreally")
    return b""


async def _stall(data: bytes, context: Context) -> bytes:
    await asyncio.sleep(30)
    return data


async def started(port: int = 0, options: Sequence[tuple[str, int]] = ()) -> tuple[grpc.aio.Server, int]:
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", 32 << 20), *options])
    methods = {"Echo": _echo, "Refuse": _refuse, "Stall": _stall}
    handlers = {name: grpc.unary_unary_rpc_method_handler(method) for name, method in methods.items()}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", handlers),))
    port = server.add_insecure_port(f"{HOST}:{port}")
    await server.start()
    return server, port


@pytest.fixture
async def link() -> AsyncIterator[GrpcLink]:
    server, port = await started()
    link = GrpcLink(f"{HOST}:{port}")
    yield link
    await link.close()
    await server.stop(None)


async def test_many_at_once_each_get_their_own_whatever_their_size(link: GrpcLink) -> None:
    """Also more than the windows of stream and connection let through at once."""
    echo = link.method(PATH + "Echo")
    sizes = [0, 1, 60, 16_384, 65_530, 70_000, 300_000, 3_000_000] * 3
    messages = [bytes([i % 251]) * size for i, size in enumerate(sizes)]
    assert await asyncio.gather(*(link.call(echo, m, 30) for m in messages)) == messages
    for i in range(200):
        assert await link.call(echo, b"%d" % i, 10) == b"%d" % i


async def test_a_reply_too_large_is_refused_and_costs_nobody_else(link: GrpcLink) -> None:
    echo = link.method(PATH + "Echo")
    large, small = await asyncio.gather(
        link.call(echo, bytes(5 << 20), 30), link.call(echo, b"x", 30), return_exceptions=True
    )
    assert isinstance(large, CallFailed)
    assert "too large" in large.details
    assert small == b"x"


async def test_a_status_is_told_with_its_text(link: GrpcLink) -> None:
    with pytest.raises(CallFailed) as caught:
        await link.call(link.method(PATH + "Refuse"), b"", 10)
    assert (caught.value.code, caught.value.details) == (9, "not so: ü 100%\nreally")
    with pytest.raises(CallFailed) as caught:
        await link.call(link.method(PATH + "Unknown"), b"", 10)
    assert caught.value.code == grpc.StatusCode.UNIMPLEMENTED.value[0]


async def test_who_waits_too_long_or_gives_up_leaves_the_others_alone(link: GrpcLink) -> None:
    stall, echo = link.method(PATH + "Stall"), link.method(PATH + "Echo")
    assert await link.call(echo, b"", 10) == b""
    given_up = asyncio.create_task(link.call(stall, b"", 30))
    began = time.perf_counter()
    with pytest.raises(CallFailed) as caught:
        await link.call(stall, b"", 0.05)
    assert caught.value.code == DEADLINE_EXCEEDED
    assert time.perf_counter() - began < 1
    given_up.cancel()
    await asyncio.wait([given_up], timeout=10)
    assert given_up.cancelled()
    assert await link.call(echo, b"still here", 10) == b"still here"
    with pytest.raises(CallFailed):
        await link.call(echo, b"", 0)


async def test_a_server_that_ends_its_connections_or_itself_is_found_again() -> None:
    server, port = await started(
        options=[("grpc.max_connection_age_ms", 100), ("grpc.max_connection_age_grace_ms", 50)]
    )
    link = GrpcLink(f"{HOST}:{port}")
    echo = link.method(PATH + "Echo")
    until = time.monotonic() + 1
    while time.monotonic() < until:
        assert await link.call(echo, b"x", 10) == b"x"
    await server.stop(None)
    with pytest.raises(CallFailed) as caught:
        await link.call(echo, b"x", 10)
    assert caught.value.code == UNAVAILABLE
    server, _ = await started(port)
    assert await link.call(echo, b"x", 10) == b"x"
    await link.close()
    await server.stop(None)


async def test_a_server_that_is_silent_is_asked_over_a_new_connection() -> None:
    """Something accepts connections and says nothing (a stopped process, a node that vanished)."""
    connections = 0

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await reader.read(-1)
        writer.close()

    server = await asyncio.start_server(silent, HOST, 0)
    link = GrpcLink(f"{HOST}:{server.sockets[0].getsockname()[1]}")
    echo = link.method(PATH + "Echo")
    until = time.monotonic() + 20
    while connections < 2:
        assert time.monotonic() < until
        with pytest.raises(CallFailed) as caught:
            await link.call(echo, b"x", 0.2)
        assert caught.value.code == DEADLINE_EXCEEDED
    await link.close()
    server.close()


@pytest.mark.parametrize("bytes_", [b"HTTP/1.1 400 Bad Request\r\n\r\n" + bytes(9), b"\0\0\2\4\0\0\0\0\0xx", bytes(64)])
async def test_what_is_no_http2_fails_the_calls(bytes_: bytes) -> None:
    async def garbage(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(bytes_)
        await reader.read(1_000)
        writer.close()

    server = await asyncio.start_server(garbage, HOST, 0)
    link = GrpcLink(f"{HOST}:{server.sockets[0].getsockname()[1]}")
    with pytest.raises(CallFailed):
        await link.call(link.method(PATH + "Echo"), b"x", 5)
    await link.close()
    server.close()


async def test_nobody_there_is_told_at_once() -> None:
    link = GrpcLink(f"{HOST}:{free_port()}")
    began = time.perf_counter()
    with pytest.raises(CallFailed) as caught:
        await link.call(link.method(PATH + "Echo"), b"x", 10)
    assert caught.value.code == UNAVAILABLE
    assert time.perf_counter() - began < 5
    await link.close()
