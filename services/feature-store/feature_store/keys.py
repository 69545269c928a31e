"""Names of everything Trine keeps in Redis. All of a shard shares one hash slot, `{<entity>.<shard>}`.

A state version has its own states and positions; the tails, which requests append to, are the shard's own: whichever
version is served, what has not been absorbed yet is there.
"""

from __future__ import annotations

from functools import lru_cache

VERSION_POINTER = "trine:state:version"
"""Which version of the feature state is served and kept up to date."""

NEXT_POINTER = "trine:state:next"
"""Which version a rebuild has made and workers bring up to date, unseen; with a lease, which the rebuild renews."""

HOLD = "trine:state:hold"
"""While it is there, and for as long, the served version waits for the next one to pass it; with a lease."""

REBUILDING = "trine:state:rebuilding"
"""The version of the rebuild that was begun last; only it may become the next one and be served."""

LAST_VERSION = "trine:state:last"
"""The highest version number ever given out."""

FIRST_VERSION = "1"


def version_info(version: str) -> str:
    """What a state version was built from (hash)."""
    return f"trine:state:{version}:info"


@lru_cache(maxsize=1 << 12)
def tag(entity: str, shard: int) -> str:
    return f"{{{entity}.{shard}}}"


def meta(entity: str, shard: int, version: str) -> str:
    """Hash: topic, topic_id, offset, clock, epoch, owner, progress_us, tails, base, lost."""
    return f"{tag(entity, shard)}m:{version}"


def state_prefix(entity: str, shard: int, version: str, view: str) -> str:
    """Followed by the entity's key: its packed state (string)."""
    return f"{tag(entity, shard)}s:{version}:{view}:"


def tail_prefix(entity: str, shard: int, view: str) -> str:
    """Followed by the entity's key: events not yet absorbed (hash: id as 8 bytes -> packed event).

    One for all versions: what a request appended while one was served, the next one finds.
    """
    return f"{tag(entity, shard)}t:{view}:"


def ledger(event_id: str) -> str:
    """What a request was answered, for as long as a repeat may come."""
    return f"trine:req:{{{event_id}}}"
