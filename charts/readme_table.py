"""The table of values in charts/trine/README.md, made from the `# --` comments of values.yaml.

    python charts/readme_table.py            # writes it
    python charts/readme_table.py --check    # exit code 1 where it is not what the comments say

A comment belongs to the key below it. `pod`, which is the same for every component, stands there once.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import yaml

CHART = Path(__file__).parent / "trine"
BEGIN, END = "<!-- values: charts/readme_table.py -->\n", "<!-- end of values -->\n"
_KEY = re.compile(r"^(\s*)([A-Za-z][\w-]*):")
_COMMENT = re.compile(r"^\s*# -- (.*)$")


def rows(text: str) -> Iterator[tuple[str, str, str]]:
    """(key, default as JSON, description) of every described key, in order."""
    values = yaml.safe_load(text)
    path: list[tuple[int, str]] = []
    described = ""
    for line in text.splitlines():
        if comment := _COMMENT.match(line):
            described = comment[1]
        elif key := _KEY.match(line):
            indent = len(key[1])
            path = [(depth, name) for depth, name in path if depth < indent] + [(indent, key[2])]
            if described:
                names = [name for _, name in path]
                yield ".".join(names), json.dumps(_at(values, names)), described
            described = ""


def undescribed(text: str) -> list[str]:
    """Keys with a value of their own that no comment describes, nor one above them."""
    described = [key for key, _, _ in rows(text)]
    return [
        key for key in _leaves(yaml.safe_load(text)) if not any(key == d or key.startswith(d + ".") for d in described)
    ]


def table(text: str) -> str:
    """The table in Markdown."""
    lines = ["| value | default | what it does |", "|---|---|---|"]
    lines += [f"| `{key}` | `{default}` | {what.replace('|', chr(92) + '|')} |" for key, default, what in rows(text)]
    return "\n".join(lines) + "\n"


def with_table(readme: str, values: str) -> str:
    """The README with the table in its place."""
    before, rest = readme.split(BEGIN)
    return before + BEGIN + "\n" + table(values) + "\n" + END + rest.split(END)[1]


def _at(values: object, names: list[str]) -> object:
    for name in names:
        assert isinstance(values, dict)
        values = values[name]
    return values


def _leaves(values: dict[str, object], above: str = "") -> Iterator[str]:
    for name, value in values.items():
        if name == "pod" and above != "gateway.":
            continue
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{above}{name}.")
        else:
            yield above + name


def main() -> int:
    """Returns the exit code."""
    readme, values = CHART / "README.md", (CHART / "values.yaml").read_text()
    if missing := undescribed(values):
        print(f"values.yaml: no `# --` comment: {', '.join(missing)}", file=sys.stderr)
        return 1
    right = with_table(readme.read_text(), values)
    if "--check" in sys.argv[1:]:
        if right != readme.read_text():
            print(f"{readme}: its table is not of today: python charts/readme_table.py", file=sys.stderr)
            return 1
        return 0
    readme.write_text(right)
    return 0


if __name__ == "__main__":
    sys.exit(main())
