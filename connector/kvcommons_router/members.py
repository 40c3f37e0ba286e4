"""The engines that this router keeps registered in the index."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from kvcommons_core.index import EngineRecorder, MemberInfo, MemberKind

from kvcommons_router.chains import member_name
from kvcommons_router.fleet import Instance


class Members:
    """Brings the registrations in line with the fleet, one change after the other."""

    def __init__(self, recorder: EngineRecorder) -> None:
        self._recorder = recorder
        self._kept: dict[str, MemberInfo] = {}
        self._over: set[str] = set()
        self._one_at_a_time = asyncio.Lock()

    def void(self, gone: Sequence[Instance]) -> None:
        """What these held is void for every router as soon as they are let go, if every router sees their end."""
        self._over.update(member_name(one.name) for one in gone if one.entry.discovered)

    async def keep(self, instances: Sequence[Instance]) -> None:
        """Registers who has come, and lets go who is no longer there. It reads the fleet as it is when its turn comes."""
        async with self._one_at_a_time:
            wanted = {info.name: info for info in map(info_of, instances)}
            over, self._over = self._over, set()
            for name in [name for name, info in self._kept.items() if wanted.get(name) != info or name in over]:
                del self._kept[name]
                await self._recorder.remove(name, gone=name in over)
            for name, info in wanted.items():
                if name not in self._kept:
                    self._kept[name] = info
                    self._recorder.add(info)


def info_of(instance: Instance) -> MemberInfo:
    """An instance as the index describes it."""
    one = instance.settings
    return MemberInfo(
        name=member_name(one.name),
        kind=MemberKind.ENGINE,
        address=one.url,
        node=one.node,
        zone=one.zone,
        model=one.names[0],
        dp_rank=-1 if one.dp_rank is None else one.dp_rank,
    )
