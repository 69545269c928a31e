"""Requests to Trine's own servers on this machine: plain HTTP and straight to them.

Without reading certificates, which httpx otherwise does for each request and which takes 20 times as long as the
request itself; and never by way of a proxy that the environment names.
"""

from __future__ import annotations

import httpx


def get(url: str, timeout_s: float) -> httpx.Response:
    """GET `url`, http://. Raises httpx.HTTPError."""
    return httpx.get(url, timeout=timeout_s, verify=False, trust_env=False)
