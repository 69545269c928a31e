"""The table of contents: lazily mounted commands, exit codes, the --json convention."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys

import pytest
from trine_cli import errors
from trine_cli.commands import data
from trine_cli.main import COMMANDS, build, main
from trine_cli.main import run as call
from trine_cli.output import Output


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "trine_cli.main", *arguments], capture_output=True, text=True, check=False
    )


def test_help_lists_the_installed_commands_and_imports_none_of_them() -> None:
    code = (
        "import sys\nfrom trine_cli.main import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "print([m for m in sys.modules if m.startswith(('trine_cli.commands.', 'torch', 'pyarrow', 'pyspark'))])"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.splitlines()[-1] == "[]"
    assert "data" in printed


def test_a_command_that_is_not_installed_breaks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trine_cli.main.COMMANDS", (*COMMANDS, ("nowhere", "9 · Elsewhere", "Not there.")))
    names = [command.name for command in build("nowhere").registered_commands]
    assert "nowhere" not in names
    assert "data" in names


def test_wrong_usage_exits_2() -> None:
    assert run("no-such-command").returncode == 2
    assert run("data", "generate", "--no-such-option").returncode == 2


@pytest.mark.parametrize("name", errors.EXIT_CODES)
def test_the_errors_in_the_table_exist(name: str) -> None:
    module, _, kind = name.rpartition(".")
    # The Kafka client's C module calls itself cimpl and cannot be imported by that name.
    found = getattr(importlib.import_module({"cimpl": "confluent_kafka"}.get(module, module)), kind)
    assert errors.exit_code(found.__new__(found)) == errors.EXIT_CODES[name]


class _Derived(ConnectionRefusedError):
    pass


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.UsageError("x"), 2),
        (errors.BadInput("x"), 3),
        (errors.Unavailable("x"), 4),
        (_Derived("x"), 4),
        (ZeroDivisionError("x"), 1),
    ],
)
def test_what_a_command_raises_becomes_an_exit_code_and_a_message(
    error: Exception, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails() -> None:
        raise error

    monkeypatch.delattr(data, "app")
    monkeypatch.setattr(data, "command", fails, raising=False)
    with pytest.raises(SystemExit) as exit_info:
        main(["data"])
    assert exit_info.value.code == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.rstrip().endswith("x")
    assert ("Traceback" in printed.err) == (code == 1)


def test_a_library_that_the_operators_image_leaves_out_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    def program() -> None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    with pytest.raises(SystemExit) as ended:
        call(program)
    assert ended.value.code == errors.UNAVAILABLE
    assert "torch" in capsys.readouterr().err


def test_json_keeps_stdout_to_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    out = Output(json=True)
    out.note("for [people]")
    out.table("Figures", ["what", "n"], [["rows", 3]])
    with out.progress("Working", total=2) as advance:
        advance(2)
    out.result({"rows": 3})
    printed = capsys.readouterr()
    assert [json.loads(line) for line in printed.out.splitlines()] == [{"rows": 3}]
    assert "for [people]" in printed.err
    assert "Figures" in printed.err


def test_without_json_tables_go_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    out = Output()
    out.table("Figures", ["what", "n"], [["rows", 3]])
    out.result({"rows": 3})
    printed = capsys.readouterr()
    assert "rows" in printed.out
    assert "{" not in printed.out
