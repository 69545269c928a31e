"""Whether NetworkPolicies let a connection through, as the API's documentation defines it; for TCP and UDP ports.

A pod that no policy of a direction selects is open in it; else one rule of one policy that selects it must match. A
connection needs the source's egress and the target's ingress. Policies are the API's objects as plain data.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Policy = Mapping[str, Any]  # JSON


@dataclass(frozen=True, slots=True)
class End:
    """A pod by its labels and namespace; without a namespace an address outside (or a node's)."""

    labels: Mapping[str, str] = field(default_factory=dict)
    namespace: str = ""
    namespace_labels: Mapping[str, str] = field(default_factory=dict)
    address: str = "203.0.113.7"


@dataclass(frozen=True, slots=True)
class Port:
    """`name`: what the target's container calls it, if anything."""

    number: int
    protocol: str = "TCP"
    name: str = ""


def allowed(policies: Sequence[Policy], source: End, target: End, port: Port) -> bool:
    """True where both directions let it through."""
    return _open(policies, "Egress", source, target, port) and _open(policies, "Ingress", target, source, port)


def _open(policies: Sequence[Policy], direction: str, own: End, other: End, port: Port) -> bool:
    if not own.namespace:
        return True
    selecting = [p for p in policies if direction in _types(p) and _selects(p, own)]
    side = direction.lower()
    peers = "to" if direction == "Egress" else "from"
    rules = [rule for p in selecting for rule in p["spec"].get(side) or ()]
    return not selecting or any(
        _port_matches(rule.get("ports"), port) and _peer_matches(rule.get(peers), own, other) for rule in rules
    )


def _types(policy: Policy) -> set[str]:
    spec = policy["spec"]
    return set(spec.get("policyTypes") or ["Ingress", *(["Egress"] if "egress" in spec else [])])


def _selects(policy: Policy, pod: End) -> bool:
    return policy["metadata"]["namespace"] == pod.namespace and matches(policy["spec"]["podSelector"], pod.labels)


def _port_matches(ports: Sequence[Mapping[str, Any]] | None, port: Port) -> bool:
    return not ports or any(
        (entry.get("protocol") or "TCP") == port.protocol
        and (
            entry.get("port") in (None, port.number)
            or (bool(port.name) and entry.get("port") == port.name)
            or (entry.get("endPort") is not None and int(entry["port"]) <= port.number <= int(entry["endPort"]))
        )
        for entry in ports
    )


def _peer_matches(peers: Sequence[Mapping[str, Any]] | None, own: End, other: End) -> bool:
    return not peers or any(_matches(peer, own, other) for peer in peers)


def _matches(peer: Mapping[str, Any], own: End, other: End) -> bool:
    if block := peer.get("ipBlock"):
        # Blocks are for addresses outside: a pod's address changes.
        address = ipaddress.ip_address(other.address)
        inside = address in ipaddress.ip_network(block["cidr"])
        excluded = any(address in ipaddress.ip_network(cidr) for cidr in block.get("except") or ())
        return not other.namespace and inside and not excluded
    if not other.namespace:
        return False
    namespaces = peer.get("namespaceSelector")
    near = other.namespace == own.namespace if namespaces is None else matches(namespaces, other.namespace_labels)
    return near and matches(peer.get("podSelector") or {}, other.labels)


def matches(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """A label selector of the API; an empty one selects everything."""
    wanted = selector.get("matchLabels") or {}
    return all(labels.get(k) == v for k, v in wanted.items()) and all(_meets(selector, labels))


def _meets(selector: Mapping[str, Any], labels: Mapping[str, str]) -> Iterator[bool]:
    for one in selector.get("matchExpressions") or ():
        key, values = one["key"], one.get("values") or ()
        found = {
            "In": labels.get(key) in values,
            "NotIn": labels.get(key) not in values,
            "Exists": key in labels,
            "DoesNotExist": key not in labels,
        }
        yield found[one["operator"]]
