"""Which of a user's columns is which field: its own name, one that is recognised, or the one that the user says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from models.importing.errors import SourceError

TimeUnit = Literal["s", "ms", "us", "ns"]


def resolve(
    file: str,
    present: Sequence[str],
    told: Mapping[str, str],
    required: Sequence[str],
    optional: Sequence[str],
    recognised: Mapping[str, Sequence[str]],
) -> dict[str, str]:
    """Field → column of one file. `recognised`: other names of a field, looked for after its own.

    Raises SourceError, naming the field, where a required or a told one is not there.
    """
    found: dict[str, str] = {}
    for name in (*required, *optional):
        candidates = [told[name]] if name in told else [name, *recognised.get(name, ())]
        column = next((candidate for candidate in candidates if candidate in present), None)
        if column is not None:
            if present.count(column) > 1:
                raise SourceError(f"{file}: two columns are called {column}")
            found[name] = column
        elif name in told or name in required:
            raise SourceError(
                f"{file}: no column {' or '.join(dict.fromkeys(candidates))} for {name}; "
                f"the columns are {', '.join(present)}. Say which with --map {name}=COLUMN"
            )
    return found


def require_fields(told: Mapping[str, str], known: Sequence[str]) -> None:
    """Raises SourceError where a field that is not known is mapped."""
    for name in told:
        if name not in known:
            raise SourceError(f"no field is called {name}; the fields are {', '.join(known)}")


def require_delimiter(delimiter: str) -> None:
    """Raises SourceError unless it is one character."""
    if len(delimiter) != 1:
        raise SourceError(f"delimiter is {delimiter!r}, must be one character")
