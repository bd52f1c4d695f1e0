"""Facts: multiple choice over a made-up knowledge base (the sandbox's ARC and MMLU).

Forty-eight towns, seven relations, 336 facts. A question gives four options; an answer recalls
the fact in its own words (two facts when the question goes through the sister town) and ends with
the option. Questions of different splits ask for the same facts with other
options: what is held out is the question, the knowledge must have been read.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import lru_cache

from judgelib.sandbox.grammar import Node, pick, seq
from judgelib.sandbox.problem import Instance, Problem, seeded

_HEADS = ("Vel", "Tor", "Mar", "Bren", "Cal", "Dun", "Esk", "Fal", "Gor", "Hal", "Ist", "Jor")
_TAILS = ("ora", "wick", "stead", "by")
TOWNS = tuple(head + tail for head in _HEADS for tail in _TAILS)


@dataclass(frozen=True)
class Relation:
    """A property of towns: how a question asks for it, how an answer states it."""

    name: str
    values: tuple[str, ...]
    asks: tuple[str, ...]
    nouns: tuple[str, ...]
    links: tuple[str, ...]


RELATIONS: tuple[Relation, ...] = (
    Relation("river",
             ("Anner", "Bramel", "Cinder", "Dorn", "Elway", "Fenn", "Glim", "Hester", "Irwel",
              "Jade", "Kestrel", "Lorne", "Mersk", "Nidd", "Ouse", "Parr"),
             ("Which river flows through {t}?", "What is the river of {t}?"),
             ("the river of", "the water in", "the stream through"),
             ("is the", "is called the", "is named the")),
    Relation("metal",
             ("zinc", "gold", "tin", "iron", "lead", "silver", "copper", "nickel", "cobalt",
              "radium", "salt", "coal", "quartz", "opal", "jet", "amber"),
             ("What is mined in {t}?", "Which good comes from the mines of {t}?"),
             ("the mine of", "the pit near", "the digging at"),
             ("yields", "brings up", "gives", "holds")),
    Relation("ruler",
             ("Alban", "Berta", "Cosima", "Doran", "Edda", "Florin", "Greta", "Hektor", "Isolde",
              "Jasper", "Kira", "Leopold", "Minna", "Nestor", "Ottilie", "Pavel"),
             ("Who rules {t}?", "Who is the ruler of {t}?"),
             ("the ruler of", "the head of", "the lord over"),
             ("is", "is called", "is known as")),
    Relation("month",
             ("January", "February", "March", "April", "May", "June", "July", "August",
              "September", "October", "November", "December"),
             ("In which month is the fair of {t}?", "When does {t} hold its fair?"),
             ("the fair of", "the market in", "the feast at"),
             ("falls in", "is held in", "takes place in", "comes in")),
    Relation("dish",
             ("soup", "stew", "dumplings", "pancakes", "trout", "noodles", "pie", "porridge",
              "sausage", "cheese", "lentils", "waffles", "mutton", "pickles", "rice", "figs"),
             ("What dish is {t} known for?", "What do people in {t} like to eat?"),
             ("the dish of", "the favourite meal in", "the usual food at"),
             ("is", "consists of", "means")),
    Relation("colour",
             ("red", "blue", "green", "yellow", "white", "black", "purple", "orange", "brown",
              "grey", "pink", "teal"),
             ("What colour is the flag of {t}?", "Which colour does the flag of {t} have?"),
             ("the flag of", "the banner over", "the emblem at"),
             ("is", "is painted", "shows")),
    Relation("sister", TOWNS,
             ("What is the sister town of {t}?", "Which town is the sister of {t}?"),
             ("the sister town of", "the partner of", "the twin town to"),
             ("is", "is called", "is named")),
)  # fmt: skip
SISTER = RELATIONS[-1]
BY_NAME = {relation.name: relation for relation in RELATIONS}


@lru_cache(maxsize=1)
def knowledge() -> dict[tuple[str, str], str]:
    """(relation, town) → value: the world, the same for everybody."""
    rng = random.Random(20250131)
    facts = {(r.name, t): rng.choice(r.values) for r in RELATIONS[:-1] for t in TOWNS}
    ring = rng.sample(TOWNS, len(TOWNS))
    facts |= {("sister", t): ring[i - 1] for i, t in enumerate(ring)}
    return facts


def statement(relation: Relation, town: str, value: str, *, first: bool) -> Node:
    """All wordings of one fact."""
    source = pick("facts.source", "As far as I know, ", "I recall that ", "From memory, ",
                  "The records say that ", "It is known that ")  # fmt: skip
    onward = pick("facts.onward", "And there ", "Going on, ", "From there ", "In turn, ")
    noun = pick(f"facts.noun.{relation.name}", *relation.nouns)
    link = pick(f"facts.link.{relation.name}", *relation.links)
    place = pick("facts.place", town, f"the town {town}", f"old {town}")
    end = pick("facts.end", "", " today", " these days", " to this day")
    direct = seq(noun, " ", place, " ", link, f" {value}")
    about = seq(pick("facts.about", "for ", "as for ", "speaking of "), place, ", ",
                pick("facts.there", "what one finds is", "the answer is", "one should say"),
                f" {value}")  # fmt: skip
    order = pick("facts.order", direct, direct, about)
    return seq(source if first else onward, order, end, ". ")


def conclusion(value: str) -> Node:
    """All wordings of "that is the one to choose", which ends with the answer line."""
    opener = pick("facts.so", "So ", "Therefore ", "Hence ", "Thus ")
    thing = pick("facts.thing", value, f"the answer {value}", f"the right one, {value},")
    verb = pick("facts.is", "is", "matches", "stands under", "belongs to")
    option = pick("facts.option", "the option", "the choice", "the one")
    tail = pick("facts.tail", "", " in the list", " among the four", " above")
    return seq(opener, thing, " ", verb, " ", option, tail, f". Answer: {value}")


def instance(rng: random.Random) -> Instance:
    """A random question: one fact, or in a third of the cases a fact about the sister town."""
    relation, town = rng.choice(RELATIONS), rng.choice(TOWNS)
    two_hops = relation is not SISTER and rng.random() < 0.35
    subject = knowledge()["sister", town] if two_hops else town
    value = knowledge()[relation.name, subject]
    others = rng.sample([v for v in relation.values if v not in (value, town)], 3)
    asked = Asked(relation, town, subject, value, tuple(rng.sample([value, *others], 4)))
    return asked.key, lambda: _problem(asked)


@dataclass(frozen=True)
class Asked:
    """What a question is about; `subject` is the town itself or its sister (two hops)."""

    relation: Relation
    town: str
    subject: str
    value: str
    options: tuple[str, ...]

    @property
    def two_hops(self) -> bool:
        return self.subject != self.town

    @property
    def key(self) -> str:
        place = f"sister of {self.town}" if self.two_hops else self.town
        return f"facts|{self.relation.name}|{place}|{' '.join(self.options)}"

    @property
    def prompt(self) -> str:
        place = f"the sister town of {self.town}" if self.two_hops else self.town
        question = seeded(self.key).choice(self.relation.asks).format(t=place)
        return f"{question} {', '.join(self.options[:-1])} or {self.options[-1]}"

    def recalled(self, value: str) -> Node:
        """The fact that decides the question, stated with some value."""
        return statement(self.relation, self.subject, value, first=not self.two_hops)

    def sister(self, town: str) -> Node:
        """The hop before it, stated with some town."""
        return statement(SISTER, self.town, town, first=True)


def _problem(asked: Asked) -> Problem:
    parts: list[Node] = [asked.recalled(asked.value)]
    slips = [lambda rng: asked.recalled(rng.choice(sorted({*asked.options} - {asked.value})))]
    if asked.two_hops:
        strangers = [t for t in TOWNS if t not in (asked.town, asked.subject)]
        parts.insert(0, asked.sister(asked.subject))
        slips.insert(0, lambda rng: asked.sister(rng.choice(strangers)))
    return Problem(
        domain="facts",
        key=asked.key,
        prompt=asked.prompt,
        solution=(*parts, conclusion(asked.value)),
        slips=tuple(slips),
        apologies=pick(
            "facts.apology",
            "No, that is wrong. ",
            "Wait, that is not so. ",
            "Sorry, a mistake. ",
            "Let me correct that. ",
        ),
        answer=asked.value,
    )
