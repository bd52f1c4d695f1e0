"""Judge decoding from the hub: `model.generate(..., custom_generate=<this repository>)`.

The decoding itself is judgelib's; this file hands `generate`'s arguments on to it.
"""

from transformers.generation.stopping_criteria import StoppingCriteriaList, StopStringCriteria

try:
    from judgelib.integrations.transformers import judge_generate
except ImportError as error:
    raise ImportError(
        "judge decoding needs the package judgelib. In a clone of its repository run "
        f"`pip install .`, then try again ({error})"
    ) from error


def generate(
    inputs=None,
    *,
    model,
    assistant_model=None,
    streamer=None,
    tokenizer=None,
    assistant_tokenizer=None,
    stop_strings=None,
    stopping_criteria=None,
    **arguments,
):
    """What `model.generate` returns, decoded by draft and judge.

    Args:
        assistant_model: the draft.
        arguments: `judge`, `threshold`, `floor`, `window`, `seed` and whatever else
            `judge_generate` knows, and the arguments of `generate`.
    """
    criteria = StoppingCriteriaList(stopping_criteria or [])
    if stop_strings is not None:
        if tokenizer is None:
            raise ValueError("stop_strings= needs tokenizer= too: pass the model's tokenizer")
        criteria.append(StopStringCriteria(tokenizer=tokenizer, stop_strings=stop_strings))
    # Not `model.generate`: a model loaded from a repository with this file has it replaced.
    return type(model).generate(
        model,
        inputs,
        custom_generate=judge_generate,
        draft_model=assistant_model,
        judge_streamer=streamer,
        target_tokenizer=tokenizer,
        draft_tokenizer=assistant_tokenizer,
        stopping_criteria=criteria,
        **arguments,
    )
