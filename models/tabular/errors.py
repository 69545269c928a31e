"""What training any of the tabular models may lack."""

from __future__ import annotations


class TooLittleData(ValueError):
    """A model cannot be trained or measured: days, positive rows or labels are missing; the message names which."""
