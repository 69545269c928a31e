"""Days and times as people write them on the command line, in UTC."""

from __future__ import annotations

from datetime import UTC, datetime

from trine_cli.errors import UsageError


def moment_us(text: str, option: str) -> int:
    """Microseconds since the epoch of `2018-07-25` or `2018-07-25T13:45:00[Z]`; without a zone it is UTC.

    Raises UsageError that names the option.
    """
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise UsageError(f"{option}: {text!r} is no day or time; write 2018-07-25 or 2018-07-25T13:45:00Z") from error
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
    whole = moment.astimezone(UTC)
    return int(whole.replace(microsecond=0).timestamp()) * 1_000_000 + whole.microsecond


def moment_text(time_us: int) -> str:
    """The UTC time as text, to the second."""
    return datetime.fromtimestamp(time_us / 1_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def day_number(text: str, option: str) -> int:
    """Days since 1970 of a day `2018-07-25`, UTC. Raises UsageError that names the option."""
    time_us = moment_us(text, option)
    day, rest = divmod(time_us, 86_400_000_000)
    if rest:
        raise UsageError(f"{option}: {text!r} is not the start of a day; write 2018-07-25")
    return day
