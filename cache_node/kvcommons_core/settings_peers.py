"""Settings of a node's peers: `node.peers`, a table. What other nodes of the pool hold is read from them by TCP."""

from __future__ import annotations

import ipaddress
from typing import Self

from pydantic import Field, model_validator

from kvcommons_core.settings_values import Bytes, Section


def split_address(text: str) -> tuple[str, int]:
    """("HOST:PORT" or "[V6]:PORT") -> (host, port).

    :raises ValueError: if it is none.
    """
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isdigit() or not 0 < int(port) < 1 << 16:
        raise ValueError(f"{text!r} is no HOST:PORT")
    return host, int(port)


def is_wildcard(host: str) -> bool:
    """0.0.0.0 or ::, under which nobody can be reached."""
    return ipaddress.ip_address(host).is_unspecified


class Peers(Section):
    """Node to node: where this one answers, and how it asks the others."""

    listen: str
    """IP:PORT where other nodes are answered; 0.0.0.0:9471 for all addresses of the machine."""
    advertise: str = ""
    """HOST:PORT that the index tells the others; `listen` when empty, which then must be one address."""
    sockets_per_peer: int = Field(default=4, ge=1, le=64)
    """Connections to one peer for what is read; one more carries what is written."""
    peers_max: int = Field(default=64, ge=1, le=1_024)
    """Peers that connections are kept to; the rest of the pool is reached in turn."""
    connections_max: int = Field(default=256, ge=1, le=4_096)
    """Connections of peers that are answered at one time."""
    connect_ms_max: int = Field(default=500, ge=1)
    """Until a peer that does not take the connection counts as unreachable."""
    fetch_ms_max: int = Field(default=1_500, ge=1)
    """For one batch (4 MiB, or a chunk); below the connector's fetch_ms_max, or a slow peer costs the whole of it."""
    locate_ms_max: int = Field(default=250, ge=1)
    """From a lookup that misses to knowing who has the chunks, the index and the owner together; then it is computed."""
    breaker_ms_max: int = Field(default=30_000, ge=1_000)
    """For at most so long nobody asks a peer that failed; 1 s at first, twice as long with each failure in a row."""
    queue_bytes_max: Bytes = Field(default=256 << 20, ge=1 << 20)
    """What may be on its way from peers at one time."""
    replicas_max: int = Field(default=2, ge=0, le=1_024)
    """A chunk that so many nodes have already is fetched all the same, and leaves this one's memory first; 0 for no limit."""
    bandwidth_gate: bool = True
    """Does not fetch what would take longer than computing it; both are measured."""
    zero_copy: bool = True
    """Sends from the arena without a copy where the kernel can; of no effect with TLS."""
    tls_ca_file: str = ""
    """Authority (PEM) that signs the certificates of all nodes of the pool; empty: no TLS."""
    tls_cert_file: str = ""
    """This node's certificate (PEM), for both sides of a connection."""
    tls_key_file: str = ""
    """Its private key (PEM)."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        host, _ = split_address(self.listen)
        try:
            wildcard = is_wildcard(host)
        except ValueError as error:
            raise ValueError(f"listen: {host!r} is no IP address; give one, or 0.0.0.0 for all") from error
        if self.advertise:
            split_address(self.advertise)
        elif wildcard:
            raise ValueError(f"advertise must say where others reach this node, because it listens at {self.listen}")
        files = (self.tls_ca_file, self.tls_cert_file, self.tls_key_file)
        if any(files) and not all(files):
            raise ValueError("tls_ca_file, tls_cert_file and tls_key_file go together: give all three or none")
        return self

    @property
    def advertised(self) -> str:
        return self.advertise or self.listen
