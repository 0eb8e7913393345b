"""TLS settings of the fast path: version 1.3 only, the node's key as certificate, the pin in place of an authority.

TLS proves that the server holds its certificate's key, also when no authority is asked (CERT_NONE): the CertificateVerify
message of TLS 1.3 is not optional (RFC 8446 section 4.4.3). Clients present no certificate: admission proves who they are.
"""

from __future__ import annotations

import secrets
import ssl
import tempfile
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat

from agentmesh.core.errors import HomeError
from agentmesh.mesh.identity import NodeKey
from agentmesh.mesh.quic_tls import certified_node, make_certificate

BULK_ALPN: Final = "agentmesh-bulk/2"
"""Streams of bulk follow each other on a connection."""
BULK_ALPN_ONCE: Final = "agentmesh-bulk/1"
"""A connection ends with its one stream of bulk: nodes before that one."""


def server_context(key: NodeKey) -> ssl.SSLContext:
    """For connections that others open. Raises: HomeError: there is no room for a temporary file."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _configure(context)
    context.num_tickets = 0  # no resumption, hence no early data: each connection is admitted by itself
    # OpenSSL as Python binds it takes keys from files only. The one it gets is encrypted with a password that exists
    # in this process alone, so that no copy of the node's key is ever readable on a disk.
    password = secrets.token_bytes(32).hex().encode()
    private = key.private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(password))
    try:
        with tempfile.TemporaryDirectory(prefix="agentmesh-") as folder:
            path = Path(folder, "tls")
            path.write_bytes(private + make_certificate(key).public_bytes(Encoding.PEM))
            context.load_cert_chain(path, password=password)
    except OSError as error:
        raise HomeError(f"The TLS certificate could not be made: {error.strerror or error}.") from error
    return context


def client_context() -> ssl.SSLContext:
    """For connections that we open."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    _configure(context)
    return context


def proven_node(connection: ssl.SSLObject) -> bytes | None:
    """The node id whose key the server proved, or None if its certificate is none of a node."""
    certificate = connection.getpeercert(binary_form=True)
    if not certificate:
        return None
    try:
        return certified_node(x509.load_der_x509_certificate(certificate))
    except ValueError:
        return None


def speaks_bulk(connection: ssl.SSLObject) -> bool:
    """Whether both sides mean this protocol, in TLS 1.3."""
    return connection.selected_alpn_protocol() in (BULK_ALPN, BULK_ALPN_ONCE) and connection.version() == "TLSv1.3"


def carries_many(connection: ssl.SSLObject) -> bool:
    """Whether both sides let streams follow each other on the connection."""
    return connection.selected_alpn_protocol() == BULK_ALPN


def _configure(context: ssl.SSLContext) -> None:
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_3
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_COMPRESSION
    context.set_alpn_protocols([BULK_ALPN, BULK_ALPN_ONCE])  # the server's order decides
