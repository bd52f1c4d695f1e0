"""Two processes that share every layer write what one process writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import tiny
from parallel_decoding import PROMPTS, TOKENS

from judgelib.decoding import autoregress
from judgelib.provenance import checkout


def test_two_processes_decode_the_same_tokens_as_one(tmp_path: Path) -> None:
    target = tiny.language_model()
    for name, model in (("target", target), ("draft", tiny.disturbed(target))):
        model.model.save_pretrained(tmp_path / name)
        model.tokenizer.save_pretrained(tmp_path / name)
    alone = [autoregress(target, prompt, max_new_tokens=TOKENS).ids for prompt in PROMPTS]
    script = Path(__file__).with_name("parallel_decoding.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    here = os.environ.get("PYTHONPATH", "")
    environment = {
        **os.environ, "PYTHONPATH": f"{checkout()}{os.pathsep}{here}", "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    done = subprocess.run(
        [*command, str(script), str(tmp_path), str(tmp_path / "said")],
        capture_output=True, text=True, env=environment, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads((tmp_path / f"said.{rank}").read_text()) for rank in range(2)]
    assert [one["ids"] for one in found] == [alone, alone]
    whole = target.config.intermediate_size
    assert [one["rows"] for one in found] == [whole // 2, whole // 2]  # each has its half
