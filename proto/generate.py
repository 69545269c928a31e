"""Generate Python code and type stubs from every trine.*.v1 contract into proto/gen (never committed)."""

from __future__ import annotations

import os
import shutil
import sys
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc  # type: ignore[import-untyped]

HERE = Path(__file__).parent
_KINDS = ("python", "grpc_python", "mypy", "mypy_grpc")


def generate(out: Path) -> None:
    """Write `*_pb2.py`, `*_pb2_grpc.py` and their stubs for all contracts below proto/trine into `out`."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    # protoc finds its mypy plugins on PATH; they live beside this interpreter.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    sources = sorted(str(p.relative_to(HERE)) for p in (HERE / "trine").rglob("*.proto"))
    well_known = str(files("grpc_tools") / "_proto")
    status = protoc.main(
        ["protoc", f"-I{HERE}", f"-I{well_known}", *(f"--{kind}_out={out}" for kind in _KINDS), *sources]
    )
    if status != 0:
        sys.exit(status)


if __name__ == "__main__":
    generate(HERE / "gen")
