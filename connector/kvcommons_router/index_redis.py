"""The shared index as this router uses it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvcommons_router.index import Index, OwnMemory

if TYPE_CHECKING:
    from kvcommons_router.app import App


def make_index(app: App) -> Index:
    """The index of the settings."""
    return OwnMemory(app.settings.index.mirror_entries_max)
