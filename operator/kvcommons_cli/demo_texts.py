"""The texts of the demo: handbooks of places that do not exist, made from a seed, and what is asked about them."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final

Message = dict[str, str]

PLACES: Final = (
    "north quay",
    "east quay",
    "fish dock",
    "grain pier",
    "ferry ramp",
    "old basin",
    "signal house",
    "crane yard",
)
GOODS: Final = ("timber", "salted fish", "barley", "roof slate", "lamp oil", "wool bales", "clay pipes", "dried apples")
ROLES: Final = ("harbour master", "duty pilot", "crane keeper", "tally clerk", "night watch", "lock keeper")
SIGNALS: Final = (
    "two green lamps",
    "one red lamp",
    "a white flag",
    "three short bells",
    "a long horn",
    "a blue pennant",
)
WEATHER: Final = ("fog", "a northerly gale", "drifting ice", "heavy rain", "a spring tide", "a falling glass")
RULES: Final = (
    "Before {goods} is landed at the {place}, the {role} checks the moorings and shows {signal} until the last line is fast.",
    "In {weather} the {place} is closed to all vessels longer than {number} paces, and the {role} says so by {signal}.",
    "The {role} of the {place} keeps a book of every cargo of {goods}, and reads it aloud to the {role2} at each change of watch.",
    "No more than {number} carts of {goods} may stand at the {place} at one time; the {role} turns the rest away.",
    "When {signal} is seen over the {place}, every boat with {goods} aboard waits outside until the {role} has answered it.",
    "After {weather} the {role} walks from the {place} to the {place2} and counts the fenders, of which there must be {number}.",
    "A vessel that has lain at the {place} for {number} days pays in {goods}, unless the {role} and the {role2} both forgive it.",
    "The key of the {place} hangs with the {role}; whoever takes it leaves {signal} in its stead.",
)


@dataclass(frozen=True)
class Document:
    """A long text and the questions asked about it."""

    title: str
    text: str
    questions: tuple[str, ...]

    def ask(self, question: str) -> list[Message]:
        """The conversation that asks it: the text first, so that all questions share their prefix."""
        return [{"role": "system", "content": self.text}, {"role": "user", "content": question}]


def handbook(title: str, seed: int, sections: int, rules_each: int) -> str:
    """A handbook of made-up rules, the same at each call with the same arguments."""
    choose = random.Random(seed)
    lines = [f"{title}. Answer questions about this handbook in one short sentence."]
    for section in range(1, sections + 1):
        lines.append(f"Section {section}, of the {choose.choice(PLACES)}.")
        lines += [_rule(choose) for _ in range(rules_each)]
    return "\n".join(lines)


def _rule(choose: random.Random) -> str:
    place, place2 = choose.sample(PLACES, 2)
    role, role2 = choose.sample(ROLES, 2)
    return choose.choice(RULES).format(
        place=place,
        place2=place2,
        role=role,
        role2=role2,
        goods=choose.choice(GOODS),
        signal=choose.choice(SIGNALS),
        weather=choose.choice(WEATHER),
        number=choose.choice(("six", "nine", "twelve", "twenty", "forty")),
    )


HARBOUR: Final = Document(
    "Handbook of the harbour of Merrow",
    handbook("Handbook of the harbour of Merrow", seed=7, sections=12, rules_each=6),
    (
        "Who keeps the book of cargoes?",
        "What happens in fog?",
        "How is a vessel told to wait outside?",
        "What does a vessel pay that has stayed too long?",
    ),
)

ISLAND: Final = Document(
    "Handbook of the harbour of Saint Olm",
    handbook("Handbook of the harbour of Saint Olm", seed=11, sections=12, rules_each=6),
    (
        "Where does the key hang?",
        "How many carts may stand there?",
        "Who counts the fenders?",
        "What is shown while the lines are made fast?",
    ),
)

CHAT_OPENING: Final = Document(
    "Letter to the pilot of Varn",
    handbook("Customs of the harbour of Varn, for its new pilot", seed=23, sections=5, rules_each=6),
    (
        "Good morning. I am the new pilot. What should I read first?",
        "Thank you. Which signal will I see most often?",
        "And whom do I ask when the glass falls?",
        "I shall write that down. What must I never do at the ferry ramp?",
        "One last thing: where may I find the night watch?",
    ),
)
