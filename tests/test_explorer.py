"""The explorer without a browser: records of decodings and of labels, and the page they become."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from html import unescape
from pathlib import Path
from typing import Any

import checks
import pytest
import tiny
import torch
from test_annotation import byte_tokenizer
from test_judge import constant, head_for

from judgelib.decoding import Generation, speculate
from judgelib.drafting import ModelDrafter, PromptLookupDrafter
from judgelib.explorer import Page, Record, Token, labelled, record
from judgelib.explorer import page as pages
from judgelib.explorer.__main__ import main
from judgelib.explorer.observed import Observed, judges
from judgelib.explorer.spelling import spelling
from judgelib.explorer.tokens import ORIGINS
from judgelib.labels import Labelled, annotated
from judgelib.models import LanguageModel
from judgelib.rules import (
    Ensemble,
    Judge,
    Match,
    Ratio,
    Rule,
    SpeculativeSampling,
    StrictPrefix,
    TopK,
)

WINDOW, LENGTH = 5, 24
PROMPTS = tiny.prompts(3, seed=2)


def judge(target: LanguageModel, threshold: float = 0.5) -> Judge:
    """A head of random weights: it finds some tokens acceptable and some not."""
    weight = torch.randn(target.hidden_size, generator=torch.Generator().manual_seed(5))
    return Judge(head_for(target, weight / 8, bias=0.0), threshold)


def decode(
    pair: checks.Pair, rule: Rule, prompt: Sequence[int], temperature: float = 0.0
) -> Generation:
    return speculate(pair[0], ModelDrafter(pair[1]), rule, prompt, **options(temperature))


def recorded(
    pair: checks.Pair, rule: Rule, prompt: Sequence[int], temperature: float = 0.0, **how: Any
) -> Record:
    drafter = ModelDrafter(pair[1])
    return record(pair[0], drafter, rule, prompt, **options(temperature), **how)


def options(temperature: float) -> dict[str, Any]:
    seed = torch.Generator().manual_seed(1) if temperature else None
    return {
        "window": WINDOW, "max_new_tokens": LENGTH, "temperature": temperature, "generator": seed,
        "eos_ids": (),
    }  # fmt: skip


def ids(found: Record) -> list[int]:
    return [token.id for token in found.tokens]


def rules(target: LanguageModel) -> dict[str, Rule]:
    one = judge(target)
    return {
        "strict": Match(),
        "judge": Match() | one,
        "judge alone": one,
        "floored": Match() | (one & Ratio(0.05)),
        "prefix": StrictPrefix(9, Match() | one),
        "top-k": Match() | TopK(3),
        "ensemble": Ensemble(0.5),
        "sampling": SpeculativeSampling() | one,
    }


@pytest.mark.parametrize("temperature", [0.0, 1.0], ids=["greedy", "sampling"])
@pytest.mark.parametrize("name", rules(tiny.language_model()))
def test_a_watched_decoding_is_the_unwatched_one(
    pair: checks.Pair, name: str, temperature: float
) -> None:
    rule = rules(pair[0])[name]
    if name == "sampling" and not temperature:
        rule = Match() | judge(pair[0], 0.3)
    for prompt in PROMPTS:
        plain = decode(pair, rule, prompt, temperature)
        found = recorded(pair, rule, prompt, temperature)
        assert ids(found) == plain.ids
        assert (found.cycles, found.drafted, found.accepted, found.finish) == (
            len(plain.cycles), plain.drafted, plain.accepted, plain.finish_reason,
        )  # fmt: skip
        assert found.text == pair[0].tokenizer.decode(plain.ids, skip_special_tokens=True)
        counts = found.counts
        assert counts["matched"] + counts["judged"] == plain.accepted
        assert counts["judged"] == plain.mismatches
        assert counts["bonus"] == sum(cycle.bonus for cycle in plain.cycles)
        by = [token.by for token in found.tokens if token.by]
        assert by == [name for cycle in plain.cycles for name in cycle.accepted_by]
        if found.threshold is not None:
            assert found.flips(found.threshold) == []


@pytest.mark.parametrize("name", ["judge", "floored", "prefix", "judge alone"])
def test_another_threshold_flips_what_decoding_again_would_change(
    pair: checks.Pair, name: str
) -> None:
    """Real decodings at the other threshold: the same text up to the first flip, and another one
    from there."""
    changed = 0
    for threshold in (0.2, 0.8):
        again = rules(pair[0])[name]
        for one in judges(again):
            one.threshold = threshold
        for prompt in PROMPTS:
            found = recorded(pair, rules(pair[0])[name], prompt)
            other, ours = decode(pair, again, prompt).ids, ids(found)
            first = next(iter(found.flips(threshold)), len(ours))
            assert other[:first] == ours[:first]
            # A judge alone may reject what the target writes as well.
            if first < len(ours) and found.tokens[first].origin != "matched":
                assert other[first] != ours[first] or name == "judge alone"
                changed += other[first] != ours[first]
    assert changed


def test_strict_verification_with_a_judge_looking_on(pair: checks.Pair) -> None:
    for prompt in PROMPTS:
        found = recorded(pair, Match(), prompt, looking_on=judge(pair[0]))
        assert ids(found) == decode(pair, Match(), prompt).ids
        assert (found.threshold, found.flips(1.0)) == (1.0, [])
        flips = found.flips(0.3)
        other = decode(pair, Match() | judge(pair[0], 0.3), prompt).ids
        first = flips[0] if flips else len(other)
        assert other[:first] == ids(found)[:first]
        replaced = [token for token in found.tokens if token.origin == "replaced"]
        assert replaced and all(0 <= (token.probability or 0.0) <= 1 for token in replaced)
        assert "Asked all the same" in replaced[0].reason


def test_alternatives_are_what_the_models_find_likeliest_at_that_place(pair: checks.Pair) -> None:
    """Against one plain pass of each model over the finished text."""
    target, draft = pair
    for prompt in PROMPTS[:2]:
        found = recorded(pair, Match() | judge(target), prompt, top=4)
        text = torch.tensor([[*prompt, *ids(found)]])
        for model, name in ((target, "target"), (draft, "draft")):
            with torch.inference_mode():
                p = model.model(text).logits[0, len(prompt) - 1 : -1].softmax(-1)
            for row, token in zip(p, found.tokens, strict=True):
                choices = getattr(token, name)
                if name == "draft" and token.origin == "bonus":
                    assert choices == ()
                    continue
                assert [choice.id for choice in choices][:2] == row.topk(2).indices.tolist()
                told = {choice.id: choice.probability for choice in choices}
                assert token.id in told
                assert token.rejected is None or token.rejected.id in told
                for index, share in told.items():
                    assert share == pytest.approx(row[index].item(), abs=1e-4)


def test_the_judges_probability_is_the_heads(pair: checks.Pair) -> None:
    target = pair[0]
    one = judge(target)
    found = recorded(pair, Match() | one, PROMPTS[0])
    text = torch.tensor([[*PROMPTS[0], *ids(found)]])
    states = target.states(text, ["post_norm"])["post_norm"][0, len(PROMPTS[0]) :]
    expected = one.head.probability(states).tolist()
    kept = [n for n, token in enumerate(found.tokens) if token.origin in ("matched", "judged")]
    assert [found.tokens[n].probability for n in kept] == pytest.approx(
        [expected[n] for n in kept], abs=1e-4
    )
    assert any(token.origin == "judged" for token in found.tokens)


def test_what_was_thrown_away_is_told(pair: checks.Pair) -> None:
    found = recorded(pair, Match(), PROMPTS[1])
    first = next(token for token in found.tokens if token.origin == "replaced")
    assert first.rejected is not None and first.rejected.id != first.id
    before = next(n for n, token in enumerate(found.tokens) if token is first)
    in_window = sum(token.cycle == first.cycle for token in found.tokens[:before])
    words = re.findall(r"w\d+|<eos>", first.rejected.behind)
    assert len(words) == WINDOW - in_window - 1


def test_reasons_name_the_rule_and_the_numbers(pair: checks.Pair) -> None:
    target = pair[0]
    kinds = {
        "judged": (Match() | judge(target), r"probability 0\.\d{4}, above the threshold 0\.5 \(J"),
        "replaced": (Match() | judge(target), r"0\.\d{4}, which is not above the threshold 0\.5\."),
        "matched": (Match(), "the target's own choice"),
        "bonus": (Match() | Judge(constant(target, 1e4)), r"whole window stayed \(5 drafted"),
    }
    for origin, (rule, words) in kinds.items():
        found = recorded(pair, rule, PROMPTS[2])
        said = [token.reason for token in found.tokens if token.origin == origin]
        assert said and re.search(words, said[0]), (origin, said[:1])
    floored = recorded(pair, Match() | (Judge(constant(target, 1e4)) & Ratio(1.0)), PROMPTS[2])
    assert "no threshold would let it through" in " ".join(t.reason for t in floored.tokens)
    strict = recorded(pair, Match(), PROMPTS[2])
    assert "so does Match" in " ".join(token.reason for token in strict.tokens)
    top = recorded(pair, Match() | TopK(8), PROMPTS[2])
    assert "but TopK(8) keeps it" in " ".join(token.reason for token in top.tokens)


def test_a_drafter_without_probabilities_has_no_alternatives(pair: checks.Pair) -> None:
    prompt = [5, 6, 7, 5, 6]
    found = record(
        pair[0], PromptLookupDrafter(), Match(), prompt, window=4, max_new_tokens=12, eos_ids=()
    )
    assert found.drafted > 0
    assert all(token.draft == () and token.target for token in found.tokens)


def test_two_judges_at_once_are_refused(pair: checks.Pair) -> None:
    with pytest.raises(ValueError, match="has a judge of its own"):
        Observed(Match() | judge(pair[0]), looking_on=judge(pair[0]))
    both = Match() | judge(pair[0], 0.9) | judge(pair[0], 0.2)
    assert Observed(both).judge is None  # no one threshold to try


def test_an_unjudgeable_token_has_no_probability(pair: checks.Pair) -> None:
    broken = judge(pair[0])
    broken._folded._first.bias.fill_(float("nan"))
    found = recorded(pair, Match() | broken, PROMPTS[0])
    assert all(token.probability is None for token in found.tokens)
    assert found.flips(0.0) == []
    assert ids(found) == decode(pair, Match(), PROMPTS[0]).ids
    Page([found]).html  # noqa: B018  NaN would be no JSON


# Text


def test_tokens_are_written_out_exactly() -> None:
    tokenizer = byte_tokenizer()
    euro = tokenizer.encode("€")
    assert [spelling(tokenizer, token) for token in euro] == ["⟨E2⟩", "⟨82⟩", "⟨AC⟩"]
    assert spelling(tokenizer, tokenizer.encode(" ")[0]) == " "
    assert spelling(tokenizer, 0) == "<end>"
    assert spelling(tokenizer, 9999) == "[9999]"
    words = tiny.tokenizer()
    assert spelling(words, 7).strip() == "w7"
    assert spelling(words, tiny.EOS) == "<eos>"


def test_labels_become_origins() -> None:
    tokenizer = byte_tokenizer()
    text = tokenizer.encode("2+2=5€")
    row = annotated("q", "math", "draft", tokenizer.encode("2+2?"), text, (4, 5))
    mined = Labelled("q", "math", "mined", "t", [9], [11, 12, 13], [11, 44, 13], [1, 0, -1])
    page = labelled([row, mined], tokenizer)
    first, second = page.records
    assert (first.text, first.prompt) == ("2+2=5€", "2+2?")
    assert [token.origin for token in first.tokens] == (
        ["acceptable"] * 4 + ["unacceptable"] + ["ignored"] * 3
    )
    assert first.tokens[4].reason == "Label 0: here the answer goes wrong."
    assert first.threshold is None and first.flips(0.5) == []
    assert [token.rejected and token.rejected.id for token in second.tokens] == [None, 44, None]
    assert "another answer" in second.tokens[1].reason


# The page


def plain(text: str = "a", **changes: Any) -> Record:
    token = Token(text, 1, text, "matched", reason="r")
    return Record(**{"title": "t", "rule": "r", "prompt": "p", "tokens": (token,), **changes})


NASTY = "</script><script>alert(1)</script><!-- ' \" & \u2028"


def data(html: str) -> Any:
    found = re.search(r'id="data">(.*?)</script>', html, re.DOTALL)
    assert found
    return json.loads(found[1])


def test_the_page_is_one_file_without_a_way_out() -> None:
    html = Page([plain(NASTY, title=NASTY, prompt=NASTY)], title=NASTY).html
    assert not re.search(r"https?:|//[a-z]|<link|<img|@import|url\(", html)
    assert html.count("<script") == html.count("</script>") == 2
    assert "default-src 'none'" in html
    for tag in ("script", "style"):
        body = re.search(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        assert body and f"{tag}-src '{pages._hash(body[1])}'" in html
    kept = data(html)
    assert (kept["title"], kept["records"][0]["tokens"][0]["text"]) == (NASTY, NASTY)


def test_the_script_has_no_way_to_make_html_of_text() -> None:
    ways = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|eval\(|Function\("
    ways += r"|createContextualFragment|https?:|fetch\(|XMLHttp|import\(|srcdoc|localStorage"
    assert not re.search(ways, pages._asset("explorer.js"))


def test_numbers_survive_the_way_into_the_page(pair: checks.Pair) -> None:
    found = recorded(pair, Match() | judge(pair[0]), PROMPTS[0])
    shown = data(Page([found]).html)["records"][0]
    for told, token in zip(shown["tokens"], found.tokens, strict=True):
        assert told.get("probability") == token.probability
        assert (told["id"], told["cycle"]) == (token.id, token.cycle)
        assert told.get("least", False) == token.least
    assert data(Page([plain()]).html)["records"][0]["tokens"][0]["cycle"] == 0


def test_a_frame_holds_the_whole_page() -> None:
    page = Page([plain(NASTY)])
    frame = page._repr_html_()
    found = re.fullmatch(r"<iframe ([^>]*?) srcdoc='([^']*)'></iframe>", frame, re.DOTALL)
    assert found and 'sandbox="allow-scripts"' in found[1]
    assert unescape(found[2]) == page.html
    assert "matched" not in repr(page) and "1 tokens" in repr(page)


def test_where_two_texts_part() -> None:
    def text(*numbers: int, prompt: str = "p") -> Record:
        tokens = tuple(Token("x", n, "x", "matched", reason="") for n in numbers)
        return plain(tokens=tokens, prompt=prompt)

    pairs = {
        (1, 2, 3): None,
        (1, 2, 4): 2,
        (1, 2): 2,
        (1, 2, 3, 4): 3,
    }
    for other, parts in pairs.items():
        assert pages._parting(text(1, 2, 3), text(*other)) == parts
    assert pages._parting(text(1), text(2, prompt="another")) is None


def test_a_page_of_nothing_says_so() -> None:
    page = Page([])
    assert data(page.html)["records"] == []
    assert "There is nothing to show." in page.html


def test_writing_replaces_the_file_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "x.html"
    page = Page([plain("é🙂שלום")])
    assert page.write(path) == path
    assert path.read_bytes().decode() == page.html
    assert [file.name for file in path.parent.iterdir()] == ["x.html"]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_colour_carries_its_text_and_its_mark(theme: str) -> None:
    inks = {"light": "#1C1E21", "dark": "#E8EAED"}  # explorer.css, --ink
    assert inks[theme].lower() in pages._asset("explorer.css")
    for origin in ORIGINS.values():
        ground = pages.ground(origin.color, theme)
        assert pages.contrast(inks[theme], ground) >= 4.5, (origin.label, ground)
        assert pages.contrast(pages.line(origin.color, theme), ground) >= 3
        assert pages.contrast(pages.line(origin.color, theme), pages.PAPERS[theme]) >= 3
    assert pages.contrast("#FFFFFF", "#000000") == pytest.approx(21)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--head", "nobody"], "expected a head of annotated, "),
        (["--profile", "nowhere"], "no profile 'nowhere'"),
        (["--prompt", "  "], "expected a question, got an empty text"),
        (["--number", "0"], "number from 1"),
    ],
)
def test_the_command_refuses_before_it_loads_a_model(arguments: list[str], words: str) -> None:
    with pytest.raises(SystemExit, match=f"error: .*{re.escape(words)}"):
        main(arguments)
