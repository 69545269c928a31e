"""An old connection ends and no call with it: clients meet servers that came since."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from service_kit.grpc_server import GrpcServer
from service_kit.health import Health

pytestmark = pytest.mark.timeout(60)

_METHOD = "/test.Peers/Peer"


def _add(server: grpc.aio.Server) -> None:
    async def peer(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        """The client's address, `request` milliseconds later."""
        await asyncio.sleep(int(request) / 1_000)
        return context.peer().encode()

    handler = grpc.unary_unary_rpc_method_handler(peer)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Peers", {"Peer": handler}),))


async def test_calls_outlive_their_connection_and_the_next_ones_have_another() -> None:
    server = GrpcServer({"test.Peers": _add}, Health(), 0, "127.0.0.1", max_connection_age_s=1)
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        call = channel.unary_unary(_METHOD, None, None)
        # Longer than any connection lives, give or take a tenth.
        long = asyncio.ensure_future(call(b"2500", timeout=10))
        peers: list[bytes] = []
        while not long.done():
            peers.append(await call(b"1", timeout=10))
        assert await long == peers[0], "finished on the connection that it began with"
        assert len(dict.fromkeys(peers)) >= 2
        assert peers[-1] != peers[0]
    await server.stop()
