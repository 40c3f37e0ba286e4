"""From settings to what is started: everything is checked here, before anything is made or touched."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvcommons_core.errors import StartRefusedError
from kvcommons_core.settings import IndexSettings, NodeSettings
from kvcommons_core.settings_peers import Peers, split_address
from kvcommons_core.settings_remote import RedisTier, S3Tier, core_values
from kvcommons_core.settings_tiers import DiskTier

from kvcommons_node import preflight, size, tls
from kvcommons_node.engines import Engine
from kvcommons_node.remote.driver import open_store
from kvcommons_node.remote.stores import Store
from kvcommons_node.tls import TlsFiles

NO_HOLDER = "none"
PINNED_SHARE = 4
"""A quarter of the arena: pins must leave eviction something to take."""


@dataclass(frozen=True, kw_only=True)
class StartPlan:
    """Checked settings with every default filled in."""

    node_id: str
    version: str
    socket_path: Path
    state_directory: Path
    arena_bytes: int
    configured_bytes: int
    """What the settings say; another size was wished for since."""
    namespace_secret: bytes
    holder_socket: Path | None
    """None: the arena dies with the daemon."""
    owns_holder: bool
    """The node starts its holder and ends it on a clean stop."""
    holder_idle_seconds: int
    multi_tenant: bool
    control_host: str
    control_port: int
    control_token: str | None
    control_tls: TlsFiles | None
    engines: tuple[Engine, ...]
    """Those that are configured."""
    pinned_bytes_max: int
    """What pins may hold in all."""
    huge_pages: bool
    core: dict[str, Any]
    """Further arguments of the native core, by name."""
    address: str
    """What the index tells others; empty: made from the control address."""
    zone: str
    kubernetes_node: str
    index: IndexSettings
    peer_address: str = ""
    """Where the index tells other nodes to ask this one; empty: nowhere."""
    stores: tuple[Store, ...] = ()
    """Of the remote tiers, in the order of the core's `remotes`; opened, and connected to nothing yet."""
    notes: tuple[str, ...] = ()
    """What the log is to say: settings that are followed in part."""


def make_plan(settings: NodeSettings, version: str, memory_bytes: int | None = None) -> StartPlan:
    """:raises StartRefusedError: if the machine cannot do what the settings say."""
    node = settings.node
    memory = preflight.machine_memory_bytes() if memory_bytes is None else memory_bytes
    state_directory = Path(node.state_dir)
    socket_path = Path(node.socket_path)
    arena_bytes, notes = _arena_bytes(state_directory, node.arena_bytes, memory)
    if "slab_bytes" in node.model_fields_set:
        notes += preflight.check_slabs(node.slab_bytes, arena_bytes)
    preflight.check_state_directory(state_directory)
    preflight.check_socket(socket_path)
    preflight.check_port(node.control_host, node.control_port)
    secret_file = Path(node.namespace_secret_file) if node.namespace_secret_file else None
    token_file = Path(node.control_token_file) if node.control_token_file else None
    control_token = preflight.control_token(token_file)
    secret = preflight.kept_secret(state_directory, secret_file)
    remotes = [tier for tier in node.tiers if not isinstance(tier, DiskTier)]
    preflight.make_directories(state_directory, socket_path)
    return StartPlan(
        node_id=node.node_id or socket.gethostname(),
        version=version,
        socket_path=socket_path,
        state_directory=state_directory,
        arena_bytes=arena_bytes,
        configured_bytes=node.arena_bytes,
        namespace_secret=secret or preflight.make_secret(state_directory),
        holder_socket=_holder_socket(node.holder_socket, socket_path),
        owns_holder=not node.holder_socket,
        holder_idle_seconds=node.holder_idle_seconds,
        multi_tenant=node.multi_tenant,
        control_host=node.control_host,
        control_port=node.control_port,
        control_token=control_token,
        control_tls=tls.files_of(
            node.control_tls_cert_file, node.control_tls_key_file, node.control_tls_client_ca_file
        ),
        engines=engines_of(node.engine_urls, node.engine_token_file),
        pinned_bytes_max=node.pinned_bytes_max or arena_bytes // PINNED_SHARE,
        huge_pages=node.huge_pages,
        core={
            "slab_bytes": node.slab_bytes,
            "lease_pending_ms_max": node.lease_pending_ms_max,
            "sessions_max": node.sessions_max,
            "leases_max": node.leases_max,
            "events_max": node.events_max,
            "verify_one_in": node.verify_one_in,
            "eviction": node.eviction,
            "shadow_chunks_max": node.shadow_chunks_max,
            "tenant_percent_max": node.tenant_percent_max,
            "populate": node.populate,
            "huge_pages": node.huge_pages,
            "disk": disk_of(node.tiers),
            "peers": peers_of(node.peers),
            "remotes": [core_values(tier) for tier in remotes],
            "tier_write_queue_max": node.tier_write_queue_max,
            "allowed_uids": list(node.allowed_uids),
            "allowed_gids": list(node.allowed_gids),
        },
        address=node.address,
        zone=node.zone,
        kubernetes_node=node.kubernetes_node,
        index=settings.index,
        peer_address=node.peers.advertised if node.peers is not None else "",
        notes=(*notes, *_peer_notes(settings)),
        stores=tuple(open_store(tier) for tier in remotes),
    )


def engines_of(urls: Sequence[str], token_file: str) -> tuple[Engine, ...]:
    """:raises StartRefusedError: if one is no HTTP address, or the token's file can't be read."""
    preflight.check_engine_urls(urls)
    token = preflight.engine_token(Path(token_file) if token_file else None)
    return tuple(Engine(url, url.rstrip("/"), token) for url in urls)


def _arena_bytes(state_directory: Path, configured_bytes: int, memory_bytes: int) -> tuple[int, list[str]]:
    """(the arena's size, what the log is to say of it). :raises StartRefusedError: if the configured one is too large."""
    wished = size.wished(state_directory, configured_bytes)
    notes = []
    if wished != configured_bytes:
        try:
            preflight.check_capacity(wished, memory_bytes)
            return wished, []
        except StartRefusedError as error:
            size.forget(state_directory)
            notes = [f"the size that was asked for last is given up: {error}"]
    preflight.check_capacity(configured_bytes, memory_bytes)
    return configured_bytes, notes


def disk_of(tiers: Sequence[DiskTier | RedisTier | S3Tier]) -> dict[str, Any]:
    """The core's disk, by the names of its settings; empty where there is none."""
    values = next((tier.model_dump(exclude={"type"}) for tier in tiers if tier.type == "disk"), {})
    return {**values, "paths": list(values["paths"])} if values else {}


def peers_of(peers: Peers | None) -> dict[str, Any]:
    """The core's peers, by the names of its settings; empty where there are none."""
    if peers is None:
        return {}
    host, port = split_address(peers.listen)
    return {"host": host, "port": port, **peers.model_dump(exclude={"listen", "advertise"})}


def _peer_notes(settings: NodeSettings) -> list[str]:
    peers = settings.node.peers
    if peers is None:
        return []
    notes = []
    if not settings.index.url:
        notes.append("peers are set and index.url is not: nobody can be found, and nobody finds this node")
    if not settings.node.namespace_secret_file:
        notes.append(
            "peers are set and namespace_secret_file is not: only nodes with this node's own secret are let in"
        )
    if not peers.tls_ca_file and not preflight.is_loopback(split_address(peers.listen)[0]):
        notes.append("peers are answered without TLS: whoever reads the network between nodes reads KV")
    return notes


def _holder_socket(setting: str, socket_path: Path) -> Path | None:
    if setting == NO_HOLDER:
        return None
    return Path(setting) if setting else Path(f"{socket_path}{preflight.HOLDER_SUFFIX}")
