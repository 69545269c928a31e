"""Free TCP ports on loopback, and a clear word when a fixed one is taken."""

from __future__ import annotations

import random
import socket
import threading

import psutil

from trine_cli.local.errors import LocalStackError, PortTaken

HOST = "127.0.0.1"
# Below what Linux and macOS give to outgoing connections, so that no client takes a port between choice and use.
_FIRST, _LAST = 12_000, 32_000
_lock = threading.Lock()
_given: set[int] = set()


def free_ports(count: int) -> list[int]:
    """`count` distinct ports that nobody listens on; never gives one twice in this process."""
    ports: list[int] = []
    with _lock:
        for candidate in random.sample(range(_FIRST, _LAST), 2_000):
            if len(ports) == count:
                break
            if candidate not in _given and not is_taken(candidate):
                ports.append(candidate)
                _given.add(candidate)
    if len(ports) < count:
        raise LocalStackError(f"found only {len(ports)} of {count} free ports between {_FIRST} and {_LAST}")
    return ports


def free_port() -> int:
    """One free port."""
    return free_ports(1)[0]


def is_taken(port: int) -> bool:
    """True where the port cannot be listened on now."""
    with socket.socket() as probe:
        # As servers do: connections of an earlier server in TIME_WAIT do not count as taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
            probe.listen(1)
        except OSError:
            return True
    return False


def require_free(name: str, *ports: int) -> None:
    """Raise PortTaken, naming who holds it where that can be seen, unless all `ports` are free."""
    for port in ports:
        if is_taken(port):
            raise PortTaken(name, port, _holder(port))


def accepts_connections(port: int, timeout_s: float = 0.5) -> bool:
    """True where something listens on the port."""
    try:
        socket.create_connection((HOST, port), timeout=timeout_s).close()
    except OSError:
        return False
    return True


def _holder(port: int) -> str:
    try:
        for connection in psutil.net_connections("tcp"):
            if connection.laddr and connection.laddr.port == port and connection.pid:
                return f" by {psutil.Process(connection.pid).name()} (pid {connection.pid})"
    except psutil.Error:
        pass
    return ""
