"""Certificates of tests' own authorities, in the forms that servers read."""

from __future__ import annotations

import trustme
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key


def kafka_keystore(certificate: trustme.LeafCert) -> bytes:
    """A PEM keystore: Kafka reads a key and its chain from one file, and keys as PKCS #8 only, as trustme's are not."""
    key = load_pem_private_key(certificate.private_key_pem.bytes(), None)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()) + certificate.cert_chain_pems[0].bytes()
