"""What the core asks of the index about peers: who lives, under which address and epoch, and who may hold a chain.

The core never waits for this. A question that Redis answers late, or not at all, is answered with nobody: the engine
computes. What is said here is a hint; the peer itself says what it has."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
from collections.abc import Mapping
from contextlib import suppress

from kvcommons_core.index.reader import IndexReader
from kvcommons_core.index.schema import Member, MemberKind, token_key8
from kvcommons_core.limits import KEY_BYTES
from kvcommons_core.settings import IndexSettings
from kvcommons_core.settings_peers import split_address

from kvcommons_node.control import IndexLink
from kvcommons_node.history import History
from kvcommons_node.seam import Core

SYNC_SECONDS = 0.25
QUESTIONS_PER_WAKE_MAX = 256
RESOLVE_SECONDS_MAX = 1.0
NAMES_MAX = 4_096

logger = logging.getLogger(__name__)

Address = tuple[int, int, str, str, int]
"""slot, epoch, name, IP address, port."""


def nodes_of(members: Mapping[int, Member], own_name: str) -> list[tuple[Member, str, int]]:
    """The other nodes that answer peers, with host and port; what is written wrong is nobody."""
    found = []
    for member in members.values():
        if member.info.kind is not MemberKind.NODE or member.info.name == own_name or not member.info.peer:
            continue
        with suppress(ValueError):
            found.append((member, *split_address(member.info.peer)))
    return found


class Peers:
    """Lives on the daemon's event loop, beside the pump that wakes it."""

    def __init__(
        self,
        settings: IndexSettings,
        core: Core,
        index: IndexLink,
        own_name: str,
        lookup_ms_max: float,
        history: History | None = None,
    ) -> None:
        """:param history: who was said to have what, for whoever asks later why it was not found.
        :param lookup_ms_max: what comes later than this nobody waits for any more."""
        # Past the mirror: a moment ago's answer of nobody is what an engine would compute for.
        self._reader = IndexReader(settings.model_copy(update={"mirror_keys_max": 0, "lookup_ms_max": lookup_ms_max}))
        self._core = core
        self._index = index
        self._own_name = own_name
        self._history = history or History()
        self._told: list[Address] = []
        self._told_epoch: int | None = None
        self._addresses: dict[str, str] = {}
        self._syncing: asyncio.Task[None] | None = None
        self._asking: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Begins in the background: Redis may be away."""
        self._syncing = asyncio.create_task(self._run(), name="peers")

    async def stop(self) -> None:
        tasks = [task for task in (self._syncing, *self._asking) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._reader.stop()

    def wake(self) -> None:
        """The core may have questions."""
        for question, _, keys in self._core.peer_questions(QUESTIONS_PER_WAKE_MAX):
            task = asyncio.create_task(self._ask(question, keys), name="peers-question")
            self._asking.add(task)
            task.add_done_callback(self._asking.discard)

    async def _run(self) -> None:
        await self._reader.start()
        while True:
            await self._sync()
            await asyncio.sleep(SYNC_SECONDS)

    async def _sync(self) -> None:
        """Tell the core who lives, and under which epoch the index tells of this node, where that changed."""
        status = self._index.status()
        epoch = status.epoch if status.state == "connected" else None
        if epoch != self._told_epoch:
            self._told_epoch = epoch
            self._core.set_peer_epoch(epoch)
        found: list[Address] = []
        for member, host, port in nodes_of(self._reader.view.members, self._own_name):
            address = await self._address_of(host)
            if address:
                found.append((member.slot, member.epoch, member.info.name, address, port))
        found.sort()
        if found != self._told:
            self._told = found
            self._core.set_peers(found)

    async def _address_of(self, host: str) -> str:
        """An IP address; empty where the name has none now."""
        with suppress(ValueError):
            return str(ipaddress.ip_address(host))
        if host not in self._addresses:
            try:
                resolving = asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
                first = (await asyncio.wait_for(resolving, RESOLVE_SECONDS_MAX))[0]
            except (OSError, TimeoutError) as error:
                logger.warning("peer %s has no address: %s", host, error)
                return ""
            if len(self._addresses) >= NAMES_MAX:
                self._addresses.clear()
            self._addresses[host] = str(first[4][0])
        return self._addresses[host]

    async def _ask(self, question: int, keys: bytes) -> None:
        chain = [token_key8(keys[at : at + KEY_BYTES]) for at in range(0, len(keys), KEY_BYTES)]
        found = await self._reader.lookup(chain)
        await self._sync()
        epochs = {slot: epoch for slot, epoch, *_ in self._told}
        candidates = [(slot, epochs[slot], hit.depth) for slot, hit in found.hits.items() if slot in epochs]
        names = {slot: name for slot, _, name, *_ in self._told}
        self._history.asked(chain, {names[slot]: depth for slot, _, depth in candidates})
        self._core.peer_answer(question, candidates)
