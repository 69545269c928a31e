"""Refuses a change of a contract that an existing reader or client would misread. Run by `make lint`.

    python proto/compatibility.py            compare proto/trine with proto/baseline.json; exit 1 on any difference
    python proto/compatibility.py --accept   write additions into the baseline; still refuses what breaks

What breaks: a field, enum value, message, enum or rpc that goes; a number, name, type or cardinality (optional,
repeated, oneof) that changes; an rpc whose request, response or streaming changes. A single field may become optional:
on the wire it is the same, and an older reader takes a missing one for 0 as it always did. A contract that must break
gets a new package (`trine.<area>.v2`) beside the old one.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path

from google.protobuf.descriptor_pb2 import DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorSet
from grpc_tools import protoc  # type: ignore[import-untyped]

HERE = Path(__file__).parent
# Kind of thing -> its full name -> its number or name -> what it is. Plain strings, so that the file reads well.
Contract = dict[str, dict[str, dict[str, str]]]
_Field = FieldDescriptorProto


def contract(root: Path) -> Contract:
    """The contract in the .proto files below `root`/trine. Exits as protoc does where they do not compile."""
    sources = sorted(str(path.relative_to(root)) for path in (root / "trine").rglob("*.proto"))
    with tempfile.TemporaryDirectory() as work:
        out = Path(work) / "descriptors"
        well_known = files("grpc_tools") / "_proto"
        status = protoc.main(["protoc", f"-I{root}", f"-I{well_known}", f"--descriptor_set_out={out}", *sources])
        if status != 0:
            sys.exit(status)
        descriptors = FileDescriptorSet.FromString(out.read_bytes())
    found: Contract = {"messages": {}, "enums": {}, "services": {}}
    for file in descriptors.file:
        for message in file.message_type:
            _add_message(found, file.package, message)
        for enum in file.enum_type:
            _add_enum(found, file.package, enum)
        for service in file.service:
            found["services"][f"{file.package}.{service.name}"] = {
                method.name: f"({'stream ' * method.client_streaming}{method.input_type[1:]}) returns "
                f"({'stream ' * method.server_streaming}{method.output_type[1:]})"
                for method in service.method
            }
    return found


def breaks(before: Contract, after: Contract) -> Iterator[str]:
    """One sentence for each part of `before` that `after` does not have as it was."""
    for kind, owner, key, was in _parts(before):
        members = after[kind].get(owner)
        now = None if members is None else members.get(key, None)
        if members is None:
            yield f"{owner} is gone"
        elif now is None:
            moved = [other for other, text in members.items() if text == was]
            yield f"{owner}: {_label(kind, key, was)} {f'is now number {moved[0]}' if moved else 'is gone'}"
        elif now not in (was, _with_presence(was)):
            yield f"{owner}: {_label(kind, key, was)} has become {_label(kind, key, now)}"


def additions(before: Contract, after: Contract) -> Iterator[str]:
    """One line for each part of `after` that `before` does not know."""
    for kind, owner, key, now in _parts(after):
        if before[kind].get(owner, {}).get(key) != now:
            yield f"{owner}: {_label(kind, key, now)}"


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 0 where contract and baseline agree (or additions were accepted)."""
    parser = argparse.ArgumentParser(description="Refuse contract changes that break readers.")
    parser.add_argument("--accept", action="store_true", help="write additions into the baseline")
    parser.add_argument("--protos", type=Path, default=HERE, help="folder that holds trine/")
    parser.add_argument("--baseline", type=Path, default=HERE / "baseline.json")
    options = parser.parse_args(arguments)
    after = contract(options.protos)
    before = after
    if options.baseline.exists():
        before = json.loads(options.baseline.read_text())
    elif not options.accept:
        print(f"proto: {options.baseline} is missing; --accept writes it", file=sys.stderr)
        return 1
    if broken := list(dict.fromkeys(breaks(before, after))):
        print("proto: this change breaks existing readers; use a new field or a new package version:", file=sys.stderr)
        print("".join(f"  {line}\n" for line in broken), file=sys.stderr, end="")
        return 1
    if options.accept:
        options.baseline.write_text(json.dumps(after, indent=1, sort_keys=False) + "\n")
        return 0
    if added := list(additions(before, after)):
        print("proto: additions that the baseline does not know yet; to keep them, run", file=sys.stderr)
        print("  python proto/compatibility.py --accept", file=sys.stderr)
        print("".join(f"  {line}\n" for line in added), file=sys.stderr, end="")
        return 1
    return 0


def _parts(of: Mapping[str, Mapping[str, Mapping[str, str]]]) -> Iterator[tuple[str, str, str, str]]:
    for kind, owners in of.items():
        for owner, members in owners.items():
            for key, text in members.items():
                yield kind, owner, key, text


def _with_presence(field: str) -> str:
    return f"optional {field}"


def _label(kind: str, key: str, text: str) -> str:
    return f"rpc {key}{text}" if kind == "services" else f"`{text} = {key}`"


def _add_message(found: Contract, scope: str, message: DescriptorProto) -> None:
    name = f"{scope}.{message.name}"
    found["messages"][name] = {str(field.number): _field(message, field) for field in message.field}
    for nested in message.nested_type:
        _add_message(found, name, nested)
    for enum in message.enum_type:
        _add_enum(found, name, enum)


def _add_enum(found: Contract, scope: str, enum: EnumDescriptorProto) -> None:
    found["enums"][f"{scope}.{enum.name}"] = {str(value.number): value.name for value in enum.value}


def _field(message: DescriptorProto, field: FieldDescriptorProto) -> str:
    """As one would write it: `repeated float vector`, `oneof outcome: trine...ItemError error`."""
    kind = field.type_name[1:] or _Field.Type.Name(field.type).removeprefix("TYPE_").lower()
    if field.label == _Field.LABEL_REPEATED:
        kind = f"repeated {kind}"
    elif field.proto3_optional:
        kind = f"optional {kind}"
    elif field.HasField("oneof_index"):
        kind = f"oneof {message.oneof_decl[field.oneof_index].name}: {kind}"
    if field.options.HasField("packed") and not field.options.packed:
        kind = f"unpacked {kind}"
    return f"{kind} {field.name}"


if __name__ == "__main__":
    sys.exit(main())
