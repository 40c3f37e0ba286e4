"""The one binding of csrc. Integers are bytes, tokens or milliseconds as named; keys are packed 32-byte strings."""

from collections.abc import Callable, Mapping, Sequence
from typing import Final, TypeAlias

PROTOCOL_VERSION_MIN: Final[int]
PROTOCOL_VERSION_MAX: Final[int]

# hashing -------------------------------------------------------------------------------------------------------------
def chain_keys(
    root: bytes,
    tokens: object,
    chunk_tokens: int,
    identities: Sequence[tuple[int, bytes]] = ...,
    parent: bytes | None = ...,
) -> bytes:
    """Token keys of every whole chunk, 32 bytes each, concatenated.

    tokens: a C-contiguous buffer of u32/i32 (array, numpy, torch CPU by buffer) or a list of ints in [0, 2**32).
    identities: (chunk index, identity bytes) in ascending order; a chunk that is not named has an empty identity.
    parent: key of the chunk before the first one (to extend a chain); None starts at root.
    Raises ValueError naming the argument, its value and the remedy."""

def segment_keys(root: bytes, tokens: object, chunk_tokens: int) -> bytes:
    """The same without the chain: each chunk hashed over the root alone."""

def sha256(data: object) -> bytes: ...
def xxh3_64(data: object, seed: int = ...) -> int: ...
def cpu_features() -> dict[str, bool]: ...

# eviction -------------------------------------------------------------------------------------------------------------
def eviction_replay(policy: str, lengths: object, keys: object, capacity_chunks: int) -> tuple[int, int, int]:
    """A recorded stream of requests through a cache of so many chunks, by the store's own policies.

    policy: lru, s3fifo, cost, auto, or belady (knows the future: no policy hits more). lengths: a buffer of u32, the
    chunks of each request. keys: a buffer of u64, those of all requests one after the other; equal keys have equal
    prefixes. Returns (chunks found, chunks evicted, changes of policy).
    Raises ValueError naming the argument, its value and the remedy."""

# codecs (docs/codecs.md; kvcommons_core.codecs has names and identities without this module) --------------------------
CodecShape: TypeAlias = tuple[str, str, int, int, int, int, int, int]
"""(element "float32" | "float16" | "bfloat16", order of a block's axes outermost first: P = K or V, H = head, N = token,
layers, blocks, block_tokens, heads, k_size, v_size). v_size 0: a latent."""

def codecs() -> dict[str, tuple[int, bool, bool]]:
    """Name: (id, loses something, can be used here)."""

def codec_isas() -> list[str]:
    """Implementations that this processor can run, "scalar" (the reference) first."""

def codec_bytes_max(codec: str, shape: CodecShape, group: int = ...) -> int:
    """Bytes of a payload, known before it is made: exact, for "lossless" the most. Raises ValueError naming what can't be
    encoded, its value and the remedy."""

def codec_encode(codec: str, shape: CodecShape, raw: object, out: object, group: int = ..., isa: str = ...) -> int:
    """Encodes a slot's bytes into `out` (writable, at least codec_bytes_max) and returns how many were written.
    group: "int4" alone has it (32 is usual). Raises ValueError where a lossy codec meets Inf, NaN or 2**100 (keep the chunk
    as it is), ImportError where zstd is missing."""

def codec_decode(payload: object, shape: CodecShape, raw: object, isa: str = ...) -> None:
    """The slot's bytes into `raw` (writable, exactly the shape's bytes; undefined after an error). Raises ValueError for
    what this version does not write and for another shape."""

def codec_header(payload: object) -> dict[str, object]:
    """What a payload says of itself: codec, codec_id, group, shape, raw_bytes, body_bytes, raw_checksum."""

def codec_fingerprint(fingerprint: bytes, codec: str, group: int = ...) -> bytes:
    """kvcommons_core.codecs.lossy_fingerprint, as the node computes it."""

# text of requests (kvcommons_core.textkeys is the reference) -----------------------------------------------------------
def read_request(body: bytes, refused: frozenset[str]) -> tuple[str, bool, bytes] | None:
    """Reads the JSON of chats of roles and texts, and of prompts that are texts: (model, whether a stream is asked for,
    canonical text). None for every other body, valid or not, and where it has a member of a refused name."""

def text_chain(canonical: bytes, seed: int, step_bytes: int, keys_max: int) -> tuple[list[bytes], bytes]:
    """Chained XXH3-64 of whole steps: 8 bytes little-endian each; and the same as `"%016x"` with commas between.
    Raises ValueError naming the argument, its value and the remedy."""

# streamed answers (kvcommons_router.response is the reference) ---------------------------------------------------------
class StreamRelay:
    """The pieces of a chunked answer, from the space they are read into to a client's socket, and an account of them.
    What the socket doesn't take of a piece is written to the client's transport. For `received` is what comes while there
    is no aim, while something waits in the client's transport or it is closing, and what is not plain: a size line that is
    not whole, has extensions or is the last one."""

    def __init__(self, space: bytearray, received: Callable[[bytes], None]) -> None: ...
    def get_buffer(self, sizehint: int) -> bytearray:
        """The space, as asyncio's BufferedProtocol wants it."""
    def buffer_updated(self, nbytes: int) -> None: ...
    def begin(self) -> None:
        """A new answer, without an aim."""
    def aim(self, client: object, fd: int, left: int) -> bool:
        """From here on pieces go to the socket of this transport. False: it is no fd. left: bytes until the end of the
        chunk under way, its CRLF included; 0 at a size line."""
    def stop(self) -> None:
        """Nothing more goes to that client."""
    def note(self, piece: bytes) -> None:
        """Takes account of a piece that was sent by other means."""
    def account(self) -> tuple[int, int, bytes]:
        """Bytes and pieces relayed, however they were sent, and the end of them, up to 2 KiB."""
    @property
    def left(self) -> int: ...
    @property
    def pieces(self) -> int: ...

# copies (for benchmarks and tests) -------------------------------------------------------------------------------------
def copy_bytes(dst: int, src: int, nbytes: int, *, kernel: str = ..., threads: int = ...) -> None:
    """Copy raw memory by the named kernel ("memcpy", "nt", "auto"), GIL released. Addresses are the caller's to get right."""

def copy_runs(runs: object, *, kernel: str = ..., threads: int = ...) -> None:
    """The same for many runs: a buffer of u64 triples (source, destination, bytes)."""

# node ------------------------------------------------------------------------------------------------------------------
class NodeCore:
    """The store with its socket server and threads. No thread of it takes the GIL."""

    def __init__(
        self,
        *,
        socket_path: str,
        arena_bytes: int,
        node_id: str,
        namespace_secret: bytes,
        slab_bytes: int = ...,
        holder_socket: str = ...,
        multi_tenant: bool = ...,
        lease_pending_ms_max: int = ...,
        sessions_max: int = ...,
        leases_max: int = ...,
        events_max: int = ...,
        verify_one_in: int = ...,
        populate: bool = ...,
        huge_pages: bool = ...,
        allowed_uids: Sequence[int] = ...,
        allowed_gids: Sequence[int] = ...,
        socket_mode: int = ...,
        disk: Mapping[str, object] = ...,
        remotes: Sequence[Mapping[str, object]] = ...,
        tier_write_queue_max: int = ...,
        eviction: str = ...,
        shadow_chunks_max: int = ...,
        tenant_percent_max: int = ...,
        peers: Mapping[str, object] = ...,
    ) -> None:
        """allowed_uids: empty means this process' user and root; allowed_gids: whoever is in one of these groups as well.
        socket_mode: 0 means 0600, or 0660 where others are allowed. slab_bytes: 0 means the default. holder_socket: "" means that the arena ends with this process.
        disk: settings_tiers.DiskTier's values by name, peers: settings_peers.Peers'; empty for none.
        remotes: stores that are shared with other nodes, behind the disk; each needs a driver of its port."""
    def start(self) -> None:
        """Gets the arena from the holder or makes one, adopts or formats it, binds the socket and serves.
        Raises ValueError/OSError with the remedy: socket in use, directory not writable, capacity over the machine's memory."""
    def stop(self) -> None: ...
    @property
    def adopted(self) -> bool: ...
    @property
    def notes(self) -> list[str]:
        """What start() found that is no error but worth a warning: no holder, an arena given up, no huge pages."""
    @property
    def remarks(self) -> list[str]:
        """What start() found that is as it should be and worth a line: each disk's engine, and what was found on it."""
    @property
    def arena_id(self) -> bytes: ...
    def event_fd(self) -> int:
        """Readable (eventfd) while events wait."""
    def drain_events(
        self, events_max: int
    ) -> tuple[list[tuple[str, bytes, bytes, tuple[int, ...], str, int, str]], bool]:
        """([(kind, key, fingerprint, text_keys, json, age_ms, tier)], gap). kind: committed, freed, moved, feedback, session_opened,
        session_closed. tier: where a committed, freed or moved chunk is by now, of a node with tiers; empty for nowhere."""
    def inventory(self, cursor: int, items_max: int) -> tuple[list[tuple[bytes, bytes, tuple[int, ...]]], int]: ...
    def tier_inventory(
        self, cursor: int, items_max: int
    ) -> tuple[list[tuple[bytes, bytes, tuple[int, ...], str]], int]:
        """([(key, fingerprint, text_keys, tier)], cursor): what is on a tier and not in memory."""
    def tiers(self) -> list[tuple[str, str, str, dict[str, int]]]:
        """[(name, health, why, counters)]; health: serving, degraded, gone."""
    def remote_ports(self) -> list[RemotePort]:
        """Of a running node, in the order of `remotes`; each is closed when the node stops."""
    def stats(self) -> dict[str, int]: ...
    def set_peers(self, members: Sequence[tuple[int, int, str, str, int]]) -> None:
        """[(slot, epoch, name, host, port)] of all other nodes that live; host is an IP address."""
    def set_peer_epoch(self, epoch: int | None) -> None:
        """Under which the index tells of this node's chunks; None while it does not."""
    def peer_questions(self, questions_max: int) -> list[tuple[int, bytes, bytes]]:
        """[(id, fingerprint, keys)]: chains whose next chunks nobody here has; the event descriptor tells of new ones."""
    def peer_answer(self, question: int, candidates: Sequence[tuple[int, int, int]]) -> None:
        """[(slot, epoch, chunks)]: members that may have so many of its leading chunks; empty for nobody."""
    def peer_port(self) -> int:
        """Where peers are answered; 0 without peers."""
    def peers(self) -> list[tuple[str, str, int, bool, str, dict[str, int]]]:
        """[(name, host, port, usable, why not, counters)]."""
    def fingerprints(self) -> list[tuple[bytes, int, int, list[int]]]:
        """[(fingerprint, chunks, used_bytes, pids of its sessions)], of every fingerprint that is known."""
    def lookup(self, fingerprint: bytes, keys: bytes) -> int: ...
    def pin(self, keys: bytes, pinned: bool) -> int: ...
    def clear(self, fingerprint: bytes | None = ...) -> int: ...
    def places(self, fingerprint: bytes, keys: bytes) -> tuple[list[str], bytes]:
        """(names of the places, memory first; one byte for each key: bit i says that it is in place i)."""
    def clear_some(
        self,
        fingerprint: bytes | None = ...,
        tenant: int | None = ...,
        keys: bytes = ...,
        age_ms_min: int = ...,
        places: Sequence[str] = ...,
    ) -> tuple[int, dict[str, int]]:
        """None or empty: any. Returns (chunks that memory had, {tier: shards that it had})."""
    def write_behind(self, fingerprint: bytes, keys: bytes) -> int:
        """Has what memory has of these written to the first tier that takes writes; returns the shards in the queue."""
    def bring(self, fingerprint: bytes, keys: bytes) -> int:
        """Has what tiers have of a chain, given from its first chunk on, brought into memory; returns the chunks on their way."""
    def layout_of(
        self, fingerprint: bytes, key: bytes
    ) -> tuple[int, int, list[tuple[tuple[int, int, int, int], int]]] | None:
        """How this node has a chunk: (chunk_tokens, tenant, [((layer_begin, layer_end, head_begin, head_end), slot_bytes)]).
        None: it has it not, or nothing is known of its fingerprint."""
    def bring_from(
        self,
        peer: str,
        fingerprint: bytes,
        keys: bytes,
        chunk_tokens: int,
        tenant: int,
        shards: Sequence[tuple[tuple[int, int, int, int], int]],
    ) -> int:
        """As bring, from the peer of this name, in the layout that its layout_of told. Raises ValueError: no such layout."""
    def let_go(self, fingerprint: bytes, keys: bytes) -> int:
        """Takes the end of what is named out of memory, as far as nobody reads, pins or builds upon it; returns the chunks."""
    def remove_behind(self, tier: str, fingerprint: bytes, keys: bytes) -> int:
        """Removes these from one tier; returns the shards."""
    def recode_start(
        self,
        *,
        codec: str,
        fingerprint: bytes | None = ...,
        keys: bytes = ...,
        tier: str = ...,
        from_memory: bool = ...,
        bytes_per_second_max: int = ...,
    ) -> int:
        """Brings what a tier holds into another form, on a thread of its own; codec "none" gives the engine's own bytes.
        Returns the run's number. keys: concatenated, empty for all; tier: a name, empty for the first.
        Raises ValueError (which setting to change), RuntimeError while another run is under way."""
    def recode_progress(self, run: int) -> dict[str, int | str] | None:
        """state ("running", "done", "cancelled", "failed"), why, shards_total, shards_seen, offered, rewritten, unchanged,
        refused, gone, failed, bytes_before, bytes_after; None: another run has begun since."""
    def recode_cancel(self, run: int) -> bool: ...

class RemotePort:
    """What a remote tier wants done in its store. For as many threads as there are lanes, each with a lane of its own."""

    @property
    def name(self) -> str: ...
    @property
    def lanes(self) -> int: ...
    @property
    def closed(self) -> bool: ...
    def take(self, lane: int, wait_ms: int) -> tuple[int, str, list[str], int, int, int] | None:
        """(id, op, names, bytes, ttl_ms, time_out_ms); op: put, get, ask, remove, clear, ping. None: nothing within wait_ms, or closed."""
    def object(self, id: int, bytes: int) -> bytes | None:
        """What a put is to store; None if it is not wanted any more."""
    def done(
        self,
        id: int,
        outcome: str,
        content: bytes | bytearray | memoryview | None = ...,
        sizes: Sequence[int] = ...,
        why: str = ...,
    ) -> None:
        """outcome: ok, exists, missing, full, failed, unreachable. content: of a get. sizes: of what was asked, 0 for missing."""

def holder_serve(socket_path: str, idle_seconds_max: int) -> None:
    """Keeps fds by name for a daemon that restarts; returns when told to stop or when idle for so long."""

def holder_stop(socket_path: str) -> None: ...

# client ----------------------------------------------------------------------------------------------------------------
class Client:
    def __init__(
        self,
        *,
        socket_path: str,
        role: str,
        fingerprint: bytes = ...,
        chunk_tokens: int = ...,
        shards: Sequence[tuple[tuple[int, int, int, int], int]] = ...,
        own_shard: int = ...,
        call_ms_max: int = ...,
        reconnect_ms_min: int = ...,
        reconnect_ms_max: int = ...,
        readers_per_shard: int = ...,
        arena_kept_ms: int = ...,
        layout: tuple[str, str, int, int, int] | None = ...,
        exact: bool = ...,
    ) -> None:
        """layout: (element, order, block_tokens, k_size, v_size) of the slots as in CodecShape, told to a node that asks; None:
        not known. exact: nothing that a codec changed, whatever the node is set to. arena_kept_ms: an idle transfer's client unmaps the arena of a node that is gone for so long. role: "scheduler", "worker" or "tool". shards: ((layer_begin, layer_end, head_begin, head_end), slot_bytes).
        own_shard: index into shards, -1 for none. readers_per_shard: for schedulers, how many ranks each load the same
        shard. Connects lazily. No call blocks longer than call_ms_max. Not usable in a forked child."""
    def ensure_connected(self) -> bool: ...
    @property
    def connected(self) -> bool: ...
    @property
    def last_error(self) -> str: ...
    @property
    def multi_tenant(self) -> bool: ...
    @property
    def has_tiers(self) -> bool:
        """The node has more behind its memory: an early lookup has it brought in."""
    @property
    def namespace_secret(self) -> bytes: ...
    @property
    def fingerprint(self) -> bytes:
        """The session's, from which keys derive: another than was given where the node answers from a codec with loss."""
    @property
    def node_id(self) -> str: ...
    @property
    def attach_count(self) -> int: ...
    @property
    def arena_bytes(self) -> int: ...
    # Every call returns a status name first: "ok", "gone", "full", "busy", "disconnected", "timed_out", ...
    def lookup(self, keys: bytes, tenant: int = ..., lease: bool = ...) -> tuple[str, int, int, int]:
        """(status, lease, hit_chunks, pending_chunks)"""
    def begin(self, lease: int) -> tuple[str, list[tuple[int, int]]]: ...
    def reserve(self, tenant: int, parent: bytes, keys: bytes) -> tuple[str, list[tuple[str, int, int]]]:
        """(status, [(reserve status, offset_bytes, generation)])"""
    def commit(self, items: Sequence[tuple[int, int, int, Sequence[int]]]) -> tuple[str, int]:
        """items: (offset_bytes, generation, checksum, text_keys); returns (status, accepted)"""
    def abort(self, slots: Sequence[tuple[int, int]]) -> str: ...
    def release(self, lease: int) -> str: ...
    def touch(self, keys: bytes) -> str: ...
    def feedback(self, json: str) -> str: ...
    def stat(self) -> tuple[str, str]: ...
    def read_arena(self, offset_bytes: int, nbytes: int) -> bytes:
        """Copy out of the mapped arena (tests, tools)."""
    def write_arena(self, offset_bytes: int, data: object) -> None: ...
    def copy_started(self) -> None:
        """Call before the begin() or reserve() that grants slots, so that they are not given away while they are used."""
    def copy_finished(self) -> None: ...
    def close(self) -> None: ...

class Transfer:
    def __init__(
        self,
        client: Client,
        *,
        blocks_per_chunk: int,
        layers: Sequence[tuple[int, int, int, int, int, int, int, int]],
        copy_threads: int = ...,
        jobs_max: int = ...,
        device: str = ...,
        kernels: bytes = ...,
        driver: str = ...,
    ) -> None:
        """layers: (base, blocks, block_stride_bytes, planes, plane_stride_bytes, runs, run_stride_bytes, run_bytes).

        device: "host"; "stream": copies by threads that stand for a GPU's streams; "cuda:N": that GPU's memory.
        kernels: the image that was built for it, or none. driver: path of libcuda where it is not the usual one.
        :raises RuntimeError: where the GPU can't be used. :raises ValueError: for layers that are not in its memory."""
    def load(
        self, job: int, lease: int, first_block: int, block_ids: object, stream: int = ..., whole: bool = ...
    ) -> str:
        """block_ids: buffer of u32/i32/i64 or list of ints. stream: the engine's on a GPU; 0: nothing to wait for.
        whole: nobody waits for its layers, but somebody for its end; wait_layer does not wait for it."""
    def wait_layer(self, layer: int, ms_max: int) -> str: ...
    def wait_load(self, job: int, ms_max: int) -> str: ...
    def store(
        self,
        job: int,
        tenant: int,
        parent: bytes,
        keys: bytes,
        block_ids: object,
        text_keys: Sequence[Sequence[int]] = ...,
        hints: int = ...,
        stream: int = ...,
    ) -> str:
        """hints: for eviction, packed as RESERVE carries them (docs/protocol.md)."""
    def wait_stores(self, jobs: Sequence[int]) -> None: ...
    def wait_all_stores(self) -> None: ...
    def take_finished_loads(self) -> list[tuple[int, str, int, int]]:
        """[(job, status, bytes, chunks)]"""
    def take_finished_stores(self) -> list[tuple[int, str, int, int]]: ...
    def stats(self) -> dict[str, int]: ...

def gpu_status(device: str, *, kernels: bytes = ..., driver: str = ...) -> tuple[bool, str]:
    """Whether "cuda:N" can be used; what it is, or why not."""

class GpuCopies:
    """A GPU's copies alone, for benchmarks and tests. :raises RuntimeError: where the GPU can't be used."""

    def __init__(self, device: str, *, kernels: bytes = ..., driver: str = ...) -> None: ...
    @property
    def description(self) -> str: ...
    def pin(self, start: int, nbytes: int) -> bool: ...
    def unpin(self, start: int) -> None: ...
    def copy(self, way: str, method: str, runs: object) -> str:
        """way: "load" (into the GPU) or "store". method: "loop", "batch", "warps", "ring", "staged", or "" for the cheapest.
        runs: u64 triples (source, destination, bytes). Waits. "done", "refused", "failed" or "lost"."""
    def quantise(
        self,
        *,
        codec: str,
        element: str,
        grid: tuple[int, int, int, int, int, int],
        blocks: int,
        tiles: int,
        count: int,
        width: int,
        group: int,
        params: int,
        codes: int,
        most: int,
        back: bool = ...,
    ) -> str:
        """Quantise tiles of `count` rows of paged KV, or back. grid: (base, block_stride, outer_stride, inner_stride, outer,
        inner). blocks (u32 ids), params, codes and most (u32 a tile): addresses that the GPU can reach."""
    def turn(
        self,
        *,
        element: str,
        grid: tuple[int, int, int, int, int, int],
        blocks: int,
        rows: int,
        neox: bool,
        first: int,
        dims: int,
        cosines: int,
        sines: int,
    ) -> str:
        """Rotate K in place by a constant shift: dims / 2 float32 cosines and sines, of channels from `first` on."""
    def costs(self) -> dict[str, tuple[float, float, float]]:
        """{"load.batch": (ns at all, ns a run, ns for 1,024 bytes), ...}"""
