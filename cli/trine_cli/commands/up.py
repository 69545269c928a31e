"""`trine up`: the whole stack on this machine, shown live, until Ctrl-C."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import nullcontext
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from trine_cli.errors import UsageError
from trine_cli.output import Json, Output

if TYPE_CHECKING:
    from rich.table import Table

    from trine_cli.local.figures import Sample
    from trine_cli.local.stack import Stack

_LOOK_EVERY_S = 1.0
_KILLED_BY_USER = 130

Port = Annotated[int | None, typer.Option(min=1, max=65_535, help="A free one where not given.")]


def command(
    releases: Annotated[Path, typer.Option(help="Folder of releases (trine train).")] = Path("releases"),
    release: Annotated[str | None, typer.Option(help="Which of them; the youngest where not given.")] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Where Redis, Kafka and the spool keep their data; a temporary folder where not given."),
    ] = None,
    warehouse: Annotated[
        str | None, typer.Option(help="Folder or URI where events are archived; a folder in --data where not given.")
    ] = None,
    gateways: Annotated[int, typer.Option(min=1, max=64, help="Gateway processes; they share the ports.")] = 1,
    grpc_port: Port = None,
    rest_port: Port = None,
    features_grpc_port: Port = None,
    features_rest_port: Port = None,
    redis_port: Port = None,
    kafka_port: Port = None,
    redis_url: Annotated[str | None, typer.Option(help="Use this Redis instead of starting one.")] = None,
    kafka_bootstrap: Annotated[str | None, typer.Option(help="Use this Kafka (HOST:PORT).")] = None,
    torchserve: Annotated[
        str | None, typer.Option(help="Use this TorchServe (HOST:PORT of gRPC inference), releases registered.")
    ] = None,
    shards: Annotated[int, typer.Option(min=1, max=4096, help="Partitions of the topics; chosen once.")] = 64,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="A service's setting, e.g. TRINE_GATEWAY_DEADLINE_MS=80.")
    ] = None,
    plain: Annotated[bool, typer.Option("--plain", help="Lines instead of a live table.")] = False,
    json: Json = False,
) -> None:
    """Start Redis, Kafka, TorchServe, workers, gateway and feature store on this machine; Ctrl-C stops them all."""
    from trine_cli.local.stack import Stack, StackOptions

    options = StackOptions(
        releases=releases,
        release=release,
        data=data,
        gateways=gateways,
        shards=shards,
        grpc_port=grpc_port,
        rest_port=rest_port,
        features_grpc_port=features_grpc_port,
        features_rest_port=features_rest_port,
        redis_port=redis_port,
        kafka_port=kafka_port,
        redis_url=redis_url,
        kafka_bootstrap=kafka_bootstrap,
        torchserve=torchserve,
        warehouse=warehouse,
        env=dict(_setting(text) for text in set_ or []),
    )
    output = Output(json)
    stack = Stack(options, say=output.note)
    output.note(f"trine up: release {stack.release}; logs in {stack.logs}")
    _run(stack, output, live=not plain and not json and output.people.is_terminal)


def _setting(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name.startswith("TRINE_"):
        raise UsageError(f"--set {text}: need TRINE_<SERVICE>_<SETTING>=VALUE, e.g. TRINE_GATEWAY_DEADLINE_MS=80")
    return name, value


def _run(stack: Stack, output: Output, live: bool) -> None:
    """Start, show, wait for a signal, stop. A second signal kills everything at once."""
    signals = 0

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal signals
        signals += 1
        if signals == 1:
            raise KeyboardInterrupt
        stack.supervisor.kill()
        os._exit(_KILLED_BY_USER)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    view = _View(stack)
    began = time.monotonic()
    try:
        with view.shown_on(output) if live else nullcontext():
            stack.start()
            seconds = time.monotonic() - began
            output.note(f"ready after {seconds:.1f} s: gRPC {stack.grpc}, REST {stack.rest}; Ctrl-C stops")
            output.result({**stack.addresses(), "seconds": round(seconds, 1)})
            while True:
                time.sleep(3600)
    except KeyboardInterrupt:
        output.note("stopping: gateway first, then what it uses (once more Ctrl-C kills)")
        ready = all(component.ready.is_set() for component in stack.supervisor.components.values())
        if not ready:
            raise typer.Exit(_KILLED_BY_USER) from None
    finally:
        stack.close()
        output.note(f"stopped; logs stay in {stack.logs}")


class _View:
    """The live table, and the looks at the components that feed it."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._looks: dict[str, tuple[Sample, Sample]] = {}
        self._done = threading.Event()

    def shown_on(self, output: Output) -> _Shown:
        return _Shown(self, output)

    def watch(self) -> None:
        """Look at every component that has a metrics page, once a second, until `end`."""
        from trine_cli.local.figures import look
        from trine_cli.local.service import Service

        while not self._done.wait(_LOOK_EVERY_S):
            for name, component in self._stack.supervisor.components.items():
                server = component.server
                if isinstance(server, Service) and server.http_url and component.ready.is_set():
                    sample = look(server.http_url)
                    self._looks[name] = (self._looks[name][1] if name in self._looks else sample, sample)

    def end(self) -> None:
        self._done.set()

    def table(self) -> Table:
        from rich.table import Table

        from trine_cli.local.figures import words

        table = Table(show_edge=False, title=f"Trine · release {self._stack.release}", title_justify="left")
        for column in ("component", "state", "pid", "address", "now", "log"):
            table.add_column(column)
        for name, component in self._stack.supervisor.components.items():
            before, now = self._looks.get(name, (None, None))
            troubles = list(now.troubles) if now is not None else []
            figures = words(name, before, now) if before is not None and now is not None else ""
            notes = [note for note in (figures, component.note, *troubles) if note]
            if component.deaths:
                notes.append(f"died {component.deaths}x")
            log = component.server.log.name
            pid = str(component.server.pid or "")
            table.add_row(name, component.state, pid, component.server.address, " · ".join(notes), log)
        table.caption = f"logs: {self._stack.logs}"
        return table


class _Shown:
    """Context manager: the table on a terminal, refreshed four times a second."""

    def __init__(self, view: _View, output: Output) -> None:
        from rich.live import Live

        self._view = view
        self._live = Live(console=output.people, get_renderable=view.table, refresh_per_second=4)
        self._thread = threading.Thread(target=view.watch, name="figures", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()
        self._live.start()

    def __exit__(self, *exc: object) -> None:
        self._view.end()
        self._live.stop()
        self._thread.join()
