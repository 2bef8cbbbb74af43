"""PPO between its steps: resuming, and what is saved when a role fails. Groups are fakes, checkpoints are real."""

from __future__ import annotations

import json
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
from cluster.config import Deadlines
from cluster.errors import RankFailure, Terminated
from cluster.ranks.usage import Usage
from cluster.runtime.orders import Orders
from orchestrator.config.alerts import AlertsConfig
from orchestrator.config.canary import CanaryConfig
from orchestrator.config.checkpoint import CheckpointConfig
from orchestrator.config.evaluation import EvaluationConfig
from orchestrator.config.ppo import PpoConfig
from orchestrator.config.report import ReportConfig
from orchestrator.errors import CheckpointError, NotFinite, StopTraining, TetrarchError, WeightsDiffer
from orchestrator.groups import canary
from orchestrator.groups.reward import Member
from orchestrator.groups.scoring import Policy
from orchestrator.ppo.kl import AdaptiveController, FixedController
from orchestrator.ppo.step import TrainState
from orchestrator.run.checkpoint import Checkpoints
from orchestrator.run.phase_clock import Clock
from orchestrator.run.way_back import WayBack
from orchestrator.stages.alarm import Alarm
from orchestrator.stages.ppo import Ppo
from orchestrator.stages.retraining import Retraining
from orchestrator.stages.run import Run
from orchestrator.stages.stage import StepReport
from roles.config.rollout import RolloutConfig
from tests.unit.orchestrator.fakes import FakeGroup, prompts_of, rollouts_of, write_waits
from tests.unit.orchestrator.ppo.test_experience import make_scored

NOBODY: Any = None
"""What a fake reference answers for its fingerprint."""

MakeRun = Callable[..., tuple[Run, list[str]]]


def ppo_of(run: Run) -> Ppo:
    assert isinstance(run.stage, Ppo)
    return run.stage


class Source:
    """Prompts with a cursor."""

    def __len__(self) -> int:
        return 1

    drawn = 0

    def next(self, prompts: int, responses_per_prompt: int) -> Any:
        self.drawn += 1
        return prompts_of(prompts)

    def state_dict(self) -> dict[str, Any]:
        return {"drawn": self.drawn}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.drawn = state["drawn"]


@pytest.fixture
def make_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeRun:
    log: list[str] = []
    for module in (orchestrator.stages.run, orchestrator.stages.state_writer):
        monkeypatch.setattr(module, "wait_all", write_waits(log))
    monkeypatch.setattr(orchestrator.stages.run, "become_idle", lambda ranks, within_s: log.append("idle?") is None)

    def make(**state: int) -> tuple[Run, list[str]]:
        groups: Any = {role: FakeGroup(role, log) for role in ("actor", "critic", "reward", "reference")}
        cluster = SimpleNamespace(usage=lambda: Usage([], 1.0, []))
        policy = Policy(groups["reward"], Deadlines())
        roles: Any = SimpleNamespace(policy=policy, judge=None, cluster=cluster, deadlines=Deadlines(), **groups)
        rollout = SimpleNamespace(prompts_per_step=4, responses_per_prompt=1)
        settings: Any = {"rollout": rollout, "ppo": PpoConfig(), "deadlines": Deadlines(), "steps": 10}
        settings |= {"checkpoint": CheckpointConfig(), "evaluation": EvaluationConfig(), "alerts": AlertsConfig()}
        config: Any = SimpleNamespace(**settings, run_dir=str(tmp_path), folder_key="run_dir", profile=None)
        config.report, config.deciding_set = ReportConfig(), ""
        config.canary = CanaryConfig(enabled=False)
        config.actor_steps = lambda warm_at: 10 - warm_at
        report: Any = SimpleNamespace(status=log.append, note=log.append, phase=log.append, step=lambda *told: None)
        report.timeline = lambda part: None
        report.sync = report.check = report.complete = lambda: None
        report.leaves = lambda best, ended: None
        train_state = TrainState(Source(), FixedController(0.1), **state)  # type: ignore[arg-type]
        ppo = Ppo(config, roles, train_state, report, {}, NOBODY, NOBODY)
        watch(ppo)
        run = Run(config, ppo, Checkpoints(tmp_path, keep=2), report, orders=Orders())
        run.orders.grace_s = 30.0
        return run, log

    return make


def watch(ppo: Ppo) -> None:
    """Let the alerts be those of the configuration as it is now; the log has what they tell."""
    ppo.alarm = Alarm(ppo.config, WayBack(ppo.config), [lambda alert: ppo.report.note(str(alert))])


def sleep(run: Run, sleeps: bool) -> None:
    """Whether the engines share their GPUs."""
    ppo = ppo_of(run)
    changed: Any = {**vars(ppo.roles), "policy": replace(ppo.roles.policy, sleeps=sleeps)}
    ppo.roles = SimpleNamespace(**changed)  # type: ignore[assignment]


def kl_of(kl: float, tokens: float = 50.0) -> StepReport:
    """A step with that KL, in nats per response of so many tokens."""
    return StepReport({"objective/kl": kl, "objective/kl_per_token": kl / tokens, "response/length_mean": tokens})


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


def test_a_checkpoint_with_the_fingerprint_of_another_version_is_refused_as_such(make_run: MakeRun) -> None:
    run, _ = make_run(step=3)
    ppo_of(run).reference = "0" * 64
    run.writer.write(run.stage.state_dict())
    again, _ = make_run()
    with pytest.raises(CheckpointError, match="cannot read: another version of Tetrarch"):
        again.restore(run.checkpoints.newest())


def test_an_actor_that_hangs_is_told(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    run, log = make_run(step=3)
    monkeypatch.setattr(orchestrator.stages.ppo, "train_step", failing("score", DEATH))
    monkeypatch.setattr(orchestrator.stages.run, "become_idle", lambda ranks, within_s: False)
    with pytest.raises(RankFailure):
        run._one_step()
    assert log[-1] == "step 3 could not be saved: a rank of actor or critic hangs"


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


def test_a_checkpoint_says_with_which_configuration_it_was_written(make_run: MakeRun) -> None:
    run, _ = make_run(step=3)
    run.writer.settings = "seed: 1\n"
    run.save()
    assert run.checkpoints.newest().state["config"] == "seed: 1\n"
