"""How every command speaks: progress on stderr, results on stdout.

The `--json` convention: a command that takes `json: Json = False` hands it to `Output`. Then stdout carries exactly one
line of JSON, written by `result`, and everything meant for people (tables, notes, progress) goes to stderr. Without it
tables and notes go to stdout and `result` writes nothing.

    out = Output(json)
    with out.progress("Writing days", total=183) as advance:
        advance(1)
    out.table("Dataset", ["what", "value"], [["transactions", f"{n:,}"]])
    out.result({"transactions": n})
"""

from __future__ import annotations

import json as _json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

Json = Annotated[bool, typer.Option("--json", help="One line of JSON on stdout; the rest goes to stderr.")]


class Output:
    """Where one command's results go. Its consoles are public for commands that draw live displays."""

    def __init__(self, json: bool = False) -> None:
        self.json = json
        self.stderr = Console(stderr=True)
        self.people = self.stderr if json else Console()

    def note(self, text: str) -> None:
        """One line for people; plain text, no markup."""
        self.people.print(escape(text), highlight=False, soft_wrap=True)

    def table(self, title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """A table for people; numbers are right-aligned, cells are plain text."""
        body = [[str(cell) for cell in row] for row in rows]
        table = Table(show_edge=False)
        for index, column in enumerate(columns):
            numeric = bool(body) and all(_looks_numeric(row[index]) for row in body)
            table.add_column(escape(column), justify="right" if numeric else "left")
        for row in body:
            table.add_row(*(escape(cell) for cell in row))
        self.people.print(f"[bold]{escape(title)}[/]", highlight=False, soft_wrap=True)
        self.people.print(table)

    @contextmanager
    def progress(self, description: str, total: float | None = None) -> Iterator[Callable[[float], None]]:
        """A bar on stderr, where that is a terminal; yields `advance(steps)`. `total` None: unknown."""
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self.stderr, disable=not self.stderr.is_terminal) as bar:
            task = bar.add_task(escape(description), total=total)
            yield lambda steps: bar.advance(task, steps)

    def result(self, values: Mapping[str, object]) -> None:
        """With --json: the one line on stdout. Values: what JSON knows."""
        if self.json:
            print(_json.dumps(values, separators=(", ", ": "), allow_nan=False), flush=True)


def _looks_numeric(cell: str) -> bool:
    return cell.strip().replace(",", "").replace(".", "", 1).replace("%", "").replace("-", "", 1).strip().isdigit()
