"""What brokers ask for becomes librdkafka's properties; what does not go together is refused."""

from __future__ import annotations

import pytest
from pydantic_settings import SettingsConfigDict
from service_kit.kafka import KafkaSettings
from service_kit.settings import SettingsError, load

#: A broker that was away is found again within seconds.
_FOUND_AGAIN = {"reconnect.backoff.max.ms": "1000", "socket.connection.setup.timeout.ms": "5000"}


class Settings(KafkaSettings):
    model_config = SettingsConfigDict(env_prefix="TRINE_T_")


def _told(monkeypatch: pytest.MonkeyPatch, **values: str) -> Settings:
    for name, value in values.items():
        monkeypatch.setenv(f"TRINE_T_KAFKA_{name}", value)
    return load(Settings)


def test_plain_brokers_need_an_address_only(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _told(monkeypatch, BOOTSTRAP="kafka:9092").kafka_client == {
        **_FOUND_AGAIN,
        "bootstrap.servers": "kafka:9092",
        "security.protocol": "PLAINTEXT",
    }


def test_tls_sasl_and_a_client_certificate(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = _told(
        monkeypatch,
        BOOTSTRAP="a:9093,b:9093",
        SECURITY_PROTOCOL="SASL_SSL",
        SASL_MECHANISM="SCRAM-SHA-512",
        SASL_USERNAME="trine",
        SASL_PASSWORD='pass"word,=',
        CA_FILE="/etc/ca.crt",
        CERTIFICATE_FILE="/etc/tls.crt",
        KEY_FILE="/etc/tls.key",
    )
    assert settings.kafka_client == {
        **_FOUND_AGAIN,
        "bootstrap.servers": "a:9093,b:9093",
        "security.protocol": "SASL_SSL",
        "sasl.mechanism": "SCRAM-SHA-512",
        "sasl.username": "trine",
        "sasl.password": 'pass"word,=',
        "ssl.ca.location": "/etc/ca.crt",
        "ssl.certificate.location": "/etc/tls.crt",
        "ssl.key.location": "/etc/tls.key",
    }
    assert "word" not in repr(settings).replace("password", "")


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"SECURITY_PROTOCOL": "SASL_SSL", "SASL_USERNAME": "trine"}, "needs KAFKA_SASL_MECHANISM"),
        ({"SASL_MECHANISM": "PLAIN"}, "must be SASL_PLAINTEXT or SASL_SSL"),
        ({"CA_FILE": "/etc/ca.crt"}, "must be SSL or SASL_SSL"),
        ({"SECURITY_PROTOCOL": "SSL", "KEY_FILE": "/etc/tls.key"}, "go together"),
        ({"SECURITY_PROTOCOL": "TLS"}, "TRINE_T_KAFKA_SECURITY_PROTOCOL"),
    ],
)
def test_what_does_not_go_together_is_refused(monkeypatch: pytest.MonkeyPatch, told: dict[str, str], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        _told(monkeypatch, **told)
