"""The measurement itself, on tiny models: complete, consistent, and ended by one JSON line."""

from __future__ import annotations

import json
from pathlib import Path

import checks
import pytest
import tiny

from judgelib import timing
from judgelib.models import load_model
from judgelib.provenance import checkout

SPEEDS = ("transformers-generate", "transformers-assisted", "judgelib", "judgelib-batch", "bound")


@pytest.fixture(scope="module")
def short_pair() -> checks.Pair:
    """A context that is soon full, since a measurement fills it."""
    target = tiny.language_model(context=96)
    return target, tiny.disturbed(target)


def test_measurement_is_complete_and_consistent(short_pair: checks.Pair) -> None:
    lines: list[str] = []
    prompts = [[3, 4, 5, 6, 7, 8], [9, 8, 7, 6, 5, 4]]
    found = timing.measure(
        *short_pair, prompts, window=4, tokens=20, repeats=1, batch=3, progress=lines.append
    )
    assert all(found[name] > 0 for name in SPEEDS)
    assert found["over_assisted"] == found["judgelib"] / found["transformers-assisted"]
    assert found["over_bound"] == found["judgelib"] / found["bound"]
    cycle_ms = 4 * found["draft_pass_ms"] + found["target_pass_ms"]
    assert found["bound"] == pytest.approx(1000 * found["tokens_per_cycle"] / cycle_ms)
    assert 1 <= found["tokens_per_cycle"] <= 5
    assert found["late_token"] == 96 - 6 - 12  # as late as the context allows
    assert len(lines) == 2 and "(warm-up)" in lines[0]
    assert f"{found['judgelib']:.1f} tok/s" in timing.report(found)


def test_all_engines_answer_alike(pair: checks.Pair) -> None:
    """Speeds are only comparable between engines that do the same work."""
    plain = timing.transformers_engine(pair[0], 20)
    assisted = timing.transformers_engine(pair[0], 20, pair[1], window=4)
    for prompt, truth in zip(checks.PROMPTS, checks.oracles(pair[0]), strict=True):
        assert plain(prompt) == assisted(prompt) == min(20, len(truth.ids))


def test_sandbox_prompts_take_turns_among_the_domains() -> None:
    target = load_model(checkout() / "data" / "sandbox" / "draft")
    prompts = timing.sandbox_prompts(target, 4)
    texts = [target.tokenizer.decode(prompt) for prompt in prompts]
    assert len(set(texts)) == 4
    assert "Write solve" in texts[1] and all(text.endswith("<|assistant|>") for text in texts)


def test_one_token_seconds_tells_a_large_model_from_a_small_one() -> None:
    sandbox = checkout() / "data" / "sandbox"
    models = [load_model(sandbox / name, dtype="float32") for name in ("target", "draft")]
    slow, fast = timing.one_token_seconds(models, behind=20, repeats=5)
    assert slow > fast > 0


def test_command_ends_with_one_json_line(
    short_pair: checks.Pair, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for model, name in zip(short_pair, ("target", "draft"), strict=True):
        model.model.save_pretrained(tmp_path / name)
        model.tokenizer.save_pretrained(tmp_path / name)
    (tmp_path / "prompts.json").write_text(json.dumps([[5, 6, 7], [8, 9]]))
    arguments = ["--target", f"{tmp_path}/target", "--draft", f"{tmp_path}/draft"]
    arguments += ["--prompts", f"{tmp_path}/prompts.json", "--window", "4", "--tokens", "12"]
    capsys.readouterr()
    assert timing.main([*arguments, "--repeats", "1", "--batch", "2"]) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["window"] == 4 and last["threads"] == 1 and last["over_assisted"] > 0


def test_missing_weights_are_named() -> None:
    with pytest.raises(ValueError, match="run `make sandbox-models`"):
        timing.main(["--target", "data/sandbox/nobody"])
