"""Programs that are run for their output."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Mapping


class CommandFailed(AssertionError):
    """A program ended with an error; the text has its command line and the last of what it said."""


def run(*command: str, stdin: bytes | None = None, timeout_s: float = 120, env: Mapping[str, str] | None = None) -> str:
    """Its stdout. Raises CommandFailed, also where it takes longer."""
    return run_bytes(*command, stdin=stdin, timeout_s=timeout_s, env=env).decode(errors="replace")


def run_bytes(
    *command: str, stdin: bytes | None = None, timeout_s: float = 120, env: Mapping[str, str] | None = None
) -> bytes:
    """As `run`, for what is not text."""
    line = shlex.join(command)[:300]
    try:
        done = subprocess.run(command, input=stdin, capture_output=True, timeout=timeout_s, check=False, env=env)
    except subprocess.TimeoutExpired as expired:
        raise CommandFailed(f"{line}: not done after {timeout_s:g} s\n{_last(expired.stderr)}") from None
    if done.returncode:
        raise CommandFailed(f"{line}: exit code {done.returncode}\n{_last(done.stderr)}\n{_last(done.stdout)}")
    return done.stdout


def _last(output: bytes | None) -> str:
    return (output or b"").decode(errors="replace")[-4_000:].strip()
