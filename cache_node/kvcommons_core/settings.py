"""Settings of the processes, from a file (TOML or JSON), the environment and flags; a later source wins over an earlier one.

A file has one table a section ([node], [router], [index]) and may serve several processes: a section that a process does not read is left
alone, an unknown one is an error. In the environment: KVCOMMONS_NODE__ARENA_BYTES. As a flag: --node.arena-bytes, or --arena-bytes for the
process' own section. Names carry their units; sizes take suffixes ("4GiB"). An unknown name is an error that names the nearest known one.
"""

from __future__ import annotations

import difflib
import json
import os
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, Self, TypeVar

from pydantic import Field, ValidationError, model_validator

from kvcommons_core import limits, settings_values
from kvcommons_core.errors import ConfigurationError, UnknownSettingError
from kvcommons_core.settings_peers import Peers
from kvcommons_core.settings_tiers import Tiers

ENVIRONMENT_PREFIX: Final = "KVCOMMONS_"
SECTIONS: Final = ("node", "router", "index", "operator")
Section = settings_values.Section
Bytes = settings_values.Bytes
Words = settings_values.Words
Numbers = settings_values.Numbers
_SECRET_NAMES: Final = frozenset({"key", "password", "secret"})


class IndexSettings(Section):
    """Where the index is and how it ages."""

    url: str = ""
    """redis://, rediss://, unix://, redis+sentinel://HOST:PORT,HOST:PORT/MASTER/DB or redis+cluster://HOST:PORT; empty for no index."""
    username: str = ""
    """Of Redis' ACL; Redis' default user when empty."""
    password_file: str = ""
    """A file whose content is the password, so that it stands in no process list."""
    tls_ca_file: str = ""
    """Authorities (PEM) that Redis' certificate must be signed by; the system's when empty."""
    tls_cert_file: str = ""
    """The own certificate (PEM), where Redis asks for one."""
    tls_key_file: str = ""
    """Its private key (PEM)."""
    prefix: str = Field(default="kvc:default:", min_length=1, max_length=128)
    """All keys of one pool begin with it."""
    holder_ttl_seconds: int = Field(default=limits.HOLDER_TTL_SECONDS_DEFAULT, ge=1)
    """A key that nobody confirms is forgotten after this long."""
    holder_age_seconds_max: int = Field(
        default=limits.HOLDER_AGE_SECONDS_MAX_DEFAULT, ge=1, lt=limits.BORN_UNIT_SECONDS * 2**15
    )
    """No holder is believed for longer than this after it was last published, however often it is confirmed."""
    republish_keys_per_second: int = Field(default=20_000, ge=1)
    """How fast a node tells again what it holds, after Redis or its own place there was lost."""
    mirror_keys_max: int = Field(default=limits.MIRROR_KEYS_MAX_DEFAULT, ge=0)
    """Keys that a router remembers the answers for."""
    mirror_ms_max: int = Field(default=1_000, ge=0)
    """How old such an answer may be."""
    lookup_ms_max: float = Field(default=5.0, gt=0)
    """A router picks without the index after this long."""
    connect_ms_max: int = Field(default=1_000, ge=1)
    """Until Redis counts as unreachable."""
    call_ms_max: int = Field(default=1_000, ge=1)
    """Until a call to Redis counts as failed."""

    @model_validator(mode="after")
    def _ttl_within_age(self) -> Self:
        if self.holder_ttl_seconds > self.holder_age_seconds_max:
            raise ValueError(
                f"holder_ttl_seconds ({self.holder_ttl_seconds}) must not exceed holder_age_seconds_max ({self.holder_age_seconds_max})"
            )
        return self


class NodeSection(Section):
    """One cache node."""

    node_id: str = ""
    """Name in the pool; the host's name when empty."""
    address: str = ""
    """HOST:PORT under which others reach its control API; made from control_host and control_port when empty."""
    zone: str = ""
    """Failure domain; KV in the own zone is nearer."""
    kubernetes_node: str = ""
    """Name of the Kubernetes node that this runs on."""
    socket_path: str = "/run/kvcommons/node.sock"
    """Unix socket that engines attach at."""
    holder_socket: str = ""
    """Of the process that keeps the arena while the daemon restarts; beside socket_path when empty, "none" for none."""
    holder_idle_seconds: int = Field(default=120, ge=1)
    """A holder that the node started ends when no node came back for so long."""
    state_dir: str = "/var/lib/kvcommons"
    """Keeps the namespace secret and the holder's log; made (mode 0700) when missing."""
    namespace_secret_file: str = ""
    """Shared by all nodes of a pool; made once in state_dir (mode 0600) when empty."""
    arena_bytes: Bytes = Field(default=4 << 30, ge=1 << 20)
    """Memory for KV; it is taken at start."""
    slab_bytes: Bytes = Field(default=64 << 20, ge=1 << 20, le=1 << 30)
    """What the arena is given to models in; less where the arena has not eight of them."""
    tiers: Tiers = ()
    """What is behind the memory, as JSON: [{"type": "disk", "paths": ["/mnt/nvme0"], "capacity_bytes": "1TiB"}]."""
    peers: Peers | None = None
    """Other nodes of the pool, as JSON: {"listen": "0.0.0.0:9471", "advertise": "10.0.0.7:9471"}; it takes index.url."""
    tier_write_queue_max: int = Field(default=65_536, ge=1)
    """Stored chunks that may wait to be written to a tier; one more is not written, and counted."""
    control_host: str = "127.0.0.1"
    """Address of the control API, health and metrics."""
    control_port: int = Field(default=9470, ge=0, le=65_535)
    """Its port, 0 for any free one."""
    control_token_file: str = ""
    """Holds the bearer token of the control API; beyond loopback the API is closed without one."""
    control_tls_cert_file: str = ""
    """The node's certificate (PEM): the control API speaks HTTPS; plain HTTP when empty."""
    control_tls_key_file: str = ""
    """Its private key (PEM)."""
    control_tls_client_ca_file: str = ""
    """Authorities (PEM) whose client certificates may use the control API, as the token may; nodes of a pool believe each other by them."""
    engine_urls: Words = ()
    """HTTP addresses of the router, or of this node's engines: prewarm jobs send documents there, and they make tokens of text."""
    engine_token_file: str = ""
    """Holds the API key for them, where they want one."""
    pinned_bytes_max: Bytes = Field(default=0, ge=0)
    """What pins may hold of the arena in all; a quarter of it when 0."""
    multi_tenant: bool = False
    """Refuses to cache requests without a tenant's salt."""
    lease_pending_ms_max: int = Field(default=30_000, ge=1)
    """A lease that no worker has begun to copy ends after this."""
    sessions_max: int = Field(default=256, ge=1)
    """Engines' processes (and tools) attached at one time; one more is refused."""
    leases_max: int = Field(default=16_384, ge=1)
    """Leases open at one time; without one a lookup only counts."""
    events_max: int = Field(default=262_144, ge=1)
    """Commits and evictions that may wait to be published; one more begins a new epoch."""
    verify_one_in: int = Field(default=64, ge=0)
    """Every so many reads from memory are checksummed (16 MiB a call at most); 0 for none, 1 for all."""
    eviction: Literal["lru", "s3fifo", "cost", "auto"] = "lru"
    """Which chunk goes when there is no room; auto: by the policy that would have hit most of late."""
    shadow_chunks_max: int = Field(default=0, ge=0, le=1 << 20)
    """Chunks (of about 200 bytes) that the shadow of each policy remembers, to tell what it would have hit; 0: shadows for auto alone."""
    tenant_percent_max: int = Field(default=100, ge=1, le=100)
    """Who holds more of the arena than this gives way first; 100 for no limit."""
    populate: bool = True
    """Takes all of the arena's memory at start, not when it is first used."""
    huge_pages: bool = False
    """Asks for huge pages; ordinary ones, and a note in the log, where the machine has none."""
    allowed_uids: Numbers = ()
    """Who may connect: these users; the node's own and root when empty."""
    allowed_gids: Numbers = ()
    """And whoever is in one of these groups."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """The least that is logged."""
    log_json: bool = False
    """One JSON object a line instead of text."""


class NodeSettings(Section):
    """What `kvcommons node` reads."""

    node: NodeSection = NodeSection()
    index: IndexSettings = IndexSettings()


SettingsT = TypeVar("SettingsT", bound=Section)


def load_settings(
    kind: type[SettingsT],
    *,
    file: Path | None = None,
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, str] | None = None,
) -> SettingsT:
    """Reads all sources.

    :param flags: "section.name" -> value, as `flags_of` gives them.
    :raises ConfigurationError: naming the field, its value and the remedy; UnknownSettingError for a name that is none.
    """
    merged: dict[str, Any] = {}
    if file is not None:
        _merge_file(kind, merged, file)
    for name, value in sorted((os.environ if environ is None else environ).items()):
        path = name.removeprefix(ENVIRONMENT_PREFIX).lower().split("__")
        if name.startswith(ENVIRONMENT_PREFIX) and len(path) > 1 and _wanted(kind, path[0], name):
            _set(merged, path, _parsed(value))
    for name, value in (flags or {}).items():
        _set(merged, name.split("."), _parsed(value))
    try:
        return kind.model_validate(merged)
    except ValidationError as error:
        raise _translated(kind, error) from error


def flags_of(kind: type[Section], arguments: Sequence[str], own_section: str) -> tuple[dict[str, str], list[str]]:
    """(flags as "section.name" -> value, arguments that are no flags) of a command line: --name VALUE, --name=VALUE, a boolean alone."""
    known = {f"{section}.{name}" for section, model in _sections(kind).items() for name in model.model_fields}
    flags: dict[str, str] = {}
    rest: list[str] = []
    queue = list(arguments)
    while queue:
        word = queue.pop(0)
        if not word.startswith("--") or word == "--":
            rest.append(word)
            continue
        name, equals, value = word[2:].partition("=")
        path = name.replace("-", "_")
        path = path if "." in path else f"{own_section}.{path}"
        if path not in known:
            raise _unknown(
                f"--{name}", path, known, lambda found: "--" + found.removeprefix(f"{own_section}.").replace("_", "-")
            )
        if not equals:
            section, _, field = path.partition(".")
            if _sections(kind)[section].model_fields[field].annotation is bool and (
                not queue or queue[0].startswith("--")
            ):
                value = "true"
            elif queue:
                value = queue.pop(0)
            else:
                raise ConfigurationError(f"--{name}", "", "give it a value")
        flags[path] = value
    return flags, rest


def describe(kind: type[Section], own_section: str) -> str:
    """The flags of a command, one a line, for its --help."""
    lines = []
    for section, model in _sections(kind).items():
        for name, field in model.model_fields.items():
            flag = "--" + (name if section == own_section else f"{section}.{name}").replace("_", "-")
            choices, default = settings_values.choices_of(field), settings_values.shown_default(field)
            words = [field.description or "", f"One of {', '.join(choices)}." if choices else ""]
            help_text = " ".join(" ".join([*words, f"[{default}]" if default else ""]).split())
            lines.append(f"  {flag:<36} {help_text}")
    return "\n".join(lines)


def _merge_file(kind: type[Section], merged: dict[str, Any], file: Path) -> None:
    try:
        text = file.read_text()
        document = json.loads(text) if file.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        raise ConfigurationError("config", str(file), f"make the file readable ({error.strerror})") from error
    except ValueError as error:
        raise ConfigurationError("config", str(file), f"mend its syntax: {error}") from error
    if not isinstance(document, dict):
        raise ConfigurationError("config", str(file), "put settings in tables, one a section")
    for section, values in document.items():
        if _wanted(kind, section, section):
            merged[section] = values


def _wanted(kind: type[Section], section: str, shown: str) -> bool:
    """A section of this process; another process' section is left alone, anything else is a mistake."""
    if section in kind.model_fields:
        return True
    if section in SECTIONS:
        return False
    raise _unknown(shown, section, SECTIONS, lambda found: found)


def _set(merged: dict[str, Any], path: Sequence[str], value: object) -> None:
    table = merged
    for part in path[:-1]:
        table = table.setdefault(part, {})
    table[path[-1]] = value


def _parsed(value: str) -> object:
    """Lists and tables come as JSON; everything else is text that the field's type reads."""
    if value[:1] not in ("[", "{"):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value


def _sections(kind: type[Section]) -> dict[str, type[Section]]:
    return {name: field.annotation for name, field in kind.model_fields.items() if isinstance(field.annotation, type)}


def _translated(kind: type[Section], error: ValidationError) -> ConfigurationError:
    first = next((e for e in error.errors() if e["type"] == "extra_forbidden"), error.errors()[0])
    location = first["loc"]
    shown = ".".join(str(part) for part in settings_values.shown_location(location))
    if first["type"] == "extra_forbidden":
        parent = shown.rpartition(".")[0]
        known = [f"{parent}.{name}".lstrip(".") for name in settings_values.names_at(kind, location[:-1])]
        return _unknown(shown, shown, known, lambda found: found)
    value = first["input"]
    if first["type"] == "union_tag_invalid":
        shown, value = f"{shown}.type", first["ctx"]["tag"]
    if isinstance(value, dict) or not _SECRET_NAMES.isdisjoint(location):  # an error message is no place for a secret
        value = "(not shown)"
    field = settings_values.field_at(kind, location)
    size = field is not None and settings_values.is_size(field)
    return ConfigurationError(shown or "settings", value, settings_values.remedy_of(first, size))


def _unknown(shown: str, path: str, known: Iterable[str], name: Any) -> UnknownSettingError:
    names = sorted(known)
    parent, _, leaf = path.rpartition(".")
    siblings = {name.rpartition(".")[2]: name for name in names if name.rpartition(".")[0] == parent}
    near = [siblings[found] for found in difflib.get_close_matches(leaf, siblings, n=1, cutoff=0.5)]
    near = near or difflib.get_close_matches(path, names, n=1, cutoff=0.75)
    remedy = (
        f"there is no such setting; did you mean {name(near[0])}?"
        if near
        else f"there is no such setting; known: {', '.join(names)}"
    )
    return UnknownSettingError(shown, path, remedy)
