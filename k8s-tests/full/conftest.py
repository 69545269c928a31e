"""One installation that most full tests share, as a cluster's would be used: upgraded, scaled, broken, mended."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from trine_k8s.cluster import Cluster, need
from trine_k8s.diagnosis import Watched
from trine_k8s.images import Images
from trine_k8s.installation import Installation, Values
from trine_k8s.load import DEADLINE_MS, Load, Outcome
from trine_k8s.namespace import new_namespace
from trine_k8s.outside import node_port

#: Transactions a second at most; a test of what happens, not of speed.
MOST = 40.0
GATEWAY_PORT = 50051
#: Ahead of whatever else starts on the same few cores: who keeps deadlines must get a core when it wants one.
_AHEAD: Values = {"requests": {"cpu": "150m"}}
#: Two gateways, so that one can go; their spools outlive them, so that none loses what it has answered. A client's own
#: deadline is cut to 500 ms, so that it is the gateway's clock that says what is late.
VALUES: Values = {
    "gateway": {
        "replicas": 2,
        "resources": _AHEAD,
        "spool": {"persistence": {"enabled": True}},
        "settings": {"TRINE_GATEWAY_LONGEST_DEADLINE_MS": f"{DEADLINE_MS:g}", "TRINE_GATEWAY_REDIS_TIMEOUT_MS": "500"},
    },
    "torchserve": {"resources": _AHEAD},
    "featureStore": {"maxConnectionAgeSeconds": 8},
}


@pytest.fixture(scope="session")
def standing(cluster: Cluster, images: Images, watched: Watched) -> Iterator[Installation]:
    """Installed with VALUES."""
    with new_namespace() as namespace:
        installation = Installation(namespace, images, VALUES)
        with watched.watching(installation):
            installation.install()
            yield installation


@pytest.fixture
def trine(standing: Installation) -> Installation:
    """The shared installation, whole, and nothing left of what the test before did to it."""
    standing.restore(VALUES)
    standing.await_settled()
    standing.await_ready("kafka", "redis", "torchserve", "gateway", "worker", "archiver", "feature-store")
    return standing


@pytest.fixture
def target(trine: Installation) -> str:
    """HOST:PORT that leads to any gateway that is ready, whatever happens to the others."""
    found = node_port(trine, "gateway", GATEWAY_PORT)
    need(found is not None, "the nodes of this cluster cannot be reached from here, and a port-forward is of one pod")
    assert found is not None
    return found


@pytest.fixture(scope="session")
def rate(standing: Installation) -> float:
    """30% of what the installation can do, at most MOST transactions a second."""
    found = node_port(standing, "gateway", GATEWAY_PORT)
    need(found is not None, "the nodes of this cluster cannot be reached from here")
    # The first one warms connections and caches.
    for seconds in (5, 10):
        with Load(str(found), in_flight=16, seconds=seconds) as load:
            load.run_out()
    capacity = len(load.outcome.answered) / load.seconds
    print(f"capacity {capacity:.0f}/s")
    return max(min(0.3 * capacity, MOST), 1.0)


@pytest.fixture(scope="session")
def control(standing: Installation, rate: float) -> Outcome:
    """The same load while nothing happens."""
    with Load(str(node_port(standing, "gateway", GATEWAY_PORT)), rate=rate, seconds=45) as load:
        load.run_out()
    return load.outcome
