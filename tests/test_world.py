"""The world: rich enough, split for good, the same problems for the same seed."""

from __future__ import annotations

import random
import re
from collections import Counter
from itertools import combinations
from statistics import median
from typing import get_args

import pytest

from judgelib.sandbox import code, facts, math, world
from judgelib.sandbox.grammar import choices, write
from judgelib.sandbox.problem import DOMAINS, SPLITS, Domain, Problem, Split, split_of
from judgelib.sandbox.voices import WEB
from judgelib.sandbox.world import census, draw, problems, shared_prompts

NAMES = frozenset(math.GIRLS + math.BOYS)
SAMPLE = {"math": 400, "code": 400, "facts": 400}


def stories(count: int) -> list[tuple[str, math.Story]]:
    """`count` stories of every math template, with its name."""
    return [
        (name, template(random.Random(f"{name} {seed}")))
        for name, template in sorted(math.TEMPLATES.items())
        for seed in range(count)
    ]


# --- splits ----------------------------------------------------------------------------------


@pytest.mark.parametrize("domain", DOMAINS)
def test_splits_share_neither_instances_nor_prompts(domain: Domain) -> None:
    drawn = {split: problems(domain, split, SAMPLE[domain]) for split in SPLITS}
    for one, two in combinations(SPLITS, 2):
        for feature in ("key", "prompt", "id"):
            ours = {getattr(problem, feature) for problem in drawn[one]}
            theirs = {getattr(problem, feature) for problem in drawn[two]}
            assert not ours & theirs, (one, two, feature)


@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize("split", SPLITS)
def test_a_problem_belongs_to_the_split_it_is_drawn_for(domain: Domain, split: Split) -> None:
    """By its key, whatever the seed: another seed draws other problems of the same split."""
    drawn = [*problems(domain, split, 30, seed=1), *problems(domain, split, 30, seed=2)]
    assert {problem.split for problem in drawn} == {split}
    assert {problem.domain for problem in drawn} == {domain}


def test_a_tenth_of_the_instances_is_test_and_a_tenth_validation() -> None:
    """Four standard deviations of a share of 0.1 among 4000 are 1.9 points."""
    rng = random.Random(0)
    splits = Counter(split_of(math.instance(rng)[0]) for _ in range(4000))
    assert splits["test"] / 4000 == pytest.approx(0.1, abs=0.019)
    assert splits["validation"] / 4000 == pytest.approx(0.1, abs=0.019)


@pytest.mark.parametrize("domain", DOMAINS)
def test_one_prompt_means_one_instance(domain: Domain) -> None:
    """So that instances which lie in different splits never ask the same."""
    drawn = [p for split in SPLITS for p in problems(domain, split, SAMPLE[domain], seed=3)]
    assert len({p.prompt for p in drawn}) == len({p.key for p in drawn}) == len(drawn)


def test_both_wordings_of_a_math_sentence_state_the_same_numbers() -> None:
    """Together with the names (below) this makes an instance readable off its prompt."""
    for name, story in stories(20):
        for wordings in story.question:
            stated = {tuple(sorted(re.findall(r"\d+", wording))) for wording in wordings}
            assert len(stated) == 1, (name, wordings)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_held_out_math_prompt_says_all_that_its_instance_is_made_of(split: Split) -> None:
    """Names, things and numbers of the key: without one of them two instances would ask the same,
    and nobody could know the name that the answer uses."""
    made_of = NAMES | set(math.ITEMS)
    for problem in problems("math", split, 1000):
        drawn, asked = (set(re.findall(r"\w+", t)) for t in (problem.key, problem.prompt))
        assert {w for w in drawn if w in made_of or w.isdigit()} <= asked, problem.prompt


def test_prompts_without_a_name_are_held_out_of_the_held_out_splits() -> None:
    """They do occur, in two templates: the check above is no formality."""
    chosen = problems("math", "train", 1000)
    nameless = {p.key.split("|")[1] for p in chosen if not math.is_named(p)}
    assert nameless == {"orchard", "bakery"}
    assert all(math.is_named(p) for p in problems("math", "test", 1000))


def test_whom_an_answer_names_its_key_names_too() -> None:
    for name, story in stories(40):
        named = {word for step in story.steps for word in step.subject} & NAMES
        assert named <= set(re.findall(r"\w+", " ".join(s[0] for s in story.question))), name


# --- drawing ---------------------------------------------------------------------------------


@pytest.mark.parametrize("domain", DOMAINS)
def test_a_larger_count_begins_with_the_same_problems(domain: Domain) -> None:
    few, many = problems(domain, "test", 20), problems(domain, "test", 45)
    assert [p.key for p in few] == [p.key for p in many[:20]]
    assert [p.prompt for p in few] == [p.prompt for p in many[:20]]
    assert [p.cases for p in few] == [p.cases for p in many[:20]]


@pytest.mark.parametrize("domain", DOMAINS)
def test_problems_are_different_and_depend_on_the_seed(domain: Domain) -> None:
    one, two = problems(domain, "test", 60, seed=1), problems(domain, "test", 60, seed=2)
    assert len({p.id for p in one}) == 60
    assert [p.id for p in one] != [p.id for p in two]


@pytest.mark.parametrize(("domain", "split"), [("maths", "test"), ("math", "dev"), ("", "")])
def test_an_unknown_domain_or_split_is_refused(domain: Domain, split: Split) -> None:
    with pytest.raises(ValueError, match="expected a domain of .*math.* and a split of .*test"):
        draw(domain, split, random.Random(0))
    with pytest.raises(ValueError, match="expected a domain"):
        problems(domain, split, 1)


@pytest.mark.parametrize("count", [0, -3])
def test_a_count_below_one_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match=f"at least 1, got {count}"):
        problems("math", "test", count)


def test_asking_for_more_problems_than_there_are_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """A world of three test problems gives three and then says so, instead of searching on."""
    template = problems("math", "test", 1)[0]
    keys = [key for key in map(str, range(100)) if split_of(key) == "test"][:3]

    def few(rng: random.Random) -> tuple[str, object]:
        key = rng.choice(keys)
        return key, lambda: Problem("math", key, key, (), (), template.apologies)

    monkeypatch.setitem(world._DRAW, "math", few)  # type: ignore[arg-type]
    assert sorted(p.key for p in problems("math", "test", 3)) == sorted(keys)
    with pytest.raises(ValueError, match="the 3 test problems already drawn; ask for fewer"):
        problems("math", "test", 4)


# --- riches ----------------------------------------------------------------------------------


def test_there_are_at_least_twelve_math_templates_all_in_use() -> None:
    drawn = Counter(problem.key.split("|")[1] for problem in problems("math", "train", 600))
    assert len(math.TEMPLATES) >= 12
    assert set(drawn) == set(math.TEMPLATES)
    # The rarest of 15 equally likely ones among 600 is rarer than 15 in less than 1 of 3000 seeds.
    assert min(drawn.values()) >= 15


def test_math_takes_two_to_five_steps() -> None:
    steps = {name: {len(s.steps) for n, s in stories(20) if n == name} for name in math.TEMPLATES}
    assert set().union(*steps.values()) == {2, 3, 4, 5}
    assert all(len(lengths) == 1 for lengths in steps.values())


def test_math_stays_with_natural_numbers() -> None:
    """Operands and results are never negative, divisions leave no rest, subjects are said."""
    for name, story in stories(200):
        for step in story.steps:
            assert min(step.a, step.b, step.result) >= 0, (name, step)
            assert step.op != "/" or step.a == step.b * step.result, (name, step)
            assert step.subject and all(step.subject), (name, step)


def test_math_operands_come_from_the_question_or_from_an_earlier_step() -> None:
    for name, story in stories(50):
        asked = " ".join(wordings[0] for wordings in story.question)
        known = {int(number) for number in re.findall(r"\d+", asked)}
        for step in story.steps:
            assert {step.a, step.b} <= known, (name, step)
            known.add(step.result)


def test_there_are_at_least_forty_code_skills_all_in_use() -> None:
    rng = random.Random(0)
    used = {word for _ in range(1500) for word in re.findall(r"[a-z]+", code.instance(rng)[0])}
    assert len(set(code.NAMES)) == len(code.NAMES) >= 40
    assert set(code.NAMES) <= used


def test_there_are_at_least_three_hundred_facts_in_several_relations() -> None:
    known = facts.knowledge()
    assert len(known) >= 300
    assert len({relation for relation, _ in known}) == len(facts.RELATIONS) >= 5
    assert all(value in facts.BY_NAME[relation].values for (relation, _), value in known.items())


def test_the_sister_towns_form_one_ring() -> None:
    """Nobody is his own sister, and a question in two hops always leads somewhere else."""
    town = facts.TOWNS[0]
    seen = []
    for _ in facts.TOWNS:
        town = facts.knowledge()["sister", town]
        seen.append(town)
    assert sorted(seen) == sorted(facts.TOWNS)


def test_a_question_of_facts_has_one_right_option() -> None:
    for problem in problems("facts", "test", 300):
        options = re.findall(r"\w+", problem.prompt.split("? ")[1].replace(" or ", ", "))
        _, relation, place, listed = problem.key.split("|")
        town = place.removeprefix("sister of ")
        town = facts.knowledge()["sister", town] if town != place else town
        assert options == listed.split() and len(set(options)) == 4
        assert problem.answer == facts.knowledge()[relation, town]
        assert problem.answer in options


@pytest.mark.parametrize("domain", ["math", "facts"])
def test_a_typical_sentence_has_four_free_choices(domain: Domain) -> None:
    """Each part of these answers is one sentence; a bare answer line is none."""
    sentences = [
        part
        for problem in problems(domain, "train", 100)
        for part in problem.solution
        if not isinstance(part, str)
    ]
    assert all(write(s, WEB, random.Random(0)).count(". ") == 1 for s in sentences)
    assert median(map(choices, sentences)) >= 4


def test_the_census_counts_the_world() -> None:
    table = census(sample=30).set_index("domain")
    assert tuple(table.index) == DOMAINS == get_args(Domain)
    assert f"{len(math.TEMPLATES)} templates" in table.loc["math", "made_of"]
    assert f"{len(code.NAMES)} composable skills" in table.loc["code", "made_of"]
    assert f"{len(facts.knowledge())} facts" in table.loc["facts", "made_of"]
    assert (table["choices_per_answer"] >= 8).all()
    assert (table["wordings_per_answer"] >= 10_000).all()


def test_shared_prompts_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shared_prompts(sample=50) == {
        "train and validation": 0,
        "train and test": 0,
        "validation and test": 0,
    }
    one = problems("math", "test", 2)
    monkeypatch.setattr(world, "problems", lambda *_, **__: one)
    assert set(shared_prompts(sample=2).values()) == {2}


def test_an_instance_is_made_only_if_it_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing for a small split passes nine instances by: none of them may cost its making."""
    made: list[str] = []
    original = facts._problem
    monkeypatch.setattr(facts, "_problem", lambda a: made.append(a.key) or original(a))
    for seed in range(50):
        draw("facts", "test", random.Random(seed))
    assert len(made) == 50 and {split_of(key) for key in made} == {"test"}


def test_of_a_code_problem_s_programs_only_the_written_one_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[str] = []
    for name in ("_loop", "_comprehension"):
        original = getattr(code.Pipeline, name)
        monkeypatch.setattr(
            code.Pipeline, name, lambda *a, of=original: [made.append(a[1]), of(*a)][1]
        )
    drawn = [p for p in problems("code", "train", 40) if not p.key.startswith("code|if")]
    assert drawn and not made
    for problem in drawn:
        write(problem.solution[0], WEB, random.Random(problem.id))
    assert len(made) == len(drawn)
