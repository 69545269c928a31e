"""`trine data`: make a dataset folder, from the handbook's process or from a user's own files."""

from __future__ import annotations

import typer

app = typer.Typer(help="Make or import a dataset of card transactions.")


@app.callback()
def _data() -> None: ...
