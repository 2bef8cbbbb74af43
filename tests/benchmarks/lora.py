"""Host memory, checkpoint and seconds of an actor that trains all weights, and of one that trains LoRA adapters.

One rank of the actor (ZeRO-3, float32, gradient checkpointing) makes an optimizer step on random experience of 4 rows
of 128 tokens, and writes its state; each case has a process of its own. Peaks are of resident memory. With adapters it
answers for the reference too; otherwise that has a process of its own, which is measured as well.

    .venv/bin/python tests/benchmarks/lora.py MODEL_FOLDER [--rank 16]
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from roles.batch import Rollouts
from roles.config.losses import PolicyLossConfig
from roles.config.models import LoraConfig
from roles.rows import put_back
from roles.shares import ActorExperience, RankShare
from roles.zero.setup import ModelSetup
from tests.integration import ranks as processes
from tests.integration.ranks import Ranks
from tests.integration.sharded_cases import setup_of

ROWS, PROMPT, LENGTH = 4, 32, 128


def rollouts(vocabulary: int = 1000) -> Rollouts:
    """Random tokens below `vocabulary`."""
    mask = (torch.arange(LENGTH) >= PROMPT).expand(ROWS, LENGTH).contiguous()
    return Rollouts(
        token_ids=torch.randint(10, vocabulary, mask.shape, generator=torch.Generator().manual_seed(0)),
        lengths=torch.full((ROWS,), LENGTH),
        response_mask=mask,
        rollout_logprobs=torch.zeros(mask.shape),
        turn_rewards=torch.zeros(mask.shape),
        finished=torch.ones(ROWS, dtype=torch.bool),
        versions=torch.zeros(ROWS, dtype=torch.long),
        prompts=["p"] * ROWS,
        responses=["r"] * ROWS,
        columns={},
        counted=[{}] * ROWS,
    )


def peak_gib() -> float:
    """Of this process, so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 2**30


def tokens_of(setup: ModelSetup) -> int:
    """How many of its tokens are drawn from."""
    return min(1000, int(json.loads((Path(setup.model_path) / "config.json").read_text())["vocab_size"]))


def trained(setup: ModelSetup, folder: str) -> tuple[float, float, int]:
    """Peak GiB, seconds of an update, bytes of the checkpoint."""
    from roles.actor import Actor

    torch.set_num_threads(2)
    actor, batch = Actor(setup, PolicyLossConfig(), 1.0), rollouts(tokens_of(setup))
    old = put_back(actor.logprobs(batch), batch.response_mask)
    if setup.lora:
        actor.reference_logprobs(batch)
    blank = torch.zeros_like(old)
    advantages = torch.randn(old.shape, generator=torch.Generator().manual_seed(1)) * batch.response_mask
    rows = torch.arange(ROWS)
    tokens = (batch.token_ids, batch.lengths, batch.response_mask, rows)
    experience = ActorExperience(*tokens, old, blank, blank, advantages)
    began = time.perf_counter()
    actor.update(RankShare(experience, [rows.tolist()]))
    seconds = time.perf_counter() - began
    actor.save_state(folder)
    return peak_gib(), seconds, sum(f.stat().st_size for f in Path(folder).rglob("*") if f.is_file())


def frozen(setup: ModelSetup) -> float:
    """Peak GiB of a reference of its own."""
    from roles.reference import Reference

    torch.set_num_threads(2)
    Reference(setup, 1.0).reference_logprobs(rollouts(tokens_of(setup)))
    return peak_gib()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--rank", type=int, default=16)
    arguments = parser.parse_args()
    processes.DEADLINE_S = 1800.0
    setup = setup_of(arguments.model, micro_batch_tokens=1024, gradient_checkpointing=True)
    cases = {"all weights": setup, f"LoRA {arguments.rank}": replace(setup, lora=LoraConfig(rank=arguments.rank))}
    for name, case in cases.items():
        ranks = Ranks(1)
        with tempfile.TemporaryDirectory() as folder:
            peak, seconds, size = ranks.call(trained, case, folder)[0]
        ranks.close()
        print(f"{name:>12}: peak {peak:.2f} GiB, update {seconds:.1f} s, checkpoint {size / 2**20:.1f} MiB", flush=True)
    ranks = Ranks(1)
    print(f"{'reference':>12}: peak {ranks.call(frozen, replace(setup, optimizer=None))[0]:.2f} GiB")
    ranks.close()


if __name__ == "__main__":
    main()
