"""The pods that the API server told of, and the fleet that they make. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from kvcommons_router.pods import PodView, view_of
from kvcommons_router.roster import Presence, Wanted
from kvcommons_router.settings_instances import INSTANCES_MAX, KubernetesSettings
from kvcommons_router.wanted_text import line_of

# More is not put up: the roster has no place for them, and takes from these the ones that it has a place for.
WANTED_MAX = INSTANCES_MAX * 2


class PodSet:
    """By name; a list replaces it, events change it."""

    def __init__(self, settings: KubernetesSettings) -> None:
        self._settings = settings
        self._lines: dict[str, list[tuple[Wanted, bytes]]] = {}
        self._problems: set[str] = set()

    def replace(self, pods: Iterable[object]) -> list[str]:
        """Takes all pods that there are; problems that were not told before.

        :raises UnreadablePodError: if one of them is none; then nothing changes.
        """
        views = [view_of(pod, self._settings) for pod in pods]
        self._lines = {view.name: _lines(view) for view in views}
        return self._fresh(views)

    def put(self, pod: object) -> list[str]:
        """Takes a pod as it is now; problems that were not told before.

        :raises UnreadablePodError: if it is none.
        """
        view = view_of(pod, self._settings)
        self._lines[view.name] = _lines(view)
        return self._fresh((view,))

    def drop(self, pod: object) -> None:
        """A pod is no longer there, or no longer one of ours.

        :raises UnreadablePodError: if it is none.
        """
        self._lines.pop(view_of(pod, self._settings).name, None)

    def text(self) -> bytes:
        """The fleet, a line for each instance; ready ones first where there are too many."""
        found = [pair for pairs in self._lines.values() for pair in pairs]
        if len(found) > WANTED_MAX:
            found.sort(key=lambda pair: (pair[0].presence is not Presence.READY, pair[0].settings.name))
        return b"\n".join([line for _, line in found[:WANTED_MAX]])

    def _fresh(self, views: Iterable[PodView]) -> list[str]:
        told = [f"pod {view.name}: {problem}" for view in views for problem in view.problems]
        fresh = [problem for problem in told if problem not in self._problems]
        if len(self._problems) > WANTED_MAX:
            self._problems.clear()
        self._problems.update(fresh)
        return fresh


def _lines(view: PodView) -> list[tuple[Wanted, bytes]]:
    return [(one, line_of(one)) for one in view.wanted]
