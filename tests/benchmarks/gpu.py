"""What a card reaches, beside what it could: generation against plain vLLM, the update against plain PyTorch.

    .venv/bin/python -m tests.benchmarks.gpu generate|update [FOLDER] [--shape 1b] [--rows N] [--tokens N]

Random models of tests/gpu/models.py (made in FOLDER, a temporary one otherwise), bfloat16, one card.

generate: 256 prompts of 16 tokens, 512 response tokens each, through `RolloutEngine` and through the very vLLM engine
inside it, asked for no log-probabilities: tokens per second.
update: 64 samples of 768 to 1024 tokens, one optimizer step, by the actor under ZeRO-3 and by a plain loop over the
same module (flash attention, fused kernels, the head in blocks, fused AdamW on bfloat16 weights): seconds, MFU.

`--device cpu` is for the tests: the same steps in small, whose figures say nothing.

The push and the phases of a whole step are in the metrics of tests/gpu/test_loop.py's runs.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from cluster.placement.accelerators import card_called
from tests.gpu import models

if TYPE_CHECKING:
    from roles.batch import Rollouts

PROMPT_TOKENS, MICRO_BATCH_TOKENS = 16, 32768
USUAL = {"generate": (256, 512), "update": (64, 1024)}
"""Rows, and tokens of a response (generate) or of a row at most (update)."""


def generate(folder: Path, rows: int, tokens: int, device: Literal["cpu", "cuda"]) -> dict[str, Any]:
    """Tokens a second of both."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind
    from vllm.v1.engine.output_processor import OutputProcessor

    from roles.batch import Prompts
    from roles.config.rollout import EngineConfig, RolloutConfig
    from roles.rollout import RolloutEngine
    from roles.rollout_setup import RolloutSetup

    config = RolloutConfig(
        prompts_per_step=rows,
        max_response_tokens=tokens,
        engine=EngineConfig(gpu_memory_utilization=0.5, max_sequences=rows),
    )
    setup = RolloutSetup(
        model_path=str(folder / "policy"),
        device=device,
        dtype="bfloat16",
        seed=0,
        rollout=config,
        max_model_tokens=PROMPT_TOKENS + tokens,
        pad_token_id=models.PAD,
        stop_token_ids=(),
        backend="ipc" if device == "cuda" else "gloo",
    )
    engine = RolloutEngine(setup)
    draw = torch.Generator().manual_seed(0)
    asked = torch.randint(3, models.VOCABULARY, (rows, PROMPT_TOKENS), generator=draw).tolist()
    seeds = list(range(rows))
    prompts = Prompts(asked, ["p"] * rows, {}, seeds, seeds)
    plain = SamplingParams(
        max_tokens=tokens, ignore_eos=True, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY
    )
    ours, theirs = [], []
    for number in range(3):
        began = time.perf_counter()
        rollouts = engine.generate(prompts, version=0)
        ours.append(int(rollouts.response_mask.sum()) / (time.perf_counter() - began))
        engine._engine.reset_prefix_cache()
        quick, engine._engine.output_processor.__class__ = type(engine._engine.output_processor), OutputProcessor
        began = time.perf_counter()
        for row, prompt in enumerate(asked):
            engine._engine.add_request(f"plain-{number}-{row}", {"prompt_token_ids": prompt}, plain)
        while engine._engine.has_unfinished_requests():
            engine._engine.step()
        theirs.append(rows * tokens / (time.perf_counter() - began))
        engine._engine.output_processor.__class__ = quick
        engine._engine.reset_prefix_cache()
    return {"tokens_per_s": max(ours), "plain_vllm_tokens_per_s": max(theirs), "share": max(ours) / max(theirs)}


def update(folder: Path, rows: int, tokens: int, device: Literal["cpu", "cuda"]) -> dict[str, Any]:
    """Seconds and MFU of both."""
    from tests.gpu import rank

    spec = {"shares_card": False, "micro_batch_tokens": MICRO_BATCH_TOKENS, "device": device}
    done = rank.run(folder, {**spec, "rows": rows, "tokens": tokens, "repeat": 3})
    plain = _plain_update(folder, rank.rollouts_of(rows, tokens), torch.device(device))
    seconds = {"actor": done["update"]["seconds"], "plain": plain}
    known = card_called(_name(device))
    peak = 1e12 * known.tflops if known else float("nan")
    work = 6 * done["parameters"] * done["tokens"] / peak
    return {"seconds": seconds, "mfu": {name: work / value for name, value in seconds.items()}, "ours": done["update"]}


def _name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else "no card"


def _plain_update(folder: Path, batch: Rollouts, device: torch.device) -> float:
    from roles.models.fused_kernels import fuse
    from roles.models.networks import PolicyModel
    from roles.packing import micro_batches
    from roles.zero.micro_batch import MicroBatch
    from tests.gpu.rank import wait_for_the_card

    model = PolicyModel.load(folder / "policy", dtype=torch.bfloat16).to(device)
    if device.type == "cuda":
        fuse(model.model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    bins = micro_batches(batch.lengths.tolist(), MICRO_BATCH_TOKENS)
    best = float("inf")
    for _ in range(3):
        wait_for_the_card()
        began = time.perf_counter()
        for rows in bins:
            micro = MicroBatch.of(batch, rows, device)
            logprobs, _ = model(
                packed=micro.packed, positions=micro.positions, labels=micro.labels, temperature=1.0, with_entropy=True
            )
            logprobs.mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        wait_for_the_card()
        best = min(best, time.perf_counter() - began)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["generate", "update"])
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--shape", choices=sorted(models.SHAPES), default="1b")
    parser.add_argument("--rows", type=int, help="256 prompts, or 64 samples")
    parser.add_argument("--tokens", type=int, help="512 of a response, or 1024 of a sample at most")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device is visible: this measures a GPU (make bench-gpu); --device cpu is for the tests")
    root = arguments.folder or Path(tempfile.mkdtemp())
    folder = models.write(root / arguments.shape, arguments.shape, arguments.device)
    rows, tokens = USUAL[arguments.what]
    measure = {"generate": generate, "update": update}[arguments.what]
    result = measure(folder, arguments.rows or rows, arguments.tokens or tokens, arguments.device)
    print("RESULT", json.dumps({"card": _name(arguments.device), **result}), flush=True)


if __name__ == "__main__":
    main()
