"""The threads that carry out what a remote tier wants done: one for each of its lanes, beside the event loop.

A thread that a store keeps waiting holds nothing of the node's: the core answers whoever waits when the time-out is up, and drops what
comes later."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from kvcommons_core.settings_remote import RedisTier, S3Tier

from kvcommons_node.remote.stores import Store, StoreAwayError, StoreFullError, StoreRefusedError

TAKE_MS: Final = 500
JOIN_SECONDS_MAX: Final = 2.0

logger = logging.getLogger(__name__)


class Port(Protocol):
    """``kvcommons_core._native.RemotePort``."""

    @property
    def name(self) -> str: ...
    @property
    def lanes(self) -> int: ...
    @property
    def closed(self) -> bool: ...
    def take(self, lane: int, wait_ms: int) -> tuple[int, str, list[str], int, int, int] | None: ...
    def object(self, id: int, bytes: int) -> bytes | None: ...
    def done(
        self,
        id: int,
        outcome: str,
        content: bytes | memoryview | None = ...,
        sizes: Sequence[int] = ...,
        why: str = ...,
    ) -> None: ...


def open_store(settings: RedisTier | S3Tier) -> Store:
    """Connects to nothing yet. :raises ConfigurationError: or StartRefusedError, naming the field and the remedy."""
    if settings.type == "redis":
        from kvcommons_node.remote.redis_store import RedisStore

        return RedisStore(settings)
    from kvcommons_node.remote.s3_store import S3Store

    return S3Store(settings)


class Drivers:
    """Of all remote tiers of a node."""

    def __init__(self, stores: Sequence[Store]) -> None:
        """:param stores: in the order of the core's `remotes`."""
        self._stores = list(stores)
        self._threads: list[threading.Thread] = []

    def start(self, ports: Sequence[Port]) -> None:
        for port, store in zip(ports, self._stores, strict=True):
            for lane in range(port.lanes):
                # A daemon thread: a store that hangs keeps no process from ending.
                name = f"{port.name}-{lane}"
                thread = threading.Thread(target=serve, args=(port, lane, store), name=name, daemon=True)
                thread.start()
                self._threads.append(thread)

    def stop(self) -> None:
        """After the core has stopped, which closes the ports."""
        for thread in self._threads:
            thread.join(JOIN_SECONDS_MAX)
        for store in self._stores:
            store.close()


def serve(port: Port, lane: int, store: Store) -> None:
    """Until the port is closed."""
    while not port.closed:
        job = port.take(lane, TAKE_MS)
        if job is not None:
            carry_out(port, store, job)


def carry_out(port: Port, store: Store, job: tuple[int, str, list[str], int, int, int]) -> None:
    """One job, answered once whatever happens."""
    number, op, names, size, ttl_ms, time_out_ms = job
    content: bytes | memoryview | None = None
    sizes: list[int] = []
    outcome, why = "failed", "the driver failed; the log says how"
    try:
        if op == "put":
            outcome = _put(port, store, number, names[0], size, ttl_ms)
        elif op == "get":
            content = store.get(names[0])
            outcome = "missing" if content is None else "ok"
        elif op == "ask":
            sizes, outcome = store.sizes(names), "ok"
        else:
            actions: dict[str, Callable[[], None]] = {
                "remove": lambda: store.remove(names),
                "clear": lambda: store.clear(names[0], time_out_ms / 1_000),
                "ping": store.ping,
            }
            actions[op]()
            outcome = "ok"
        why = ""
    except StoreAwayError as error:
        outcome, why = "unreachable", str(error)
    except StoreFullError as error:
        outcome, why = "full", str(error)
    except StoreRefusedError as error:
        outcome, why = "failed", str(error)
    finally:
        if why:
            logger.debug("%s: %s: %s", port.name, op, why)
        port.done(number, outcome, content, sizes, why)


def _put(port: Port, store: Store, number: int, name: str, size: int, ttl_ms: int) -> str:
    made = port.object(number, size)
    if made is None:
        return "ok"  # nobody waits for it any more
    return "ok" if store.put(name, made, ttl_ms) else "exists"
