"""`KafkaSettings.kafka_client` against a real broker that asks for a password over TLS, or for a certificate."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trustme
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer
from confluent_kafka.admin import AdminClient
from pydantic import SecretStr
from service_kit.kafka import KafkaSettings
from trine_cli.local.certificates import kafka_keystore
from trine_cli.local.kafka_broker import KafkaBroker
from trine_cli.local.ports import HOST, free_ports
from trine_cli.local.topics import create_topics

pytestmark = pytest.mark.timeout(120)
_PASSWORD = 'a "quoted", long=one'


@dataclass(frozen=True, slots=True)
class Secured:
    """A broker with a listener each for SASL_SSL and for SSL with client certificates, and what clients show it."""

    sasl: str
    certificates: str
    ca: Path
    certificate: Path
    key: Path


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    folder, ca = tmp_path_factory.mktemp("secured"), trustme.CA()
    server, ours = ca.issue_cert(HOST), ca.issue_cert("trine")
    ca.cert_pem.write_to_path(folder / "ca.crt")
    (folder / "server.pem").write_bytes(kafka_keystore(server))
    ours.cert_chain_pems[0].write_to_path(folder / "tls.crt")
    ours.private_key_pem.write_to_path(folder / "tls.key")
    plain, sasl, certificates, controller = free_ports(4)
    password = _PASSWORD.replace('"', '\\\\"')
    listeners = (("PLAINTEXT", plain), ("SASL", sasl), ("CERTIFICATES", certificates))
    clients = ",".join(f"{name}://{HOST}:{port}" for name, port in listeners)
    settings: dict[str, object] = {
        "controller.quorum.voters": f"1@{HOST}:{controller}",
        "listeners": f"{clients},CONTROLLER://{HOST}:{controller}",
        "advertised.listeners": clients,
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL:SASL_SSL,CERTIFICATES:SSL",
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": folder / "server.pem",
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": folder / "ca.crt",
        "listener.name.certificates.ssl.client.auth": "required",
        "listener.name.sasl.sasl.enabled.mechanisms": "PLAIN",
        "listener.name.sasl.plain.sasl.jaas.config": (
            f'org.apache.kafka.common.security.plain.PlainLoginModule required user_trine="{password}";'
        ),
    }
    with KafkaBroker(folder / "kafka", port=plain, settings=settings) as broker:
        create_topics(broker.bootstrap, 1, names=("secured",))
        yield Secured(
            f"{HOST}:{sasl}", f"{HOST}:{certificates}", folder / "ca.crt", folder / "tls.crt", folder / "tls.key"
        )


def test_a_user_with_a_password_over_tls(secured: Secured) -> None:
    _writes_and_reads(_sasl(secured).kafka_client)


def test_a_client_certificate(secured: Secured) -> None:
    own: dict[str, Any] = {"kafka_certificate_file": secured.certificate, "kafka_key_file": secured.key}
    _writes_and_reads(_tls(secured, **own).kafka_client)


def test_a_wrong_password_is_refused(secured: Secured) -> None:
    assert _why_not(_sasl(secured, kafka_sasl_password=SecretStr("wrong"))) == KafkaError._AUTHENTICATION


def test_a_client_without_its_certificate_is_refused(secured: Secured) -> None:
    assert _why_not(_tls(secured)) in (KafkaError._SSL, KafkaError._TRANSPORT)


def test_brokers_that_somebody_else_vouches_for_are_refused(secured: Secured, tmp_path: Path) -> None:
    trustme.CA().cert_pem.write_to_path(tmp_path / "other.crt")
    assert _why_not(_sasl(secured, kafka_ca_file=tmp_path / "other.crt")) == KafkaError._SSL


def _sasl(secured: Secured, **changed: Any) -> KafkaSettings:
    settings: dict[str, Any] = {
        "kafka_bootstrap": secured.sasl,
        "kafka_security_protocol": "SASL_SSL",
        "kafka_sasl_mechanism": "PLAIN",
        "kafka_sasl_username": "trine",
        "kafka_sasl_password": SecretStr(_PASSWORD),
        "kafka_ca_file": secured.ca,
    }
    return KafkaSettings(**{**settings, **changed})


def _tls(secured: Secured, **more: Any) -> KafkaSettings:
    return KafkaSettings(
        kafka_bootstrap=secured.certificates, kafka_security_protocol="SSL", kafka_ca_file=secured.ca, **more
    )


def _writes_and_reads(client: dict[str, str]) -> None:
    producer = Producer({**client, "transactional.id": "secured"})
    producer.init_transactions(30)
    producer.begin_transaction()
    producer.produce("secured", b"value", b"key")
    producer.commit_transaction(30)
    consumer = Consumer({**client, "group.id": f"g-{id(client)}", "auto.offset.reset": "earliest"})
    consumer.subscribe(["secured"])
    try:
        (message,) = consumer.consume(1, 30)
        assert message.value() == b"value"
    finally:
        consumer.close()


def _why_not(settings: KafkaSettings) -> int:
    """The first error that a client of these settings meets."""
    errors: list[KafkaError] = []
    config: dict[str, Any] = {**settings.kafka_client, "error_cb": errors.append, "log_level": 0}
    with AdminClient(config) as client:
        with pytest.raises(KafkaException):
            client.list_topics(timeout=10)
        client.poll(0)
    return next(e.code() for e in errors if e.code() != KafkaError._ALL_BROKERS_DOWN)
