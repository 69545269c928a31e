"""The flows that the design draws are open, and others closed, in fact: where the network enforces policies.

What the policies say is judged without a cluster, every flow by itself: charts/tests/test_flows.py.
"""

from __future__ import annotations

import pytest
from trine_k8s.cluster import Cluster, need
from trine_k8s.commands import CommandFailed
from trine_k8s.installation import Installation
from trine_k8s.polling import eventually

pytestmark = pytest.mark.timeout(600, func_only=True)


def test_enforced(trine: Installation, cluster: Cluster) -> None:
    need(cluster.enforces_policies, "this cluster's network stores NetworkPolicies and does not enforce them")
    targets = {c: trine.pods(c)[0].status.pod_ip for c in ("torchserve", "redis", "kafka", "gateway")}

    def connects(source: str, target: str, port: int) -> bool:
        code = f"import socket; socket.create_connection(('{targets[target]}', {port}), timeout=5)"
        try:
            trine.namespace.exec(trine.pods(source)[0].metadata.name, "python", "-c", code)
        except CommandFailed:
            return False
        return True

    eventually("gateway to TorchServe", lambda: connects("gateway", "torchserve", 7070), 60)
    assert connects("gateway", "redis", 6379)
    assert not connects("gateway", "torchserve", 8081)
    assert not connects("archiver", "redis", 6379)
    assert not connects("feature-store", "gateway", 50051)
