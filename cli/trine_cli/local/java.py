"""The Java that Kafka, TorchServe and Ivy run on."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from trine_cli.local.errors import MissingProgram


def java_program() -> str:
    """Path of `java`: of JAVA_HOME where set, else of PATH. Raises MissingProgram."""
    home = os.environ.get("JAVA_HOME")
    path = shutil.which(str(Path(home) / "bin" / "java")) if home else shutil.which("java")
    if path is None:
        raise MissingProgram(f"no java found ({'JAVA_HOME=' + home if home else 'on PATH'}): install a JDK 17 or newer")
    return path
