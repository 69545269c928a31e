"""A user's own Redis and Kafka in the test's namespace, not the chart's: TLS by the user's own authority, passwords."""

from __future__ import annotations

import base64
from typing import Any

import trustme
from kubernetes import client
from trine_cli.local.certificates import kafka_keystore

from trine_k8s.installation import Values
from trine_k8s.namespace import Namespace
from trine_k8s.polling import eventually

_REDIS, _KAFKA = "own-redis", "own-kafka"
_REDIS_PORT, _KAFKA_PORT = 6380, 9094
_PASSWORD = "correct-horse"
_SERVERS = "/etc/servers"
_SECURITY = {
    "allowPrivilegeEscalation": False, "runAsNonRoot": True, "runAsUser": 1000, "runAsGroup": 1000,
    "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"},
}  # fmt: skip
_REDIS_COMMAND = (
    "redis-server", "--port", "0", "--tls-port", str(_REDIS_PORT), "--requirepass", _PASSWORD,
    "--tls-cert-file", f"{_SERVERS}/redis.crt", "--tls-key-file", f"{_SERVERS}/redis.key",
    "--tls-ca-cert-file", f"{_SERVERS}/ca.crt", "--tls-auth-clients", "no", "--maxmemory-policy", "noeviction",
    "--dir", "/tmp",
)  # fmt: skip


def start_own_servers(namespace: Namespace) -> Values:
    """Starts both and makes the Secrets that the chart is told of; the chart's values that lead to them."""
    ca = trustme.CA()
    redis_certificate, kafka_certificate = ca.issue_cert(_REDIS), ca.issue_cert(f"{_KAFKA}.{namespace.name}.svc")
    authority = ca.cert_pem.bytes()
    _secret(
        namespace, "own-servers",
        **{
            "ca.crt": authority,
            "redis.crt": redis_certificate.cert_chain_pems[0].bytes(),
            "redis.key": redis_certificate.private_key_pem.bytes(),
            "kafka.pem": kafka_keystore(kafka_certificate),
        },
    )  # fmt: skip
    _secret(namespace, "own-authority", **{"ca.crt": authority})
    _secret(namespace, "own-kafka-user", username=b"trine", password=_PASSWORD.encode())
    url = f"rediss://:{_PASSWORD}@{_REDIS}:{_REDIS_PORT}/0?ssl_ca_certs=/etc/trine/redis/ca.crt"
    _secret(namespace, "own-redis-url", url=url.encode())
    _run(namespace, _REDIS, _REDIS_PORT, {"image": "redis:7", "command": list(_REDIS_COMMAND)})
    environment = [{"name": name, "value": value} for name, value in _kafka_environment(namespace).items()]
    _run(namespace, _KAFKA, _KAFKA_PORT, {"image": "apache/kafka:4.1.0", "env": environment})
    for name in (_REDIS, _KAFKA):
        eventually(f"{name} ready", lambda n=name: _ready(namespace, n), 180)  # type: ignore[misc]
    return {
        "redis": {
            "embedded": {"enabled": False},
            "external": {"existingSecret": "own-redis-url", "tlsSecret": "own-authority", "port": _REDIS_PORT},
        },
        "kafka": {
            "embedded": {"enabled": False},
            "external": {
                "bootstrapServers": f"{_KAFKA}.{namespace.name}.svc:{_KAFKA_PORT}",
                "securityProtocol": "SASL_SSL",
                "ports": [_KAFKA_PORT],
                "sasl": {"mechanism": "PLAIN", "existingSecret": "own-kafka-user"},
                "tls": {"existingSecret": "own-authority"},
            },
        },
    }


def _kafka_environment(namespace: Namespace) -> dict[str, str]:
    user = f'org.apache.kafka.common.security.plain.PlainLoginModule required user_trine="{_PASSWORD}";'
    return {
        "KAFKA_HEAP_OPTS": "-Xms128m -Xmx384m -XX:+UseSerialGC",
        "LOG_DIR": "/tmp/kafka-logs",
        "KAFKA_LOG_DIRS": "/tmp/data",
        "KAFKA_PROCESS_ROLES": "broker,controller",
        "KAFKA_NODE_ID": "1",
        "KAFKA_CONTROLLER_QUORUM_VOTERS": "1@localhost:9093",
        "KAFKA_CONTROLLER_LISTENER_NAMES": "CONTROLLER",
        "KAFKA_INTER_BROKER_LISTENER_NAME": "INTERNAL",
        "KAFKA_LISTENERS": f"CLIENTS://:{_KAFKA_PORT},INTERNAL://localhost:9092,CONTROLLER://localhost:9093",
        "KAFKA_ADVERTISED_LISTENERS": (
            f"CLIENTS://{_KAFKA}.{namespace.name}.svc:{_KAFKA_PORT},INTERNAL://localhost:9092"
        ),
        "KAFKA_LISTENER_SECURITY_PROTOCOL_MAP": "CLIENTS:SASL_SSL,INTERNAL:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "KAFKA_SSL_KEYSTORE_TYPE": "PEM",
        "KAFKA_SSL_KEYSTORE_LOCATION": f"{_SERVERS}/kafka.pem",
        "KAFKA_LISTENER_NAME_CLIENTS_SASL_ENABLED_MECHANISMS": "PLAIN",
        "KAFKA_LISTENER_NAME_CLIENTS_PLAIN_SASL_JAAS_CONFIG": user,
        "KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR": "1",
        "KAFKA_TRANSACTION_STATE_LOG_REPLICATION_FACTOR": "1",
        "KAFKA_TRANSACTION_STATE_LOG_MIN_ISR": "1",
        "KAFKA_GROUP_INITIAL_REBALANCE_DELAY_MS": "0",
        "KAFKA_GROUP_MIN_SESSION_TIMEOUT_MS": "1000",
        "KAFKA_LOG_CLEANER_DEDUPE_BUFFER_SIZE": "4194304",
        "KAFKA_LOG_INDEX_SIZE_MAX_BYTES": "1048576",
    }


def _run(namespace: Namespace, name: str, port: int, container: dict[str, Any]) -> None:
    """A pod, as `container` says, and its Service."""
    labels = {"app": name}
    container |= {
        "name": name,
        "securityContext": _SECURITY,
        "readinessProbe": {"tcpSocket": {"port": port}, "periodSeconds": 2},
        "resources": {"requests": {"cpu": "20m"}},
        "volumeMounts": [{"name": "servers", "mountPath": _SERVERS, "readOnly": True}],
    }
    volumes = [{"name": "servers", "secret": {"secretName": "own-servers"}}]
    spec = {"containers": [container], "volumes": volumes, "enableServiceLinks": False}
    namespace.core.create_namespaced_pod(namespace.name, {"metadata": {"name": name, "labels": labels}, "spec": spec})
    service = {"selector": labels, "ports": [{"port": port}], "publishNotReadyAddresses": True}
    namespace.core.create_namespaced_service(namespace.name, {"metadata": {"name": name}, "spec": service})


def _ready(namespace: Namespace, name: str) -> bool:
    pod = namespace.core.read_namespaced_pod(name, namespace.name)
    return any(c.type == "Ready" and c.status == "True" for c in pod.status.conditions or ())


def _secret(namespace: Namespace, name: str, **data: bytes) -> None:
    encoded = {key: base64.b64encode(value).decode() for key, value in data.items()}
    body = client.V1Secret(metadata=client.V1ObjectMeta(name=name), data=encoded)
    namespace.core.create_namespaced_secret(namespace.name, body)
