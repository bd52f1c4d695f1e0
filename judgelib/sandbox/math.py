"""Math: word problems of two to five steps with written-out solutions (the sandbox's GSM8K).

A template draws its quantities and says which steps solve it. The wording of the question is
fixed by the instance; the wording of the answer is a grammar with about eight free choices a
sentence (connective, clause order, subject, verb, operand order, operator, equals, tail).
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from judgelib.sandbox.grammar import Node, pick, seq
from judgelib.sandbox.problem import Instance, Problem, seeded

GIRLS = ("Mia", "Ada", "Lena", "Nora", "Ruth", "Zoe", "Ida", "Vera")
BOYS = ("Tom", "Ben", "Omar", "Karl", "Luis", "Finn", "Hugo", "Ravi")
ITEMS = (
    "apples", "pears", "coins", "cards", "books", "pens", "shells", "stamps",
    "marbles", "nuts", "plums", "eggs", "cups", "keys", "tickets", "stones",
)  # fmt: skip

OPERATIONS: dict[str, Callable[[int, int], int]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a // b,
}
SPOKEN = {"+": "plus", "-": "minus", "*": "times", "/": "divided by"}
VERBS = {
    "has": ("has", "ends up with", "holds", "owns", "is at"),
    "gets": ("gets", "receives", "takes in", "is given"),
    "pays": ("pays", "spends", "hands over", "gives away"),
    "keeps": ("keeps", "is left with", "still has", "retains"),
    "makes": ("makes", "produces", "comes to", "reaches"),
    "is": ("is", "equals", "amounts to", "comes out at"),
}
OPENERS = ("First, ", "To begin, ", "At the start, ", "We see that ", "Step one: ")
CONNECTIVES = ("So ", "Then ", "Now ", "Next, ", "After that, ", "This means ")


@dataclass(frozen=True)
class Step:
    """`subject verb a op b = result unit`, each word of it a choice."""

    subject: tuple[str, ...]
    verb: str
    a: int
    op: str
    b: int
    unit: str

    @property
    def result(self) -> int:
        return OPERATIONS[self.op](self.a, self.b)


@dataclass(frozen=True)
class Story:
    """A template filled in: the question's sentences and the steps to its answer."""

    question: tuple[tuple[str, ...], ...]
    steps: tuple[Step, ...]

    @property
    def answer(self) -> int:
        return self.steps[-1].result


def sentence(step: Step, result: int, *, first: bool) -> Node:
    """All wordings of one step that states `result`."""
    opener = pick("math.opener", *OPENERS) if first else pick("math.connective", *CONNECTIVES)
    subject = pick("math.subject", *step.subject)
    verb = pick(f"math.verb.{step.verb}", *VERBS[step.verb])
    equals = pick("math.equals", " = ", ", which is ", ", that is ", ", making ")
    tail = pick("math.tail", "", " by now", " at this point", " so far")
    told = seq(subject, " ", verb, " ", _operation(step), equals, f"{result} {step.unit}")
    computed = seq(
        _operation(step), equals, f"{result}, so ", subject, " ", verb, f" {result} {step.unit}"
    )
    return seq(opener, pick("math.clause", told, told, computed), tail, ". ")


def _operation(step: Step) -> Node:
    op = pick(f"math.operator.{step.op}", f" {step.op} ", f" {SPOKEN[step.op]} ")
    forward = seq(str(step.a), op, str(step.b))
    if step.op in "-/" or step.a == step.b:
        return forward
    return pick(f"math.order.{step.op}", forward, seq(str(step.b), op, str(step.a)))


def _slip(step: Step, first: bool) -> Callable[[random.Random], Node]:
    """The step with a wrong result, a wrong operand or the wrong operation (once in a while right
    by luck: whoever uses a slip compares it with the part)."""

    def slip(rng: random.Random) -> Node:
        kind = rng.randrange(4)
        if kind == 0:
            wrong = step.result + rng.choice((-10, -3, -2, -1, 1, 2, 3, 10))
            return sentence(step, abs(wrong) or 7, first=first)
        if kind == 3:
            return sentence(step, _misread(step.result, rng), first=first)
        if kind == 1:
            changed = replace(step, b=step.b + rng.choice((1, 2, 3)))
        else:
            changed = replace(step, op="-" if step.op == "+" and step.a > step.b else "+")
        return sentence(changed, changed.result, first=first)

    return slip


def _misread(number: int, rng: random.Random) -> int:
    """The number with one digit made another one."""
    digits = list(str(number))
    digits[rng.randrange(len(digits))] = rng.choice("0123456789")
    return int("".join(digits))


APOLOGIES = pick(
    "math.apology",
    "Wait, that is wrong. ",
    "No, that is a mistake. ",
    "Hold on, let me correct that. ",
    "Sorry, that is not right. ",
)


def instance(rng: random.Random) -> Instance:
    """A random instance; its key holds the template and everything drawn for it."""
    name, template = rng.choice(sorted(TEMPLATES.items()))
    story = template(rng)
    key = f"math|{name}|" + " ".join(sentences[0] for sentences in story.question)
    return key, lambda: _problem(key, story)


def _problem(key: str, story: Story) -> Problem:
    wording = seeded(key)
    prompt = " ".join(wording.choice(sentences) for sentences in story.question)
    firsts = [i == 0 for i in range(len(story.steps))]
    parts = [sentence(s, s.result, first=f) for s, f in zip(story.steps, firsts, strict=True)]
    return Problem(
        domain="math",
        key=key,
        prompt=prompt,
        solution=(*parts, f"Answer: {story.answer}"),
        slips=tuple(_slip(s, f) for s, f in zip(story.steps, firsts, strict=True)),
        apologies=APOLOGIES,
        answer=str(story.answer),
    )


def is_named(problem: Problem) -> bool:
    """Whether the prompt names everybody whom a right answer may name.

    A few of `orchard` and `bakery` do not: there the name could only be guessed, and instances
    that differ in it alone would ask the same.
    """
    people = {*GIRLS, *BOYS} & set(re.findall(r"\w+", problem.key))
    return people <= set(re.findall(r"\w+", problem.prompt))


# --- templates -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Person:
    name: str
    pronoun: str
    role: str

    @property
    def subject(self) -> tuple[str, ...]:
        return (self.name, self.pronoun, f"the {self.role}")


def _people(rng: random.Random, count: int = 1) -> list[Person]:
    girls = rng.random() < 0.5
    names = rng.sample(GIRLS if girls else BOYS, count)
    return [Person(n, "she" if girls else "he", "girl" if girls else "boy") for n in names]


TOTAL = ("the total", "the sum", "the whole amount")


def gifts(rng: random.Random) -> Story:
    (who,), item = _people(rng), rng.choice(ITEMS)
    a, b = rng.randint(5, 60), rng.randint(3, 39)
    c = rng.randint(2, a + b - 2)
    question = (
        (f"{who.name} has {a} {item}.", f"There are {a} {item} in the bag of {who.name}."),
        (f"A friend gives {who.name} {b} more.", f"Then {who.name} finds {b} more."),
        (f"{who.name} loses {c} of them.", f"Later {c} of them are lost."),
        (f"How many {item} are left?", f"How many {item} does {who.name} have now?"),
    )
    return Story(
        question,
        (
            Step(who.subject, "has", a, "+", b, item),
            Step(who.subject, "keeps", a + b, "-", c, item),
        ),
    )


def bags(rng: random.Random) -> Story:
    (who,), item = _people(rng), rng.choice(ITEMS)
    n, m = rng.randint(2, 9), rng.randint(2, 12)
    k = rng.randint(1, n * m - 1)
    question = (
        (f"{who.name} buys {n} bags with {m} {item} each.",
         f"{who.name} has {n} bags and each bag holds {m} {item}."),
        (f"{who.name} gives {k} {item} to a friend.", f"A friend takes {k} {item} away."),
        (f"How many {item} are left?", f"How many {item} does {who.name} still have?"),
    )  # fmt: skip
    return Story(
        question,
        (
            Step(who.subject, "has", n, "*", m, item),
            Step(who.subject, "keeps", n * m, "-", k, item),
        ),
    )


def sharing(rng: random.Random) -> Story:
    item = rng.choice(ITEMS)
    n, each, k = rng.randint(2, 9), rng.randint(2, 12), rng.randint(2, 30)
    question = (
        (f"{n} children share {n * each} {item} equally.",
         f"{n * each} {item} are shared equally by {n} children."),
        (f"Then each child finds {k} more.", f"Each child also gets {k} more."),
        (f"How many {item} does each child have?", f"How many {item} are there for each child?"),
    )  # fmt: skip
    child = ("each child", "every child", "each of them")
    return Story(
        question,
        (
            Step(child, "gets", n * each, "/", n, item),
            Step(child, "has", each, "+", k, item),
        ),
    )


def wages(rng: random.Random) -> Story:
    (who,) = _people(rng)
    w, h = rng.randint(3, 12), rng.randint(2, 9)
    s, g = rng.randint(1, w * h - 1), rng.randint(2, 40)
    question = (
        (f"{who.name} earns {w} dollars an hour and works {h} hours.",
         f"{who.name} works {h} hours for {w} dollars an hour."),
        (f"{who.name} spends {s} dollars on food.", f"Food costs {who.name} {s} dollars."),
        (f"A gift brings {g} dollars more.", f"Then {who.name} is given {g} dollars."),
        (f"How many dollars does {who.name} have?", "How many dollars are there in the end?"),
    )  # fmt: skip
    return Story(
        question,
        (
            Step(who.subject, "gets", w, "*", h, "dollars"),
            Step(who.subject, "keeps", w * h, "-", s, "dollars"),
            Step(who.subject, "has", w * h - s, "+", g, "dollars"),
        ),
    )


def more_than(rng: random.Random) -> Story:
    (one, two), item = _people(rng, 2), rng.choice(ITEMS)
    a, k = rng.randint(4, 60), rng.randint(2, 30)
    question = (
        (f"{one.name} has {a} {item}.", f"{one.name} owns {a} {item}."),
        (f"{two.name} has {k} more than {one.name}.",
         f"{two.name} owns {k} {item} more than {one.name}."),
        (f"How many {item} do they have together?", f"How many {item} is that in all?"),
    )  # fmt: skip
    return Story(
        question,
        (
            Step(two.subject, "has", a, "+", k, item),
            Step(TOTAL, "is", a, "+", a + k, item),
        ),
    )


def times_as_many(rng: random.Random) -> Story:
    (one, two), item = _people(rng, 2), rng.choice(ITEMS)
    a, k = rng.randint(2, 12), rng.randint(2, 9)
    c = rng.randint(1, a + a * k - 1)
    question = (
        (f"{one.name} has {a} {item}.", f"{one.name} owns {a} {item}."),
        (f"{two.name} has {k} times as many.", f"{two.name} has {k} times as many as {one.name}."),
        (f"Together they sell {c} of them.", f"Then {c} of all these {item} are sold."),
        (f"How many {item} are left?", f"How many {item} remain in all?"),
    )
    return Story(
        question,
        (
            Step(two.subject, "has", a, "*", k, item),
            Step(TOTAL, "is", a * k, "+", a, item),
            Step(("the rest", "what remains", "the remainder"), "is", a * k + a, "-", c, item),
        ),
    )


def shopping(rng: random.Random) -> Story:
    (who,) = _people(rng)
    one, two = rng.sample(ITEMS, 2)
    n, p, m, q = rng.randint(2, 9), rng.randint(2, 9), rng.randint(2, 9), rng.randint(2, 9)
    cost = n * p + m * q
    note = rng.choice([x for x in (20, 50, 100, 200) if x > cost])
    question = (
        (f"{who.name} buys {n} {one} for {p} dollars each.",
         f"{who.name} pays {p} dollars each for {n} {one}."),
        (f"{who.name} also buys {m} {two} for {q} dollars each.",
         f"Then there are {m} {two} at {q} dollars each."),
        (f"{who.name} pays with {note} dollars.", f"{who.name} gives the clerk {note} dollars."),
        ("How many dollars come back?", "How much change is there?"),
    )  # fmt: skip
    return Story(
        question,
        (
            Step((f"the {one}",), "is", n, "*", p, "dollars"),
            Step((f"the {two}",), "is", m, "*", q, "dollars"),
            Step(TOTAL, "is", n * p, "+", m * q, "dollars"),
            Step(("the change", "the money back", "the rest"), "is", note, "-", cost, "dollars"),
        ),
    )


def travel(rng: random.Random) -> Story:
    (who,) = _people(rng)
    v, h, u, g = rng.randint(3, 12), rng.randint(2, 9), rng.randint(3, 12), rng.randint(2, 9)
    question = (
        (f"{who.name} rides {h} hours at {v} miles an hour.",
         f"At {v} miles an hour {who.name} rides for {h} hours."),
        (f"Then {who.name} walks {g} hours at {u} miles an hour.",
         f"After that it is {g} hours on foot at {u} miles an hour."),
        (f"How many miles does {who.name} travel?", "How many miles is that in all?"),
    )  # fmt: skip
    return Story(
        question,
        (
            Step(("the ride", "the first part", "the way by bike"), "is", v, "*", h, "miles"),
            Step(("the walk", "the second part", "the way on foot"), "is", u, "*", g, "miles"),
            Step(TOTAL, "is", v * h, "+", u * g, "miles"),
        ),
    )


def reading(rng: random.Random) -> Story:
    (who,) = _people(rng)
    p, d, n, each = rng.randint(2, 12), rng.randint(2, 9), rng.randint(2, 9), rng.randint(2, 12)
    pages = p * d + n * each
    question = (
        (f"A book has {pages} pages.", f"{who.name} has a book of {pages} pages."),
        (f"{who.name} reads {p} pages a day for {d} days.",
         f"For {d} days {who.name} reads {p} pages a day."),
        (f"The rest is read in {n} equal days.", f"{who.name} reads the rest evenly in {n} days."),
        ("How many pages a day is that?", "How many pages are read on each of these days?"),
    )  # fmt: skip
    return Story(
        question,
        (
            Step(who.subject, "makes", p, "*", d, "pages"),
            Step(("the rest", "what remains", "the remainder"), "is", pages, "-", p * d, "pages"),
            Step(("each day", "every day", "one day"), "makes", n * each, "/", n, "pages"),
        ),
    )


def orchard(rng: random.Random) -> Story:
    (who,) = _people(rng)
    r, t, f = rng.randint(2, 9), rng.randint(2, 9), rng.randint(2, 9)
    lost = rng.randint(max(1, r * t - 20), r * t - 1)
    question = (
        (f"{who.name} plants {r} rows of {t} trees.", f"There are {r} rows with {t} trees each."),
        (f"{lost} trees die.", f"The winter kills {lost} trees."),
        (f"Each tree that is left bears {f} plums.", f"Every living tree gives {f} plums."),
        ("How many plums are there?", f"How many plums does {who.name} pick?"),
    )
    return Story(
        question,
        (
            Step(who.subject, "has", r, "*", t, "trees"),
            Step(who.subject, "keeps", r * t, "-", lost, "trees"),
            Step(("the harvest", "the crop", "the yield"), "is", r * t - lost, "*", f, "plums"),
        ),
    )


def savings(rng: random.Random) -> Story:
    (who,) = _people(rng)
    a, b, n = rng.randint(5, 60), rng.randint(2, 12), rng.randint(2, 9)
    c = rng.randint(2, a + b * n - 1)
    question = (
        (f"{who.name} has {a} dollars.", f"There are {a} dollars in the box of {who.name}."),
        (f"{who.name} saves {b} dollars a week for {n} weeks.",
         f"For {n} weeks {who.name} adds {b} dollars a week."),
        (f"A bike costs {who.name} {c} dollars.", f"{who.name} buys a bike for {c} dollars."),
        ("How many dollars are left?", f"How many dollars does {who.name} have now?"),
    )  # fmt: skip
    return Story(
        question,
        (
            Step(("the saving", "the new money", "the added part"), "is", b, "*", n, "dollars"),
            Step(who.subject, "has", a, "+", b * n, "dollars"),
            Step(who.subject, "keeps", a + b * n, "-", c, "dollars"),
        ),
    )


def boxes(rng: random.Random) -> Story:
    item = rng.choice(ITEMS)
    while True:
        a, b, c, d = (rng.randint(2, 9) for _ in range(4))
        shares = [n for n in range(2, 10) if (a * b + c * d) % n == 0]
        if shares:
            break
    n = rng.choice(shares)
    total = a * b + c * d
    question = (
        (f"There are {a} red boxes with {b} {item} each.", f"{a} red boxes hold {b} {item} each."),
        (f"There are {c} blue boxes with {d} {item} each.",
         f"{c} blue boxes hold {d} {item} each."),
        (f"All {item} are shared equally by {n} children.",
         f"{n} children share all the {item} equally."),
        (f"How many {item} does each child get?", f"How many {item} are there for each child?"),
    )  # fmt: skip
    return Story(
        question,
        (
            Step(("the red part", "the red side", "the red group"), "makes", a, "*", b, item),
            Step(("the blue part", "the blue side", "the blue group"), "makes", c, "*", d, item),
            Step(TOTAL, "is", a * b, "+", c * d, item),
            Step(("each child", "every child", "each of them"), "gets", total, "/", n, item),
        ),
    )


def bus(rng: random.Random) -> Story:
    a = rng.randint(10, 40)
    b = rng.randint(2, a - 1)
    c = rng.randint(2, 20)
    d = rng.randint(2, a - b + c - 1)
    e = rng.randint(2, 20)
    question = (
        (f"A bus starts with {a} people.", f"There are {a} people on a bus."),
        (f"At the first stop {b} get off and {c} get on.",
         f"First {b} people leave and {c} come in."),
        (f"At the second stop {d} get off and {e} get on.",
         f"Then {d} people leave and {e} come in."),
        ("How many people are on the bus?", "How many people ride on?"),
    )  # fmt: skip
    ride = ("the bus", "it", "the full bus")
    return Story(
        question,
        (
            Step(ride, "keeps", a, "-", b, "people"),
            Step(ride, "has", a - b, "+", c, "people"),
            Step(ride, "keeps", a - b + c, "-", d, "people"),
            Step(ride, "has", a - b + c - d, "+", e, "people"),
        ),
    )


def bakery(rng: random.Random) -> Story:
    (who,) = _people(rng)
    a, b, d, e = rng.randint(2, 9), rng.randint(2, 9), rng.randint(2, 9), rng.randint(2, 9)
    c, f = rng.randint(1, a * b - 1), rng.randint(2, 9)
    left = a * b - c
    question = (
        (f"{who.name} bakes {a} trays of {b} cakes.", f"There are {a} trays with {b} cakes each."),
        (f"{c} cakes are sold.", f"{who.name} sells {c} cakes."),
        (f"Then {who.name} bakes {d} trays of {e} cakes.",
         f"After that come {d} trays with {e} cakes each."),
        (f"At night {f} more cakes are made.", f"{who.name} makes {f} more cakes at night."),
        ("How many cakes are there?", f"How many cakes does {who.name} have?"),
    )  # fmt: skip
    return Story(
        question,
        (
            Step(who.subject, "makes", a, "*", b, "cakes"),
            Step(who.subject, "keeps", a * b, "-", c, "cakes"),
            Step(("the new part", "the second load", "the next batch"), "is", d, "*", e, "cakes"),
            Step(TOTAL, "is", left, "+", d * e, "cakes"),
            Step(who.subject, "has", left + d * e, "+", f, "cakes"),
        ),
    )


def ages(rng: random.Random) -> Story:
    one, two, three = _people(rng, 3)
    a, k, y = rng.randint(2, 20), rng.randint(2, 15), rng.randint(2, 5)
    old = y * (a + k)
    question = (
        (f"{one.name} is {a} years old.", f"The age of {one.name} is {a} years."),
        (f"{two.name} is {k} years older than {one.name}.",
         f"{two.name} is older than {one.name} by {k} years."),
        (f"{three.name} is {y} times as old as {two.name}.",
         f"The age of {three.name} is {y} times that of {two.name}."),
        ("How many years old are all three together?", "What is the sum of the three ages?"),
    )  # fmt: skip
    return Story(
        question,
        (
            Step((two.name, f"the age of {two.name}"), "is", a, "+", k, "years"),
            Step((three.name, f"the age of {three.name}"), "is", a + k, "*", y, "years"),
            Step(("the first pair", "the younger two"), "makes", a + k, "+", a, "years"),
            Step(TOTAL, "is", old, "+", a + k + a, "years"),
        ),
    )


TEMPLATES: dict[str, Callable[[random.Random], Story]] = {
    template.__name__: template
    for template in (
        gifts, bags, sharing, wages, more_than, times_as_many, shopping, travel,
        reading, orchard, savings, boxes, bus, bakery, ages,
    )
}  # fmt: skip
