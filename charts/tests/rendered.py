"""A chart's objects: rendered by helm, found by kind and name."""

from __future__ import annotations

import functools
import json
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).parents[1] / "trine"
VALUES = Path(__file__).parent / "values"
#: The oldest Kubernetes that the chart takes, and the one it is tried on.
KUBERNETES = ("1.29", "1.34")
Object = dict[str, Any]  # YAML


class HelmRefused(Exception):
    """helm's own words."""


class Chart:
    """The objects of one rendering. `chart`: a folder or a package."""

    def __init__(
        self,
        values: Mapping[str, Any] | None = None,
        *,
        files: tuple[str, ...] = (),
        release: str = "trine",
        chart: Path = CHART,
        kubernetes: str = KUBERNETES[-1],
    ) -> None:
        command = ["helm", "template", release, str(chart), "--namespace", "here", "--kube-version", kubernetes]
        for name in files:
            command += ["--values", str(VALUES / f"{name}.yaml")]
        text = _template(tuple(command), json.dumps(values or {}))
        self.objects: list[Object] = [one for one in yaml.load_all(text, yaml.CSafeLoader) if one]

    def all(self, *kinds: str) -> list[Object]:
        return [one for one in self.objects if one["kind"] in kinds]

    def get(self, kind: str, name: str) -> Object:
        found = [one for one in self.all(kind) if one["metadata"]["name"] == name]
        assert len(found) == 1, f"{len(found)} of {kind} {name}; there are {self.names(kind)}"
        return found[0]

    def names(self, kind: str) -> list[str]:
        return sorted(one["metadata"]["name"] for one in self.all(kind))

    def pods(self) -> Iterator[tuple[str, Object]]:
        """(name of what makes them, pod as metadata and spec) of every pod, Spark's executors included."""
        for one in self.all("Deployment", "StatefulSet", "Job"):
            yield one["metadata"]["name"], one["spec"]["template"]
        for one in self.all("CronJob"):
            yield one["metadata"]["name"], one["spec"]["jobTemplate"]["spec"]["template"]
        for one in self.all("Pod"):
            yield one["metadata"]["name"], one
        for one in self.all("ConfigMap"):
            if "pod.yaml" in one["data"]:
                yield f"{one['metadata']['name']}/executor", yaml.safe_load(one["data"]["pod.yaml"])

    def pod(self, name: str) -> Object:
        return dict(self.pods())[name]


@functools.cache
def _template(command: tuple[str, ...], values: str) -> str:
    run = subprocess.run([*command, "--values", "-"], input=values, capture_output=True, text=True, check=False)
    if run.returncode != 0:
        raise HelmRefused(run.stderr)
    return run.stdout


def containers(pod: Object) -> list[Object]:
    """All of a pod, init containers first."""
    return [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]


def environment(pod: Object, container: str) -> dict[str, Any]:
    """Name → value, or where it comes from."""
    found = next(one for one in containers(pod) if one["name"] == container)
    return {one["name"]: one.get("value", one.get("valueFrom")) for one in found.get("env", [])}
