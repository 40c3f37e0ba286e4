"""What routers, and the workers of one, tell one another a few ten times a second: their load, what waits in them, what they have learnt.

Nobody asks and nobody waits for an answer. Workers of one router put their text up in shared memory, routers send it over the index's Redis.
Who says nothing for a while has nobody waiting any more, and soon no load either: what has died holds up nobody.
"""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import orjson

from kvcommons_router.binding import Rival
from kvcommons_router.board import Board
from kvcommons_router.fleet import Group
from kvcommons_router.load import NOTHING, InstanceLoad
from kvcommons_router.picker import Prefill, Shape
from kvcommons_router.rates import pool

if TYPE_CHECKING:  # a context holds this
    from kvcommons_router.context import Context

TEXT_BYTES_MAX: Final = 512 * 1024
BEAT_SECONDS: Final = 0.2
"""After which a text is said again though nothing has changed."""
WAITS_SECONDS_MAX: Final = 0.6
LOAD_SECONDS_MAX: Final = 3.0
TOLD_MAX: Final = 64
"""Requests that others are told of, of one model: those whose turn is next."""
REPLICAS_MAX: Final = 64
"""With more of them what waits is not told: there is then hardly a replica that two routers want at one moment."""
OTHERS_MAX: Final = 256
ALONE_SECONDS: Final = 1.0
"""How often a router says that it is there which has heard of no other one. It says no load then: that would be old until the next time."""

Waits = Mapping[Group, Sequence[tuple[int, Rival]]]


class Posts:
    """A board for each worker, made before they are forked."""

    def __init__(self, workers: int) -> None:
        self.name = secrets.token_hex(8)
        """Of the router."""
        self.boards = [Board(TEXT_BYTES_MAX) for _ in range(workers)]


class Heard:
    """What another worker or router has said of itself last."""

    __slots__ = ("at", "load", "rates", "rivals", "waits")

    def __init__(self) -> None:
        self.at = 0.0
        self.load: dict[str, InstanceLoad] = {}
        self.rates: dict[str, Prefill] = {}
        self.waits: dict[str, tuple[list[str], list[Any]]] = {}
        self.rivals: dict[tuple[str, int], Rival] = {}
        """By model and number: one that still waits is still the same object."""

    def take(self, said: dict[str, Any], at: float, offset: float) -> None:
        """:param offset: of our clock against the other's."""
        self.at = at
        self.load = {
            name: InstanceLoad(tokens, decoding, requests, head_at + offset)
            for name, (tokens, decoding, requests, head_at) in said["load"].items()
        }
        self.rates = {name: Prefill(base, token) for name, (token, base) in said["rates"].items()}
        self.waits = {model: (names, tickets) for model, (names, tickets) in said["waits"].items()}
        known, self.rivals = self.rivals, {}
        for model, (names, tickets) in self.waits.items():
            for number, tenant, weight, order, tie, works in tickets:
                if len(works) != len(names) or not all(isinstance(work, float | int) for work in works):
                    raise ValueError("there is a time for each replica")
                rival = known.get((model, number)) or Rival(Shape(0, tie), tenant, weight=weight)
                rival.order = float(order + offset)
                self.rivals[(model, number)] = rival

    def rivals_of(self, model: str, names: Sequence[str]) -> list[Rival]:
        """Who waits there for a model; their works for the replicas of these names."""
        theirs, tickets = self.waits.get(model, ([], []))
        found = []
        same = theirs == names
        for number, _, _, _, _, works in tickets:
            rival = self.rivals[(model, number)]
            if not same:
                of = dict(zip(theirs, works, strict=True))
                works = [of.get(name, max(works)) for name in names]
            rival.works = works
            rival.best = min(works)
            found.append(rival)
        return found


class Sharing:
    """A worker's mouth and ears."""

    def __init__(self, context: Context, posts: Posts, row: int) -> None:
        self._context = context
        self._posts = posts
        self._row = row
        self._seen = [0] * len(posts.boards)
        self._heard: dict[str, Heard] = {}
        self._dirty = False
        self._loads: list[InstanceLoad] = []
        self._said = b""
        self._said_at = self._rates_at = -BEAT_SECONDS
        self._rates = orjson.Fragment(b"{}")
        self.send: Callable[[bytes], None] | None = None
        """To other routers."""
        self._sent_at = -ALONE_SECONDS

    # Telling.

    def tell(self, now: float) -> None:
        """Says how it is here, if that has changed or was not said for a while."""
        if now - self._rates_at >= BEAT_SECONDS:
            self._rates_at = now
            self._learnt()
        said = self._text(now)
        if said == self._said and now - self._said_at < BEAT_SECONDS:
            return
        self._said, self._said_at = said, now
        text = self._signed(said, now)
        if len(text) > TEXT_BYTES_MAX:
            return
        if len(self._posts.boards) > 1:
            self._posts.boards[self._row].write(text)
        if self.send is None:
            return
        if self._accompanied():
            self.send(text)
        elif now - self._sent_at >= ALONE_SECONDS:
            self._sent_at = now
            spent = self._context.quotas.told()
            self.send(self._signed(orjson.dumps({"load": {}, "rates": self._rates, "waits": {}, "spent": spent}), now))

    def _signed(self, said: bytes, now: float) -> bytes:
        return b'{"router":"%b","worker":%d,"at":%.6f,%b' % (self._posts.name.encode(), self._row, now, said[1:])

    def _accompanied(self) -> bool:
        return any(not name.startswith(self._posts.name) for name in self._heard)

    @property
    def heard_at(self) -> float:
        """When somebody else said anything last; 0 for never."""
        return max([heard.at for heard in self._heard.values()], default=0.0)

    def _text(self, now: float) -> bytes:
        context = self._context
        instances = context.fleet.instances
        own = context.load.own()
        load = {
            one.name: (*own[one.index], round(one.candidate.head_at, 3))
            for one in instances
            if own[one.index] != (0, 0, 0)
        }
        waits = {}
        for group, binder in tuple(context.waiting.binders()):
            if 0 < len(group.usable) <= REPLICAS_MAX:
                binder.follow(group.candidates, now)
                names = [one.name for one in group.usable]
                waits[group.model] = (names, [_told(one) for one in itertools.islice(binder.in_order(), TOLD_MAX)])
        return orjson.dumps({"load": load, "rates": self._rates, "waits": waits, "spent": context.quotas.told()})

    # Hearing.

    def listen(self, now: float) -> None:
        """Reads what the other workers have put up, and forgets who is silent."""
        for row, board in enumerate(self._posts.boards):
            if row != self._row and board.version != self._seen[row]:
                found = board.read()
                if found is not None:
                    self._seen[row], text = found
                    self._take(f"{self._posts.name}-{row}", text, now, away=False)
        for name, heard in tuple(self._heard.items()):
            silent = now - heard.at
            if silent > LOAD_SECONDS_MAX:
                del self._heard[name]
                self._context.quotas.forget(name)
                self._dirty = True
            elif silent > WAITS_SECONDS_MAX and heard.waits:
                heard.waits.clear()
                heard.rivals.clear()
                self._dirty = True
        if self._dirty:
            self._dirty = False
            self._apply(now)

    def take(self, text: bytes) -> None:
        """A text of another router."""
        self._take("", text, self._context.loop_time(), away=True)

    def _take(self, name: str, text: bytes, now: float, *, away: bool) -> None:
        if not text:  # its worker has died
            self._dirty = self._heard.pop(name, None) is not None or self._dirty
            self._context.quotas.forget(name)
            return
        try:
            said = orjson.loads(text)
            if away:
                if said["router"] == self._posts.name:
                    return
                name = f"{said['router']}-{said['worker']}"
            if name not in self._heard and len(self._heard) >= OTHERS_MAX:
                return
            heard = self._heard.get(name) or Heard()
            heard.take(said, now, now - said["at"] if away else 0.0)
            self._context.quotas.hear(name, said["spent"])
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
            self._dirty = self._heard.pop(name, None) is not None or self._dirty
            return  # another version's, or nobody's: it is silent to us
        self._heard[name] = heard
        self._dirty = True

    def _apply(self, now: float) -> None:
        context, everybody = self._context, self._heard.values()
        instances = context.fleet.instances
        self._loads = [NOTHING] * (instances[-1].index + 1 if instances else 0)
        for one in instances:
            loads = [heard.load[one.name] for heard in everybody if one.name in heard.load]
            if loads:
                self._loads[one.index] = _sum(loads)
        for group in context.fleet.groups.values():
            names = [one.name for one in group.usable]
            rivals = [rival for heard in everybody for rival in heard.rivals_of(group.model, names)]
            context.waiting.hear(group, rivals, now)

    def read(self, count: int) -> Sequence[InstanceLoad]:
        """What is under way at the first so many instances."""
        loads = self._loads
        return [*loads[:count], *[NOTHING] * (count - len(loads))]

    def _learnt(self) -> None:
        """What is told of rates; and what the picker believes of them comes in line with what all have learnt."""
        everybody, told = self._heard.values(), {}
        for one in self._context.fleet.instances:
            own = one.learner.prefill
            if own.known:
                told[one.name] = (own.token_seconds, own.base_seconds)
            if one.candidate.prefill is not own:
                pool(
                    one.candidate.prefill,
                    [own, *[heard.rates[one.name] for heard in everybody if one.name in heard.rates]],
                )
        self._rates = orjson.Fragment(orjson.dumps(told))


def _told(ticket: Any) -> tuple[int, str, float, float, int, list[float]]:
    shape = ticket.shape
    works = [round(work, 5) for work in ticket.works]
    return (ticket.number, ticket.tenant, ticket.weight, round(ticket.order, 4), shape.session or shape.affinity, works)


def _sum(loads: Iterable[InstanceLoad]) -> InstanceLoad:
    tokens, decoding, requests, heads = zip(*loads, strict=True)
    return InstanceLoad(sum(tokens), sum(decoding), sum(requests), max(heads))
