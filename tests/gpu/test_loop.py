"""The whole PPO loop on one card: four roles and a vLLM engine that take turns, weights over CUDA IPC.

Memory is compared with `tetrarch plan` phase by phase. What a run writes stays in TETRARCH_GPU_RUNS, where it is set.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.estimate.memory import GIB
from cluster.placement.accelerators import ACCELERATORS, card_called
from orchestrator.config.loading import load_config
from orchestrator.planning.layout_planner import layout
from orchestrator.stages.resume_proof import Kill, pids_in, steps_in
from tests.gpu.conftest import OFFLINE, ROOT

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(240)]

CONFIG = Path(__file__).with_name("one-gpu.yaml")
RUN_S = 220.0
PLANNED = {
    "generate": ["generate"],
    "score": ["score"],
    "update": ["train actor", "train critic"],
    "push": ["push", "generate"],
}
"""A step's phases → the plan's. A push ends with the engine awake for the next step."""


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(os.environ.get("TETRARCH_GPU_RUNS") or tmp_path_factory.mktemp("runs"))


def settings(folder: Path, run_dir: Path, card: str, large: Path | None = None) -> list[str]:
    """Overrides: where everything is, and which card this is; `large`: the actor's model, if it is another."""
    known = next(name for name, one in ACCELERATORS.items() if one is card_called(card))
    return [
        f"run_dir={run_dir}",
        f"prompts.train.path={folder}/train.jsonl",
        f"actor.model.path={large or folder}/policy",
        f"critic.model.path={folder}/reward",
        f"reward.model.path={folder}/reward",
        f"placement.pools.card.accelerator={known}",
    ]


def train(*options: str, kills: Sequence[Kill] = ()) -> str:
    """`tetrarch train`; its output, or a failure with the logs' ends. `kills`: of its ranks, in their order."""
    command = [sys.executable, "-m", "orchestrator", "train", str(CONFIG), *options]
    with tempfile.TemporaryFile("w+") as said:
        run = subprocess.Popen(
            command, cwd=ROOT, stdout=said, stderr=subprocess.STDOUT, text=True, env={**os.environ, **OFFLINE}
        )
        until = time.monotonic() + RUN_S * (2 if kills else 1)
        run_dir = Path(load_config(CONFIG, options).run_dir)
        try:
            for kill in kills:
                while steps_in(run_dir) < kill.step and run.poll() is None and time.monotonic() < until:
                    time.sleep(0.1)
                if steps_in(run_dir) < kill.step:
                    break
                os.kill(pids_in(run_dir / "logs" / f"{kill.victim}.log")[-1], signal.SIGKILL)
            run.wait(max(0.0, until - time.monotonic()))
        finally:
            run.kill()
        said.seek(0)
        output = said.read()
    if run.returncode:
        pytest.fail(output[-6000:])
    return output


def steps_of(run_dir: Path) -> list[dict[str, Any]]:
    """metrics.jsonl."""
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def check_learning(steps: list[dict[str, Any]], count: int) -> None:
    """Right weights in the engine after every push, and a first ratio of one."""
    assert [step["step"] for step in steps] == list(range(1, count + 1))
    assert [step["weights/version"] for step in steps] == list(range(1, count + 1))
    for step in steps:
        assert step["engine/logprob_gap_mean"] < 0.05, step["step"]
        assert step["policy/ratio_first_minibatch"] == pytest.approx(1, abs=0.01)
    assert max(step["engine/logprob_gap_mean"] for step in steps[1:]) < 3 * steps[0]["engine/logprob_gap_mean"] + 1e-3


def test_engines_that_sleep_with_their_weights(folder_of: Callable[[str], Path], runs: Path, card: str) -> None:
    options = settings(folder_of("135m"), runs / "sleep-1", card)
    train(*options)
    steps = steps_of(runs / "sleep-1")
    check_learning(steps, 3)
    assert all(step[f"memory/gpu_{phase}_gib"] > 1 for step in steps for phase in ("generate", "update"))
    assert all(0 < step["mfu/actor_update"] < 1 for step in steps)


def test_the_engines_logprobs_stand_for_the_actors(folder_of: Callable[[str], Path], runs: Path, card: str) -> None:
    options = settings(folder_of("135m"), runs / "rollout", card)
    train(*options, "steps=2", "checkpoint.every=0", "actor.old_logprobs=rollout")
    steps = steps_of(runs / "rollout")
    assert all(step["engine/logprob_gap_mean"] < 0.05 for step in steps)
    assert all(step["policy/ratio_first_minibatch"] == pytest.approx(1, abs=0.01) for step in steps)


@pytest.mark.timeout(2 * RUN_S + 20)
def test_lost_processes_are_replaced(folder_of: Callable[[str], Path], runs: Path, card: str) -> None:
    """An engine beside roles that stay, and a rank that trains: what a process held of the card is there again."""
    options = settings(folder_of("135m"), runs / "killed", card)
    said = train(
        *options,
        "steps=5",
        "recovery.on_rank_failure=restart",
        kills=[Kill("rollout-0", 1), Kill("critic-0", 3)],
    )
    steps = {step["step"]: step for step in steps_of(runs / "killed")}
    check_learning(list(steps.values()), 5)
    assert "rollout rank 0" in said and "all roles are started again" in said
    assert steps[5]["memory/gpu_generate_gib"] < steps[1]["memory/gpu_generate_gib"] + 0.5


@pytest.mark.timeout(2 * RUN_S + 20)
def test_everything_sleeps_and_is_resumed(folder_of: Callable[[str], Path], runs: Path, card: str) -> None:
    asleep = ["actor.zero.sleep=true", "critic.zero.sleep=true", "rollout.engine.sleep=2"]
    options = [*settings(folder_of("135m"), runs / "sleep-2", card), *asleep]
    train(*options, "steps=2")
    train(*options, "steps=4", "--resume")
    steps = steps_of(runs / "sleep-2")
    check_learning(steps, 4)
    before, after = steps[1]["memory/gpu_generate_gib"], steps[3]["memory/gpu_generate_gib"]
    assert after < before + 0.5  # nothing that slept before the resume is awake after it


def test_memory_is_as_planned_in_every_phase(folder_of: Callable[[str], Path], runs: Path, card: str) -> None:
    """An actor of 1.2B parameters, compiled engine. Measured at first: 0.98 to 1.05 times the plan."""
    large = [
        "actor.micro_batch_tokens=8192",
        "critic.micro_batch_tokens=8192",
        "deadlines.save_s=120",
        "rollout.max_response_tokens=512",
        "rollout.prompts_per_step=64",
        "checkpoint.every=0",
        "rollout.engine.enforce_eager=false",
    ]
    options = [*settings(folder_of("135m"), runs / "large", card, folder_of("1b")), *large]
    train(*options)
    steps = steps_of(runs / "large")
    check_learning(steps, 3)
    held = layout(load_config(CONFIG, options)).gpus[0].phases
    told = {}
    for phase, names in PLANNED.items():
        measured = max(step[f"memory/gpu_{phase}_gib"] for step in steps)
        told[phase] = (measured, max(sum(held[name].values()) for name in names) / GIB)
    print("GiB measured, planned:", {phase: f"{a:.1f}, {b:.1f}" for phase, (a, b) in told.items()})
    print({key: value for key, value in steps[-1].items() if key.startswith(("time/", "mfu/", "memory/", "gpu/"))})
    print("push:", push_beside_a_device_copy(folder_of("1b") / "policy", min(step["time/push_s"] for step in steps)))
    for phase, (measured, planned) in told.items():
        assert 0.9 * planned < measured < 1.1 * planned, f"{phase}: {measured:.1f} GiB, planned {planned:.1f}"


def push_beside_a_device_copy(model: Path, push_s: float) -> dict[str, float]:
    """Bytes of the weights, and GB/s: of a whole push (verified, engine awake), and of copying them on the card."""
    from safetensors.torch import load_file

    weights = list(load_file(model / "model.safetensors", device="cuda").values())
    places = [torch.empty_like(one) for one in weights]
    seconds = []
    for _ in range(5):
        torch.cuda.synchronize()
        began = time.perf_counter()
        torch._foreach_copy_(places, weights)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    size = sum(one.nbytes for one in weights) / 1e9
    return {"GB": size, "push GB/s": size / push_s, "device copy GB/s": size / min(seconds)}
