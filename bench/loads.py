"""The loads of bench.throughput: which prompts are asked, in which order, and how much of them somebody has computed before.

Pure, and always the same: whoever is compared is asked the same. A question belongs to a place, its chat or its document: a client that
always takes a place to the same engine finds there what this place has computed.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

VOCABULARY = 4_096
FIRST_WORD = 16
BLOCK_TOKENS = 128
DOCUMENTS = 24
QUESTION_TOKENS = 64


@dataclass(frozen=True)
class Question:
    """One prompt, in token ids, and where it belongs."""

    place: int
    ids: list[int]


@dataclass(frozen=True)
class Load:
    """What is asked: rounds of questions; the next round begins when the one before is answered."""

    name: str
    warm_up: list[Question]
    rounds: list[list[Question]]

    @property
    def questions(self) -> list[Question]:
        """The timed ones."""
        return [question for several in self.rounds for question in several]

    @property
    def tokens_max(self) -> int:
        """Of the longest prompt."""
        return max(len(question.ids) for question in (*self.warm_up, *self.questions))


@dataclass(frozen=True)
class Chats:
    """The shape of chats: what all begin with, what a turn adds (the answer before it and the next question), and how many turns.

    Histories are about eight times as long as what a turn adds: so it is for the median request that continues a chat in Mooncake's
    conversation trace (FAST'25): over 6,000 known tokens, about 830 new ones, an answer of about 350.
    """

    sessions: int = 24
    system_tokens: int = 512
    turn_tokens: int = 352
    turns: int = 9
    timed_turns: int = 4


def words(choose: random.Random, count: int) -> list[int]:
    """Token ids that no tokenizer gives a meaning to."""
    return [choose.randrange(FIRST_WORD, VOCABULARY) for _ in range(count)]


def rag_load(requests: int, document_tokens: int = 2_048) -> Load:
    """Each document is asked once before; then questions come in no order."""
    choose = random.Random(3)
    documents = [words(choose, document_tokens) for _ in range(DOCUMENTS)]

    def ask(place: int) -> Question:
        return Question(place, documents[place] + words(choose, QUESTION_TOKENS))

    asked = [ask(choose.randrange(DOCUMENTS)) for _ in range(requests)]
    return Load("rag", [ask(place) for place in range(DOCUMENTS)], [asked])


def chat_load(chats: Chats) -> Load:
    """All sessions take their turns side by side, so that each has been forgotten by an engine when its next turn comes.

    The first turns are not timed, and of them only the last is asked: it computes all that they would have.
    """
    choose = random.Random(4)
    system = words(choose, chats.system_tokens)
    histories = [list(system) for _ in range(chats.sessions)]
    rounds = []
    for _turn in range(chats.turns):
        histories = [history + words(choose, chats.turn_tokens) for history in histories]
        asked = [Question(place, history) for place, history in enumerate(histories)]
        rounds.append(choose.sample(asked, len(asked)))
    first = chats.turns - chats.timed_turns
    return Load("chat", rounds[first - 1], rounds[first:])


def reuse_possible(load: Load) -> float:
    """Share of the timed prompts' tokens in blocks that stand in an earlier prompt at the same place, after the same blocks."""
    known: set[int] = set()
    total = found = 0
    for timed, questions in ((False, load.warm_up), (True, load.questions)):
        for ids in (question.ids for question in questions):
            name = 0
            for begin in range(0, len(ids) // BLOCK_TOKENS * BLOCK_TOKENS, BLOCK_TOKENS):
                name = hash((name, tuple(ids[begin : begin + BLOCK_TOKENS])))
                found += timed and name in known
                known.add(name)
            total += len(ids) if timed else 0
    return round(found * BLOCK_TOKENS / total, 3)


def sent_to(questions: Sequence[Question], urls: Sequence[str], by_place: bool) -> list[str]:
    """Where each goes: in turns, or always to the same one of a place."""
    return [urls[(question.place if by_place else i) % len(urls)] for i, question in enumerate(questions)]
