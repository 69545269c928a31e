"""How a run shows itself: one line a stage on stderr, with rows, rows/s and, while it goes on, the time that remains.

`Watcher` is what the runner tells; `StageLines` draws it. On a terminal the line of the stage at work moves; elsewhere
(a scheduler's log) a stage is one line when it begins and one when it has ended.
"""

from __future__ import annotations

import time
from typing import Protocol

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.text import Text

#: In this order; what a run's manifest says of seconds has the same names.
STAGES = ("inputs", "spark", "population", "score", "check", "write", "count", "publish")


class Watcher(Protocol):
    """Is told how a run goes on; what it raises ends the run."""

    def began(self, stage: str) -> None: ...
    def moved(self, stage: str, share: float) -> None:
        """`share` of the stage's work is done, 0 to 1."""

    def ended(self, stage: str, rows: int, seconds: float) -> None:
        """`rows`: 0 for a stage that is not about rows."""


class StageLines:
    """Draws the stages of one job's run on a console."""

    def __init__(self, job: str, console: Console) -> None:
        self._job, self._console = job, console
        self._live: Live | None = None
        self._began = 0.0

    def began(self, stage: str) -> None:
        self._began = time.monotonic()
        if self._console.is_terminal:
            self._live = Live(self._line(stage, ""), console=self._console, transient=True, refresh_per_second=4)
            self._live.start()
        else:
            self._console.print(self._line(stage, "began"))

    def moved(self, stage: str, share: float) -> None:
        if self._live is not None:
            self._live.update(self._line(stage, remaining(share, time.monotonic() - self._began)))

    def ended(self, stage: str, rows: int, seconds: float) -> None:
        self.close()
        self._console.print(self._line(stage, figures(rows, seconds)))

    def close(self) -> None:
        """The moving line goes."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _line(self, stage: str, text: str) -> Text:
        return Text.from_markup(f"[dim]{escape(self._job)}[/]  {stage:<10} {escape(text)}")


def remaining(share: float, seconds: float) -> str:
    """Of a stage at work: how much is done, and the time that the rest takes at this pace."""
    if share <= 0:
        return f"{seconds:.0f} s"
    left = seconds * (1 - share) / share
    return f"{share:.0%}, {left:.0f} s remain"


def figures(rows: int, seconds: float) -> str:
    """Of a stage that has ended."""
    if not rows:
        return f"{seconds:.1f} s"
    return f"{rows:,} rows in {seconds:.1f} s, {rows / max(seconds, 1e-6):,.0f} rows/s"


class Silent:
    """Nobody watches."""

    def began(self, stage: str) -> None: ...
    def moved(self, stage: str, share: float) -> None: ...
    def ended(self, stage: str, rows: int, seconds: float) -> None: ...
