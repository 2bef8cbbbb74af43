"""One rank of a role on a card, without Ray and vLLM, in a process of its own: `rank.py FOLDER NAME JSON`.

JSON: fields of ModelSetup to change (`zero` and `lora` as mappings), and `role` (actor, critic or reference), `rows`,
`tokens` (of each row at most), `repeat`, `resume` (save, load, go on). Prints a line `RESULT {…}` with seconds, memory
in GiB after and at most during each call, and what was computed. The folder is that of `models.write`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1")
with socket.create_server(("127.0.0.1", 0)) as server:
    os.environ["MASTER_PORT"] = str(server.getsockname()[1])

from roles.actor import Actor
from roles.batch import Rollouts
from roles.config.losses import PolicyLossConfig, ValueLossConfig
from roles.config.models import LoraConfig, OptimizerConfig, ScheduleConfig, ZeroConfig
from roles.critic import Critic
from roles.reference import Reference
from roles.rows import put_back
from roles.shares import ActorExperience, CriticExperience, RankShare
from roles.zero.setup import ModelSetup
from tests.gpu.models import VOCABULARY

T = TypeVar("T")
GIB = 2**30
CONSTANT = OptimizerConfig(learning_rate=1e-5, schedule=ScheduleConfig(type="constant"))


def setup_of(folder: Path, role: str, spec: dict[str, Any]) -> ModelSetup:
    """With the usual settings where `spec` has no others."""
    spec = {**spec, "zero": ZeroConfig(**spec.get("zero", {}))}
    if spec.get("lora"):
        spec["lora"] = LoraConfig(**spec["lora"])
    plain = ModelSetup(
        model_path=str(folder / ("reward" if role == "critic" else "policy")),
        device="cuda",
        dtype="bfloat16",
        seed=1,
        zero=ZeroConfig(),
        micro_batch_tokens=64,
        fused_kernels=True,
        shares_card=True,
        optimizer=None if role == "reference" else CONSTANT,
        optimizer_steps=100,
    )
    return dataclasses.replace(plain, **spec)


def rollouts_of(rows: int, tokens: int) -> Rollouts:
    """Ragged rows: a prompt of half of the shortest, then a response."""
    draw = torch.Generator().manual_seed(0)
    lengths = torch.randint(max(tokens * 3 // 4, 4), tokens + 1, (rows,), generator=draw)
    column = torch.arange(int(lengths.max()))
    valid = column < lengths[:, None]
    return Rollouts(
        token_ids=torch.randint(3, VOCABULARY, valid.shape, generator=draw) * valid,
        lengths=lengths,
        response_mask=valid & (column >= int(lengths.min()) // 2),
        rollout_logprobs=torch.zeros(valid.shape),
        turn_rewards=torch.zeros(valid.shape),
        finished=torch.ones(rows, dtype=torch.bool),
        versions=torch.zeros(rows, dtype=torch.long),
        prompts=["p"] * rows,
        responses=["r"] * rows,
        columns={},
        counted=[{}] * len(lengths),
    )


def wait_for_the_card() -> None:
    """Until it has done all that it was asked."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Measured:
    """Calls, with their seconds and the card's memory (0 without a card)."""

    def __init__(self) -> None:
        self.out: dict[str, Any] = {}

    def __call__(self, name: str, call: Callable[[], T]) -> T:
        wait_for_the_card()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()
        value = call()
        wait_for_the_card()
        self.out[name] = {
            "seconds": time.perf_counter() - began,
            "allocated": torch.cuda.memory_allocated() / GIB,
            "reserved": torch.cuda.memory_reserved() / GIB,
            "most_allocated": torch.cuda.max_memory_allocated() / GIB,
            "most_reserved": torch.cuda.max_memory_reserved() / GIB,
        }
        return value


def run(folder: Path, spec: dict[str, Any]) -> dict[str, Any]:
    """Build the role, score, update, score; and perhaps save, load and update once more."""
    role, rows, tokens = spec.pop("role", "actor"), spec.pop("rows", 8), spec.pop("tokens", 24)
    resume, repeat = spec.pop("resume", False), spec.pop("repeat", 2)
    setup, rollouts, measured = setup_of(folder, role, spec), rollouts_of(rows, tokens), Measured()
    it: Any = measured(
        "start",
        lambda: {
            "actor": lambda: Actor(setup, PolicyLossConfig(), 1.0),
            "critic": lambda: Critic(setup, ValueLossConfig(), 1),
            "reference": lambda: Reference(setup, 1.0),
        }[role](),
    )
    read = {"actor": "logprobs", "critic": "values", "reference": "reference_logprobs"}[role]

    def score() -> torch.Tensor:
        return put_back(getattr(it, read)(rollouts), rollouts.response_mask)

    for _ in range(repeat):
        numbers = measured("score", score)
    out = measured.out
    out["numbers"] = numbers[rollouts.response_mask].tolist() if rows <= 16 else float(numbers.sum())
    out["tokens"] = int(rollouts.lengths.sum())
    if role != "reference":
        share = share_of(rollouts, numbers, role)
        out["stats"] = [dataclasses.asdict(measured("update", lambda: it.update(share))) for _ in range(repeat)]
        after = measured("score_again", score)
        out["moved"] = float((after - numbers).abs().max())
        if resume:
            out |= _continued(it, measured, share, score, setup)
    out["fingerprint"] = it._model.fingerprint()
    parameters = list(it._model.module.parameters())
    out["parameters"] = sum(getattr(p, "ds_numel", p.numel()) for p in parameters)
    return out


def share_of(rollouts: Rollouts, numbers: torch.Tensor, role: str) -> RankShare[Any]:
    """One optimizer step on all rows, with numbers of the very policy (or critic) that is trained."""
    draw = torch.Generator().manual_seed(1)

    def noise() -> torch.Tensor:
        return torch.randn(numbers.shape, generator=draw) * rollouts.response_mask

    rows = torch.arange(len(rollouts))
    tokens = (rollouts.token_ids, rollouts.lengths, rollouts.response_mask, rows)
    if role == "critic":
        return RankShare(CriticExperience(*tokens, values=numbers.clone(), returns=noise()), [rows.tolist()])
    logprobs = (numbers.clone() for _ in range(3))
    return RankShare(ActorExperience(*tokens, *logprobs, advantages=noise()), [rows.tolist()])


def _continued(
    it: Any, measured: Measured, share: RankShare[Any], read: Callable[[], torch.Tensor], setup: ModelSetup
) -> dict[str, Any]:
    folder = tempfile.mkdtemp()
    before = read()
    measured("save", lambda: it.save_state(folder))
    size = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
    measured("load", lambda: it.load_state(folder))
    gap = float((read() - before).abs().max())
    measured("update_after_load", lambda: it.update(share))
    if setup.ema_decay:
        measured("save_average", lambda: it.save_average(folder + "/average"))
    shutil.rmtree(folder)
    return {"checkpoint": size / GIB, "resume_gap": gap}


if __name__ == "__main__":
    print("RESULT", json.dumps(run(Path(sys.argv[1]), json.loads(sys.argv[2]))), flush=True)
    torch.distributed.destroy_process_group()
