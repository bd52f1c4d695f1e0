"""`model.generate(custom_generate=...)`: plain `generate` when strict, `speculate` when judged."""

from __future__ import annotations

import copy
import gc
import pickle
import re
import shutil
import sys
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tiny
import torch
import toy
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DynamicCache,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
    TextIteratorStreamer,
    dynamic_module_utils,
)
from transformers.generation.logits_process import TemperatureLogitsWarper, TopPLogitsWarper

from judgelib.decoding import speculate
from judgelib.drafting import ModelDrafter, PromptLookupDrafter
from judgelib.head import JudgeHead
from judgelib.head_config import HeadConfig, ModelRecord
from judgelib.integrations.transformers import JudgeOutput, judge_generate, language_model
from judgelib.models import LanguageModel
from judgelib.provenance import checkout
from judgelib.rules import (
    Judge,
    Match,
    RandomAccept,
    Ratio,
    Rule,
    SpeculativeSampling,
    StrictPrefix,
    TopK,
)

PAD = 0
NEW = 12
PROMPTS = tiny.prompts(5, seed=3)[1:4]
SAMPLED: dict[str, Any] = {"do_sample": True, "temperature": 0.8, "top_p": 0.9, "top_k": 0}
FOLDER = checkout() / "custom_generate"
QUESTIONS = (
    "6 eggs are shared equally by 3 children. Then each child finds 8 more. How many eggs are "
    "there for each child?",
    "Write solve(n) that returns the remainder after division by 8 if n is one of the even "
    "numbers, otherwise the cube.",
    "What is the sister town of Falby? Halwick, Eskby, Velwick or Falstead",
)
"""One a domain of the sandbox."""
FAMILY = checkout() / "data" / "sandbox"
TRAINED = checkout() / "data" / "results" / "sandbox-full" / "heads" / "annotated"


@pytest.fixture(scope="module")
def pair() -> tuple[LanguageModel, LanguageModel]:
    """A target that ends some of its texts, and a draft that often disagrees."""
    target, draft = toy.pair()
    target.model.name_or_path = target.name  # as `from_pretrained` leaves it
    return target, draft


@pytest.fixture(scope="module")
def head(pair: tuple[LanguageModel, LanguageModel]) -> JudgeHead:
    return random_head(pair[0])


def random_head(target: LanguageModel) -> JudgeHead:
    """Accepts about half of all tokens, for no reason."""
    weight = torch.randn(target.hidden_size, generator=torch.Generator().manual_seed(0))
    return JudgeHead.from_linear(HeadConfig(ModelRecord.of(target)), weight=weight, bias=0.0)


class Trained(NamedTuple):
    """The sandbox's pair, and a prompt a domain."""

    target: Any
    draft: Any
    tokenizer: Any
    inputs: Any
    stop: list[str]

    @property
    def first(self) -> dict[str, Tensor]:
        """The first prompt alone."""
        seen = self.inputs["attention_mask"][0].bool()
        return {name: values[:1, seen] for name, values in self.inputs.items()}


@pytest.fixture(scope="module")
def trained() -> Trained:
    load = AutoModelForCausalLM.from_pretrained
    models = [load(FAMILY / name, dtype=torch.float32) for name in ("target", "draft")]
    tokenizer = AutoTokenizer.from_pretrained(FAMILY / "target", padding_side="left")
    chats = [f"<|user|>{question}<|end|><|assistant|>" for question in QUESTIONS]
    inputs = tokenizer(chats, padding=True, return_tensors="pt", return_token_type_ids=False)
    return Trained(*models, tokenizer, inputs, [", so"])


def left_padded(prompts: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    width = max(map(len, prompts))
    pads = [width - len(prompt) for prompt in prompts]
    rows = [[PAD] * pad + list(prompt) for pad, prompt in zip(pads, prompts, strict=True)]
    masks = [[0] * pad + [1] * (width - pad) for pad in pads]
    return {"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(masks)}


def plain(pair: Any, prompts: Sequence[Sequence[int]], **options: Any) -> Tensor:
    return pair[0].model.generate(**left_padded(prompts), **{"max_new_tokens": NEW} | options)


def ours(pair: Any, prompts: Sequence[Sequence[int]], **options: Any) -> Any:
    """Through `generate`, as a user would."""
    defaults = {"max_new_tokens": NEW, "draft_model": pair[1].model, "window": 4}
    return pair[0].model.generate(
        **left_padded(prompts), custom_generate=judge_generate, **defaults | options
    )


def answers(output: Tensor, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """The new tokens, each row padded on the right."""
    rows: list[list[int]] = output[:, max(map(len, prompts)) :].tolist()
    return rows


def padded(rows: Sequence[list[int]]) -> list[list[int]]:
    width = max(map(len, rows))
    return [ids + [PAD] * (width - len(ids)) for ids in rows]


def speculated(
    pair: Any, rule: Rule, prompts: Sequence[Sequence[int]], seed: int | None = None, **options: Any
) -> list[list[int]]:
    """What `speculate` gives, prompt by prompt, padded; row b draws from seed + b."""
    options = {"window": 4, "max_new_tokens": NEW} | options
    seeds = [None if seed is None else seed + row for row in range(len(prompts))]
    texts = [
        speculate(
            *(pair[0], ModelDrafter(pair[1]), rule, prompt), **options,
            generator=None if own is None else torch.Generator().manual_seed(own),
        ).ids
        for prompt, own in zip(prompts, seeds, strict=True)
    ]  # fmt: skip
    return padded(texts)


# ------------------------------------------------------------------ strict is plain `generate`


@pytest.mark.parametrize("window", [1, 30])
def test_strict_greedy_is_plain_generate(pair: Any, window: int) -> None:
    """Alone and in a left-padded batch, ended by EOS or by length."""
    together = plain(pair, PROMPTS)
    assert torch.equal(ours(pair, PROMPTS, window=window), together)
    ended = (together[:, max(map(len, PROMPTS)) :] == tiny.EOS).any(1)
    assert ended.any() and not ended.all()
    for prompt in PROMPTS:
        assert torch.equal(ours(pair, [prompt], window=window), plain(pair, [prompt]))


LIMITS: dict[str, dict[str, Any]] = {
    "one token": {"max_new_tokens": 1},
    "max_length": {"max_new_tokens": None, "max_length": 17},
    "another eos": {"eos_token_id": 17},
    "several eos": {"eos_token_id": [5, 17, 30]},
    "no eos": {"eos_token_id": None},
    "another pad": {"pad_token_id": 2},
    "renormalised": {"renormalize_logits": True},
}


@pytest.mark.parametrize("options", LIMITS.values(), ids=LIMITS)
def test_lengths_and_end_tokens_count_as_in_generate(pair: Any, options: dict[str, Any]) -> None:
    model = pair[0].model
    before = model.generation_config.eos_token_id
    if options == LIMITS["no eos"]:  # None as an argument means: the config's own
        model.generation_config.eos_token_id = None
    try:
        assert torch.equal(ours(pair, PROMPTS, **options), plain(pair, PROMPTS, **options))
    finally:
        model.generation_config.eos_token_id = before


def test_a_draft_may_be_a_language_model_or_a_drafter(pair: Any) -> None:
    for draft in (pair[1], PromptLookupDrafter(), pair[0].model):
        assert torch.equal(ours(pair, PROMPTS, draft_model=draft), plain(pair, PROMPTS))


# ------------------------------------------------------------------- judged is `speculate`

RULES: dict[str, Rule] = {
    "top-k": Match() | TopK(3),
    "prefix": StrictPrefix(2, Ratio(0.3)),
    "strict": SpeculativeSampling(),
}


@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_rules_give_the_tokens_of_speculate(pair: Any, rule: Rule, sampled: bool) -> None:
    seed, options = (7, SAMPLED) if sampled else (None, {})
    sampling = {"temperature": 0.8, "top_p": 0.9} if sampled else {}
    expected = speculated(pair, rule, PROMPTS, seed, **sampling)
    output = ours(pair, PROMPTS, judge=rule, seed=seed, **options)
    assert answers(output, PROMPTS) == expected
    alone = answers(ours(pair, PROMPTS[1:2], judge=rule, seed=8, **options), PROMPTS[1:2])[0]
    assert padded([alone, expected[0]])[0] == expected[1]


@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize(("threshold", "floor"), [(None, None), (0.2, 0.1), (1.0, None)])
def test_heads_give_the_tokens_of_speculate(
    pair: Any, head: JudgeHead, threshold: float | None, floor: float | None, sampled: bool
) -> None:
    judge: Rule = Judge(head, threshold)
    rule = Match() | (judge if floor is None else judge & Ratio(floor))
    seed, options = (3, SAMPLED) if sampled else (None, {})
    sampling = {"temperature": 0.8, "top_p": 0.9} if sampled else {}
    expected = speculated(pair, rule, PROMPTS, seed, **sampling)
    output = ours(pair, PROMPTS, judge=head, threshold=threshold, floor=floor, seed=seed, **options)
    assert answers(output, PROMPTS) == expected
    if not sampled:
        strict = threshold == 1.0
        assert (expected == speculated(pair, Match(), PROMPTS)) == strict


def test_a_head_may_be_a_folder(pair: Any, head: JudgeHead, tmp_path: Path) -> None:
    folder = head.save_pretrained(tmp_path / "head")
    expected = ours(pair, PROMPTS, judge=head)
    for judge in (folder, str(folder)):
        assert torch.equal(ours(pair, PROMPTS, judge=judge), expected)


def test_the_trained_pair_with_its_head_gives_the_tokens_of_speculate(trained: Trained) -> None:
    """Models and head as they ship, one prompt a domain, padded and together."""
    output = trained.target.generate(
        **trained.inputs, custom_generate=judge_generate, draft_model=trained.draft,
        judge=TRAINED, floor=0.02, max_new_tokens=40, target_tokenizer=trained.tokenizer,
        draft_tokenizer=trained.tokenizer,
    )  # fmt: skip
    rule = Match() | (Judge(JudgeHead.from_pretrained(TRAINED)) & Ratio(0.02))
    models = [language_model(model) for model in (trained.target, trained.draft)]
    ids, mask = trained.inputs["input_ids"], trained.inputs["attention_mask"].bool()
    prompts = [row[own].tolist() for row, own in zip(ids, mask, strict=True)]
    options = {"window": 16, "max_new_tokens": 40}
    expected = speculated(models, rule, prompts, **options)
    assert answers(output, prompts) == expected != speculated(models, Match(), prompts, **options)


# ------------------------------------------------------------------------------ random numbers


def test_generators_and_seeds(pair: Any) -> None:
    def sampled(**options: Any) -> list[list[int]]:
        return ours(pair, PROMPTS, **SAMPLED, **options).tolist()

    by_seed = sampled(seed=11)
    assert sampled(generator=tiny.generators(len(PROMPTS), seed=11)) == by_seed != sampled(seed=12)
    torch.manual_seed(0)
    first, second = sampled(), sampled()
    torch.manual_seed(0)
    assert sampled() == first != second


def test_several_answers_to_one_prompt_are_rows_of_their_own(pair: Any) -> None:
    prompt = PROMPTS[1]
    output = ours(pair, [prompt], num_return_sequences=3, seed=5, **SAMPLED)
    expected = speculated(pair, SpeculativeSampling(), [prompt] * 3, 5, temperature=0.8, top_p=0.9)
    assert answers(output, [prompt]) == expected and len(set(map(tuple, expected))) > 1


def test_greedy_decoding_leaves_the_global_random_numbers_alone(pair: Any) -> None:
    before = torch.get_rng_state()
    ours(pair, PROMPTS)
    assert torch.equal(torch.get_rng_state(), before)
    ours(pair, PROMPTS, judge=RandomAccept(0.5))  # draws though it is greedy
    assert not torch.equal(torch.get_rng_state(), before)


# ------------------------------------------------------------------------ where texts end


class Says(StoppingCriteria):
    """Ends a row once its last two tokens have a certain sum; remembers the widths it saw."""

    def __init__(self, sums: set[int]) -> None:
        self.sums, self.widths = sums, []

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        self.widths.append(input_ids.shape[1])
        return torch.tensor([int(row[-2:].sum()) in self.sums for row in input_ids])


def test_criteria_are_asked_after_every_token(pair: Any) -> None:
    """So a row ends where plain `generate` ends it, in mid-window too."""
    sums = set(range(30, 50))
    for prompt in PROMPTS:
        theirs, own = Says(sums), Says(sums)
        expected = plain(pair, [prompt], stopping_criteria=StoppingCriteriaList([theirs]))
        output = ours(pair, [prompt], stopping_criteria=StoppingCriteriaList([own]), window=8)
        assert torch.equal(output, expected) and own.widths == theirs.widths
        assert len(prompt) < output.shape[1] < len(prompt) + NEW


def test_criteria_end_each_row_of_a_batch_alone(pair: Any) -> None:
    criteria = StoppingCriteriaList([Says(set(range(30, 50)))])
    together = answers(ours(pair, PROMPTS, stopping_criteria=criteria), PROMPTS)
    alone = [
        answers(ours(pair, [prompt], stopping_criteria=criteria), [prompt])[0] for prompt in PROMPTS
    ]
    assert together == padded(alone) and len(set(map(len, alone))) > 1


def test_stop_strings_end_the_text_at_the_token_that_completes_them(trained: Trained) -> None:
    expected = trained.target.generate(
        **trained.first, stop_strings=trained.stop, tokenizer=trained.tokenizer, max_new_tokens=40
    )
    output = trained.target.generate(
        **trained.first, custom_generate=judge_generate, draft_model=trained.draft,
        stopping_criteria=[StopStringCriteria(trained.tokenizer, trained.stop)], max_new_tokens=40,
    )  # fmt: skip
    assert torch.equal(output, expected)
    assert 0 < output.shape[1] - trained.first["input_ids"].shape[1] < 40


def test_time_that_is_up_leaves_one_token(pair: Any) -> None:
    output = ours(pair, PROMPTS, max_time=0.0, window=8)
    assert output.shape[1] == max(map(len, PROMPTS)) + 1
    assert torch.equal(output, plain(pair, PROMPTS, max_time=0.0))


def test_texts_end_with_the_context(pair: Any) -> None:
    prompt = (tiny.prompts(40, seed=1)[0] * 300)[:250]
    output = ours(pair, [prompt], max_new_tokens=20, eos_token_id=47)
    expected = speculated(pair, Match(), [prompt], max_new_tokens=20, eos_ids=[47])
    assert answers(output, [prompt]) == expected and len(expected[0]) <= 6


# ------------------------------------------------------------------------------- outputs


def test_the_output_object_holds_sequences_and_what_every_cycle_did(pair: Any) -> None:
    output = ours(pair, PROMPTS, return_dict_in_generate=True)
    assert isinstance(output, JudgeOutput)
    assert list(output) == ["sequences", "generations"] and output.past_key_values is None
    assert torch.equal(output.sequences, ours(pair, PROMPTS))
    ids = [each.ids for each in output.generations]
    assert padded(ids) == answers(output.sequences, PROMPTS) and len(set(map(len, ids))) > 1
    assert all(sum(c.tokens for c in each.cycles) == len(each.ids) for each in output.generations)


class Heard:
    """A streamer that writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def put(self, value: Tensor) -> None:
        self.told.append(value.tolist())

    def end(self) -> None:
        self.told.append("end")


def test_a_streamer_hears_what_plain_generate_tells_it(pair: Any) -> None:
    for prompt in PROMPTS:
        theirs, own = Heard(), Heard()
        expected = plain(pair, [prompt], streamer=theirs)
        assert torch.equal(ours(pair, [prompt], judge_streamer=own, window=8), expected)
        assert own.told == theirs.told and own.told[-1] == "end" and len(own.told) > 2


def test_text_streams(pair: Any) -> None:
    tokenizer, prompt = pair[0].tokenizer, PROMPTS[0]
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True)
    output = ours(pair, [prompt], judge_streamer=streamer)
    assert "".join(streamer) == tokenizer.decode(answers(output, [prompt])[0])


# ------------------------------------------------------------------------------- refusals

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no draft": ({"draft_model": None}, r"needs draft_model=.*assistant_model= and streamer="),
    "a path": ({"draft_model": "some/draft"}, "a loaded transformers model.*some/draft"),
    "threshold": ({"threshold": 0.5}, "threshold=.*belong to a head"),
    "floor of a rule": ({"judge": Match(), "floor": 0.1}, "floor=.*belong to a head"),
    "no judge": ({"judge": 3}, "expected judge= a JudgeHead"),
    "no folder": ({"judge": "./nowhere"}, "expected a folder with config.json"),
    "window": ({"window": 0}, "window must be at least 1"),
    "beams": ({"num_beams": 2}, "cannot honour num_beams=2"),
    "contrastive": ({"penalty_alpha": 0.6, "top_k": 4}, "cannot honour penalty_alpha=0.6"),
    "lookup": ({"prompt_lookup_num_tokens": 3}, "cannot honour prompt_lookup_num_tokens"),
    "ensemble": ({"assistant_ensemble_weight": 0.5}, "honour assistant_ensemble_weight"),
    "no cache": ({"use_cache": False}, "cannot honour use_cache=False"),
    "static": ({"cache_implementation": "static"}, "cannot honour cache_implementation=static"),
    "a cache": ({"past_key_values": DynamicCache()}, "leave past_key_values= out"),
    "scores": ({"return_dict_in_generate": True, "output_scores": True}, "output_scores=True"),
    "top_k": ({**SAMPLED, "top_k": 40}, "top_k=.*pass top_k=0"),
    "min_p": ({**SAMPLED, "min_p": 0.1}, "min_p= .MinPLogitsWarper"),
    "typical": ({**SAMPLED, "typical_p": 0.9}, "typical_p="),
    "penalty": ({"repetition_penalty": 1.2}, "repetition_penalty="),
    "n-grams": ({"no_repeat_ngram_size": 3}, "no_repeat_ngram_size="),
    "bad words": ({"bad_words_ids": [[5]]}, "bad_words_ids="),
    "min new": ({"min_new_tokens": 4}, "min_new_tokens= "),
    "min": ({"min_length": 4}, "min_length="),
    "suppressed": ({"suppress_tokens": [5]}, "suppress_tokens="),
    "grammar": ({"prefix_allowed_tokens_fn": lambda *_: [5]}, "prefix_allowed_tokens_fn="),
    "guidance": ({"guidance_scale": 2.0}, "guidance_scale="),
    "forced": ({"forced_eos_token_id": 1}, "forced_eos_token_id="),
    "processor": (
        {"logits_processor": LogitsProcessorList([RepetitionPenaltyLogitsProcessor(1.5)])},
        "RepetitionPenaltyLogitsProcessor",
    ),
    "two top-p": (
        {**SAMPLED, "logits_processor": LogitsProcessorList([TopPLogitsWarper(0.5)])},
        "with temperature and then top_p",
    ),
    "embeddings": ({"inputs_embeds": torch.zeros(3, 12, 32)}, "inputs_embeds="),
    "positions": (
        {"position_ids": torch.arange(max(map(len, PROMPTS)))[None] + 3}, "expected position_ids"
    ),
    "both seeds": ({**SAMPLED, "seed": 1, "generator": tiny.generators(3)}, "got both"),
    "few": ({**SAMPLED, "generator": tiny.generators(2)}, "each of the 3 rows, got 2"),
    "one for all": (
        {**SAMPLED, "generator": [torch.Generator()] * 3}, "each of the 3 rows, got 1"
    ),
    "streamer": ({"judge_streamer": Heard()}, "follows a single row, got 3"),
}  # fmt: skip


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_honoured_is_refused_by_name(
    pair: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ours(pair, PROMPTS, **options)


def test_assistant_model_alone_is_refused(pair: Any) -> None:
    with pytest.raises(ValueError, match="needs draft_model="):
        ours(pair, PROMPTS, draft_model=None, assistant_model=pair[1].model)


def test_top_k_as_wide_as_the_vocabulary_changes_nothing(pair: Any) -> None:
    wide = ours(pair, PROMPTS, seed=1, **SAMPLED | {"top_k": tiny.VOCABULARY})
    assert torch.equal(wide, ours(pair, PROMPTS, seed=1, **SAMPLED))


def test_temperature_from_a_processor_counts(pair: Any) -> None:
    processors = LogitsProcessorList([TemperatureLogitsWarper(0.8)])
    options = {"do_sample": True, "top_k": 0, "top_p": 0.9, "seed": 2}
    by_hand = ours(pair, PROMPTS, **options, logits_processor=processors)
    assert torch.equal(by_hand, ours(pair, PROMPTS, **options, temperature=0.8))
    assert not torch.equal(by_hand, ours(pair, PROMPTS, **options))


def test_padding_on_the_right_is_refused(pair: Any) -> None:
    options = {"draft_model": pair[1].model, "max_new_tokens": 4}
    ids = torch.tensor([[5, 6], [7, 0]])
    with pytest.raises(ValueError, match="padded on the left"):
        pair[0].model.generate(
            ids, attention_mask=torch.tensor([[1, 1], [1, 0]]), custom_generate=judge_generate,
            **options,
        )  # fmt: skip


def test_models_that_do_not_fit_are_refused(pair: Any, head: JudgeHead) -> None:
    wider = tiny.language_model(vocabulary=60).model
    with pytest.raises(ValueError, match="has 48 ids and LlamaForCausalLM 60.*target_tokenizer="):
        ours(pair, PROMPTS, draft_model=wider)
    tokenizers = {"target_tokenizer": tiny.tokenizer(), "draft_tokenizer": tiny.tokenizer()}
    assert torch.equal(ours(pair, PROMPTS, draft_model=wider, **tokenizers), plain(pair, PROMPTS))
    other = tiny.tokenizer([f"v{number}" for number in range(45)])
    with pytest.raises(ValueError, match="must share one vocabulary.*'v0'|'w3'"):
        ours(pair, PROMPTS, **tokenizers | {"draft_tokenizer": other})
    stranger = tiny.language_model()
    with pytest.raises(ValueError, match="another name"):
        ours((stranger, pair[1]), PROMPTS, judge=head)
    ours((stranger, pair[1]), PROMPTS, judge=head, any_model=True)


def test_models_in_training_mode_are_refused(pair: Any) -> None:
    draft = tiny.disturbed(pair[0]).model.train()
    with pytest.raises(ValueError, match=r"training mode.*\.eval\(\)"):
        ours(pair, PROMPTS, draft_model=draft)
    assert draft.training


# ------------------------------------------------------------------------- models are kept


def test_a_language_model_is_made_once(pair: Any) -> None:
    models = [each.model for each in pair]
    ours(pair, PROMPTS)
    kept = [language_model(model) for model in models]
    ours(pair, PROMPTS)
    assert all(language_model(model) is own for model, own in zip(models, kept, strict=True))


def test_it_is_made_again_after_the_model_was_changed() -> None:
    model = tiny.language_model().model
    first = language_model(model)
    second = language_model(model.to(torch.bfloat16))
    assert second is not first and second.dtype == torch.bfloat16
    model.resize_token_embeddings(50, mean_resizing=False)
    assert language_model(model).vocab_size == 50


def test_it_goes_with_the_model_and_not_with_its_copies() -> None:
    model = tiny.language_model().model
    first = language_model(model)
    copies = [copy.deepcopy(model), copy.copy(model), pickle.loads(pickle.dumps(model))]
    for each in copies:
        assert language_model(each).model is each
    assert language_model(model) is first
    watched = weakref.ref(model)
    del model, first, copies, each
    gc.collect()
    assert watched() is None


# --------------------------------------------------------------------------- from the hub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The repository as the two upload lines of the README make it; code is cached beside it."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    folder = tmp_path / "judge-decoding"
    shutil.copytree(FOLDER, folder / "custom_generate", ignore=shutil.ignore_patterns("README.md"))
    shutil.copy(FOLDER / "README.md", folder / "README.md")
    yield folder


def from_hub(pair: Any, hub: Path, prompts: Sequence[Sequence[int]], **options: Any) -> Any:
    defaults = {"max_new_tokens": NEW, "assistant_model": pair[1].model, "window": 4}
    return pair[0].model.generate(
        **left_padded(prompts), custom_generate=str(hub), trust_remote_code=True,
        **defaults | options,
    )  # fmt: skip


def test_the_folder_gives_what_the_callable_gives(pair: Any, hub: Path, head: JudgeHead) -> None:
    for options in ({}, {"judge": head, "floor": 0.1}, {"seed": 3, **SAMPLED}):
        assert torch.equal(from_hub(pair, hub, PROMPTS, **options), ours(pair, PROMPTS, **options))
    by_place = pair[0].model.generate(
        torch.tensor([PROMPTS[1]]), custom_generate=str(hub), trust_remote_code=True,
        assistant_model=pair[1].model, max_new_tokens=NEW,
    )  # fmt: skip
    assert torch.equal(by_place, plain(pair, [PROMPTS[1]]))


def test_the_folder_knows_streamers_and_criteria(pair: Any, hub: Path) -> None:
    prompt, heard = PROMPTS[0], Heard()
    said = answers(plain(pair, [prompt]), [prompt])[0]
    criteria = StoppingCriteriaList([Says({said[4] + said[5]})])
    options: dict[str, Any] = {"stopping_criteria": criteria}
    output = from_hub(pair, hub, [prompt], streamer=heard, **options)
    assert torch.equal(output, plain(pair, [prompt], **options))
    assert heard.told == [[prompt], *[[token] for token in answers(output, [prompt])[0]], "end"]


def test_the_folder_knows_stop_strings(trained: Trained, hub: Path) -> None:
    options = {"stop_strings": trained.stop, "tokenizer": trained.tokenizer, "max_new_tokens": 40}
    output = trained.target.generate(
        **trained.first, custom_generate=str(hub), trust_remote_code=True,
        assistant_model=trained.draft, assistant_tokenizer=trained.tokenizer, **options,
    )  # fmt: skip
    assert torch.equal(output, trained.target.generate(**trained.first, **options))


def test_the_folder_refuses_what_the_callable_refuses(pair: Any, hub: Path) -> None:
    with pytest.raises(ValueError, match="needs draft_model="):
        from_hub(pair, hub, PROMPTS, assistant_model=None)
    with pytest.raises(ValueError, match="num_beams=2"):
        from_hub(pair, hub, PROMPTS, num_beams=2)
    with pytest.raises(ValueError, match="needs tokenizer="):
        from_hub(pair, hub, PROMPTS, stop_strings=["w5"])


def test_a_model_loaded_from_such_a_repository_decodes_with_it(pair: Any, hub: Path) -> None:
    """There `model.generate` itself is the folder's function."""
    pair[0].model.save_pretrained(hub)
    model = AutoModelForCausalLM.from_pretrained(hub, trust_remote_code=True)
    ids = torch.tensor([PROMPTS[1]])
    output = model.generate(ids, assistant_model=pair[1].model, max_new_tokens=NEW)
    assert torch.equal(output, plain(pair, [PROMPTS[1]]))
    with pytest.raises(ValueError, match="needs draft_model="):
        model.generate(ids, max_new_tokens=NEW)


def test_without_judgelib_the_folder_says_what_to_install(
    pair: Any, hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "judgelib.integrations.transformers", None)
    with pytest.raises(ImportError, match="needs the package judgelib.*pip install"):
        from_hub(pair, hub, PROMPTS)


def test_the_folders_usage_works_as_it_stands(
    hub: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert text.startswith("---\nlibrary_name: transformers\n") and "- custom_generate\n" in text
    lines = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    monkeypatch.chdir(checkout())
    exec(compile(lines, "README.md", "exec"), {})
    assert "Answer: " in capsys.readouterr().out
