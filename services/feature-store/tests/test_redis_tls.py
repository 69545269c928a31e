"""`RedisLink` and redis-py over TLS: the same URL means the same to both.

The Redis of the tests has no TLS, so what speaks it stands before it, as stunnel would.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import redis
import trustme
from feature_store.redis_link import LinkDown, RedisLink
from trine_cli.local.ports import HOST

pytestmark = pytest.mark.timeout(60)


@dataclass(frozen=True, slots=True)
class Secured:
    """`url`: of the test's database, over TLS, whom to trust left open."""

    url: str
    ca: Path
    certificate: Path
    key: Path

    @property
    def trusted(self) -> str:
        own = f"ssl_certfile={self.certificate}&ssl_keyfile={self.key}"
        return f"{self.url}?ssl_ca_certs={self.ca}&{own}"


@pytest.fixture
async def secured(redis_url: str, tmp_path: Path) -> AsyncIterator[Secured]:
    ca, behind = trustme.CA(), urlsplit(redis_url)
    ca.cert_pem.write_to_path(tmp_path / "ca.crt")
    ours = ca.issue_cert("trine")
    ours.cert_chain_pems[0].write_to_path(tmp_path / "tls.crt")
    ours.private_key_pem.write_to_path(tmp_path / "tls.key")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ca.issue_cert(HOST).configure_cert(context)
    ca.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED

    async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(1 << 16):
                target.write(data)
                await target.drain()
        except (ConnectionError, ssl.SSLError):
            pass
        finally:
            target.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        its_reader, its_writer = await asyncio.open_connection(behind.hostname, behind.port)
        await asyncio.gather(copy(reader, its_writer), copy(its_reader, writer))

    server = await asyncio.start_server(serve, HOST, 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    yield Secured(
        f"rediss://{HOST}:{port}{behind.path}", tmp_path / "ca.crt", tmp_path / "tls.crt", tmp_path / "tls.key"
    )
    server.close()


async def test_what_one_client_writes_the_other_reads(secured: Secured) -> None:
    link, value = RedisLink(secured.trusted, 10), bytes(range(256)) * 4_096
    await link.call("SET", "key", value)
    assert await asyncio.to_thread(_read, secured.trusted) == value
    # More than TLS's records hold, in one go and in order.
    assert await link.calls([("GET", "key"), ("STRLEN", "key")] * 8) == [value, len(value)] * 8
    await link.close()


@pytest.mark.parametrize("trust", ["", "?ssl_ca_certs={ca}", "?ssl_ca_certs={other}"])
async def test_who_cannot_be_trusted_is_told_apart(secured: Secured, tmp_path: Path, trust: str) -> None:
    """An authority unknown to this machine; a server that asks who we are; another authority than the server's."""
    trustme.CA().cert_pem.write_to_path(tmp_path / "other.crt")
    url = secured.url + trust.format(ca=secured.ca, other=tmp_path / "other.crt")
    link = RedisLink(url, 5)
    with pytest.raises(LinkDown, match=r"(?i)certificate|closed the connection"):
        await link.call("PING")
    await link.close()
    with pytest.raises(redis.ConnectionError):
        await asyncio.to_thread(_read, url)


async def test_a_name_that_the_certificate_has_not(secured: Secured) -> None:
    url = secured.trusted.replace(HOST, "localhost", 1)
    with pytest.raises(LinkDown, match="localhost"):
        await RedisLink(url, 5).call("PING")
    link = RedisLink(f"{url}&ssl_check_hostname=false", 5)
    assert await link.call("PING") == b"PONG"
    await link.close()


def _read(url: str) -> object:
    with redis.Redis.from_url(url, socket_timeout=10) as client:
        return client.get("key")
