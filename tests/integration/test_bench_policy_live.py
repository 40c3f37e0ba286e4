"""The benchmark of one worker against several, with real routers, for a moment."""

from pathlib import Path

import uvloop

from bench.policy import live
from bench.policy.world import Model, Request


def test_one_worker_and_several_are_asked_the_same(tmp_path: Path) -> None:
    """Real routers in front of sleeping engines: every request of both is answered to its end."""
    asked = [Request(number * 0.01, [number % 3 * 100 + block for block in range(3)], 1) for number in range(9)]
    one, several = uvloop.run(live.run(asked, (1, 2), Model(base=0.001, block=0.001), tmp_path))
    assert [len(one.seconds), len(several.seconds)] == [9, 9]
    assert one.errors == several.errors == 0
