"""Code: describe-a-function problems composed of small skills (the sandbox's HumanEval).

A problem composes skills: which elements (filter), what becomes of them (map), what is made of
them all (reduce), over numbers or words, or a condition with two branches. A right answer is
Python: comment lines that say the plan, then `solve` as a loop or as a comprehension, with free
choice of names, operand order and idiom. Answers are scored by running tests, never by wording.
"""

from __future__ import annotations

import random
import string
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

from judgelib.sandbox.grammar import Choice, Lazy, Node, pick, seq
from judgelib.sandbox.problem import Instance, Problem, seeded

LETTERS = "abdeilmnorst"
WORDS = (
    "sand", "river", "moon", "table", "iron", "lamp", "ant", "olive", "bread", "stone",
    "dot", "elm", "mirror", "rose", "nest", "leaf", "orb", "tin", "barn", "salad", "a", "noon",
)  # fmt: skip
ELEMENTS = ("x", "v", "item", "e")
LISTS = ("xs", "values", "items", "data")
RESULTS = ("out", "result", "acc", "r")
LOOP_NAMES = tuple(product(LISTS, ELEMENTS, RESULTS))
COMPREHENSION_NAMES = tuple(product(LISTS, ELEMENTS))


@dataclass(frozen=True, eq=False)
class Skill:
    """One composable ability.

    `says` are descriptions for the question, `plan` for the comment in an answer, `code(x)` the
    equally right expressions on the element named x, `run` what it means. `{k}` is a parameter.
    """

    name: str
    says: tuple[str, ...]
    plan: tuple[str, ...]
    code: Callable[[str, Any], tuple[str, ...]]
    run: Callable[[Any, Any], Any]
    parameters: tuple[Any, ...] = ()

    def draw(self, rng: random.Random) -> Use:
        return Use(self, rng.choice(self.parameters) if self.parameters else None)


@dataclass(frozen=True)
class Use:
    """A skill with its parameter chosen."""

    skill: Skill
    k: Any

    @property
    def key(self) -> str:
        return self.skill.name if self.k is None else f"{self.skill.name}({self.k})"

    def says(self, rng: random.Random) -> str:
        return rng.choice(self.skill.says).format(k=self.k)

    @property
    def plan(self) -> Node:
        return pick(f"code.plan.{self.skill.name}", *(p.format(k=self.k) for p in self.skill.plan))

    def code(self, x: str) -> Node:
        return _idioms(self.skill, self.k, x)

    def run(self, value: Any) -> Any:
        return self.skill.run(value, self.k)


@cache
def _idioms(skill: Skill, k: Any, x: str) -> Node:
    return pick(f"code.idiom.{skill.name}", *skill.code(x, k))


K = tuple(range(2, 10))
FILTERS: tuple[Skill, ...] = (
    Skill("even", ("the even numbers",), ("even", "divisible by two"),
          lambda x, k: (f"{x} % 2 == 0", f"not {x} % 2", f"{x} % 2 != 1"),
          lambda v, k: v % 2 == 0),
    Skill("odd", ("the odd numbers",), ("odd", "not even"),
          lambda x, k: (f"{x} % 2 == 1", f"{x} % 2 != 0", f"{x} % 2"),
          lambda v, k: v % 2 == 1),
    Skill("positive", ("the positive numbers",), ("positive", "above zero"),
          lambda x, k: (f"{x} > 0", f"0 < {x}", f"{x} >= 1"), lambda v, k: v > 0),
    Skill("negative", ("the negative numbers",), ("negative", "below zero"),
          lambda x, k: (f"{x} < 0", f"0 > {x}", f"{x} <= -1"), lambda v, k: v < 0),
    Skill("greater", ("the numbers greater than {k}", "the numbers above {k}"),
          ("greater than {k}", "above {k}", "over {k}"),
          lambda x, k: (f"{x} > {k}", f"{k} < {x}", f"not {x} <= {k}"), lambda v, k: v > k, K),
    Skill("less", ("the numbers less than {k}", "the numbers below {k}"),
          ("less than {k}", "below {k}", "under {k}"),
          lambda x, k: (f"{x} < {k}", f"{k} > {x}", f"not {x} >= {k}"), lambda v, k: v < k, K),
    Skill("multiple", ("the numbers divisible by {k}", "the multiples of {k}"),
          ("divisible by {k}", "multiples of {k}"),
          lambda x, k: (f"{x} % {k} == 0", f"not {x} % {k}"), lambda v, k: v % k == 0,
          tuple(range(3, 10))),
    Skill("unequal", ("the numbers not equal to {k}", "the numbers other than {k}"),
          ("not equal to {k}", "other than {k}", "different from {k}"),
          lambda x, k: (f"{x} != {k}", f"{k} != {x}", f"not {x} == {k}"), lambda v, k: v != k, K),
    Skill("indivisible", ("the numbers not divisible by {k}",),
          ("not divisible by {k}", "no multiples of {k}"),
          lambda x, k: (f"{x} % {k} != 0", f"{x} % {k} > 0", f"{x} % {k}"),
          lambda v, k: v % k != 0, tuple(range(3, 10))),
)  # fmt: skip

MAPS: tuple[Skill, ...] = (
    Skill("square", ("the square",), ("square", "second power"),
          lambda x, k: (f"{x} * {x}", f"{x} ** 2", f"pow({x}, 2)"), lambda v, k: v * v),
    Skill("cube", ("the cube",), ("cube", "third power"),
          lambda x, k: (f"{x} ** 3", f"{x} * {x} * {x}", f"pow({x}, 3)"), lambda v, k: v**3),
    Skill("negate", ("the negative",), ("negative", "opposite"),
          lambda x, k: (f"-{x}", f"0 - {x}", f"-1 * {x}"), lambda v, k: -v),
    Skill("absolute", ("the absolute value",), ("absolute value", "size without sign"),
          lambda x, k: (f"abs({x})", f"max({x}, -{x})", f"max(-{x}, {x})"), lambda v, k: abs(v)),
    Skill("half", ("the half rounded down",), ("half rounded down", "floor of the half"),
          lambda x, k: (f"{x} // 2", f"({x} - {x} % 2) // 2"), lambda v, k: v // 2),
    Skill("digit", ("the last digit of the absolute value",), ("last digit", "final digit"),
          lambda x, k: (f"abs({x}) % 10", f"int(str({x})[-1])"), lambda v, k: abs(v) % 10),
    Skill("times", ("{k} times the value", "the value times {k}"),
          ("{k} times the value", "product with {k}"),
          lambda x, k: (f"{x} * {k}", f"{k} * {x}"), lambda v, k: v * k, K),
    Skill("plus", ("the value plus {k}", "{k} more than the value"),
          ("value plus {k}", "sum with {k}"),
          lambda x, k: (f"{x} + {k}", f"{k} + {x}"), lambda v, k: v + k, K),
    Skill("minus", ("the value minus {k}", "{k} less than the value"),
          ("value minus {k}", "value less {k}"),
          lambda x, k: (f"{x} - {k}", f"-{k} + {x}"), lambda v, k: v - k, K),
    Skill("remainder", ("the remainder after division by {k}",),
          ("remainder by {k}", "rest after division by {k}"),
          lambda x, k: (f"{x} % {k}", f"divmod({x}, {k})[1]"), lambda v, k: v % k,
          tuple(range(3, 10))),
)  # fmt: skip

WORD_FILTERS: tuple[Skill, ...] = (
    Skill("longer", ("the words longer than {k} letters",), ("longer than {k}", "over {k} letters"),
          lambda x, k: (f"len({x}) > {k}", f"{k} < len({x})", f"len({x}) >= {k + 1}"),
          lambda v, k: len(v) > k, (2, 3, 4)),
    Skill("shorter", ("the words shorter than {k} letters",),
          ("shorter than {k}", "under {k} letters"),
          lambda x, k: (f"len({x}) < {k}", f"{k} > len({x})", f"len({x}) <= {k - 1}"),
          lambda v, k: len(v) < k, (4, 5, 6)),
    Skill("starts", ("the words that start with {k}",), ("starting with {k}", "with {k} in front"),
          lambda x, k: (f"{x}.startswith('{k}')", f"{x}[0] == '{k}'", f"{x}[:1] == '{k}'"),
          lambda v, k: v.startswith(k), tuple(LETTERS)),
    Skill("ends", ("the words that end with {k}",), ("ending with {k}", "with {k} at the end"),
          lambda x, k: (f"{x}.endswith('{k}')", f"{x}[-1] == '{k}'", f"{x}[-1:] == '{k}'"),
          lambda v, k: v.endswith(k), tuple(LETTERS)),
    Skill("contains", ("the words that contain {k}",), ("containing {k}", "with {k} somewhere"),
          lambda x, k: (f"'{k}' in {x}", f"{x}.count('{k}') > 0", f"{x}.find('{k}') >= 0"),
          lambda v, k: k in v, tuple(LETTERS)),
    Skill("lacks", ("the words without {k}",), ("without {k}", "with no {k}"),
          lambda x, k: (f"'{k}' not in {x}", f"not '{k}' in {x}", f"{x}.count('{k}') == 0"),
          lambda v, k: k not in v, tuple(LETTERS)),
)  # fmt: skip

WORD_MAPS: tuple[Skill, ...] = (
    Skill("upper", ("the word in capitals",), ("word in capitals", "upper case"),
          lambda x, k: (f"{x}.upper()", f"str.upper({x})"), lambda v, k: v.upper()),
    Skill("title", ("the word with a capital first letter",), ("capital in front", "title case"),
          lambda x, k: (f"{x}.title()", f"{x}.capitalize()", f"{x}[0].upper() + {x}[1:]"),
          lambda v, k: v.title()),
    Skill("reverse", ("the word backwards",), ("word backwards", "word reversed"),
          lambda x, k: (f"{x}[::-1]", f"''.join(reversed({x}))"), lambda v, k: v[::-1]),
    Skill("initial", ("the first letter",), ("first letter", "initial"),
          lambda x, k: (f"{x}[0]", f"{x}[:1]"), lambda v, k: v[0]),
    Skill("final", ("the last letter",), ("last letter", "final letter"),
          lambda x, k: (f"{x}[-1]", f"{x}[-1:]"), lambda v, k: v[-1]),
    Skill("twice", ("the word twice in a row",), ("word twice", "word doubled"),
          lambda x, k: (f"{x} + {x}", f"{x} * 2", f"2 * {x}"), lambda v, k: v + v),
    Skill("swap", ("the word with each {k} replaced by a star",),
          ("{k} made a star", "{k} starred"),
          lambda x, k: (f"{x}.replace('{k}', '*')", f"'*'.join({x}.split('{k}'))"),
          lambda v, k: v.replace(k, "*"), tuple("aeior")),
    Skill("length", ("the number of letters",), ("number of letters", "length"),
          lambda x, k: (f"len({x})",), lambda v, k: len(v)),
)  # fmt: skip


@dataclass(frozen=True)
class Reduce:
    """What is made of all the kept values: a start, an update of the loop, or one call.

    `update(acc, e)` are loop statements with `{e}` the expression; `call(gen)` wraps a
    comprehension body; `words` tells on which kinds of values it is defined.
    """

    name: str
    says: tuple[str, ...]
    plan: tuple[str, ...]
    start: str
    update: tuple[str, ...]
    call: tuple[str, ...]
    run: Callable[[list[Any]], Any]
    finish: tuple[str, ...] = ("{acc}",)


SUM = Reduce(
    "sum",
    ("the sum of", "the total of"),
    ("add them up", "sum them"),
    "0",
    ("{acc} += {e}", "{acc} = {acc} + {e}"),
    ("sum({gen})", "sum([{gen}])"),
    sum,
)
COUNT = Reduce(
    "distinct",
    ("how many different values there are among",),
    ("count the different ones", "count without repeats"),
    "[]",
    ("{acc}.append({e})", "{acc} += [{e}]"),
    ("len(set({gen}))", "len({{{gen}}})"),
    lambda v: len(set(v)),
    ("len(set({acc}))",),
)
LARGEST = Reduce(
    "largest",
    ("the largest, or 0 if none, of",),
    ("take the largest", "take the top"),
    "[]",
    ("{acc}.append({e})", "{acc} += [{e}]"),
    ("max([{gen}], default=0)", "max(({gen}), default=0)"),
    lambda v: max(v, default=0),
    ("max({acc}, default=0)",),
)
SMALLEST = Reduce(
    "smallest",
    ("the smallest, or 0 if none, of",),
    ("take the smallest", "take the least"),
    "[]",
    ("{acc}.append({e})", "{acc} += [{e}]"),
    ("min([{gen}], default=0)", "min(({gen}), default=0)"),
    lambda v: min(v, default=0),
    ("min({acc}, default=0)",),
)
LIST = Reduce(
    "list",
    ("the list of", "a list of"),
    ("keep them in a list", "collect them"),
    "[]",
    ("{acc}.append({e})", "{acc} += [{e}]", "{acc} = {acc} + [{e}]"),
    ("[{gen}]", "list({gen})"),
    list,
)
SORTED = Reduce(
    "sorted",
    ("the sorted list of",),
    ("sort them", "put them in order"),
    "[]",
    ("{acc}.append({e})", "{acc} += [{e}]"),
    ("sorted({gen})", "sorted([{gen}])"),
    sorted,
    ("sorted({acc})",),
)
BACKWARDS = Reduce(
    "backwards",
    ("the list, last one first, of",),
    ("turn the list around", "last one first"),
    "[]",
    ("{acc}.insert(0, {e})", "{acc} = [{e}] + {acc}"),
    ("[{gen}][::-1]", "list({gen})[::-1]"),
    lambda v: v[::-1],
)
JOINED = Reduce(
    "joined",
    ("one string, joined by dashes, of",),
    ("join by dashes", "link by dashes"),
    "[]",
    ("{acc}.append({e})", "{acc} += [{e}]"),
    ("'-'.join({gen})", "'-'.join([{gen}])"),
    "-".join,
    ("'-'.join({acc})",),
)
GLUED = Reduce("glued", ("one string, without gaps, of",), ("glue them", "put them together"), "''",
               ("{acc} += {e}", "{acc} = {acc} + {e}"), ("''.join({gen})", "''.join([{gen}])"),
               "".join)  # fmt: skip
NUMBER_REDUCES = (SUM, COUNT, LARGEST, SMALLEST, LIST, SORTED, BACKWARDS)
WORD_REDUCES = (COUNT, LIST, SORTED, BACKWARDS, JOINED, GLUED)

NAMES = (
    tuple(skill.name for skill in (*FILTERS, *MAPS, *WORD_FILTERS, *WORD_MAPS))
    + tuple({reduce.name: None for reduce in (*NUMBER_REDUCES, *WORD_REDUCES)})
    + ("if",)
)
"""Every distinct skill: filters, maps, reductions and the two-way condition."""


def instance(rng: random.Random) -> Instance:
    """A random instance: 45% numbers, 30% words, 25% a condition."""
    kind = rng.random()
    if kind < 0.45:
        spec: Spec = Pipeline.draw(rng, FILTERS, MAPS, NUMBER_REDUCES, _number_lists)
    elif kind < 0.75:
        spec = Pipeline.draw(rng, WORD_FILTERS, WORD_MAPS, WORD_REDUCES, _word_lists)
    else:
        spec = Condition.draw(rng)
    key = "code|" + spec.key
    return key, lambda: _problem(key, spec)


APOLOGIES = ("# wait, that is wrong", "# no, that is a mistake", "# sorry, once more")


ATTEMPTS = 3


def final_program(text: str) -> str:
    """The program that an author stands by: what follows the last comment that takes back what is
    above it, which may break off in mid-line.

    Three attempts are read. A text that takes back more counts as it stands, so that not any
    rubbish is forgiven to an author who ends up with a program.

    >>> final_program("def so\\n# sorry, once more\\ndef solve(x):\\n    return x")
    'def solve(x):\\n    return x'
    """
    lines = text.split("\n")
    begun = [0, *(i + 1 for i, line in enumerate(lines) if line in APOLOGIES)]
    return "\n".join(lines[begun[-1] :]) if len(begun) <= ATTEMPTS else text


def _problem(key: str, spec: Spec) -> Problem:
    wording = seeded(key)
    inputs = spec.inputs(wording)
    return Problem(
        domain="code",
        key=key,
        prompt=spec.says(wording),
        solution=(spec.program(),),
        slips=(lambda rng: spec.neighbour(rng).program(),),
        apologies=pick("code.apology", *(f"\n{line}\n" for line in APOLOGIES)),
        cases=tuple(((value,), spec.run(value)) for value in inputs),
    )


# Beside the drawn inputs, whose words seldom begin and end with every letter: lists on which each
# filter keeps several values, out of order and some of them twice, or only one.
MORE_WORDS = (
    "oslo", "area", "odeo", "blob", "adra", "bulb", "dread", "edge", "danced", "eve", "iris",
    "mini", "issei", "alibi", "label", "idea", "loyal", "maxim", "neon", "madam", "noun", "roar",
    "series", "rear", "seas", "test", "taut", "oslo",
)  # fmt: skip
MORE_NUMBERS = ([-7, 13, -7, 4, 40, -25, 13, 31, -40], [5, 11, 8], [2, 1, -1], [64])


def _number_lists(rng: random.Random) -> list[Any]:
    lists = [[rng.randint(-12, 20) for _ in range(rng.randint(4, 9))] for _ in range(7)]
    return [*lists, list(range(-3, 13)), [], *MORE_NUMBERS]


def _word_lists(rng: random.Random) -> list[Any]:
    return [
        *(rng.sample(WORDS, rng.randint(4, 9)) for _ in range(7)),
        list(WORDS),
        [],
        list(MORE_WORDS),
    ]


@dataclass(frozen=True)
class Pipeline:
    """filter × map × reduce over a list."""

    keep: Use
    change: Use | None
    reduce: Reduce
    pool: tuple[tuple[Skill, ...], tuple[Skill, ...], tuple[Reduce, ...]]
    make_inputs: Callable[[random.Random], list[Any]]

    @classmethod
    def draw(
        cls,
        rng: random.Random,
        filters: tuple[Skill, ...],
        maps: tuple[Skill, ...],
        reduces: tuple[Reduce, ...],
        make_inputs: Callable[[random.Random], list[Any]],
    ) -> Pipeline:
        change = rng.choice(maps).draw(rng) if rng.random() < 0.85 else None
        if change is not None and change.skill.name == "length":
            reduces = (COUNT, LIST, SORTED, BACKWARDS)
        keep = rng.choice(filters).draw(rng)
        return cls(keep, change, rng.choice(reduces), (filters, maps, reduces), make_inputs)

    @property
    def key(self) -> str:
        change = self.change.key if self.change else "same"
        return f"{self.keep.key}|{change}|{self.reduce.name}"

    def says(self, rng: random.Random) -> str:
        of = f"{self.change.says(rng)} of each of " if self.change else ""
        of = of.replace("the value of", "the value, of")
        whole = f"{rng.choice(self.reduce.says)} {of}{self.keep.says(rng)}"
        return f"Write solve(xs) that returns {whole}."

    def inputs(self, rng: random.Random) -> list[Any]:
        return self.make_inputs(rng)

    def run(self, values: list[Any]) -> Any:
        kept = [v for v in values if self.keep.run(v)]
        return self.reduce.run([self.change.run(v) for v in kept] if self.change else kept)

    def neighbour(self, rng: random.Random) -> Pipeline:
        """The same with one skill exchanged: what a hasty programmer would write."""
        while True:
            filters, maps, reduces = self.pool
            other = Pipeline.draw(rng, filters, maps, reduces, self.make_inputs)
            kind = rng.randrange(3)
            new = Pipeline(
                other.keep if kind == 0 else self.keep,
                other.change if kind == 1 else self.change,
                rng.choice(reduces) if kind == 2 else self.reduce,
                self.pool,
                self.make_inputs,
            )
            words_of_numbers = (
                new.change is not None
                and new.change.skill.name == "length"
                and new.reduce in (JOINED, GLUED)
            )
            if new.key != self.key and not words_of_numbers:
                return new

    def program(self) -> Node:
        loops = Choice("code.names", Lazy(self._loop, LOOP_NAMES))
        calls = Choice("code.names.short", Lazy(self._comprehension, COMPREHENSION_NAMES))
        return seq(self._plan(), pick("code.form", loops, calls))

    def _plan(self) -> Node:
        keep = pick("code.plan.keep", "# keep the ones ", "# take those ", "# we want what is ")
        then = pick("code.plan.then", ", then ", "\n# then ", "\n# after that ")
        parts: list[Node] = [keep, self.keep.plan]
        if self.change:
            use = pick("code.plan.use", "use the ", "make the ", "get the ")
            parts += [then, use, self.change.plan]
        ending = pick("code.plan.reduce", *self.reduce.plan)
        return seq(*parts, pick("code.plan.last", ", then ", "\n# then ", " and "), ending, "\n")

    def _value(self, x: str) -> Node:
        return self.change.code(x) if self.change else x

    def _loop(self, xs: str, x: str, r: str) -> Node:
        update = pick(
            f"code.update.{self.reduce.name}",
            *(_fill(u, acc=r, e=self._value(x)) for u in self.reduce.update),
        )
        test = seq("        if ", self.keep.code(x), ":\n")
        finish = pick(
            f"code.finish.{self.reduce.name}", *(f.format(acc=r) for f in self.reduce.finish)
        )
        return seq(
            f"def solve({xs}):\n    {r} = {self.reduce.start}\n    for {x} in {xs}:\n",
            test, "            ", update, "\n    return ", finish,
        )  # fmt: skip

    def _comprehension(self, xs: str, x: str) -> Node:
        gen = seq(self._value(x), f" for {x} in {xs} if ", self.keep.code(x))
        call = pick(f"code.call.{self.reduce.name}", *(_fill(c, gen=gen) for c in self.reduce.call))
        return seq(f"def solve({xs}):\n    return ", call)


def _fill(pattern: str, **values: Node) -> Node:
    """`str.format` on grammars: "{acc} += {e}" with each field a node."""
    parts: list[Node] = []
    for literal, name in _fields(pattern):
        parts.append(literal)
        if name is not None:
            parts.append(values[name])
    return seq(*parts)


@cache
def _fields(pattern: str) -> tuple[tuple[str, str | None], ...]:
    return tuple((literal, name) for literal, name, _, _ in string.Formatter().parse(pattern))


@dataclass(frozen=True)
class Condition:
    """If the number is such, one value, otherwise another."""

    test: Use
    then: Use
    other: Use

    @classmethod
    def draw(cls, rng: random.Random) -> Condition:
        test = rng.choice(FILTERS).draw(rng)
        first, second = rng.sample(MAPS, 2)
        return cls(test, first.draw(rng), second.draw(rng))

    @property
    def key(self) -> str:
        return f"if {self.test.key}|{self.then.key}|{self.other.key}"

    def says(self, rng: random.Random) -> str:
        return (
            f"Write solve(n) that returns {self.then.says(rng)}"
            f" if n is one of {self.test.says(rng)}, otherwise {self.other.says(rng)}."
        )

    def inputs(self, rng: random.Random) -> list[Any]:
        return [*range(-4, 13), *(rng.randint(-40, 60) for _ in range(8)), *MORE_NUMBERS[0], 16, 24]

    def run(self, value: int) -> int:
        result: int = self.then.run(value) if self.test.run(value) else self.other.run(value)
        return result

    def neighbour(self, rng: random.Random) -> Condition:
        while True:
            new = Condition.draw(rng)
            kind = rng.randrange(4)
            if kind == 3:
                return Condition(self.test, self.other, self.then)
            changed = Condition(
                new.test if kind == 0 else self.test,
                new.then if kind == 1 else self.then,
                new.other if kind == 2 else self.other,
            )
            if changed.key != self.key:
                return changed

    def program(self) -> Node:
        plan = seq(
            pick("code.plan.if", "# when it is ", "# if it is ", "# check whether it is "),
            self.test.plan,
            pick("code.plan.branch", ", use the ", ", give the ", "\n# then give the "),
            self.then.plan,
            pick("code.plan.else", ", otherwise the ", ", or else the ", "\n# otherwise the "),
            self.other.plan,
            "\n",
        )
        names = ("n", "x", "value", "number")
        return seq(plan, pick("code.names.if", *(self._body(n) for n in names)))

    def _body(self, n: str) -> Node:
        test, then, other = self.test.code(n), self.then.code(n), self.other.code(n)
        blocks = seq("    if ", test, ":\n        return ", then, "\n    return ", other)
        full = seq("    if ", test, ":\n        return ", then,
                   "\n    else:\n        return ", other)  # fmt: skip
        ternary = seq("    return ", then, " if ", test, " else ", other)
        return seq(f"def solve({n}):\n", pick("code.branches", blocks, full, ternary))


Spec = Pipeline | Condition
