"""`trine` in the test's own process, as a person at a shell would run it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from trine_cli.main import main


@pytest.fixture
def trine(capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs `trine` with --json; (exit code, the JSON line or None, stderr)."""

    def run(*words: object) -> tuple[int, Any, str]:
        with pytest.raises(SystemExit) as exit_info:
            main([*(str(word) for word in words), "--json"])
        printed = capsys.readouterr()
        return int(exit_info.value.code or 0), json.loads(printed.out) if printed.out else None, printed.err

    return run
