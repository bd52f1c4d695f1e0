"""`judge_generate`: decode with a judge through transformers' own `generate`.

    model.generate(ids, custom_generate=judge_generate, draft_model=draft, judge="me/my-head")

transformers prepares what it always prepares (generation config, processors, stopping criteria,
rows); the loop is `speculate_stream`, so the tokens are those of `speculate`. Whatever the loop
cannot honour is refused by name, never dropped. Two arguments of `generate` never reach a
callable: `assistant_model=` (say `draft_model=`) and `streamer=` (say `judge_streamer=`).
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.generation.logits_process import (
    LogitNormalization,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.generation.stopping_criteria import (
    EosTokenCriteria,
    MaxLengthCriteria,
    StoppingCriteriaList,
)
from transformers.generation.utils import GenerateDecoderOnlyOutput

from judgelib.decoding import Generation, Job, speculate_stream
from judgelib.drafting import Drafter, ModelDrafter
from judgelib.head import JudgeHead
from judgelib.models import LanguageModel, check_pair
from judgelib.rules import Judge, Match, Ratio, Rule, SpeculativeSampling
from judgelib.sampling import Sampling

_OFF: dict[str, tuple[Any, ...]] = {
    "num_beams": (None, 1), "num_beam_groups": (None, 1), "penalty_alpha": (None, 0),
    "dola_layers": (None,), "constraints": (None,), "force_words_ids": (None,),
    "prompt_lookup_num_tokens": (None,), "assistant_early_exit": (None,), "use_mtp": (None, False),
    "assistant_ensemble_weight": (None,), "use_cache": (None, True), "cache_config": (None,),
    "cache_implementation": (None, "dynamic"), "prefill_chunk_size": (None,),
    "compile_config": (None,),
}  # fmt: skip
"""Entries of a generation config that ask for another way to decode, and where they are off."""

_EXTRAS = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")
_READ = ("attention_mask", "position_ids", "past_key_values", "use_cache", "logits_to_keep")
"""Model arguments that `generate` prepares and the loop understands or can do without."""

_ARGUMENTS = {
    "TopKLogitsWarper": "top_k", "TopHLogitsWarper": "top_h", "MinPLogitsWarper": "min_p",
    "TypicalLogitsWarper": "typical_p", "EpsilonLogitsWarper": "epsilon_cutoff",
    "EtaLogitsWarper": "eta_cutoff", "RepetitionPenaltyLogitsProcessor": "repetition_penalty",
    "EncoderRepetitionPenaltyLogitsProcessor": "encoder_repetition_penalty",
    "NoRepeatNGramLogitsProcessor": "no_repeat_ngram_size",
    "EncoderNoRepeatNGramLogitsProcessor": "encoder_no_repeat_ngram_size",
    "NoBadWordsLogitsProcessor": "bad_words_ids",
    "MinLengthLogitsProcessor": "min_length= or min_new_tokens",
    "MinNewTokensLengthLogitsProcessor": "min_new_tokens",
    "SequenceBiasLogitsProcessor": "sequence_bias",
    "PrefixConstrainedLogitsProcessor": "prefix_allowed_tokens_fn",
    "UnbatchedClassifierFreeGuidanceLogitsProcessor": "guidance_scale",
    "ForcedBOSTokenLogitsProcessor": "forced_bos_token_id",
    "ForcedEOSTokenLogitsProcessor": "forced_eos_token_id",
    "InfNanRemoveLogitsProcessor": "remove_invalid_values",
    "ExponentialDecayLengthPenalty": "exponential_decay_length_penalty",
    "SuppressTokensLogitsProcessor": "suppress_tokens",
    "SuppressTokensAtBeginLogitsProcessor": "begin_suppress_tokens",
    "WatermarkLogitsProcessor": "watermarking_config",
    "SynthIDTextWatermarkLogitsProcessor": "watermarking_config",
}  # fmt: skip
"""What the user wrote that made transformers add a processor."""


@dataclass
class JudgeOutput(GenerateDecoderOnlyOutput):
    """What `return_dict_in_generate=True` returns: transformers' own output (`sequences`; no cache)
    and, for each row, the `Generation` with its cycles, so that acceptance can be counted."""

    generations: list[Generation] | None = None


def judge_generate(
    model: Any,
    input_ids: Tensor,
    logits_processor: Sequence[Any],
    stopping_criteria: Sequence[Any],
    generation_config: Any,
    *,
    draft_model: Any = None,
    judge: JudgeHead | Rule | str | Path | None = None,
    threshold: float | None = None,
    floor: float | None = None,
    any_model: bool = False,
    window: int = 16,
    judge_streamer: Any = None,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    seed: int | None = None,
    target_tokenizer: Any = None,
    draft_tokenizer: Any = None,
    **model_kwargs: Any,
) -> Tensor | JudgeOutput:
    """Continue every row of `input_ids` as `speculate` would; called by `generate`, which passes
    the named arguments on: `model.generate(ids, custom_generate=judge_generate, draft_model=...)`.

    Args:
        model, input_ids, logits_processor, stopping_criteria, generation_config, model_kwargs: as
            `generate` prepares them. Rows (B, n) of different lengths are padded on the left and
            come with their `attention_mask`. Stopping criteria are asked after every new token,
            one row (1, n + i) at a time.
        draft_model: proposes: a transformers model, a `LanguageModel` or any `Drafter`.
        judge: a head (Judge Decoding, arXiv 2501.19309; AutoJudge, arXiv 2504.20039), its folder
            or hub id: what strict verification keeps stays, and so does what the head accepts. Or
            a `Rule`, used as it is. None: strict; the output is `generate`'s own.
        threshold: the head accepts above it; None takes the head's own.
        floor: of what the head accepts, keep tokens only that are at least so many times as likely
            as the target's likeliest.
        any_model: let the head judge a model that it was not made for (see `JudgeHead.check`).
        window: tokens drafted a cycle.
        judge_streamer: a transformers streamer, for a single row; gets the prompt, then token by
            token. (`streamer=` never arrives here.)
        generator: one torch.Generator a row, on the CPU.
        seed: instead: row b gets a generator of seed + b. Neither: seeded from torch's global one.
        target_tokenizer, draft_tokenizer: to check that both models mean the same by every id.
            Without them the widths of the vocabularies are compared.

    Returns:
        (B, n + m) prompts and answers, padded on the right; a `JudgeOutput` if the generation
        config says `return_dict_in_generate`. A row ends at the latest where the model's context
        does.

    Raises:
        ValueError: no draft model, models that do not fit together, a head made for others, or
            anything asked for that the loop cannot honour. Under sampling that is top_k too, which
            transformers sets to 50 unless told otherwise: pass top_k=0.
    """
    _refuse(model, generation_config, model_kwargs)
    target, drafter = language_model(model), _drafter(draft_model)
    _check_fit(target, target_tokenizer, drafter, draft_tokenizer)
    rule = judge_rule(judge, threshold, floor, any_model=any_model)
    rule.check(target)
    sampling = sampling_of(generation_config, logits_processor, target.vocab_size)
    prompts, pad = _rows(input_ids, model_kwargs), _pad(generation_config, len(input_ids))
    draws = not sampling.greedy or bool(rule.needs(sampling).draws)
    generators = _generators(len(prompts), generator, seed) if draws else [None] * len(prompts)
    limit, eos_ids, asked = ends_of(stopping_criteria)
    room = max(1, limit - input_ids.shape[1])  # `generate` adds a token before it asks
    watches = _watches(input_ids, room, asked, judge_streamer)
    jobs = list(map(Job, prompts, repeat(room), generators, watches))
    answers = _continued(target, drafter, rule, jobs, window, sampling, eos_ids)
    if judge_streamer is not None:
        judge_streamer.end()
    sequences = _appended(input_ids, [answer.ids for answer in answers], pad)
    if generation_config.return_dict_in_generate:
        return JudgeOutput(sequences=sequences, generations=answers)
    return sequences


def judge_rule(
    judge: JudgeHead | Rule | str | Path | None,
    threshold: float | None = None,
    floor: float | None = None,
    *,
    any_model: bool = False,
) -> Rule:
    """The rule that `judge_generate` decodes by; see there.

    Raises:
        ValueError: a threshold or a floor without a head, or something that is no judge.
    """
    if judge is None or isinstance(judge, Rule):
        if threshold is not None or floor is not None or any_model:
            raise ValueError(
                "threshold=, floor= and any_model= belong to a head, got judge="
                f"{judge}; pass judge=<a head, its folder or hub id>, or set them in the rule"
            )
        return judge or SpeculativeSampling()  # greedy, this is Match
    if isinstance(judge, str | Path):
        judge = JudgeHead.from_pretrained(judge)
    if not isinstance(judge, JudgeHead):
        raise ValueError(
            f"expected judge= a JudgeHead, its folder or hub id, or a Rule, got {type(judge)}"
        )
    accepts: Rule = Judge(judge, threshold, any_model=any_model)
    return Match() | (accepts if floor is None else accepts & Ratio(floor))


def sampling_of(generation_config: Any, processors: Sequence[Any], vocabulary: int) -> Sampling:
    """Temperature (0: greedy) and top-p, read from the processors that `generate` has made.

    Raises:
        ValueError: naming a processor that the loop does not know, or one out of order.
    """
    temperature, top_p = 1.0, 1.0
    for processor in processors:
        if _changes_nothing(processor, vocabulary):
            continue
        if top_p < 1 or not isinstance(processor, TemperatureLogitsWarper | TopPLogitsWarper):
            raise ValueError(_unknown(processor))
        if isinstance(processor, TemperatureLogitsWarper):
            temperature *= processor.temperature
        else:
            top_p = processor.top_p
    return Sampling(temperature, top_p) if generation_config.do_sample else Sampling()


def ends_of(criteria: Sequence[Any]) -> tuple[int, tuple[int, ...], StoppingCriteriaList]:
    """Where a text ends: its length with the prompt, the ids that end it, and the criteria that
    have to be asked."""
    lengths = [each.max_length for each in criteria if type(each) is MaxLengthCriteria]
    eos = [each.eos_token_id for each in criteria if type(each) is EosTokenCriteria]
    known = (MaxLengthCriteria, EosTokenCriteria)
    asked = StoppingCriteriaList([each for each in criteria if type(each) not in known])
    return min(lengths), tuple(int(token) for ids in eos for token in ids.flatten()), asked


class _Kept:
    """Keeps a `LanguageModel` on the model that it was made of, so that it goes when that goes. A
    copy or a pickle of the model leaves it behind."""

    def __init__(self, made: LanguageModel | None = None, state: Any = None) -> None:
        self.made, self.state = made, state

    def __deepcopy__(self, _: Any) -> _Kept:
        return _Kept()

    def __reduce__(self) -> tuple[Any, ...]:
        return _Kept, ()


def language_model(model: Any) -> LanguageModel:
    """The model as the loop reads it. It is made once, and again only after the model was moved,
    resized or given another attention.

    Raises:
        ValueError: a model that is training, or one that `LanguageModel` refuses.
    """
    if model.training:
        raise ValueError(
            f"{type(model).__name__} is in training mode, in which dropout changes every pass; "
            "call its .eval() first"
        )
    config = model.config.get_text_config(decoder=True)
    state = (model.device, model.dtype, config.vocab_size, config._attn_implementation)
    kept = vars(model).get("_judgelib", _Kept())
    if kept.made is None or kept.made.model is not model or kept.state != state:
        name = model.name_or_path or type(model).__name__
        kept = vars(model)["_judgelib"] = _Kept(LanguageModel(model, None, name), state)
    made: LanguageModel = kept.made
    return made


class _Watch:
    """Hears of every new token of one row: hands it to the streamer, then asks the criteria."""

    def __init__(self, prompt: Tensor, room: int, criteria: StoppingCriteriaList, streamer: Any):
        self.text = torch.cat([prompt, prompt.new_zeros(room)])[None]  # (1, n + room)
        self.start, self.criteria, self.streamer = len(prompt), criteria, streamer

    def __call__(self, ids: list[int]) -> bool:
        stop = self.start + len(ids)
        self.text[0, stop - 1] = ids[-1]
        if self.streamer is not None:
            self.streamer.put(self.text[0, stop - 1 : stop].cpu())
        return bool(self.criteria) and bool(self.criteria(self.text[:, :stop], None))


def _watches(
    input_ids: Tensor, room: int, criteria: StoppingCriteriaList, streamer: Any
) -> list[_Watch | None]:
    if streamer is not None:
        if len(input_ids) > 1:
            raise ValueError(
                f"judge_streamer= follows a single row, got {len(input_ids)}: rows gain different "
                "numbers of tokens a cycle; generate them one by one"
            )
        streamer.put(input_ids.cpu())
    needless = streamer is None and not criteria
    return [None if needless else _Watch(row, room, criteria, streamer) for row in input_ids]


def _continued(
    target: LanguageModel,
    drafter: Drafter,
    rule: Rule,
    jobs: Sequence[Job],
    window: int,
    sampling: Sampling,
    eos_ids: Sequence[int],
) -> list[Generation]:
    answers: dict[int, Generation] = {}

    def feed(ended: Mapping[int, Generation]) -> dict[int, Job]:
        answers.update(ended)
        return {} if answers else dict(enumerate(jobs))

    longest = max(min(len(job.prompt) + job.max_new_tokens, target.context) for job in jobs)
    speculate_stream(
        target, drafter, rule, feed, longest=longest, window=window, eos_ids=eos_ids,
        temperature=sampling.temperature, top_p=sampling.top_p,
    )  # fmt: skip
    return [answers[row] for row in range(len(jobs))]


def _appended(input_ids: Tensor, answers: Sequence[list[int]], pad: int) -> Tensor:
    """(B, n) prompts and their answers -> (B, n + m), padded on the right."""
    width = max(map(len, answers))
    rows = [ids + [pad] * (width - len(ids)) for ids in answers]
    new = torch.tensor(rows, dtype=input_ids.dtype, device=input_ids.device)
    return torch.cat([input_ids, new], 1)


def _drafter(draft_model: Any) -> Drafter:
    if draft_model is None:
        raise ValueError(
            "judge_generate needs draft_model=, a small transformers model with the target's "
            "vocabulary. (assistant_model= and streamer= never reach a callable: transformers "
            "drops them; say draft_model= and judge_streamer=)"
        )
    if isinstance(draft_model, nn.Module):
        draft_model = language_model(draft_model)
    if isinstance(draft_model, LanguageModel):
        return ModelDrafter(draft_model)
    if not hasattr(draft_model, "propose"):
        raise ValueError(
            "expected draft_model= a loaded transformers model, a LanguageModel or a Drafter, got "
            f"{draft_model!r:.80}; load it with AutoModelForCausalLM.from_pretrained"
        )
    drafter: Drafter = draft_model
    return drafter


_FITTING: weakref.WeakKeyDictionary[Any, weakref.ref[Any]] = weakref.WeakKeyDictionary()
"""Draft's tokenizer -> the target's that it was found to fit: comparing vocabularies takes time."""


def _check_fit(
    target: LanguageModel, target_tokenizer: Any, drafter: Drafter, draft_tokenizer: Any
) -> None:
    """By the tokenizers if both are known, else by the widths of the vocabularies."""
    if not isinstance(drafter, ModelDrafter):
        return
    target, draft = copy.copy(target), copy.copy(drafter.model)  # nothing given here is kept
    target.tokenizer = target_tokenizer or target.tokenizer
    draft.tokenizer = draft_tokenizer or draft.tokenizer
    if target.tokenizer is None or draft.tokenizer is None:
        _check_width(target, draft)
    elif _FITTING.get(draft.tokenizer, lambda: None)() is not target.tokenizer:
        check_pair(target, draft)
        _FITTING[draft.tokenizer] = weakref.ref(target.tokenizer)


def _check_width(target: LanguageModel, draft: LanguageModel) -> None:
    if target.vocab_size != draft.vocab_size:
        raise ValueError(
            f"{target.name} has {target.vocab_size} ids and {draft.name} {draft.vocab_size}; "
            "choose a draft with the target's tokenizer, or show that they agree: pass "
            "target_tokenizer= and draft_tokenizer="
        )


def _rows(input_ids: Tensor, model_kwargs: Mapping[str, Any]) -> list[list[int]]:
    """Each row's tokens without its padding.

    Raises:
        ValueError: padding on the right, or positions that are not the tokens' places.
    """
    mask = model_kwargs.get("attention_mask")
    seen = torch.ones_like(input_ids, dtype=torch.bool) if mask is None else mask.bool()
    if not seen[:, -1].all():
        raise ValueError(
            "expected rows padded on the left, got attention_mask 0 at a row's end; set the "
            "tokenizer's padding_side='left'"
        )
    positions = model_kwargs.get("position_ids")
    places = seen.long().cumsum(1) - 1
    if positions is not None and not (positions.expand_as(places) == places)[seen].all():
        raise ValueError(
            "expected position_ids that count each row's tokens from 0, got others; leave them out"
        )
    return [row[own].tolist() for row, own in zip(input_ids, seen, strict=True)]


def _generators(
    rows: int, given: torch.Generator | Sequence[torch.Generator] | None, seed: int | None
) -> list[torch.Generator]:
    if given is not None and seed is not None:
        raise ValueError("expected generator= or seed=, got both")
    if given is None:
        seeds = torch.randint(2**62, (rows,)).tolist() if seed is None else range(seed, seed + rows)
        return [torch.Generator().manual_seed(number) for number in seeds]
    own = [given] if isinstance(given, torch.Generator) else list(given)
    if len({id(each) for each in own}) != rows:
        raise ValueError(
            f"expected a generator of its own for each of the {rows} rows, got "
            f"{len({id(each) for each in own})}; pass a list of them, or seed="
        )
    return own


def _pad(generation_config: Any, rows: int) -> int:
    """The id behind texts that end early (0 for a single row, which needs none)."""
    pad = getattr(generation_config, "_pad_token_tensor", None)
    if pad is None and rows > 1:
        raise ValueError("rows end at different lengths: pass pad_token_id= to generate")
    return 0 if pad is None else int(pad)


def _changes_nothing(processor: Any, vocabulary: int) -> bool:
    kept = isinstance(processor, TopKLogitsWarper) and processor.top_k >= vocabulary
    return kept or isinstance(processor, LogitNormalization)


def _unknown(processor: Any) -> str:
    kind = type(processor).__name__
    name = _ARGUMENTS.get(kind, "logits_processor")
    cure = "pass top_k=0 (transformers' default is 50)" if name == "top_k" else "leave it out"
    return (
        "judge_generate decodes greedily or with temperature and then top_p, got "
        f"{name}= ({kind}), which would be lost on drafted tokens; {cure}"
    )


def _refuse(model: Any, generation_config: Any, model_kwargs: Mapping[str, Any]) -> None:
    """ValueError naming the first thing that was asked for and cannot be had."""
    if model.config.is_encoder_decoder:
        raise ValueError(f"expected a decoder-only model, got {type(model).__name__}")
    off = dict(_OFF)
    if generation_config.return_dict_in_generate:
        off |= {name: (None, False) for name in _EXTRAS}
    for name, values in off.items():
        found = getattr(generation_config, name, None)
        if found not in values:
            raise ValueError(f"judge_generate cannot honour {name}={found}; leave it out")
    for name, value in model_kwargs.items():
        if value is not None and name not in (*_READ, *_EXTRAS):
            raise ValueError(f"judge_generate cannot pass {name}= on to the model; leave it out")
    cache = model_kwargs.get("past_key_values")
    if getattr(cache, "_is_user_defined", False) or (cache is not None and cache.get_seq_length()):
        raise ValueError("judge_generate keeps caches of its own; leave past_key_values= out")
