"""A PPO run that breaks off, since a role fails or somebody asks for its end: what is saved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import orchestrator.groups.policy
import orchestrator.stages.ppo
import orchestrator.stages.run
import orchestrator.stages.state_writer
from cluster.errors import RankFailure, Terminated
from cluster.runtime.orders import Orders
from orchestrator.config.canary import CanaryConfig
from orchestrator.config.evaluation import EvaluationConfig
from orchestrator.config.ppo import PpoConfig
from orchestrator.errors import NotFinite, TetrarchError, WeightsDiffer
from orchestrator.groups import canary
from orchestrator.run.checkpoint import Checkpoints
from orchestrator.run.phase_clock import Clock
from orchestrator.stages.ppo import Ppo
from roles.config.rollout import RolloutConfig
from tests.unit.orchestrator.fakes import prompts_of, rollouts_of
from tests.unit.orchestrator.ppo.test_experience import make_scored
from tests.unit.orchestrator.stages.ppo_runs import MakeRun, kl_of, ppo_of, sleep


@pytest.mark.parametrize("sleeps", [True, False])
def test_engines_that_share_their_gpus_end_before_the_last_step_is_saved(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, sleeps: bool
) -> None:
    """They hold the cards while they generate, and cannot be asked to sleep before they have done so."""
    monkeypatch.setattr(orchestrator.groups.policy, "FREED_S", 0.0)
    run, log = make_run(step=3, version=3)
    sleep(run, sleeps)
    monkeypatch.setattr(orchestrator.stages.ppo, "train_step", failing("generate", DEATH))
    with pytest.raises(RankFailure):
        run._one_step()
    saved = next(n for n, line in enumerate(log) if "save_state" in line)
    assert ("reward ends" in log[:saved]) is sleeps


def failing(phase: str, error: Exception) -> Callable[..., Any]:
    """A `train_step` that fails in `phase`."""

    def step(roles: Any, prompts: Any, state: Any, config: Any, clock: Clock, keep: Any) -> Any:
        for name in ("generate", "score", "experience", "update"):
            with clock(name):
                if name == phase:
                    raise error

    return step


DEATH = RankFailure("reward rank 0 (node a) died")


@pytest.mark.parametrize("error", [DEATH, TetrarchError("an engine answered with version 2")])
def test_when_another_role_fails_what_was_trained_is_saved(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    run, log = make_run(step=3, version=3)
    monkeypatch.setattr(orchestrator.stages.ppo, "train_step", failing("score", error))
    with pytest.raises(type(error)):
        run._one_step()
    saved = run.checkpoints.newest()
    assert (saved.step, saved.state["prompts"]) == (3, {"drawn": 0})  # the prompts of the lost step come again
    assert "idle?" in log and log[-1].endswith("go on from there with --resume")


@pytest.mark.parametrize(("phase", "step"), [("update", 3), ("score", 0)])
def test_nothing_is_saved_of_half_an_update_or_of_no_step(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, phase: str, step: int
) -> None:
    run, _ = make_run(step=step)
    monkeypatch.setattr(orchestrator.stages.ppo, "train_step", failing(phase, DEATH))
    with pytest.raises(RankFailure):
        run._one_step()
    assert run.checkpoints.newest() is None


def test_a_step_that_stands_is_not_saved_again(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    run, log = make_run(step=3)
    run.save()
    monkeypatch.setattr(orchestrator.stages.ppo, "train_step", failing("score", DEATH))
    log.clear()
    with pytest.raises(RankFailure):
        run._one_step()
    assert not [line for line in log if "save" in line]


@pytest.mark.parametrize(("role", "saved"), [("reward", True), ("actor", False)])
def test_a_number_that_is_not_finite_is_told_with_its_step_and_its_batch_is_kept(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, role: str, saved: bool
) -> None:
    """A checkpoint of an actor that has diverged would push a good one out."""
    run, log = make_run(step=3, version=3)
    ppo_of(run).batch = make_scored()
    monkeypatch.setattr(orchestrator.stages.ppo, "train_step", failing("experience", NotFinite(role, "the numbers")))
    with pytest.raises(NotFinite, match="in step 4 the numbers"):
        run._one_step()
    file = Path(run.config.run_dir) / "failed/step-000004.safetensors"
    assert torch.equal(load_file(file)["scores"], make_scored().scores)
    assert f"the batch of the step that failed is in {file} (texts: step-000004.json)" in log
    assert (run.checkpoints.newest() is not None) == saved


def test_a_step_that_stands_leaves_no_batch(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    run, _ = make_run(step=3, version=3)
    ppo, seen = ppo_of(run), []

    def stands(*given: Any) -> None:
        given[-1](make_scored())
        seen.append(ppo.batch)

    monkeypatch.setattr(orchestrator.stages.ppo, "train_step", stands)
    monkeypatch.setattr(type(ppo), "_told", lambda *told: None)
    ppo.one_step(Clock(lambda phase: None))
    assert len(seen[0]) == 4 and ppo.batch is None


def test_a_full_disk_hides_neither_the_error_nor_that_nothing_could_be_saved(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, log = make_run(step=3, version=3)
    ppo_of(run).batch = make_scored()
    (Path(run.config.run_dir) / "failed").write_text("a file where the folder would be")
    monkeypatch.setattr(orchestrator.stages.ppo, "train_step", failing("score", DEATH))

    def full(*told: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Checkpoints, "begin", full)
    with pytest.raises(RankFailure, match="reward rank 0"):
        run._one_step()
    assert "the batch of the step that failed could not be written to" in "\n".join(log)
    assert log[-1] == "step 3 could not be saved: [Errno 28] No space left on device"


def test_when_a_role_fails_in_an_evaluation_what_was_trained_is_saved(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, log = make_run(step=3, version=3)
    ppo_of(run).questions = {"": prompts_of(4)}
    run.report.evaluation = log.append  # type: ignore[method-assign,assignment]

    def fail(*told: Any, **more: Any) -> Any:
        raise DEATH

    monkeypatch.setattr(orchestrator.stages.ppo, "evaluate", fail)
    with pytest.raises(RankFailure):
        run._evaluate("step 3")
    assert run.checkpoints.newest().step == 3


def test_wrong_weights_in_the_engines_end_the_run_with_batch_checkpoint_and_names(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = make_run(step=3, version=3)
    ppo_of(run).batch = make_scored()
    monkeypatch.setattr(orchestrator.stages.ppo, "train_step", failing("experience", WeightsDiffer("version 3: 0.75")))
    monkeypatch.setattr(canary, "culprits", lambda roles, config: "Engine 0: layers.0.mlp.")
    with pytest.raises(WeightsDiffer, match=r"version 3: 0\.75\. Engine 0: layers\.0\.mlp"):
        run._one_step()
    assert run.checkpoints.newest().step == 3
    assert (Path(run.config.run_dir) / "failed/step-000004.safetensors").exists()


def test_an_evaluation_looks_at_weights_that_no_batch_has_shown_to_be_right(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as the last ones; a fake actor says 0 for each token."""
    run, log = make_run(step=3, version=3)
    run.config.dtype, run.config.canary = "float32", CanaryConfig()
    run.config.rollout = RolloutConfig(prompts_per_step=4, max_response_tokens=3)
    ppo = ppo_of(run)
    ppo.roles.policy.made_by = [0] * 10 + [1] * 10
    ppo._check_weights(rollouts_of(prompts_of(20), 3))
    assert ppo.state.canary.verified == 3 and log == ["start actor.canary_logprobs"]
    ppo.questions, run.config.evaluation = {"": prompts_of(20)}, EvaluationConfig(samples=0)
    checks = list[Any]()
    run.report.evaluation, run.report.evaluations = checks.append, []  # type: ignore[method-assign,assignment]
    with monkeypatch.context() as patched:
        patched.setattr(orchestrator.stages.ppo, "evaluate", lambda *args, check, **others: check)
        patched.setattr(orchestrator.stages.ppo, "replace", lambda found, **changes: found)
        ppo.evaluate("proven")
    assert checks == [None], "once is enough"
    ppo.state.version = 4
    wrong = rollouts_of(prompts_of(20), 4)
    shift = torch.tensor([0.0] * 10 + [-0.5] * 10).unsqueeze(1)  # of the second engine alone
    wrong = replace(wrong, rollout_logprobs=wrong.rollout_logprobs + shift)
    monkeypatch.setattr(orchestrator.stages.ppo, "evaluate", lambda *args, check, **others: check(wrong))
    monkeypatch.setattr(canary, "culprits", lambda roles, config: "no name")
    run.report.evaluation = log.append  # type: ignore[method-assign,assignment]
    with pytest.raises(WeightsDiffer, match=r"engine 1 .*mean over 24 tokens"):
        run._evaluate("after")
    assert run.checkpoints.newest().step == 3


def test_an_actor_that_hangs_is_told(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    run, log = make_run(step=3)
    monkeypatch.setattr(orchestrator.stages.ppo, "train_step", failing("score", DEATH))
    monkeypatch.setattr(orchestrator.stages.run, "become_idle", lambda ranks, within_s: False)
    with pytest.raises(RankFailure):
        run._one_step()
    assert log[-1] == "step 3 could not be saved: a rank of actor or critic hangs"


# Ctrl-C and SIGTERM


def interrupted(phase: str, orders: Orders, error: type[BaseException]) -> Callable[..., Any]:
    """A `train_step` in whose `phase` an order arrives, as a handler would raise it or hold it back."""

    def step(roles: Any, prompts: Any, state: Any, config: Any, clock: Clock, keep: Any) -> Any:
        for name in ("generate", "score", "experience", "update", "push"):
            with clock(name):
                if name == phase:
                    orders.told, orders._at = Terminated, orchestrator.stages.state_writer.time.monotonic()
                    if not orders._held:
                        raise error
        state.step += 1
        return SimpleNamespace()

    return step


@pytest.mark.parametrize(
    ("phase", "step", "drawn"), [("generate", 3, 0), ("score", 3, 0), ("update", 4, 1), ("push", 4, 1)]
)
def test_an_order_to_end_saves_the_last_finished_step(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, phase: str, step: int, drawn: int
) -> None:
    """From the update on, that is the step under way: actor and critic are neither here nor there before its end."""
    run, log = make_run(step=3, version=3)
    monkeypatch.setattr(orchestrator.stages.ppo, "train_step", interrupted(phase, run.orders, Terminated))
    monkeypatch.setattr(orchestrator.stages.ppo.Ppo, "_told", lambda *told: kl_of(0.0))
    with pytest.raises(Terminated):
        run.all_steps()
    saved = run.checkpoints.newest()
    assert (saved.step, saved.state["prompts"]) == (step, {"drawn": drawn})
    assert log[-1].endswith(f"step-{step:06d}; go on from there with --resume")


def test_an_update_that_does_not_end_within_the_grace_is_not_saved(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, log = make_run(step=3, version=3)

    def step(roles: Any, prompts: Any, state: Any, config: Any, clock: Clock, keep: Any) -> Any:
        with clock("update"):
            raise Terminated

    monkeypatch.setattr(orchestrator.stages.ppo, "train_step", step)
    with pytest.raises(Terminated):
        run.all_steps()
    assert run.checkpoints.newest() is None and not [line for line in log if "save" in line]


def test_without_a_grace_nothing_is_saved(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    run, _ = make_run(step=3, version=3)
    run.orders.grace_s = 0.0
    monkeypatch.setattr(orchestrator.stages.ppo, "train_step", interrupted("score", run.orders, Terminated))
    with pytest.raises(Terminated):
        run.all_steps()
    assert run.checkpoints.newest() is None


def test_a_step_whose_push_fails_is_told_and_slows_the_actor_down_before_it_is_saved(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an uninterrupted run would have done; its batch is not to blame."""
    run, log = make_run(step=3, version=3)
    run.config.ppo = PpoConfig.model_validate({"kl": {"budget": {"warn": None, "slow_down": 12}}})
    sleep(run, True)
    monkeypatch.setattr(orchestrator.groups.policy, "FREED_S", 0.0)
    ppo_of(run).batch = make_scored()

    def step(roles: Any, prompts: Any, state: Any, config: Any, clock: Clock, keep: Any) -> Any:
        keep(make_scored())
        with clock("update"):
            state.step, state.version = 4, 4
        return SimpleNamespace(failed=DEATH)

    monkeypatch.setattr(orchestrator.stages.ppo, "train_step", step)
    monkeypatch.setattr(Ppo, "_told", lambda ppo, result, *told: replace(kl_of(13.0), failed=result.failed))
    run.report.step = lambda step, *told: log.append(f"told of step {step}")  # type: ignore[method-assign,assignment]
    with pytest.raises(RankFailure, match="reward rank 0"):
        run.all_steps()
    saved = run.checkpoints.newest()
    assert (saved.step, saved.state["version"], saved.state["prompts"]) == (4, 4, {"drawn": 1})
    order = ["told of step 4", "actor.slow_down(0.5,)", "the end of step 4 has failed", "reward ends", "idle?"]
    assert [line for line in log if line in order] == order
    assert log.index("idle?") < next(n for n, line in enumerate(log) if "actor.save_state" in line)
    assert not (Path(run.config.run_dir) / "failed").exists()
