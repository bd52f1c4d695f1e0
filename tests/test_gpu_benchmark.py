"""The benchmark with random weights, on tiny shapes: what it builds, replays, divides and saves."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from judgelib import gpu_benchmark, random_weights
from judgelib.architectures import ARCHITECTURES
from judgelib.decoding import speculate, speculate_batch
from judgelib.drafting import ModelDrafter
from judgelib.gpu_benchmark import Options, Stamps
from judgelib.hardware import accelerator
from judgelib.models import LanguageModel
from judgelib.profiles import load_profile
from judgelib.random_weights import STORED, Fp8Linear, Int8Linear, Team, random_model
from judgelib.replay import Pattern, Replay, load_pattern
from judgelib.results import load_manifest, load_table
from judgelib.rules import Window
from judgelib.speed_model import Machine

TARGET = ARCHITECTURES["Llama-3.1-70B"].tiny()
DRAFT = ARCHITECTURES["Llama-3.2-1B"].tiny()
PROFILES = ("llama-1b-8b", "llama-8b-70b", "llama-8b-405b")


@pytest.fixture(scope="module")
def models() -> tuple[LanguageModel, LanguageModel]:
    return random_model(TARGET, "cpu", weights="float32"), random_model(DRAFT, "cpu", seed=5)


# --- replay ------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [3, 8])
def test_the_loop_commits_as_recorded(
    models: tuple[LanguageModel, LanguageModel], window: int
) -> None:
    """Random weights agree on next to nothing, yet every cycle keeps what the record says."""
    pattern = load_pattern("sandbox-floored_annotated")
    drafter = ModelDrafter(models[1])
    rule = Replay(pattern, window, start=7)
    made = speculate(
        models[0], drafter, rule, [5, 6, 7], window=window, max_new_tokens=60, eos_ids=()
    )
    expected = pattern.pieces(window)[7:]
    counts = [cycle.tokens for cycle in made.cycles]
    assert counts[:-1] == expected[: len(counts) - 1]  # the limit may cut the last one
    assert len(made.ids) == 60


def test_rows_of_a_batch_replay_each_at_its_own_place(
    models: tuple[LanguageModel, LanguageModel],
) -> None:
    pattern = Pattern(4, (4,) * 3, (4, 0, 2), (1,) * 3, (3,))
    rule = Replay(pattern, 4)
    found = speculate_batch(
        models[0], ModelDrafter(models[1]), rule, [[3], [4, 5]], window=4, max_new_tokens=18,
        eos_ids=(),
    )  # fmt: skip
    # 9 tokens a round; the third round is what the limit leaves of it.
    for row in found:
        assert [cycle.tokens for cycle in row.cycles] == [5, 1, 3, 5, 1, 3]


def test_the_work_of_a_judge_is_done_and_ignored(
    models: tuple[LanguageModel, LanguageModel],
) -> None:
    pattern = load_pattern("sandbox-floored_annotated")
    work = gpu_benchmark.recorded_work(pattern, models[0])
    assert work is not None and work.needs_hidden == "post_norm"
    busy, idle = Replay(pattern, 6, work=work), Replay(pattern, 6)
    window = Window(
        draft_ids=torch.tensor([3, 4, 5, 6, 7, 8]),
        target_logits=torch.randn(7, TARGET.vocabulary),
        hidden=torch.randn(7, TARGET.hidden),
        committed=torch.tensor(0),
    )
    assert busy.accept(window).tolist() == idle.accept(window).tolist()
    assert idle.accept(window).sum() == pattern.pieces(6)[0] - 1
    window.hidden = None
    with pytest.raises(ValueError, match="no hidden rows"):
        busy.accept(window)
    assert gpu_benchmark.recorded_work(Pattern(1, (1,), (1,), (1,), (1,)), models[0]) is None


# --- random weights ----------------------------------------------------------------------------


@pytest.mark.parametrize("weights", STORED)
def test_every_kind_of_weights_computes(weights: str) -> None:
    model = random_model(TARGET, "cpu", weights=weights)
    kinds = {type(module) for module in model.model.modules()}
    assert (Fp8Linear in kinds, Int8Linear in kinds) == (weights == "fp8", weights == "int8")
    cache = model.new_cache(1, 8)
    logits = model.read(torch.tensor([[5, 6, 7]]), cache, rows=3).logits
    assert logits.isfinite().all() and logits.std() > 0.01
    again = random_model(TARGET, "cpu", weights=weights)
    assert again.fingerprint == model.fingerprint


def test_eight_bit_layers_multiply_their_own_weights() -> None:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(2, 5, 64, generator=generator).bfloat16()
    like = nn.Linear(64, 96, dtype=torch.bfloat16)
    for kind, error in ((Fp8Linear, 0.05), (Int8Linear, 0.02)):
        layer = kind(like)
        layer.fill(generator)
        scale = layer.scale.float().reshape(-1, 1)
        weight = layer.weight.float() * scale
        assert weight.std() == pytest.approx(random_weights.SPREAD, rel=0.1)
        truth = states.float() @ weight.T + like.bias.float()
        found = layer(states).float()
        assert found.shape == (2, 5, 96)
        assert (found - truth).norm() < error * truth.norm()


def test_unknown_weights_are_refused() -> None:
    with pytest.raises(ValueError, match="expected weights in bfloat16.*got 'int3'"):
        random_model(TARGET, "cpu", weights="int3")


class Threads:
    """Two processes of a team, played by two threads: `torch.distributed` as far as it is used."""

    def __init__(self) -> None:
        self.meet = threading.Barrier(2, timeout=60)
        self.given: dict[int, Tensor] = {}
        self.me = threading.local()
        self.building = threading.Lock()
        self.build = random_weights._outline

    def exchange(self, tensor: Tensor) -> list[Tensor]:
        self.given[self.me.rank] = tensor.clone()
        self.meet.wait()
        found = [self.given[0], self.given[1]]
        self.meet.wait()
        return found

    def all_reduce(self, tensor: Tensor) -> None:
        tensor.copy_(sum(self.exchange(tensor)))  # type: ignore[arg-type]

    def all_gather(self, parts: list[Tensor], tensor: Tensor) -> None:
        for part, given in zip(parts, self.exchange(tensor), strict=True):
            part.copy_(given)

    def outline(self, *arguments: Any) -> Any:
        """One at a time: transformers sets torch's default precision while it builds a model."""
        with self.building:
            return self.build(*arguments)

    def run(self, work: Any) -> list[Any]:
        results: list[Any] = [None, None]

        def play(rank: int) -> None:
            self.me.rank = rank
            results[rank] = work(rank)

        threads = [threading.Thread(target=play, args=(rank,)) for rank in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[Threads]:
    team = Threads()
    monkeypatch.setattr(random_weights, "dist", team)
    monkeypatch.setattr(random_weights, "_outline", team.outline)
    yield team


def _take_part(whole: LanguageModel, part: LanguageModel, rank: int) -> None:
    """Give one of two processes its slices of a whole model's weights."""
    weights = dict(whole.model.named_parameters())
    for name, own in part.model.named_parameters():
        full = weights[name.replace(".inner", "")]
        for axis in range(full.dim()):
            if full.shape[axis] != own.shape[axis]:
                full = full.chunk(2, axis)[rank]
        own.data.copy_(full)


def test_a_divided_model_gives_the_whole_models_logits(
    threads: Threads, models: tuple[LanguageModel, LanguageModel]
) -> None:
    whole, ids = models[0], torch.tensor([[5, 6, 7, 8]])
    expected = whole.read(ids, whole.new_cache(1, 4), rows=4).logits

    def work(rank: int) -> Tensor:
        part = random_model(TARGET, "cpu", weights="float32", team=Team(rank, 2))
        assert part.model.num_parameters() < 0.7 * whole.model.num_parameters()
        _take_part(whole, part, rank)
        return part.read(ids, part.new_cache(1, 4), rows=4).logits

    for found in threads.run(work):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_divided_tied_model_reads_alike_everywhere(threads: Threads) -> None:
    assert DRAFT.tied

    def work(rank: int) -> Tensor:
        part = random_model(DRAFT, "cpu", weights="int8", team=Team(rank, 2))
        return part.read(torch.tensor([[5, 6]]), part.new_cache(1, 4), rows=1).logits

    first, second = threads.run(work)
    assert torch.equal(first, second) and first.shape == (1, 1, DRAFT.vocabulary)


# --- the command -------------------------------------------------------------------------------


def test_the_command_measures_prints_and_saves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("JUDGELIB_ROOT", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    sizes = ["--context", "12", "--tokens", "24", "--prompts", "2", "--repeats", "1"]
    command = ["--profile", "llama-8b-70b", "--shapes", "tiny", "--weights", "int8", *sizes]
    command += ["--engines", "judgelib"]  # compiling takes too long for a test
    assert gpu_benchmark.main([*command, "--windows", "5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    found = json.loads(lines[-1])
    assert [row["engine"] for row in found["rows"]] == [gpu_benchmark.PLAIN, "judgelib", "judgelib"]
    assert found["target"] == "Llama-3.1-70B-tiny" and found["target_weights"] == "int8"
    for row in found["rows"]:
        assert row["tokens_per_second"] > 0
        assert row["reached"] == pytest.approx(
            row["tokens_per_second"] / row["ceiling"], rel=0.05, abs=1e-4
        )
    assert sum("reached" in line for line in lines[:-1]) == 3
    table = load_table("speed", "llama-8b-70b-random-tiny")
    assert list(table["draft_length"]) == [0, 5, 5]
    assert list(table["rule"]) == ["plain", "strict", "floored_annotated"]
    plain = table.iloc[0]
    assert plain["tokens"] == plain["cycles"] == 2 * (24 - 1)
    made = load_manifest("speed", "llama-8b-70b-random-tiny")
    assert made["parameters"]["rows"] == found["rows"]


def test_mistakes_are_said_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for arguments, message in (
        ([], "no GPU is visible to torch; full shapes need one. --shapes tiny"),
        (["--shapes", "tiny", "--patterns", "none"], "no pattern 'none'"),
        (["--shapes", "tiny", "--profile", "sandbox"], "expected a model of Llama-3.2-1B"),
        (["--engines", "warp"], "expected engines of judgelib"),
        (["--weights", "int3"], "expected weights in bfloat16"),
        (["--tokens", "2"], "3 to generate"),
    ):
        with pytest.raises(SystemExit):
            gpu_benchmark.main(arguments)
        assert message in " ".join(capsys.readouterr().err.split())


def test_weights_are_the_widest_that_fit() -> None:
    """What `auto` chooses for each profile, and what it says where nothing fits."""
    h100, a100 = accelerator("H100 SXM"), accelerator("A100 80GB SXM")
    for profile, machine, expected in (
        ("llama-1b-8b", Machine(h100), "bfloat16"),
        ("llama-8b-70b", Machine(h100, 2), "fp8"),
        ("llama-8b-70b", Machine(a100, 2), "int8"),
        ("llama-8b-70b", Machine(h100, 4), "bfloat16"),
        ("llama-8b-405b", Machine(h100, 8), "fp8"),
    ):
        options = Options(profile)
        setup = gpu_benchmark._setup(options, gpu_benchmark._shapes(options), machine)
        assert setup.target_dtype == expected
    options = Options("llama-8b-405b")
    with pytest.raises(ValueError, match="take 426 GB, but 2 x H100 SXM has 172 GB"):
        gpu_benchmark._setup(options, gpu_benchmark._shapes(options), Machine(h100, 2))


@pytest.mark.parametrize("name", PROFILES)
def test_profiles_name_known_shapes(name: str) -> None:
    target, draft = gpu_benchmark._shapes(Options(name))
    assert target.parameters > 5 * draft.parameters
    assert load_profile(name).dtype == "bfloat16"


def test_stamps_leave_the_first_cycle_out() -> None:
    stamps = Stamps(torch.device("cpu"))
    for tokens in ([1, 2, 3], [4], [5, 6]):
        stamps.add(tokens)
    assert (stamps.tokens, stamps.cycles) == (3, 2) and stamps.seconds > 0
