"""What the feature-store service refuses; transports turn it into gRPC statuses and problem+json.

FeatureServiceError
├── InvalidField        a field is wrong: INVALID_ARGUMENT, 422
├── UnknownView         NOT_FOUND, 404
└── StateUnavailable    Redis does not answer, or the state is lost or not built yet: UNAVAILABLE, 503
"""

from __future__ import annotations


class FeatureServiceError(Exception):
    """A request that gets no answer. `field`: path of the field at fault, empty where none is."""

    def __init__(self, message: str, field: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.field = field


class InvalidField(FeatureServiceError):
    """The message says the value found and what would be right."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}", field)


class UnknownView(FeatureServiceError):
    """No view of that name; the message lists those there are."""


class StateUnavailable(FeatureServiceError):
    """Try again later."""
