"""Trine's images: build them, load them into a kind cluster.

    python deploy/images.py build [--tag TAG] [--releases FOLDER] [NAME …]
    python deploy/images.py kind-load [--tag TAG] [--cluster NAME] [NAME …]

Names are those of `IMAGES`, all without one; `releases` needs a folder of releases. The tag is the chart's appVersion
unless given. PIP_EXTRA_INDEX_URL in the environment is handed to the builds: PyTorch's index of CPU builds keeps CUDA
out of the images that hold torch. Needs docker (and kind); of Python the standard library only.

Exit codes: 0 done, 2 wrong usage, 4 docker or kind refused.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
#: Image trine/<name> and its Dockerfile; context is the root. Those that share layers stand side by side.
IMAGES = {
    "inference-gateway": "services/inference-gateway/Dockerfile",
    "stream-worker": "services/stream-worker/Dockerfile",
    "feature-store": "services/feature-store/Dockerfile",
    "torchserve": "models/torchserve/Dockerfile",
    "batch-scorer": "services/batch-scorer/Dockerfile",
}
#: Its context is a folder of releases.
RELEASES, RELEASES_DOCKERFILE = "releases", "models/releases.Dockerfile"
#: What the chart's embedded parts run.
EMBEDDED = ("redis:7", "apache/kafka:4.1.0", "prom/prometheus:v2.42.0")
_UNAVAILABLE = 4


def default_tag() -> str:
    """The chart's appVersion; `dev` where there is no chart."""
    chart = ROOT / "charts" / "trine" / "Chart.yaml"
    found = re.search(r'^appVersion:\s*"?([\w.+-]+)', chart.read_text(), re.MULTILINE) if chart.is_file() else None
    return found[1] if found else "dev"


def build(names: Sequence[str], tag: str, releases: Path | None) -> dict[str, dict[str, float]]:
    """Builds the images; returns seconds and megabytes of each. Ends the process where docker refuses."""
    found = {}
    for name in names:
        began = time.monotonic()
        context, dockerfile = (ROOT, IMAGES[name]) if name != RELEASES else (releases, RELEASES_DOCKERFILE)
        arguments = ["-f", str(ROOT / dockerfile), "-t", f"trine/{name}:{tag}"]
        arguments += ["--build-arg", f"VERSION={tag}", "--build-arg", f"REVISION={_revision()}"]
        if name != RELEASES and (index := os.environ.get("PIP_EXTRA_INDEX_URL")):
            arguments += ["--build-arg", f"PIP_EXTRA_INDEX_URL={index}"]
        print(f"images: trine/{name}:{tag}", file=sys.stderr)
        _run(["docker", "build", "-q", *arguments, str(context)], {"DOCKER_BUILDKIT": "1"})
        size = _run(["docker", "image", "inspect", "-f", "{{.Size}}", f"trine/{name}:{tag}"])
        found[name] = {"seconds": round(time.monotonic() - began, 1), "megabytes": round(int(size) / 1e6)}
    return found


def kind_load(names: Sequence[str], tag: str, cluster: str) -> list[str]:
    """Loads the images into every node of a kind cluster, in one go, since they share layers; returns which.

    With them those of the chart's embedded parts that are on this machine: nodes pull the others. Ends the process
    where kind refuses.
    """
    here = subprocess.run(
        ["docker", "image", "inspect", *EMBEDDED, "-f", "{{index .RepoTags 0}}"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.split()
    wanted = [*(f"trine/{name}:{tag}" for name in names), *here]
    print(f"images: {' '.join(wanted)} into {cluster}", file=sys.stderr)
    _run(["kind", "load", "docker-image", "--name", cluster, *wanted])
    return wanted


def _revision() -> str:
    git = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return git.stdout.strip() or "unknown"


def _run(command: list[str], env: dict[str, str] | None = None) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | (env or {}))
    except FileNotFoundError:
        print(f"images: no {command[0]} on PATH", file=sys.stderr)
        sys.exit(_UNAVAILABLE)
    if done.returncode != 0:
        print(f"images: {' '.join(command)}\n{done.stdout}{done.stderr}", file=sys.stderr)
        sys.exit(_UNAVAILABLE)
    return done.stdout.strip()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="images", description="Trine's images: build, load into kind.")
    parser.add_argument("what", choices=["build", "kind-load"])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join([*IMAGES, RELEASES])}")
    parser.add_argument("--tag", default="", help="default: the chart's appVersion")
    parser.add_argument("--releases", type=Path, help="folder of releases for the image `releases`")
    parser.add_argument("--cluster", default="kind", help="name of the kind cluster")
    parser.add_argument("--json", action="store_true", help="one line of JSON on stdout")
    options = parser.parse_intermixed_args(arguments)
    tag = options.tag or default_tag()
    names = options.names or [*IMAGES, *([RELEASES] if options.releases or options.what == "kind-load" else [])]
    if unknown := [name for name in names if name not in IMAGES and name != RELEASES]:
        parser.error(f"no image {', '.join(unknown)}; there are {', '.join([*IMAGES, RELEASES])}")
    if options.what == "kind-load":
        loaded = kind_load(names, tag, options.cluster)
        result: dict[str, object] = {"tag": tag, "cluster": options.cluster, "loaded": loaded}
    else:
        if RELEASES in names and not (options.releases and any(options.releases.glob("*/manifest.json"))):
            parser.error(f"--releases: no release in {options.releases}; `trine train` makes one")
        built = build(names, tag, options.releases)
        result = {"tag": tag, "images": built}
        for name, found in built.items():
            print(f"trine/{name}:{tag}\t{found['megabytes']:,.0f} MB\t{found['seconds']} s", file=sys.stderr)
    if options.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
