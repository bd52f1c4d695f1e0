"""Who answers the prompts of the acceptance study: the models of a profile, and people.

The target, the draft and the expert answer greedily if the profile has them; a text that was
collected (GPT-4o's, say) stands in for the author's model; the human is the task's reference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from judgelib.answering import greedy_texts
from judgelib.models import load_model
from judgelib.profiles import Profile
from judgelib.tasks import Question
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


def _chosen(author: str, found: Sequence[Text], questions: Sequence[Question]) -> list[str]:
    by_question = {text.question_id: text.text for text in found}
    missing = [q.id for q in questions if q.id not in by_question]
    if missing:
        raise ValueError(
            f"expected an answer of {author} to each of {len(questions)} questions, but "
            f"{len(missing)} are missing, the first to {missing[0]}; collect them first"
        )
    return [by_question[question.id] for question in questions]
