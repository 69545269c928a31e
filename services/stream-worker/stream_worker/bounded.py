"""Kafka calls that must come back: librdkafka's transactional calls can hang for good when a broker dies under them.

The call runs in a thread of its own. One that does not come back in time is left behind with its client; whoever made
it makes a new client, whose epoch fences the old one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from confluent_kafka import KafkaException
from service_kit.logs import get_logger

log = get_logger(__name__)


class CallHangs(Exception):
    """A call into librdkafka did not come back; its client is lost."""


def bounded(name: str, call: Callable[[], object], timeout_s: float) -> None:
    """Runs `call`; raises what it raises, and CallHangs where it has not come back after `timeout_s`."""
    done = threading.Event()
    raised: list[BaseException] = []

    def body() -> None:
        try:
            call()
        except BaseException as error:
            raised.append(error)
        finally:
            done.set()

    threading.Thread(target=body, name=name, daemon=True).start()
    if not done.wait(timeout_s):
        raise CallHangs(f"{name} has not come back for {timeout_s:g} s")
    if raised:
        raise raised[0]


def until_done(name: str, call: Callable[[], object], timeout_s: float, stop: threading.Event) -> None:
    """`bounded`, again and again while librdkafka says that the outcome is not known yet and to call once more.

    Once `stop` is set that gives up with CallHangs: the broker ends the transaction, and its input is read again.
    """
    while True:
        try:
            bounded(name, call, timeout_s)
            return
        except KafkaException as error:
            if not error.args[0].retriable():
                raise
            log.info("transaction goes on", call=name, reason=str(error))
            if stop.is_set():
                raise CallHangs(f"{name} was given up: {error}") from error
