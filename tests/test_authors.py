"""Authors of the study: a profile's models answer greedily, collected texts take their place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
from serving import Reply, Server, asked, completion

from judgelib.authors import author_texts
from judgelib.collecting import collect
from judgelib.decoding import autoregress
from judgelib.models import LanguageModel, load_model
from judgelib.profiles import Profile
from judgelib.tasks import Question
from judgelib.tasks.base import prompt_ids
from judgelib.texts import Text

TEMPLATE = "{% for message in messages %}{{ message.content }} {% endfor %}"
QUESTIONS = [
    Question(name, "toy", ({"role": "user", "content": prompt},), f"right {name}", None)
    for name, prompt in [("a", "w5 w9"), ("b", "w30"), ("c", "w7 w8 w20 w4")]
]
ABSENT = "./no/such/model"


def save(model: LanguageModel, folder: Path) -> str:
    model.tokenizer.chat_template = TEMPLATE
    model.model.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Three models that answer differently; the target counts."""
    models = {
        "target": tiny.counting(),
        "draft": tiny.language_model(seed=1),
        "expert": tiny.language_model(seed=2),
    }
    root = tmp_path_factory.mktemp("family")
    return {role: save(model, root / role) for role, model in models.items()}


def profile(**models: str) -> Profile:
    return Profile(name="toy", models=models, dtype="float32", notebooks={})


def texts_by(author: str, *names: str) -> list[Text]:
    return [Text(name, author, f"{author} on {name}", "sha", "stop") for name in names]


def beginnings(folder: str) -> list[str]:
    """The first 20 tokens that the naive loop says, one question at a time."""
    model = load_model(folder, dtype="float32")
    prompts = [prompt_ids(model.tokenizer, question) for question in QUESTIONS]
    answers = [autoregress(model, prompt, max_new_tokens=20).ids for prompt in prompts]
    return [model.tokenizer.decode(ids, skip_special_tokens=True) for ids in answers]


def begin(texts: list[str], beginnings: list[str]) -> bool:
    return all(text.startswith(begun) for text, begun in zip(texts, beginnings, strict=True))


def test_every_role_answers_every_question_greedily(folders: dict[str, str]) -> None:
    texts = author_texts(profile(**folders), QUESTIONS)
    assert list(texts) == ["target", "draft", "expert", "human"]
    assert begin(texts["target"], ["w10 w11 w12", "w31 w32 w33", "w5 w6 w7"])
    for role in ("draft", "expert"):
        assert begin(texts[role], beginnings(folders[role]))
    assert not begin(texts["draft"], beginnings(folders["expert"]))


def test_the_human_is_the_reference(folders: dict[str, str]) -> None:
    texts = author_texts(profile(target=folders["target"], draft=folders["draft"]), QUESTIONS)
    assert list(texts) == ["target", "draft", "human"]
    assert texts["human"] == ["right a", "right b", "right c"]


def test_a_collected_author_needs_no_model() -> None:
    collected = {
        "expert": texts_by("gpt", "c", "b", "more", "a"),  # any order, and more than is asked
        "draft": texts_by("small", "a", "b", "c"),
        "target": texts_by("big", "a", "b", "c"),
    }
    models = profile(target=ABSENT, draft=ABSENT)
    texts = author_texts(models, QUESTIONS, collected)
    assert list(texts) == ["target", "draft", "expert", "human"]
    assert texts["expert"] == ["gpt on a", "gpt on b", "gpt on c"]
    assert texts["target"] == ["big on a", "big on b", "big on c"]
    with pytest.raises(ValueError, match="no weights for 'draft'"):
        author_texts(models, QUESTIONS, {"target": collected["target"]})


def test_a_collected_author_takes_the_place_of_its_model(folders: dict[str, str]) -> None:
    collected = {"expert": texts_by("gpt", "a", "b", "c")}
    texts = author_texts(profile(**folders), QUESTIONS, collected)
    assert texts["expert"] == ["gpt on a", "gpt on b", "gpt on c"]
    assert begin(texts["draft"], beginnings(folders["draft"]))


def test_questions_without_a_collected_answer_are_named() -> None:
    collected = {"expert": texts_by("gpt", "a")}
    with pytest.raises(ValueError, match="expert to each of 3 .* 2 are missing, the first to b"):
        author_texts(profile(target=ABSENT, draft=ABSENT), QUESTIONS, collected)


def test_an_endpoint_is_an_author(folders: dict[str, str], tmp_path: Path) -> None:
    """The route of a real profile: a task's questions, collected over HTTP, into the study."""

    def answer(request: dict[str, Any], _: int) -> Reply:
        return completion(f"re: {asked(request)}")

    with Server(answer) as server:
        texts = collect(
            [(question.id, question.messages) for question in QUESTIONS],
            tmp_path / "gpt.jsonl",
            base_url=server.url,
            progress=False,
        )
    models = profile(target=folders["target"], draft=folders["draft"])
    answers = author_texts(models, QUESTIONS, {"expert": texts})
    assert list(answers) == ["target", "draft", "expert", "human"]
    assert answers["expert"] == ["re: w5 w9", "re: w30", "re: w7 w8 w20 w4"]


def test_collected_humans_stand_in_for_the_references(folders: dict[str, str]) -> None:
    found = author_texts(
        profile(target=folders["target"]), QUESTIONS, {"human": texts_by("human", "a", "b", "c")}
    )
    assert found["human"] == ["human on a", "human on b", "human on c"]


def test_an_author_of_no_role_is_refused(folders: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="got gpt-4o; pass them under the role"):
        author_texts(
            profile(target=folders["target"]), QUESTIONS, {"gpt-4o": texts_by("gpt-4o", "a")}
        )
