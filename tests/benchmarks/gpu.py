"""What a card reaches, beside what it could: generation against plain vLLM, the update against plain PyTorch.

    .venv/bin/python -m tests.benchmarks.gpu generate|update [FOLDER] [--shape 1b]

Random models of tests/gpu/models.py (made in FOLDER, a temporary one otherwise), bfloat16, one card.

generate: 256 prompts of 16 tokens, 512 response tokens each, through `RolloutEngine` and through the very vLLM engine
inside it, asked for no log-probabilities: tokens a second.
update: 64 samples of 768 to 1024 tokens, one optimizer step with checkpointing, by the actor under ZeRO-3 and by a
plain loop over the same module (flash attention, the head in blocks, fused AdamW on bfloat16 weights): seconds, MFU.

The push and the phases of a whole step are in the metrics of tests/gpu/test_loop.py's runs.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from cluster.accelerators import card_called
from tests.gpu import models

PROMPTS, PROMPT_TOKENS, RESPONSE_TOKENS = 256, 16, 512
MICRO_BATCH_TOKENS = 16384


def generate(folder: Path) -> dict[str, Any]:
    """Tokens a second of both."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    from roles.batch import Prompts
    from roles.config import EngineConfig, RolloutConfig
    from roles.rollout import RolloutEngine, RolloutSetup

    config = RolloutConfig(
        prompts_per_step=PROMPTS,
        max_response_tokens=RESPONSE_TOKENS,
        engine=EngineConfig(gpu_memory_utilization=0.5, max_sequences=PROMPTS),
    )
    setup = RolloutSetup(
        model_path=str(folder / "policy"),
        device="cuda",
        dtype="bfloat16",
        seed=0,
        rollout=config,
        max_model_tokens=PROMPT_TOKENS + RESPONSE_TOKENS,
        pad_token_id=models.PAD,
        stop_token_ids=(),
        backend="ipc",
    )
    engine = RolloutEngine(setup)
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(3, models.VOCABULARY, (PROMPTS, PROMPT_TOKENS), generator=draw).tolist()
    seeds = list(range(PROMPTS))
    prompts = Prompts(tokens, ["p"] * PROMPTS, {}, seeds, seeds)
    plain = SamplingParams(
        max_tokens=RESPONSE_TOKENS, ignore_eos=True, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY
    )
    ours, theirs = [], []
    for number in range(3):
        began = time.perf_counter()
        rollouts = engine.generate(prompts, version=0)
        ours.append(int(rollouts.response_mask.sum()) / (time.perf_counter() - began))
        engine._engine.reset_prefix_cache()
        began = time.perf_counter()
        for row, prompt in enumerate(tokens):
            engine._engine.add_request(f"plain-{number}-{row}", {"prompt_token_ids": prompt}, plain)
        while engine._engine.has_unfinished_requests():
            engine._engine.step()
        theirs.append(PROMPTS * RESPONSE_TOKENS / (time.perf_counter() - began))
        engine._engine.reset_prefix_cache()
    return {"tokens_per_s": max(ours), "plain_vllm_tokens_per_s": max(theirs), "share": max(ours) / max(theirs)}


def update(folder: Path) -> dict[str, Any]:
    """Seconds and MFU of both."""
    from tests.gpu import rank

    spec = {"gradient_checkpointing": True, "micro_batch_tokens": MICRO_BATCH_TOKENS}
    done = rank.run(folder, {**spec, "rows": 64, "tokens": 1024, "repeat": 3})
    seconds = {"actor": done["update"]["seconds"], "plain": _plain_update(folder)}
    known = card_called(torch.cuda.get_device_name())
    peak = 1e12 * known.tflops if known else float("nan")
    work = 6 * done["parameters"] * done["tokens"] / peak
    return {"seconds": seconds, "mfu": {name: work / value for name, value in seconds.items()}, "ours": done["update"]}


def _plain_update(folder: Path) -> float:
    from roles.micro_batch import MicroBatch
    from roles.models import PolicyModel
    from roles.packing import micro_batches
    from tests.gpu.rank import rollouts_of

    device, batch = torch.device("cuda"), rollouts_of(64, 1024)
    model = PolicyModel.load(folder / "policy", dtype=torch.bfloat16, gradient_checkpointing=True).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    bins = micro_batches(batch.lengths.tolist(), MICRO_BATCH_TOKENS)
    best = float("inf")
    for _ in range(3):
        torch.cuda.synchronize()
        began = time.perf_counter()
        for rows in bins:
            micro = MicroBatch.of(batch, rows, device)
            logprobs, _ = model(
                packed=micro.packed, positions=micro.positions, labels=micro.labels, temperature=1.0, with_entropy=True
            )
            logprobs.mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["generate", "update"])
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--shape", choices=sorted(models.SHAPES), default="1b")
    arguments = parser.parse_args()
    root = arguments.folder or Path(tempfile.mkdtemp())
    folder = models.write(root / arguments.shape, arguments.shape)
    result = {"generate": generate, "update": update}[arguments.what](folder)
    print("RESULT", json.dumps({"card": torch.cuda.get_device_name(), **result}), flush=True)


if __name__ == "__main__":
    main()
