"""The images under test, built and loaded where they are missing: their tag is a hash of what they are made from."""

from __future__ import annotations

import hashlib
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from trine_k8s.cluster import Cluster
from trine_k8s.commands import CommandFailed, run

ROOT = Path(__file__).parents[2]
_RELEASES = "releases"
NAMES = ("inference-gateway", "stream-worker", "feature-store", "torchserve", "batch-scorer")
_PARTS = ("proto", "services", "models", "cli", "deploy/packages.py", "pyproject.toml", "constraints.txt")
_BUILD_S, _LOAD_S = 3_600, 1_800


@dataclass(frozen=True, slots=True)
class Images:
    """`tag` of the services' images; `releases`: full name of the image that carries them."""

    tag: str
    releases: str


def built_and_loaded(cluster: Cluster, releases: Path) -> Images:
    """The services' images and that of `releases`, on all nodes of a kind cluster.

    Nothing is built where TAG and RELEASES_IMAGE name images that are there or can be pulled; another cluster needs
    them. Raises CommandFailed where an image cannot be built or loaded.
    """
    given, carrying = os.environ.get("TAG"), os.environ.get("RELEASES_IMAGE")
    if given and carrying:
        return Images(given, carrying)
    if not cluster.kind:
        raise CommandFailed("not a kind cluster: TAG and RELEASES_IMAGE must name images that it can pull")
    tag = f"test-{_hash(_sources())}"
    _make(cluster, NAMES, tag)
    carried = f"test-{_hash(_files(releases), _sources_of_releases())}"
    _make(cluster, (_RELEASES,), carried, releases)
    return Images(tag, f"trine/{_RELEASES}:{carried}")


def releases_image(cluster: Cluster, releases: Path) -> str:
    """Full name of an image that carries these releases, on all nodes of a kind cluster."""
    return built_and_loaded(cluster, releases).releases


def _make(cluster: Cluster, names: tuple[str, ...], tag: str, releases: Path | None = None) -> None:
    make = ("make", "-C", str(ROOT), "--no-print-directory")
    missing = " ".join(name for name in names if not _exists(f"trine/{name}:{tag}"))
    if missing:
        folder = (f"RELEASES={releases}",) if releases else ()
        run(*make, "images", f"TAG={tag}", f"IMAGES={missing}", *folder, timeout_s=_BUILD_S)
    there = _on_nodes(cluster)
    if missing := " ".join(name for name in names if f"docker.io/trine/{name}:{tag}" not in there):
        run(*make, "kind-load", f"TAG={tag}", f"IMAGES={missing}", f"CLUSTER={cluster.kind}", timeout_s=_LOAD_S)


def _on_nodes(cluster: Cluster) -> set[str]:
    """Full names of what every node has."""
    nodes = run("kind", "get", "nodes", "--name", cluster.kind).split()
    lists = [run("docker", "exec", node, "ctr", "-n", "k8s.io", "images", "ls", "-q").split() for node in nodes]
    return set.intersection(*map(set, lists)) if lists else set()


def _exists(image: str) -> bool:
    return not subprocess.run(("docker", "image", "inspect", image), capture_output=True, check=False).returncode


def _sources() -> bytes:
    """Digest of everything that the services' images may be made from."""
    listed = run("git", "-C", str(ROOT), "ls-files", "-z", "-co", "--exclude-standard", "--", *_PARTS).split("\0")
    return _digest([ROOT / name for name in listed if name and "/tests/" not in name and not name.endswith(".md")])


def _sources_of_releases() -> bytes:
    return _digest(sorted((ROOT / "models").glob("releases*")))


def _files(folder: Path) -> bytes:
    return _digest([path for path in folder.rglob("*")])


def _digest(files: list[Path]) -> bytes:
    found = hashlib.sha256()
    for path in sorted(files):
        if path.is_file():
            found.update(str(path).encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return found.digest()


def _hash(*digests: bytes) -> str:
    return hashlib.sha256(b"".join(digests)).hexdigest()[:12]
