"""Waiting: every wait polls, has a deadline, and says what it saw last when that is over."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import grpc
from kubernetes.client import ApiException
from urllib3.exceptions import HTTPError

from trine_k8s.commands import CommandFailed

#: What a cluster that is busy, or a pod that is just going, may answer; tried again.
PASSING = (ApiException, HTTPError, CommandFailed, grpc.RpcError, OSError)

T = TypeVar("T")


def eventually(what: str, look: Callable[[], T | None], timeout_s: float, every_s: float = 0.5) -> T:
    """What `look` returns as soon as that is true. Raises AssertionError at the deadline."""
    end = time.monotonic() + timeout_s
    while True:
        try:
            found = look()
        except PASSING as error:
            found, last = None, f"{type(error).__name__}: {error}"
        else:
            last = repr(found)
        if found:
            return found
        if time.monotonic() > end:
            raise AssertionError(f"not within {timeout_s:g} s: {what}; last seen: {last[:2_000]}")
        time.sleep(every_s)


def until_equal(what: str, expected: T, look: Callable[[], T], timeout_s: float, every_s: float = 1.0) -> None:
    """Until `look` returns `expected`; the message of the AssertionError has the last value."""
    seen: list[T] = []

    def same() -> bool:
        seen[:] = [look()]
        return seen[0] == expected

    try:
        eventually(what, same, timeout_s, every_s)
    except AssertionError as error:
        raise AssertionError(f"{error}; expected {str(expected)[:1_000]}, found {str(seen)[:1_000]}") from None
