"""python -m trine_cli.demo: composition root of `make demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trine_cli.demo.scenario import RATE, Scenario
from trine_cli.main import run as run_app


def main(
    folder: Annotated[Path, typer.Option(help="Where data, model, logs and report are kept between runs.")] = Path(
        ".run/demo"
    ),
    keep: Annotated[bool, typer.Option("--keep", help="Leave the stack running until Ctrl-C.")] = False,
    rate: Annotated[float, typer.Option(min=1, help="Transactions a second.")] = RATE,
) -> None:
    """Data, model, feature state, the whole stack, a day of transactions with an outage in it, and its replay."""
    from trine_cli.demo.show import run

    run(Scenario(folder=folder, rate=rate), keep)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    run_app(app)
