"""Who answers the prompts of the acceptance study: the models of a profile, and people.

The target, the draft and the expert answer greedily if the profile has them; a text that was
collected (GPT-4o's, say) stands in for the author's model; the human is the task's reference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from judgelib.answering import greedy_texts
from judgelib.models import load_model
from judgelib.profiles import Profile
from judgelib.results import results_dir
from judgelib.tasks import Question, load_task
from judgelib.tasks.base import Message
from judgelib.texts import Text

AUTHORS = ("target", "draft", "expert", "human")


def author_texts(
    profile: Profile,
    questions: Sequence[Question],
    collected: Mapping[str, Sequence[Text]] | None = None,
) -> dict[str, list[str]]:
    """One answer per question by every author, in the order of the questions.

    collected: author → texts of `collecting.collect`, in place of a model of that name.

    Raises:
        ValueError: a collected author is none of `AUTHORS`, or lacks a question.
    """
    unknown = sorted(set(collected or {}) - set(AUTHORS))
    if unknown:
        raise ValueError(
            f"expected texts by {', '.join(AUTHORS)}, got {', '.join(unknown)}; pass them under "
            "the role that they play, such as expert"
        )
    texts = {name: _chosen(name, found, questions) for name, found in (collected or {}).items()}
    for role in ("target", "draft", "expert"):
        if role not in texts and role in profile.models:
            model = load_model(profile.model(role), **profile.loading(role))
            texts[role] = greedy_texts(model, questions, **profile.limits("rows"))
    texts.setdefault("human", [question.reference for question in questions])
    return {author: texts[author] for author in AUTHORS if author in texts}


def requests(
    tasks: Sequence[str], *, prompts: int, seed: int = 0
) -> list[tuple[str, tuple[Message, ...]]]:
    """What an endpoint is asked: id and messages of the tasks' test questions."""
    return [
        (question.id, question.messages)
        for name in tasks
        for question in load_task(name).questions("test", prompts, seed=seed)
    ]


def texts_path(profile: Profile, author: str) -> Path:
    """Where an author's collected texts are kept."""
    return results_dir(profile.name) / "texts" / f"{author}.jsonl"


def settings_of(profile: Profile, author: str) -> dict[str, Any]:
    """The settings with which an author's texts are asked for."""
    longest = profile.answers.get("max_new_tokens", 512)
    return {"model": profile.collected[author], "temperature": 0.0, "max_tokens": longest}


def collected_texts(
    profile: Profile, tasks: Sequence[str], *, prompts: int, seed: int = 0
) -> dict[str, list[Text]]:
    """Texts of every author that the profile wants from an endpoint; what is kept already is not
    asked for again (see `collecting.collect`)."""
    if not profile.collected:
        return {}
    from judgelib.collecting import collect

    asked = requests(tasks, prompts=prompts, seed=seed)
    return {
        author: collect(asked, texts_path(profile, author), **settings_of(profile, author))
        for author in profile.collected
    }


def _chosen(author: str, found: Sequence[Text], questions: Sequence[Question]) -> list[str]:
    by_question = {text.question_id: text.text for text in found}
    missing = [q.id for q in questions if q.id not in by_question]
    if missing:
        raise ValueError(
            f"expected an answer of {author} to each of {len(questions)} questions, but "
            f"{len(missing)} are missing, the first to {missing[0]}; collect them first"
        )
    return [by_question[question.id] for question in questions]
