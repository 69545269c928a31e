"""The chart installed in a namespace as one helm release, and what the tests do with its parts."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from kubernetes import client

from trine_k8s.commands import run
from trine_k8s.images import ROOT, Images
from trine_k8s.namespace import Namespace
from trine_k8s.polling import eventually

CHART = ROOT / "charts" / "trine"
VALUES = Path(__file__).parents[1] / "values.yaml"
INSTALL_S = 900

Values = dict[str, Any]


@dataclass(slots=True)
class Installation:
    """`values` go on top of k8s-tests/values.yaml, `before`: those before the last upgrade; `touched`: the components
    that a failed test shows the logs of."""

    namespace: Namespace
    images: Images
    values: Values = field(default_factory=dict)
    chart: Path = CHART
    name: str = "trine"
    before: Values = field(default_factory=dict)
    touched: set[str] = field(default_factory=set)

    def install(self) -> None:
        """Until everything is ready. Raises CommandFailed."""
        self._helm("install", self.name, str(self.chart), *self._settings(), "--wait", "--timeout", f"{INSTALL_S}s")

    def upgrade(self, values: Values | None = None, chart: Path | None = None, wait: bool = True) -> None:
        """With these values on top of those it had, which stay."""
        self.before, self.values = self.values, merged(self.values, values or {})
        self.chart = chart or self.chart
        waiting = ("--wait", "--timeout", f"{INSTALL_S}s") if wait else ()
        self._helm("upgrade", self.name, str(self.chart), *self._settings(), *waiting)

    def restore(self, values: Values) -> None:
        """With these values and no others, where it has others."""
        if self.values != values:
            self.values = {}
            self.upgrade(values)

    def rollback(self) -> None:
        """To the revision before, and to its values."""
        self._helm("rollback", self.name, "--wait", "--timeout", f"{INSTALL_S}s")
        self.values = self.before

    def test(self) -> str:
        """`helm test`; what it printed."""
        return self._helm("test", self.name, "--timeout", "300s")

    def uninstall(self) -> None:
        self._helm("uninstall", self.name, "--wait", "--timeout", "300s")

    def _settings(self) -> tuple[str, ...]:
        repository, _, tag = self.images.releases.rpartition(":")
        own: Values = {
            "image": {"tag": self.images.tag, "pullPolicy": "IfNotPresent"},
            "releases": {"image": {"repository": repository, "tag": tag}},
        }
        given = json.dumps(merged(own, self.values))
        path = Path(self._file())
        path.write_text(given)
        return "--values", str(VALUES), "--values", str(path)

    def _file(self) -> str:
        folder = ROOT / ".run" / "k8s-tests"
        folder.mkdir(parents=True, exist_ok=True)
        return str(folder / f"{self.namespace.name}.json")

    def _helm(self, *command: str) -> str:
        return run("helm", "-n", self.namespace.name, *command, timeout_s=INSTALL_S + 60)

    def selector(self, component: str) -> str:
        """Notes that the test touches it."""
        self.touched.add(component)
        return f"app.kubernetes.io/instance={self.name},app.kubernetes.io/component={component}"

    def pods(self, component: str) -> list[Any]:
        return self.namespace.pods(self.selector(component))

    def workload(self, component: str) -> Any:
        """Its Deployment or StatefulSet."""
        apps, selector = self.namespace.apps, self.selector(component)
        deployments = apps.list_namespaced_deployment(self.namespace.name, label_selector=selector).items
        sets = apps.list_namespaced_stateful_set(self.namespace.name, label_selector=selector).items
        found = [*deployments, *sets]
        assert len(found) == 1, f"{len(found)} workloads of {component}"
        return found[0]

    def scale(self, component: str, replicas: int) -> None:
        """Does not wait."""
        found = self.workload(component)
        kind = "deployment" if isinstance(found, client.V1Deployment) else "statefulset"
        run("kubectl", "-n", self.namespace.name, "scale", kind, found.metadata.name, f"--replicas={replicas}")

    def restart(self, component: str) -> None:
        """`kubectl rollout restart`, and until it is done."""
        found = self.workload(component)
        kind = "deployment" if isinstance(found, client.V1Deployment) else "statefulset"
        kubectl = ("kubectl", "-n", self.namespace.name, "rollout")
        run(*kubectl, "restart", kind, found.metadata.name)
        run(*kubectl, "status", kind, found.metadata.name, f"--timeout={INSTALL_S}s", timeout_s=INSTALL_S + 30)

    def ready(self, component: str) -> bool:
        """All replicas that are wanted are there, new and ready."""
        found = self.workload(component)
        status, wanted = found.status, found.spec.replicas
        return bool(
            (status.observed_generation or 0) >= found.metadata.generation
            and (status.ready_replicas or 0) == (status.updated_replicas or 0) == wanted == (status.replicas or 0)
        )

    def await_gone(self, pod: Any, timeout_s: float = 120) -> None:
        """Until this very pod is not there any more, whatever came in its place."""

        def gone() -> bool:
            found = self.namespace.core.list_namespaced_pod(self.namespace.name).items
            return all(p.metadata.uid != pod.metadata.uid for p in found)

        eventually(f"{pod.metadata.name} gone", gone, timeout_s)

    def await_settled(self, timeout_s: float = 180) -> None:
        """Until no pod is on its way out any more."""

        def settled() -> bool:
            label = f"app.kubernetes.io/instance={self.name}"
            found = self.namespace.core.list_namespaced_pod(self.namespace.name, label_selector=label).items
            return all(pod.metadata.deletion_timestamp is None for pod in found)

        eventually("no pod on its way out", settled, timeout_s)

    def await_ready(self, *components: str, timeout_s: float = 300) -> None:
        for component in components:
            eventually(f"{component} ready", lambda c=component: self.ready(c), timeout_s)  # type: ignore[misc]


class NewInstallation(Protocol):
    """Makes an Installation of the test's namespace, not installed yet; keyword arguments are its fields."""

    def __call__(self, **options: Any) -> Installation: ...  # options of a constructor, checked by it


def merged(below: Values, above: Values) -> Values:
    """Values as helm merges them."""
    found = dict(below)
    for name, value in above.items():
        under = found.get(name)
        found[name] = merged(under, value) if isinstance(under, dict) and isinstance(value, dict) else value
    return found
