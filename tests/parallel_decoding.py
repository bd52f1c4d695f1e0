"""What each process of `torchrun` does in the test of tensor parallelism.

torchrun --nproc-per-node 2 tests/parallel_decoding.py <folder of a model> <file for the tokens>
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch.distributed as dist

from judgelib.decoding import speculate
from judgelib.drafting import ModelDrafter
from judgelib.models import load_model
from judgelib.rules import Match

PROMPTS = [[7, 8, 9, 10], [30, 31], [12]]
TOKENS = 24


def main(folder: str, goal: str) -> None:
    target = load_model(f"{folder}/target", dtype="float32", spread="tensor")
    draft = load_model(f"{folder}/draft", dtype="float32", spread="tensor")
    drafter = ModelDrafter(draft)
    found = [
        speculate(target, drafter, Match(), prompt, window=4, max_new_tokens=TOKENS).ids
        for prompt in PROMPTS
    ]
    rows = target.model.model.layers[0].mlp.up_proj.weight
    held = rows.to_local() if hasattr(rows, "to_local") else rows
    rank = os.environ["RANK"]
    Path(f"{goal}.{rank}").write_text(json.dumps({"ids": found, "rows": held.shape[0]}))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
