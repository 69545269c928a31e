"""Whether NetworkPolicies let a connection through, by the rules of networking.k8s.io/v1.

A pod that no policy selects for a direction is open in it; one that is selected is open to what some policy allows. A
connection needs both ends' leave. What is outside of the cluster has an address and no policies.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

Policy = Mapping[str, Any]  # YAML


@dataclass(frozen=True)
class Endpoint:
    """A pod, or with an address only something that is none."""

    labels: Mapping[str, str] = field(default_factory=dict)
    namespace: str = ""
    address: str = "10.244.0.9"

    @property
    def namespace_labels(self) -> dict[str, str]:
        return {"kubernetes.io/metadata.name": self.namespace}


def allowed(policies: Iterable[Policy], source: Endpoint, target: Endpoint, port: int, protocol: str = "TCP") -> bool:
    """May `source` open a connection to `port` of `target`?"""
    policies = list(policies)
    return _leave(policies, "Egress", source, target, port, protocol) and _leave(
        policies, "Ingress", target, source, port, protocol
    )


def _leave(policies: list[Policy], direction: str, own: Endpoint, peer: Endpoint, port: int, protocol: str) -> bool:
    rules, peers = ("egress", "to") if direction == "Egress" else ("ingress", "from")
    selecting = [
        policy["spec"]
        for policy in policies
        if own.namespace
        and policy["metadata"].get("namespace", own.namespace) == own.namespace
        and direction in policy["spec"]["policyTypes"]
        and _selects(policy["spec"]["podSelector"], own.labels)
    ]
    return not selecting or any(
        _has_port(rule, port, protocol) and (not rule.get(peers) or any(_is(one, own, peer) for one in rule[peers]))
        for spec in selecting
        for rule in spec.get(rules) or []
    )


def _has_port(rule: Mapping[str, Any], port: int, protocol: str) -> bool:
    return not rule.get("ports") or any(
        one.get("protocol", "TCP") == protocol and one["port"] <= port <= one.get("endPort", one["port"])
        for one in rule["ports"]
    )


def _is(described: Mapping[str, Any], own: Endpoint, peer: Endpoint) -> bool:
    if "ipBlock" in described:
        block, address = described["ipBlock"], ipaddress.ip_address(peer.address)
        inside = [address in ipaddress.ip_network(cidr) for cidr in (block["cidr"], *block.get("except", []))]
        return inside[0] and not any(inside[1:])
    if not peer.namespace:
        return False
    if "namespaceSelector" in described:
        if not _selects(described["namespaceSelector"], peer.namespace_labels):
            return False
    elif peer.namespace != own.namespace:
        return False
    return _selects(described.get("podSelector", {}), peer.labels)


def _selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    if unknown := set(selector) - {"matchLabels"}:
        raise NotImplementedError(f"selector {unknown}")
    wanted: Mapping[str, str] = selector.get("matchLabels", {})
    return wanted.items() <= labels.items()
