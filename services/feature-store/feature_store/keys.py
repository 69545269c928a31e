"""Names of everything Trine keeps in Redis. All of a shard shares one hash slot: `{<entity>.<shard>.<version>}`."""

from __future__ import annotations

from functools import lru_cache

VERSION_POINTER = "trine:state:version"
"""Which version of the feature state is served and kept up to date."""

FIRST_VERSION = "1"


def version_info(version: str) -> str:
    """What a state version was built from (hash)."""
    return f"trine:state:{version}:info"


@lru_cache(maxsize=1 << 12)
def tag(entity: str, shard: int, version: str) -> str:
    return f"{{{entity}.{shard}.{version}}}"


def meta(entity: str, shard: int, version: str) -> str:
    """Hash: topic, topic_id, offset, clock, epoch, owner, progress_us, tails."""
    return f"{tag(entity, shard, version)}m"


def state_prefix(entity: str, shard: int, version: str, view: str) -> str:
    """Followed by the entity's key: its packed state (string)."""
    return f"{tag(entity, shard, version)}s:{view}:"


def tail_prefix(entity: str, shard: int, version: str, view: str) -> str:
    """Followed by the entity's key: events not yet absorbed (hash: id as 8 bytes -> packed event)."""
    return f"{tag(entity, shard, version)}t:{view}:"


def ledger(event_id: str) -> str:
    """What a request was answered, for as long as a repeat may come."""
    return f"trine:req:{{{event_id}}}"
