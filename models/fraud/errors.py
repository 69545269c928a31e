"""What can be wrong with what a user asks of the fraud model and its data.

FraudDataError
└── ParameterError   a parameter of the generator is out of range

and models.tabular.errors.TooLittleData, where days, frauds or labels that training or measuring needs are missing.
"""

from __future__ import annotations

from models.tabular.errors import TooLittleData

__all__ = ["FraudDataError", "ParameterError", "TooLittleData"]


class FraudDataError(ValueError):
    """Root; the message names what was found and what would be right."""


class ParameterError(FraudDataError):
    """A parameter out of range."""
