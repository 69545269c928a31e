"""Each kind of break is refused with a sentence that names it; additions pass once they are accepted."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[1] / "compatibility.py"
CONTRACT = """
syntax = "proto3";
package trine.test.v1;
import "google/protobuf/timestamp.proto";
message Event {
  string id = 1;
  int64 amount = 2;
  repeated float vector = 3;
  optional float score = 4;
  oneof outcome {
    string good = 5;
    string bad = 6;
  }
  google.protobuf.Timestamp time = 7;
  map<string, int64> counts = 8;
  enum Kind {
    KIND_UNSPECIFIED = 0;
    KIND_FIRST = 1;
  }
  Kind kind = 9;
}
message Other { string id = 1; }
service Reader {
  rpc Get(Other) returns (Event);
  rpc Watch(Other) returns (stream Event);
}
"""


Check = Callable[..., tuple[int, str]]


def script() -> ModuleType:
    """proto/compatibility.py, which stands outside of any package."""
    spec = spec_from_file_location("compatibility", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Check:
    """Runs the script on a contract's text, with a baseline of its own that is CONTRACT: exit code and stderr."""
    main = script().main
    folder = tmp_path / "trine" / "test" / "v1"
    folder.mkdir(parents=True)

    def run(text: str, *words: str) -> tuple[int, str]:
        (folder / "test.proto").write_text(text)
        code = main(["--protos", str(tmp_path), "--baseline", str(tmp_path / "baseline.json"), *words])
        return code, capsys.readouterr().err

    assert run(CONTRACT, "--accept") == (0, "")
    return run


BREAKS = {
    "field removed": ("  int64 amount = 2;\n", "", "Event: `int64 amount = 2` is gone"),
    "field reserved": ("int64 amount = 2;", "reserved 2;", "Event: `int64 amount = 2` is gone"),
    "field renumbered": ("amount = 2", "amount = 20", "Event: `int64 amount = 2` is now number 20"),
    "field retyped": ("int64 amount", "int32 amount", "`int64 amount = 2` has become `int32 amount = 2`"),
    "field renamed": ("int64 amount", "int64 sum", "`int64 amount = 2` has become `int64 sum = 2`"),
    "message type changed": ("google.protobuf.Timestamp time", "Other time", "has become `trine.test.v1.Other time"),
    "repeated to single": ("repeated float vector", "float vector", "`repeated float vector = 3` has become"),
    "single to repeated": ("int64 amount", "repeated int64 amount", "has become `repeated int64 amount = 2`"),
    "presence lost": ("optional float score", "float score", "`optional float score = 4` has become `float score = 4`"),
    "packing changed": ("vector = 3", "vector = 3 [packed = false]", "has become `unpacked repeated float vector"),
    "oneof renamed": ("oneof outcome", "oneof result", "`oneof outcome: string good = 5` has become `oneof result"),
    "out of the oneof": ("    string bad = 6;\n  }", "  }\n  string bad = 6;", "has become `string bad = 6`"),
    "map value retyped": ("map<string, int64>", "map<string, int32>", "CountsEntry: `int64 value = 2` has become"),
    "enum value removed": ("    KIND_FIRST = 1;\n", "", "Event.Kind: `KIND_FIRST = 1` is gone"),
    "enum value renumbered": ("KIND_FIRST = 1", "KIND_FIRST = 2", "Event.Kind: `KIND_FIRST = 1` is now number 2"),
    "enum value renamed": ("KIND_FIRST", "KIND_ONE", "`KIND_FIRST = 1` has become `KIND_ONE = 1`"),
    "rpc removed": ("  rpc Get(Other) returns (Event);\n", "", "Reader: rpc Get(trine.test.v1.Other) returns"),
    "rpc response changed": (
        "Get(Other) returns (Event)",
        "Get(Other) returns (Other)",
        "rpc Get(trine.test.v1.Other)",
    ),
    "rpc no longer streams": ("returns (stream Event)", "returns (Event)", "rpc Watch(trine.test.v1.Other) returns (s"),
    "rpc streams requests": ("Get(Other)", "Get(stream Other)", "has become rpc Get(stream trine.test.v1.Other)"),
    "package renamed": ("package trine.test.v1", "package trine.test.v2", "trine.test.v1.Event is gone"),
}


@pytest.mark.parametrize("words", [[], ["--accept"]], ids=["lint", "accept"])
@pytest.mark.parametrize("name", BREAKS)
def test_a_break_is_refused_and_named(check: Check, tmp_path: Path, name: str, words: list[str]) -> None:
    old, new, sentence = BREAKS[name]
    assert old in CONTRACT
    baseline = (tmp_path / "baseline.json").read_text()
    code, message = check(CONTRACT.replace(old, new), *words)
    assert code == 1
    assert sentence in message
    assert (tmp_path / "baseline.json").read_text() == baseline


def test_the_same_contract_passes_and_comments_and_order_do_not_matter(check: Check) -> None:
    assert check(CONTRACT) == (0, "")
    swapped = CONTRACT.replace(
        "  string id = 1;\n  int64 amount = 2;", "  int64 amount = 2; // minor\n  string id = 1;"
    )
    assert swapped != CONTRACT
    assert check(swapped) == (0, "")


def test_additions_pass_once_accepted_and_are_kept_from_then_on(check: Check) -> None:
    added = CONTRACT.replace("Kind kind = 9;", "Kind kind = 9;\n  bytes raw = 10;").replace(
        "KIND_FIRST = 1;", "KIND_FIRST = 1;\n    KIND_SECOND = 2;"
    )
    code, message = check(added)
    assert code == 1
    assert "`bytes raw = 10`" in message
    assert "`KIND_SECOND = 2`" in message
    assert check(added, "--accept") == (0, "")
    assert check(added) == (0, "")
    code, message = check(CONTRACT)
    assert code == 1
    assert "`bytes raw = 10` is gone" in message


def test_a_single_field_may_gain_presence_and_keeps_it(check: Check) -> None:
    gained = CONTRACT.replace("int64 amount", "optional int64 amount")
    code, message = check(gained)
    assert (code, "`optional int64 amount = 2`" in message) == (1, True)
    assert check(gained, "--accept") == (0, "")
    assert check(gained) == (0, "")
    code, message = check(CONTRACT, "--accept")
    assert (code, "has become `int64 amount = 2`" in message) == (1, True)


def test_a_missing_baseline_is_an_error(check: Check, tmp_path: Path) -> None:
    (tmp_path / "baseline.json").unlink()
    code, message = check(CONTRACT)
    assert code == 1
    assert "baseline.json is missing" in message


def test_the_committed_baseline_is_the_contract(capsys: pytest.CaptureFixture[str]) -> None:
    assert (script().main([]), capsys.readouterr().err) == (0, "")
    messages = json.loads((SCRIPT.parent / "baseline.json").read_text())["messages"]
    assert messages["trine.events.v1.Transaction"]["5"] == "optional int64 amount"
