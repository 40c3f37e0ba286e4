"""The operator's own resources as it knows them: what is gone stays gone, what has just come is not taken for gone."""

from __future__ import annotations

from typing import Any

import operator_examples as examples
from kvcommons_operator import names
from kvcommons_operator.reconcile.resources import Id, Resources

CHAT = Id(names.DEPLOYMENT_KIND, "llm", "chat")


def chat(version: int, uid: str = "one") -> dict[str, Any]:
    found = examples.deployment()
    found["metadata"] |= {"uid": uid, "resourceVersion": str(version)}
    return found


def test_a_late_answer_does_not_bring_back_what_is_gone() -> None:
    """The status that we wrote was answered after the deletion had been heard; another resource of the same name is a new one."""
    resources = Resources()
    resources.put(CHAT.kind, chat(7))
    resources.remove(CHAT)
    resources.put(CHAT.kind, chat(8))
    assert resources.get(CHAT) is None
    resources.put(CHAT.kind, chat(9, "two"))
    assert resources.get(CHAT) is not None


def test_a_list_takes_away_only_what_was_known_when_it_was_asked_for() -> None:
    """What the watch brings while a list is on its way is newer than the list: dropped, it would never be looked at again."""
    resources = Resources()
    resources.put(CHAT.kind, chat(7))
    known = resources.uids(CHAT.kind)
    newcomer = examples.deployment("newcomer")
    resources.put(CHAT.kind, newcomer)
    resources.replace(CHAT.kind, [], [None], known)
    assert resources.get(CHAT) is None
    assert resources.get(Id(CHAT.kind, "llm", "newcomer")) is not None
