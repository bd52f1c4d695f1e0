"""The numbers of README and docs, written by a command from the tables: nobody types one.

    python -m judgelib.report [--profile sandbox]      # or: make report

Each block between `<!-- report:NAME -->` and `<!-- /report -->` is replaced by what the function of
that name makes of the profile's tables.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from judgelib import acceptance, figures, frontier, labelling, quality, speed, timing_figures
from judgelib.figures import RULES
from judgelib.results import load_manifest, load_table, project_root, write_files

BLOCK = re.compile(r"(<!-- report:(\w+) -->\n).*?(<!-- /report -->)", re.DOTALL)


def family(profile: str) -> str:
    """Share of right answers of each model, by domain, with Wilson intervals."""
    table = figures.with_wilson(load_table("family", profile), "correct", "prompts")
    spans = zip(table["share"], table["low"], table["high"], strict=True)
    shares = [f"{s:.1%} [{low:.1%}, {high:.1%}]" for s, low, high in spans]
    wide = table.assign(right=shares).pivot(index="model", columns="domain", values="right")
    order = table["model"].unique()
    sizes = table.drop_duplicates("model").set_index("model")["parameters"]
    wide.insert(0, "parameters", sizes.map("{:,}".format))
    note = f"\n\n{table['prompts'].iloc[0]} held-out questions a domain, greedy; 95% intervals."
    return markdown(wide.loc[order].reset_index()) + note


def acceptance_study(profile: str) -> str:
    """Accepted tokens per cycle and right answers by author, and the verdict on C1."""
    texts, bootstrap = _texts(profile)
    pooled = acceptance.summary(texts, **bootstrap)
    pooled = pooled[pooled["domain"] == "all"]
    rows = [
        {
            "author": row.author,
            "accepted tokens per cycle": _span(
                row.accepted_per_cycle, row.ci_low, row.ci_high, ".2f"
            ),
            "right answers": _span(row.accuracy, row.acc_low, row.acc_high, ".1%"),
            "texts": row.texts,
        }
        for row in records(pooled)
    ]
    return markdown(pd.DataFrame(rows))


def claim_c1(profile: str) -> str:
    """C1 in a sentence for each author."""
    texts, bootstrap = _texts(profile)
    verdicts = acceptance.rejects_good_text(texts, **bootstrap)
    wasted = acceptance.wasted(texts).set_index("author")["percent_right"]
    return "\n".join(
        f"- **C1, {row.author}: {'holds' if row.holds else 'does not hold'}.** Against the draft, "
        f"{row.accepted_per_cycle_minus_draft} accepted tokens per cycle and "
        f"{row.accuracy_minus_draft} in the share of right answers (paired, 95% bootstrap "
        f"intervals); {wasted[row.author]:.1f}% of the rejected tokens were right."
        for row in records(verdicts)
    )


def labels(profile: str) -> str:
    """What was labelled, and the labels part of C8 by domain."""
    table = load_table("labels_summary", profile)
    counts = ["questions", "acceptable", "unacceptable", "ignored", "mismatches", "important"]
    shares = labelling.mostly_unimportant(table[table["source"] == "mined"])
    sentences = [
        f"- **C8 (labels), {row.domain}: {'holds' if row.holds else 'does not hold'}.** "
        f"{_span(row.share, row.low, row.high, '.1%')} of {row.mismatches:,} mismatches are "
        "unimportant."
        for row in records(shares)
    ]
    return markdown(table[["source", "domain", *counts]]) + "\n\n" + "\n".join(sentences)


def thresholds(profile: str) -> str:
    """Each head at its threshold, on test questions of all domains."""
    table = load_table("head_training", profile)
    last = table[(table["domain_eval"] == "all") & (table["feature"] == "post_norm")]
    last = last.drop_duplicates(["source", "model"])
    return markdown(
        pd.DataFrame(
            {
                "head": last["source"] + ", " + last["model"],
                "tokens learned from": last["n_train"].map("{:,}".format),
                "threshold": last["threshold"].map("{:.3f}".format),
                "wrong tokens rejected": last["recall_unacceptable"].map("{:.1%}".format),
                "right tokens accepted": last["accept_rate"].map("{:.1%}".format),
            }
        )
    )


def headline(profile: str) -> str:
    """What the quality study found, in a sentence for each of three rules."""
    found = _operating(profile).set_index(["rule", "choice"])
    words = {
        ("floored_annotated", "matched"): "An annotated judge with a floor",
        ("judge_annotated", "fixed"): "The same judge at the paper's threshold, without a floor,",
        ("ratio", "matched"): "A one-line rule, the ratio to the likeliest token,",
    }
    lines = [
        f"- {said} keeps {_span(row.gain, row.gain_low, row.gain_high, '.2f')} times as many draft "
        "tokens per target call as strict verification; right answers change by "
        f"{_span(row.change, row.change_low, row.change_high, '+.2f')} points."
        for name, said in words.items()
        for row in records(found.loc[found.index.isin([name])])
    ]
    return "\n".join(lines)


def _operating(profile: str) -> pd.DataFrame:
    """The chosen settings with what test questions say of them."""
    answers = quality.load_answers(profile, "test")
    seed = load_manifest("operating_points", profile)["seeds"][0]
    points = frontier.points(answers, resamples=2000, seed=seed)
    return quality.matched(load_table("operating_points", profile), points)


def matched_quality(profile: str) -> str:
    """The chosen settings on test questions, the most tokens per cycle first."""
    found = _operating(profile)
    rows = [
        {
            "rule": RULES[row.rule].label,
            "setting": "" if row.rule == "strict" else f"{row.setting:.3g} ({row.choice})",
            "tokens per cycle": f"{row.tokens_per_cycle:.2f}",
            "accepted, times strict": _span(row.gain, row.gain_low, row.gain_high, ".2f"),
            "change in right answers, points": _span(
                row.change, row.change_low, row.change_high, "+.2f"
            ),
            "lost / won": f"{row.lost} / {row.won}",
        }
        for row in records(found)
    ]
    note = (
        f"\n\n{found['prompts'].iloc[0]:,} test prompts, all domains together; 95% bootstrap "
        "intervals. *matched*: chosen on validation questions to lose at most one point."
    )
    return markdown(pd.DataFrame(rows)) + note


def engines(profile: str) -> str:
    """Every engine on the same prompts, one text at a time, then several side by side."""
    table = load_table("speed", profile)
    found = speed.speeds(table)
    rows = [
        {
            "engine": timing_figures.row_name(row),
            "texts side by side": row.batch,
            "tokens per second": f"{row.tokens_per_second:,.0f}",
            "tokens per cycle": ""
            if pd.isna(row.tokens_per_cycle)
            else f"{row.tokens_per_cycle:.2f}",
            "of its bound": "" if pd.isna(row.of_bound) else f"{row.of_bound:.0%}",
        }
        for row in records(found)
    ]
    note = (
        f"\n\n{table['prompts'].max()} test prompts, greedy, on {table['hardware'].iloc[0]}; "
        f"medians of {table['round'].nunique()} rounds in which every engine answers in turn."
    )
    return markdown(pd.DataFrame(rows)) + note


def speedups(profile: str) -> str:
    """The comparisons of C5, as ratios within a round."""
    found = speed.verdicts(load_table("speed", profile), load_table("speed_windows", profile))
    rows = [
        {"comparison": row.comparison, "times": _span(row.times, row.low, row.high, ".2f")}
        for row in records(found)
    ]
    return markdown(pd.DataFrame(rows))


def claims(profile: str) -> str:
    """Every declared claim with what was measured."""
    table = load_table("claims", profile)
    spans = zip(table["measured"], table["ci_low"], table["ci_high"], strict=True)
    measured = ["" if pd.isna(v) else _span(v, low, high, ".3g") for v, low, high in spans]
    columns = {"id": table["id"], "claim": table["claim"], "source": table["source"]}
    return markdown(pd.DataFrame({**columns, "measured": measured, "verdict": table["holds"]}))


ASKED = {
    "C1": "Strict verification rejects good text",
    "C2": "A linear head on the target's state tells wrong tokens",
    "C3": "A judge multiplies the accepted tokens",
    "C4": "Quality holds",
    "C5": "Acceptance becomes speed",
    "C6": "What labels leave out costs quality",
    "C7": "A deeper head gains nothing",
    "C8": "Labels can be mined without annotators",
    "C9": "Mined judges beat top-K acceptance",
    "C10": "Mined heads do not transfer to other domains",
    "C11": "Judges beat training-free rules",
    "C12": "Self-corrections in training teach the state what is wrong",
}
"""What the claims of one id ask, in a line."""


def overview(profile: str) -> str:
    """How many of the declared claims hold, by what they ask."""
    found = load_table("claims", profile)
    says = found["holds"].where(found["holds"].isin(["holds", "fails"]), "undecided")
    counts = pd.crosstab(found["id"], says).reindex(
        index=list(ASKED), columns=["holds", "fails", "undecided"], fill_value=0
    )
    counts.insert(0, "claim", [f"{name}: {asked}" for name, asked in ASKED.items()])
    return markdown(counts)


BLOCKS: dict[str, Callable[[str], str]] = {
    function.__name__: function
    for function in (
        family,
        acceptance_study,
        claim_c1,
        labels,
        thresholds,
        headline,
        matched_quality,
        engines,
        speedups,
        claims,
        overview,
    )
}


def _texts(profile: str) -> tuple[pd.DataFrame, dict[str, int]]:
    """The study's counts, and the bootstrap that its notebook used."""
    made = load_manifest("acceptance_texts", profile)
    seed, resamples = made["seeds"][0], made["parameters"]["bootstrap"]
    return load_table("acceptance_texts", profile), {"resamples": resamples, "seed": seed}


def records(frame: pd.DataFrame) -> list[Any]:
    """The rows as named tuples; pandas cannot tell their types."""
    return list(frame.itertuples())


def _span(value: float, low: float, high: float, form: str) -> str:
    return f"{value:{form}} [{low:{form}}, {high:{form}}]"


def markdown(frame: pd.DataFrame) -> str:
    """A frame as a Markdown table, without its index."""
    lines = [list(frame.columns), ["---"] * frame.shape[1], *frame.astype(str).values.tolist()]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def filled(text: str, profile: str, blocks: Mapping[str, Callable[[str], str]] = BLOCKS) -> str:
    """The text with every block computed anew.

    Raises:
        ValueError: a block of an unknown name, or a table that is not there.
    """

    def block(match: re.Match[str]) -> str:
        start, name, end = match.groups()
        if name not in blocks:
            raise ValueError(f"expected a report block of {', '.join(blocks)}, got {name!r}")
        return f"{start}{blocks[name](profile)}\n{end}"

    return BLOCK.sub(block, text)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Fill the tables of README and docs.")
    parser.add_argument("--profile", default="sandbox")
    parser.add_argument("--file", type=Path, action="append", help="a page (default: all of them)")
    options = parser.parse_args(arguments)
    for page in options.file or pages():
        text = filled(page.read_text(encoding="utf-8"), options.profile)
        write_files({page: text.encode()})
        print(f"{page.name}: tables of profile {options.profile} written")
    return 0


def pages() -> list[Path]:
    """The project's pages with blocks of these names (docs/scale.md has other ones)."""
    root = project_root()
    found = [root / "README.md", *sorted((root / "docs").glob("*.md"))]
    return [page for page in found if {name for _, name, _ in _blocks(page)} & set(BLOCKS)]


def _blocks(page: Path) -> list[tuple[str, str, str]]:
    return BLOCK.findall(page.read_text(encoding="utf-8"))


if __name__ == "__main__":
    raise SystemExit(main())
