"""From outside the cluster to a component: by a NodePort where nodes can be reached, else by `kubectl port-forward`.

The Service is the test's own and goes with the namespace; it balances connections over ready pods as any Service.
"""

from __future__ import annotations

import re
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from trine_k8s.installation import Installation
from trine_k8s.polling import eventually


def node_port(installation: Installation, component: str, port: int) -> str | None:
    """HOST:PORT on a node; None where nodes cannot be reached from here."""
    namespace, name = installation.namespace, f"outside-{component}-{port}"
    services = namespace.core.list_namespaced_service(namespace.name).items
    found: Any = next((s for s in services if s.metadata.name == name), None)
    if found is None:
        labels = dict(pair.split("=", 1) for pair in installation.selector(component).split(","))
        spec = {"type": "NodePort", "selector": labels, "ports": [{"port": port, "targetPort": port}]}
        found = namespace.core.create_namespaced_service(namespace.name, {"metadata": {"name": name}, "spec": spec})
    taken = found.spec.ports[0].node_port
    for node in namespace.core.list_node().items:
        for address in node.status.addresses:
            if address.type == "InternalIP" and _reachable(address.address, taken):
                return f"{address.address}:{taken}"
    return None


def _reachable(host: str, port: int) -> bool:
    def connects() -> bool:
        with socket.create_connection((host, port), timeout=3):
            return True

    try:
        return eventually(f"{host}:{port}", connects, 15)
    except (AssertionError, OSError):
        return False


@contextmanager
def address(installation: Installation, component: str, port: int) -> Iterator[str]:
    """HOST:PORT of one component's port, for as long as the block runs."""
    found = node_port(installation, component, port)
    if found is not None:
        yield found
        return
    pod = installation.pods(component)[0].metadata.name
    command = ("kubectl", "-n", installation.namespace.name, "port-forward", f"pod/{pod}", f":{port}")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as forward:
        try:
            assert forward.stdout is not None
            line = forward.stdout.readline()
            local = re.search(r"127\.0\.0\.1:(\d+)", line)
            assert local, f"port-forward to {pod}: {line}"
            yield f"127.0.0.1:{local[1]}"
        finally:
            forward.kill()
