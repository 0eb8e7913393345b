"""Who a QUIC endpoint says it is: the self-signed certificate of a node key, and the settings of each connection.

The certificate is only a carrier of the public key. Nobody looks at its dates, name or serial number; the dialling side
compares its key with the node id that it asked for (the pin), and TLS 1.3 proves that the server holds that key.
"""

from __future__ import annotations

import datetime
import ssl
from typing import Final

from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.packet import QuicProtocolVersion
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.x509.oid import NameOID

from agentmesh.mesh.identity import NodeKey
from agentmesh.mesh.logic.transport_limits import (
    IDLE_TIMEOUT_S,
    INITIAL_CONNECTION_WINDOW_BYTES,
    INITIAL_STREAM_WINDOW_BYTES,
    INTERNET_DATAGRAM_BYTES,
    LOOPBACK_DATAGRAM_BYTES,
)

ALPN: Final = "agentmesh/1"
CONNECTION_ID_BYTES: Final = 8
# Dates that no wrong clock can fall outside of: RFC 5280 section 4.1.2.5 names the second "no expiration".
VALID_FROM: Final = datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC)
VALID_UNTIL: Final = datetime.datetime(9999, 12, 31, 23, 59, 59, tzinfo=datetime.UTC)


def make_certificate(key: NodeKey) -> x509.Certificate:
    """A self-signed X.509 certificate of the node's Ed25519 key."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "agentmesh node")])
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.private_key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(VALID_FROM)
        .not_valid_after(VALID_UNTIL)
        .sign(key.private_key, None)
    )


def certified_node(certificate: x509.Certificate | None) -> bytes | None:
    """The node id that a certificate carries, or None if its key is no Ed25519 key."""
    if certificate is None:
        return None
    try:
        key = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm):
        return None
    return key.public_bytes_raw() if isinstance(key, Ed25519PublicKey) else None


def server_configuration(key: NodeKey, certificate: x509.Certificate, *, loopback: bool) -> QuicConfiguration:
    """Settings for connections that others open. No session tickets, so no resumption and no 0-RTT."""
    configuration = _configuration(is_client=False, loopback=loopback)
    configuration.certificate = certificate
    configuration.private_key = key.private_key
    return configuration


def client_configuration(*, loopback: bool) -> QuicConfiguration:
    """Settings for connections that we open. We present nothing: admission proves who we are, on the first stream."""
    configuration = _configuration(is_client=True, loopback=loopback)
    # There is no authority to ask. aioquic checks the CertificateVerify signature in any case
    # (tls.py, _client_handle_certificate_verify), and the pin is checked when the handshake is complete.
    configuration.verify_mode = ssl.CERT_NONE
    return configuration


def _configuration(*, is_client: bool, loopback: bool) -> QuicConfiguration:
    return QuicConfiguration(
        alpn_protocols=[ALPN],
        connection_id_length=CONNECTION_ID_BYTES,
        idle_timeout=IDLE_TIMEOUT_S,
        is_client=is_client,
        max_data=INITIAL_CONNECTION_WINDOW_BYTES,
        max_stream_data=INITIAL_STREAM_WINDOW_BYTES,
        max_datagram_size=LOOPBACK_DATAGRAM_BYTES if loopback else INTERNET_DATAGRAM_BYTES,
        supported_versions=[QuicProtocolVersion.VERSION_1],
    )
