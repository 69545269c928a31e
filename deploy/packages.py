"""What a package of this repository is installed with, read from the pyproject.toml files: images are built by it.

    python deploy/packages.py folders 'services/batch-scorer[jobs]'   # this and the packages here that it needs
    python deploy/packages.py needed  'services/batch-scorer[jobs]'   # what all of them need from elsewhere

Both one a line, sorted. Only Python's standard library, since it runs before anything is installed.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_NAME = re.compile(r"([A-Za-z0-9_./-]+)(?:\[([^\]]*)\])?")


def closure(wanted: list[str], root: Path = ROOT) -> tuple[list[str], list[str]]:
    """(folders of this repository, requirements from elsewhere) of folders given as `folder` or `folder[extra,extra]`.

    Raises SystemExit: a folder has no pyproject.toml, or not such an extra.
    """
    here = {project["name"]: folder for folder, project in _projects(root)}
    projects = {folder: project for folder, project in _projects(root)}
    todo = [_parsed(one) for one in wanted]
    seen: set[tuple[str, str]] = set()
    needed: set[str] = set()
    while todo:
        folder, extras = todo.pop()
        if folder not in projects:
            sys.exit(f"packages: {folder}: has no pyproject.toml; there are {', '.join(sorted(projects))}")
        project = projects[folder]
        for extra in ("", *extras):
            if (folder, extra) in seen:
                continue
            seen.add((folder, extra))
            optional = project.get("optional-dependencies", {})
            if extra and extra not in optional:
                sys.exit(f"packages: {folder}: has no extra {extra!r}; there are {', '.join(sorted(optional))}")
            for requirement in optional[extra] if extra else project.get("dependencies", []):
                name, more = _parsed(requirement)
                if name in here:
                    todo.append((here[name], more))
                else:
                    needed.add(requirement)
    return sorted({folder for folder, _ in seen}), sorted(needed)


def _projects(root: Path) -> Iterator[tuple[str, dict]]:  # type: ignore[type-arg]  # TOML
    for file in [
        root / "pyproject.toml",
        *sorted(root.glob("*/pyproject.toml")),
        *sorted(root.glob("services/*/pyproject.toml")),
    ]:
        if file.is_file():
            yield str(file.parent.relative_to(root)), tomllib.loads(file.read_text())["project"]


def _parsed(requirement: str) -> tuple[str, tuple[str, ...]]:
    match = _NAME.match(requirement)
    assert match is not None, requirement
    return match[1].rstrip("/"), tuple(extra.strip() for extra in (match[2] or "").split(",") if extra.strip())


if __name__ == "__main__":
    what, wanted = sys.argv[1], sys.argv[2:]
    folders, needed = closure(wanted)
    print("\n".join(needed if what == "needed" else [f"./{folder}" for folder in folders]))
