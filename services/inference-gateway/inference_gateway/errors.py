"""Everything that the gateway raises on purpose: one tree; transports turn it into gRPC statuses and problem+json.

GatewayError
├── InvalidRequest        a field is wrong: INVALID_ARGUMENT, 422
├── PayloadConflict       same id, other payload: ALREADY_EXISTS, 409
└── NotRecorded           recorded nowhere and the policy is to refuse: UNAVAILABLE, 503
SpoolError
├── SpoolFull             its limit of bytes is reached
├── SpoolUnwritable       the disk refused
└── SpoolLocked           another process writes to this folder
"""

from __future__ import annotations


class GatewayError(Exception):
    """A request that gets no decision. `field`: path of the field at fault, empty where none is; `event_id`: as it
    was sent, cut to what a log line can take."""

    def __init__(self, message: str, field: str = "", event_id: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.event_id = event_id[:64]


class InvalidRequest(GatewayError):
    """`field` is wrong; the message says the value found and what would be right."""

    def __init__(self, field: str, message: str, event_id: str = "") -> None:
        super().__init__(f"{field}: {message}", field, event_id)


class PayloadConflict(GatewayError):
    """The id was used before with another payload."""


class NotRecorded(GatewayError):
    """The event could be recorded neither in the spool nor in Kafka, and the release's policy is to refuse."""


class SpoolError(Exception):
    """The spool cannot take what it was given; nothing of it was written."""


class SpoolFull(SpoolError):
    """Writing would pass the limit of bytes that wait for Kafka."""


class SpoolUnwritable(SpoolError):
    """The operating system refused a write."""


class SpoolLocked(SpoolError):
    """The folder belongs to a process that lives."""
