"""The instances of a router at run time: their connections, their load, what is learnt of them, who serves which model."""

from __future__ import annotations

from collections.abc import Sequence

from kvcommons_router.health import Health
from kvcommons_router.picker import Candidate, Prefill
from kvcommons_router.rates import PrefillLearner, TokenRatio
from kvcommons_router.settings import InstanceSettings, RouterSection
from kvcommons_router.upstream import Pool


class Instance:
    """One engine replica, or a rank of one."""

    def __init__(self, index: int, settings: InstanceSettings, router: RouterSection) -> None:
        self.index = index
        self.settings = settings
        self.name = settings.name
        limits = router.limits
        self.pool = Pool(
            settings.host,
            settings.port,
            idle_max=limits.pool_idle_max,
            idle_seconds=limits.pool_idle_seconds,
            connect_seconds=limits.connect_seconds,
        )
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        self.host_lines = b"Host: %s:%d\r\n" % (host.encode("ascii"), settings.port)
        if settings.api_key is not None:
            self.host_lines += b"Authorization: Bearer %s\r\n" % settings.api_key.encode("ascii")
        if settings.dp_rank is not None:
            self.host_lines += b"X-Data-Parallel-Rank: %d\r\n" % settings.dp_rank
        prefill = Prefill(router.cost.base_seconds, router.cost.token_seconds)
        self.candidate = Candidate(self.name.encode(), prefill=prefill)
        self.learner = PrefillLearner(prefill)


class Group:
    """The instances of one model, and those of them that get requests now."""

    def __init__(self, model: str, position: int, members: Sequence[Instance]) -> None:
        self.model = model
        self.position = position  # among all models; its column in the metrics
        self.members = tuple(members)
        self.usable: tuple[Instance, ...] = tuple(members)
        self.candidates: list[Candidate] = [member.candidate for member in members]
        self.ratio = TokenRatio()
        self.turn = 0

    def narrow(self, usable: Sequence[Instance]) -> None:
        """Sets who gets requests; if nobody should, everybody may: a wrong check must not stop all."""
        self.usable = tuple(usable) or self.members
        self.candidates = [member.candidate for member in self.usable]


class Fleet:
    """All instances, by index and by model."""

    def __init__(self, settings: RouterSection) -> None:
        self.instances = [Instance(index, one, settings) for index, one in enumerate(settings.instances)]
        serving: dict[str, list[Instance]] = {}
        for instance in self.instances:
            for name in instance.settings.names:
                serving.setdefault(name, []).append(instance)
        self.groups = {name: Group(name, at, serving[name]) for at, name in enumerate(serving)}

    @property
    def models(self) -> tuple[str, ...]:
        """The names that clients may ask for, in the order of the settings."""
        return tuple(self.groups)

    def refresh(self, health: Health, now_ms: int) -> None:
        """Looks again at who is usable."""
        for group in self.groups.values():
            group.narrow([one for one in group.members if health.usable(one.index, now_ms)])

    def candidates(self) -> list[Candidate]:
        """The picker's view of every instance, by index."""
        return [instance.candidate for instance in self.instances]

    def expire_idle(self, now: float) -> None:
        """Closes connections that were idle too long."""
        for instance in self.instances:
            instance.pool.expire(now)

    def close(self) -> None:
        """Closes every idle connection."""
        for instance in self.instances:
            instance.pool.close_idle()


def models_of(settings: RouterSection) -> tuple[str, ...]:
    """The model names of the settings, in their order, each once."""
    return tuple(dict.fromkeys(name for one in settings.instances for name in one.names))
