"""Which requests are being decided here, and what was answered: the ledger's near side.

The ledger in Redis is what all processes share. This process also keeps its own latest answers, so that a retry gets
the stored answer while Redis is away, and hands them to the ledger when it is back.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from struct import Struct

import numpy as np
from feature_store.online import StoreUnavailable

from inference_gateway.batcher import Batcher
from inference_gateway.feature_access import FeatureAccess
from inference_gateway.work import Answer, Work

_RECENT = 20_000
_MISSED = 10_000
_WIDTH = Struct("<H")

Entry = tuple[str, bytes, bytes]
"""Event id, fingerprint, packed answer."""


class ReplyMemory:
    """Owned by the event loop; memory is bounded by the limits above."""

    def __init__(self, access: FeatureAccess) -> None:
        self._access = access
        # A batch starts at once, before the replies that are sent after `remember` returns.
        self._writes: Batcher[Entry] = Batcher(self._write, lanes=2, max_items=512)
        self._deciding: dict[str, Work] = {}
        self._recent: OrderedDict[str, tuple[bytes, Answer]] = OrderedDict()
        self._missed: deque[Entry] = deque(maxlen=_MISSED)
        access.on_return(self._hand_in)

    def deciding(self, event_id: str) -> Work | None:
        """The request with this id that is being decided here."""
        return self._deciding.get(event_id)

    def answered(self, event_id: str) -> tuple[bytes, Answer] | None:
        """Fingerprint and answer of a request with this id that was answered here lately."""
        return self._recent.get(event_id)

    def __len__(self) -> int:
        """How many requests are being decided."""
        return len(self._deciding)

    def enter(self, work: Work) -> None:
        """`work` is being decided from now on, until `leave`."""
        self._deciding[work.request.features.event_id] = work

    def leave(self, work: Work) -> None:
        event_id = work.request.features.event_id
        if self._deciding.get(event_id) is work:
            del self._deciding[event_id]

    def remember(self, works: Sequence[Work], answers: Sequence[Answer]) -> None:
        """Keep answers for repeats. Called before they are sent, so that a retry at once finds them on any process."""
        recent: OrderedDict[str, tuple[bytes, Answer]] = self._recent
        entries: list[Entry] = []
        for work, answer in zip(works, answers, strict=True):
            features = work.request.features
            recent[features.event_id] = (features.fingerprint, answer)
            entries.append((features.event_id, features.fingerprint, pack(answer)))
        while len(recent) > _RECENT:
            recent.popitem(last=False)
        self._store(entries)

    async def idle(self) -> None:
        """Until the ledger has everything."""
        await self._writes.idle()

    def _store(self, entries: list[Entry]) -> None:
        if self._access.usable:
            self._writes.add(entries)
        else:
            self._missed.extend(entries)

    async def _write(self, entries: list[Entry]) -> None:
        try:
            await self._access.store.remember(entries)
        except StoreUnavailable as error:
            self._missed.extend(entries)
            self._access.failed(str(error))

    def _hand_in(self) -> None:
        missed = list(self._missed)
        self._missed.clear()
        self._store(missed)


def pack(answer: Answer) -> bytes:
    """What the ledger keeps: width u16 | vector float32[width] | response. So a repeat can be explained too."""
    if answer.vector is None:
        return _WIDTH.pack(0) + answer.response
    return _WIDTH.pack(len(answer.vector)) + answer.vector.tobytes() + answer.response


def unpack(stored: bytes) -> Answer:
    """The answer that `pack` stored, marked as repeated."""
    (width,) = _WIDTH.unpack_from(stored)
    end = _WIDTH.size + 4 * width
    vector = np.frombuffer(stored, dtype="<f4", count=width, offset=_WIDTH.size) if width else None
    return Answer(stored[end:], vector, True)
