"""Recorded before answered: every message goes to the spool first and from there to Kafka, in the spool's order.

One path: `_groups`, the youngest blocks, are kept in memory and handed to Kafka from there. Where Kafka's queue stays
full (it is down or slow) the oldest of them are let go, and Kafka is fed by reading the spool's files from a cursor
until it meets the groups again. So memory is bounded and a message never passes an earlier one. A held group (its
requests are not judged by the ledger yet) holds up what is behind it for the moment until `settle`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator, Sequence

from confluent_kafka import KafkaError
from confluent_kafka import Message as KafkaMessage
from service_kit.logs import get_logger

from inference_gateway.errors import SpoolError
from inference_gateway.kafka_producer import KafkaProducer, OnDelivery
from inference_gateway.spool import Place, Segment, Spool
from inference_gateway.spool_format import Message

_POLL_S = 0.01
_RETRY_S = 1.0
#: How often the end says what it waits for.
_TOLD_S = 5.0
#: Messages read back from files in one turn of the event loop.
_TURN = 2_000

log = get_logger(__name__)


class Group:
    """What one `record` call wrote. `place` is None where the spool refused it: then `acked` says when Kafka has it."""

    __slots__ = ("acked", "held", "messages", "place", "sent", "unacked", "void")

    def __init__(self, messages: Sequence[Message], place: Place | None, held: bool) -> None:
        self.messages = messages
        self.place = place
        self.held = held
        self.sent = 0
        self.void: frozenset[int] = frozenset()
        self.unacked = len(messages)
        self.acked: asyncio.Future[None] | None = None

    @property
    def bytes(self) -> int:
        """Its size in the spool."""
        return self.place.end - self.place.start if self.place is not None else 0

    def delivered(self, error: KafkaError | None, _: KafkaMessage) -> None:
        """Delivery report of a message that is not in the spool."""
        if error is None:
            self.unacked -= 1
        if self.unacked == 0 and self.acked is not None and not self.acked.done():
            self.acked.set_result(None)


class _Deliveries:
    """Counts the answers to one segment's messages; a report costs an addition."""

    __slots__ = ("count", "failed")

    def __init__(self) -> None:
        self.count = 0
        self.failed: KafkaError | None = None

    def __call__(self, error: KafkaError | None, _: KafkaMessage) -> None:
        if error is None:
            self.count += 1
        else:
            self.failed = error


class Recorder:
    """Owned by the event loop; `run` is its one task. `memory_bytes`: what is kept in memory for Kafka to take."""

    def __init__(self, spool: Spool, producer: KafkaProducer, *, memory_bytes: int = 8 << 20) -> None:
        self.spool, self._producer, self._memory_bytes = spool, producer, memory_bytes
        self.refusing: str | None = None
        """Why nothing can be recorded at the moment; None where it can."""
        self.delivered_total = 0
        self.failed_total = 0
        self._groups: deque[Group] = deque()
        self._memory = 0
        self._held: dict[int, Group] = {}
        self._deliveries: dict[Segment, _Deliveries] = {}
        self._not_before = 0.0
        # Where reading from files goes on: segment, position, messages of that block already sent.
        self._cursor: tuple[Segment, int, int] | None = None
        self._reader: Iterator[tuple[Place, list[Message]]] | None = None
        if spool.segments:
            self._cursor = (spool.segments[0], 0, 0)

    @property
    def backlog(self) -> bool:
        """True while Kafka is fed from files: it is or was away, or this process has just started."""
        return self._cursor is not None

    @property
    def down(self) -> str | None:
        """Why Kafka takes nothing; None where nothing speaks against it."""
        return self._producer.down

    @property
    def queued(self) -> int:
        """Messages that the Kafka client has and Kafka has not acknowledged."""
        return self._producer.queued

    def record(self, messages: Sequence[Message], *, held: bool = False, reserved: bool = False) -> Group:
        """Write to the spool and pass on to Kafka; `held`: pass on only once `settle` is called.

        `reserved`: may use the part of the spool that is kept for decisions on events taken in before. Where the
        spool refuses, Kafka alone may record it: the caller awaits `recorded`. Raises SpoolError where neither can.
        """
        try:
            place = self.spool.append(messages, reserved=reserved)
        except SpoolError as error:
            if self.backlog or self.down is not None or self._memory > self._memory_bytes // 8:
                self.refusing = str(error)
                raise
            group = Group(messages, None, held)
            group.acked = asyncio.get_running_loop().create_future()
        else:
            group = Group(messages, place, held)
            if held:
                self._held[place.first] = group
        self._groups.append(group)
        self._memory += group.bytes
        if self._memory > self._memory_bytes:
            self._let_go()
        if not held:
            self._hand_over()
        return group

    def settle(self, group: Group, void: Sequence[int] = ()) -> None:
        """The ledger has judged a held group: pass it on without the messages at the `void` indexes."""
        if not group.held:
            return
        group.held = False
        group.void = frozenset(void)
        if group.place is not None:
            del self._held[group.place.first]
            if void:
                try:
                    self.spool.void(group.place, void)
                except SpoolError as error:
                    log.warning("a refused event may reach Kafka after a restart", reason=str(error))
        else:
            group.unacked -= len(void)
        self._hand_over()

    def try_again(self) -> None:
        """Find out whether there is room again, where there was none: nobody may be sending any more."""
        if self.refusing is not None:
            try:
                self.spool.try_write()
                self.refusing = None
            except SpoolError as error:
                self.refusing = str(error)

    async def recorded(self, group: Group, timeout_s: float) -> bool:
        """Whether `group` is safe: in the spool, or acknowledged by Kafka within `timeout_s`."""
        if group.place is not None or group.unacked == 0:
            return True
        if group.acked is None or timeout_s <= 0:
            return False
        await asyncio.wait([group.acked], timeout=timeout_s)
        return group.acked.done()

    def poll(self) -> None:
        """Take in Kafka's answers and pass on what it has room for."""
        self._producer.poll()
        self._count_answers()
        self._hand_over()

    async def run(self) -> None:
        """Poll for ever."""
        while True:
            await asyncio.sleep(_POLL_S)
            self.poll()

    async def close(self, timeout_s: float) -> None:
        """Pass on what can be within `timeout_s`; the rest stays in the spool for the next start."""
        loop = asyncio.get_running_loop()
        end, told = loop.time() + timeout_s, loop.time() + _TOLD_S
        while (self._groups or self._cursor or self._producer.queued) and loop.time() < end:
            if loop.time() > told:
                told += _TOLD_S
                log.warning("waiting for Kafka to take what the spool holds", messages=self._left, reason=self.down)
            self.poll()
            await asyncio.sleep(0.002)
        if self._left:
            log.warning("left in the spool for the next start", messages=self._left)
        self.spool.close()

    @property
    def _left(self) -> int:
        return sum(segment.unacked for segment in self.spool.segments)

    def _hand_over(self) -> None:
        """Feed Kafka in order, as far as it takes it and as far as groups are settled."""
        if self._cursor is not None and not self._read_back():
            return
        groups = self._groups
        while groups:
            group = groups[0]
            if group.held or not self._send_group(group):
                return
            groups.popleft()
            self._memory -= group.bytes

    def _send_group(self, group: Group) -> bool:
        place = group.place
        report: OnDelivery = group.delivered if place is None else self._report(place.segment)
        group.sent = self._send(group.messages, group.sent, group.void, report)
        return group.sent == len(group.messages)

    def _send(self, messages: Sequence[Message], start: int, void: frozenset[int], report: OnDelivery) -> int:
        """Send from index `start` on; the index of the first message that was not taken."""
        send = self._producer.send
        for i in range(start, len(messages)):
            if i not in void and not send(messages[i], report):
                return i
        return len(messages)

    def _report(self, segment: Segment) -> _Deliveries:
        found = self._deliveries.get(segment)
        if found is None:
            found = self._deliveries[segment] = _Deliveries()
        return found

    def _let_go(self) -> None:
        """Drop the oldest groups from memory; they are read from the files when their turn comes."""
        while self._memory > self._memory_bytes and self._groups:
            group = self._groups.popleft()
            self._memory -= group.bytes
            if self._cursor is None and group.place is not None:
                self._cursor = (group.place.segment, group.place.start, group.sent)
                self._reader = None

    def _read_back(self) -> bool:
        """Feed Kafka from the files; True once the groups in memory are next."""
        if asyncio.get_running_loop().time() < self._not_before:
            return False
        turn = _TURN
        while self._cursor is not None and turn > 0:
            segment, at, sent = self._cursor
            if self._reader is None:
                self._reader = self.spool.read(segment, at)
            found = next(self._reader, None)
            if found is None:
                self._reader = None
                younger = self.spool.after(segment)
                self._cursor = (younger, 0, 0) if younger is not None else None
                continue
            place, messages = found
            if self._groups and (first := self._groups[0].place) is not None and place.first >= first.first:
                self._cursor = self._reader = None
                break
            if place.first in self._held:
                self._cursor, self._reader = (segment, place.start, 0), None
                return False
            void = frozenset(n - place.first for n in segment.voided if 0 <= n - place.first < place.count)
            reached = self._send(messages, sent, void, self._report(segment))
            if reached < len(messages):
                self._cursor, self._reader = (segment, place.start, reached), None
                return False
            self._cursor = (segment, place.end, 0)
            turn -= len(messages)
        return self._cursor is None

    def _count_answers(self) -> None:
        failed: KafkaError | None = None
        for segment, deliveries in list(self._deliveries.items()):
            if deliveries.count:
                self.delivered_total += deliveries.count
                self._producer.delivered()
                self.spool.acked(segment, deliveries.count)
                deliveries.count = 0
                if segment.unacked == 0 and segment not in self.spool.segments:
                    del self._deliveries[segment]
            failed = failed or deliveries.failed
        if failed is not None:
            self._start_again(failed)

    def _start_again(self, error: KafkaError) -> None:
        """Kafka refused something for good (a fatal error, a topic that is not there): send all that is unacked anew.

        Events are known by id, so what arrives twice changes nothing.
        """
        self.failed_total += 1
        log.error("Kafka refused a message; everything unacknowledged is sent again", reason=error.str())
        self._deliveries.clear()
        self._producer.renew()
        self._producer.down = error.str()
        self._not_before = asyncio.get_running_loop().time() + _RETRY_S
        self.spool.reset()
        self._groups.clear()
        self._memory = 0
        self._reader = None
        self._cursor = (self.spool.segments[0], 0, 0) if self.spool.segments else None
