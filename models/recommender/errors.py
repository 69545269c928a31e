"""What can be wrong with what a user asks of the recommender and its data.

RecommenderError
├── ParameterError   a parameter of the generator or of training is out of range
└── TooLittleData    users, items or days that training or measuring needs are missing
"""

from __future__ import annotations


class RecommenderError(ValueError):
    """Root; the message names what was found and what would be right."""


class ParameterError(RecommenderError):
    """A parameter out of range."""


class TooLittleData(RecommenderError):
    """A split cannot be trained or measured: users, items or days are missing."""
