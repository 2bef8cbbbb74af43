"""PPO between its steps: resuming, checkpoints, and how far the policy may go."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import orchestrator.stages.ppo
import orchestrator.stages.state_writer
from orchestrator.config.checkpoint import CheckpointConfig
from orchestrator.config.ppo import PpoConfig
from orchestrator.errors import CheckpointError, StopTraining
from orchestrator.groups.reward import Member
from orchestrator.ppo.kl import AdaptiveController
from orchestrator.run.phase_clock import Clock
from orchestrator.stages.ppo import Ppo
from orchestrator.stages.retraining import Retraining
from orchestrator.stages.run import Run
from orchestrator.stages.stage import StepReport
from tests.unit.orchestrator.fakes import FakeGroup
from tests.unit.orchestrator.stages.ppo_runs import NOBODY, MakeRun, Source, kl_of, ppo_of, sleep, watch


def resumed(make_run: MakeRun, **state: int) -> tuple[Run, list[str]]:
    """A new run that goes on from the checkpoint of another in that state; what it did for that."""
    run, log = make_run(**state)
    run.save()
    log.clear()
    again, _ = make_run()
    again.restore(again.checkpoints.newest())
    return again, log


def test_resuming_pushes_the_weights_that_the_checkpoint_has(make_run: MakeRun) -> None:
    again, log = resumed(make_run, step=3, version=2)
    assert (ppo_of(again).state.step, ppo_of(again).state.version) == (3, 2)
    assert log[-1] == "actor.push(2,)"


def test_resuming_while_only_the_critic_was_trained_pushes_nothing(make_run: MakeRun) -> None:
    """The engines have started with version 0, and would refuse it."""
    again, log = resumed(make_run, step=3, version=0)
    assert ppo_of(again).state.step == 3
    assert not [line for line in log if "push" in line]


def test_resuming_after_the_warm_up_fits_the_actors_schedule_again(make_run: MakeRun) -> None:
    """Ten steps in all, of which the actor has had those from the second on."""
    again, log = resumed(make_run, step=5, version=3, warm_at=2)
    assert ppo_of(again).state.warm_at == 2
    expected = f"actor.expect({(10 - 2) * again.config.ppo.optimizer_steps},)"
    assert log.index(expected) < next(n for n, line in enumerate(log) if line.startswith("actor.load_state"))


def test_the_driver_remembers_all_that_has_moved(make_run: MakeRun) -> None:
    """Coefficient, scales, prompts and counters: peers lose them one by one."""
    run, again = (ppo_of(made[0]).state for made in (make_run(step=5, version=3, samples=160, warm_at=2), make_run()))
    for state in (run, again):
        state.kl = AdaptiveController(0.2, target=6.0, horizon=1000)
    run.kl.update(30.0, 500)
    run.scale.update(torch.tensor([1.0, 3.0]))
    run.value_scale.update(torch.tensor([5.0, 9.0]))
    run.prompts.next(1, 1)
    run.canary.baseline = 4e-6
    before = again.state_dict()
    again.load_state_dict(json.loads(json.dumps(run.state_dict())))
    assert again.state_dict() == run.state_dict()
    assert all(before[name] != value for name, value in run.state_dict().items()), "everything had moved"
    assert again.kl.coefficient == run.kl.coefficient != 0.2


def test_a_reward_model_that_goes_on_learning_is_a_part_of_every_checkpoint(make_run: MakeRun) -> None:
    run, log = make_run(step=3, version=3)
    ppo, reward = ppo_of(run), FakeGroup("learning reward", log)
    assert "reward" not in ppo.trained
    for stage in (ppo, ppo_of(make_run()[0])):
        stage.retraining = Retraining(NOBODY, NOBODY, NOBODY, NOBODY)
        stage.retraining.roles = SimpleNamespace(reward=SimpleNamespace(members={"reward": Member(reward)}))  # type: ignore[assignment,arg-type]
    ppo.retraining.pinned = [[3, 4], [5]]  # type: ignore[union-attr]
    run.save()
    saved = run.checkpoints.newest()
    assert [line for line in log if line.startswith("learning reward.save_state")]
    assert saved is not None and saved.state["retraining"] == {"pinned": [[3, 4], [5]]}
    ppo.retraining.pinned = []  # type: ignore[union-attr]
    run.restore(saved)
    assert ppo.retraining.pinned == [[3, 4], [5]]  # type: ignore[union-attr]
    assert [line for line in log if line.startswith("learning reward.load_state")]


def test_a_retraining_comes_before_its_step_and_is_told(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    run, log = make_run(step=3, version=3)
    told = {"retraining/comparisons": 0.0}
    ppo_of(run).retraining = SimpleNamespace(  # type: ignore[assignment]
        before_step=lambda state, clock: log.append(f"retraining before {state.step}") or told
    )
    monkeypatch.setattr(orchestrator.stages.ppo, "train_step", lambda *given: log.append("step"))
    monkeypatch.setattr(Ppo, "_told", lambda *given: given[-1])
    assert ppo_of(run).one_step(Clock(lambda phase: None)) == told  # type: ignore[comparison-overlap]
    assert log[0] == "retraining before 3" and log[1].startswith("before step 4") and log[2] == "step"


def test_a_checkpoint_of_another_version_is_refused(make_run: MakeRun) -> None:
    run = ppo_of(make_run()[0])
    state = run.state.state_dict()
    del state["value_scale"]
    with pytest.raises(CheckpointError, match="lacks value_scale: another version"):
        run.state.load_state_dict(state)


def test_a_checkpoint_without_the_position_in_the_texts_is_refused(make_run: MakeRun) -> None:
    state = ppo_of(make_run()[0]).state
    without = state.state_dict()
    state.ptx = Source()  # type: ignore[assignment]
    with pytest.raises(CheckpointError, match="lacks ptx"):
        state.load_state_dict(without)
    state.load_state_dict({**without, "ptx": {"drawn": 7}})
    assert state.state_dict()["ptx"] == {"drawn": 7}


def test_engines_that_share_their_gpus_rest_while_a_checkpoint_wakes_the_optimizers(make_run: MakeRun) -> None:
    run, log = make_run(step=3)
    sleep(run, True)
    run.save()
    assert log.index("reward.sleep(True,)") < next(n for n, line in enumerate(log) if "save_state" in line)


def test_a_checkpoint_with_the_fingerprint_of_another_version_is_refused_as_such(make_run: MakeRun) -> None:
    run, _ = make_run(step=3)
    ppo_of(run).reference = "0" * 64
    run.writer.write(run.stage.state_dict())
    again, _ = make_run()
    with pytest.raises(CheckpointError, match="cannot read: another version of Tetrarch"):
        again.restore(run.checkpoints.newest())


@pytest.mark.parametrize(
    ("kl", "tokens", "told"),
    [
        (9.0, 50.0, ""),
        (11.0, 50.0, "kl in step 3: objective/kl_per_token 0.22, above 0.2. The policy is far from the reference"),
        (190.0, 1000.0, ""),
        (210.0, 1000.0, "kl in step 3: objective/kl_per_token 0.21, above 0.2"),
        (1.7, 8.0, "kl in step 3: objective/kl_per_token 0.212, above 0.2"),
    ],
)
def test_a_policy_that_drifts_is_told_for_the_length_of_its_responses(
    kl: float, tokens: float, told: str, make_run: MakeRun
) -> None:
    run, log = make_run(step=3)
    run._heed(kl_of(kl, tokens))
    assert (len(log), "".join(log).startswith(told)) == (bool(told), True)


def budget(run: Run, **said: Any) -> None:
    """Give the run another `ppo.kl.budget`."""
    run.config.ppo = PpoConfig.model_validate({"kl": {"budget": said}})
    watch(ppo_of(run))


@pytest.mark.parametrize("tokens", [50, None])
def test_over_the_budget_the_actor_slows_down(tokens: int | None, make_run: MakeRun) -> None:
    run, log = make_run(step=3)
    budget(run, tokens=tokens, warn=None, slow_down=12, factor=0.25)
    run._heed(kl_of(11.0))
    assert log == []
    run._heed(kl_of(13.0))
    assert log == ["actor.slow_down(0.25,)", "KL 13.0 in step 3: the actor's learning rate is times 0.25"]


def test_the_bound_of_slowing_down_grows_with_the_length(make_run: MakeRun) -> None:
    run, log = make_run(step=3)
    budget(run, warn=None, slow_down=12, factor=0.25)
    run._heed(kl_of(23.0, tokens=100.0))
    assert log == []
    run._heed(kl_of(25.0, tokens=100.0))
    assert log[0] == "actor.slow_down(0.25,)"


def test_a_step_of_the_critic_alone_does_not_slow_the_actor_down(make_run: MakeRun) -> None:
    """In a warm-up, or after a retraining of the reward: the KL is that of weights that the step has not moved, and
    each step until they move would count it again. It is heeded in the step that trains them."""
    run, log = make_run(step=3)
    budget(run, warn=None, slow_down=12, factor=0.25)
    trained = kl_of(13.0)
    alone = {name: value for name, value in trained.metrics.items() if name != "lr/actor"}
    run._heed(StepReport({**alone, "lr/critic": 1e-5}))
    assert log == []
    run._heed(trained)
    assert log[0] == "actor.slow_down(0.25,)"


@pytest.mark.parametrize("tokens", [50, None])
def test_far_over_the_budget_the_run_ends_with_a_checkpoint(tokens: int | None, make_run: MakeRun) -> None:
    run, _ = make_run(step=3)
    budget(run, tokens=tokens, slow_down=12, stop=20)
    with pytest.raises(StopTraining, match=r"ppo\.kl\.budget\.stop in step 3: objective/kl.*\n*A checkpoint is saved"):
        run._heed(kl_of(21.0))
    assert run.checkpoints.newest().step == 3


# When checkpoints are written


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Steps that only count, and take a minute each; the clock is in the list."""
    now = [0.0]

    def one_step(ppo: Ppo, clock: Clock) -> StepReport:
        now[0] += 60.0
        ppo.state.step += 1
        return kl_of(0.0)

    monkeypatch.setattr(orchestrator.stages.ppo.Ppo, "one_step", one_step)
    monkeypatch.setattr(orchestrator.stages.ppo.Ppo, "save_models", lambda ppo: None)
    monkeypatch.setattr(orchestrator.stages.state_writer.time, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize(
    ("settings", "saved"),
    [
        ({"minutes": 3}, [3, 6, 9, 10]),
        ({}, [10]),
        ({"every": 4}, [4, 8, 10]),
        ({"every": 4, "minutes": 3}, [3, 4, 7, 8, 10]),
        ({"minutes": 0}, [10]),
    ],
)
def test_checkpoints_are_due_by_steps_and_by_minutes(
    make_run: MakeRun, counting: list[float], settings: dict[str, Any], saved: list[int]
) -> None:
    run, log = make_run()
    run.config.checkpoint = CheckpointConfig.model_validate(settings)
    run.writer.saved_at = 0.0
    run.all_steps()
    assert [int(line.split()[-1]) for line in log if line.startswith("saving checkpoint")] == saved
    assert len([line for line in log if line.startswith("a checkpoint: 0.0 s, 0.00 GiB; the newest 2")]) == 1


def test_without_a_word_there_is_a_checkpoint_every_quarter_of_an_hour() -> None:
    assert CheckpointConfig().interval_s == 900
    assert CheckpointConfig(every=5).interval_s == CheckpointConfig(minutes=0).interval_s == float("inf")
    assert CheckpointConfig(every=5, minutes=1).interval_s == 60


def test_a_checkpoint_says_with_which_configuration_it_was_written(make_run: MakeRun) -> None:
    run, _ = make_run(step=3)
    run.writer.settings = "seed: 1\n"
    run.save()
    assert run.checkpoints.newest().state["config"] == "seed: 1\n"
