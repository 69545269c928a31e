"""How a service finds Kafka: broker addresses and, where brokers ask for it, TLS and SASL; in librdkafka's words."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import SecretStr, model_validator

from service_kit.settings import ServiceSettings

#: A broker that was away is found again within seconds. What is sent to the address of a pod that has gone is never
#: answered: without its own limit one attempt to connect, TLS and SASL included, takes half a minute.
_FOUND_AGAIN = {"reconnect.backoff.max.ms": 1_000, "socket.connection.setup.timeout.ms": 5_000}


class KafkaSettings(ServiceSettings):
    """Settings of a service that talks to Kafka; `kafka_client` is what every client of it is made with."""

    kafka_bootstrap: str = "127.0.0.1:9092"
    kafka_security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    kafka_sasl_mechanism: Literal["", "PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = ""
    kafka_sasl_username: str = ""
    kafka_sasl_password: SecretStr = SecretStr("")
    #: Certificates (PEM): who signed the brokers', and this client's own with its key.
    kafka_ca_file: Path | None = None
    kafka_certificate_file: Path | None = None
    kafka_key_file: Path | None = None

    @property
    def kafka_client(self) -> dict[str, str]:
        """Properties that all clients begin with."""
        told = {
            "bootstrap.servers": self.kafka_bootstrap,
            **_FOUND_AGAIN,
            "security.protocol": self.kafka_security_protocol,
            "sasl.mechanism": self.kafka_sasl_mechanism,
            "sasl.username": self.kafka_sasl_username,
            "sasl.password": self.kafka_sasl_password.get_secret_value(),
            "ssl.ca.location": self.kafka_ca_file,
            "ssl.certificate.location": self.kafka_certificate_file,
            "ssl.key.location": self.kafka_key_file,
        }
        return {name: str(value) for name, value in told.items() if value}

    @model_validator(mode="after")
    def _complete(self) -> Self:
        sasl = self.kafka_security_protocol.startswith("SASL")
        named = (self.kafka_sasl_mechanism, self.kafka_sasl_username, self.kafka_sasl_password.get_secret_value())
        if sasl and not all(named):
            raise ValueError(f"KAFKA_SECURITY_PROTOCOL {self.kafka_security_protocol} needs KAFKA_SASL_MECHANISM, "
                             "KAFKA_SASL_USERNAME and KAFKA_SASL_PASSWORD")  # fmt: skip
        if any(named) and not sasl:
            raise ValueError("KAFKA_SASL_* is given: KAFKA_SECURITY_PROTOCOL must be SASL_PLAINTEXT or SASL_SSL, "
                             f"found {self.kafka_security_protocol}")  # fmt: skip
        files = (self.kafka_ca_file, self.kafka_certificate_file, self.kafka_key_file)
        if any(files) and not self.kafka_security_protocol.endswith("SSL"):
            raise ValueError("KAFKA_*_FILE is given: KAFKA_SECURITY_PROTOCOL must be SSL or SASL_SSL, "
                             f"found {self.kafka_security_protocol}")  # fmt: skip
        if (self.kafka_certificate_file is None) != (self.kafka_key_file is None):
            raise ValueError("KAFKA_CERTIFICATE_FILE and KAFKA_KEY_FILE go together")
        return self
