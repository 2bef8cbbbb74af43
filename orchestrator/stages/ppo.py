"""`tetrarch train`: trains a policy with PPO. A RunConfig flows in; trained weights flow out into its `run_dir`.

The steps themselves are in `orchestrator.ppo.step`, checkpoints and reports in `orchestrator.stages.run`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cluster.ranks.role_group import RoleGroup
from cluster.role_table import ACTOR, CRITIC, REWARD
from cluster.runtime.ray_cluster import RayCluster
from orchestrator.config.kl import AdaptiveKl
from orchestrator.config.retraining import RETRAINED
from orchestrator.config.run import RunConfig
from orchestrator.data.demonstrations import PtxSource
from orchestrator.data.ppo_data import PpoData
from orchestrator.data.prompts import PromptSource
from orchestrator.errors import CheckpointError, WeightsDiffer
from orchestrator.groups import canary
from orchestrator.groups.resolved_models import resolve_models
from orchestrator.groups.scoring import Roles, reference_fingerprint
from orchestrator.groups.stage_roles import training_roles
from orchestrator.ppo.kl import make_controller, slow_down_of
from orchestrator.ppo.state import TrainState
from orchestrator.ppo.step import StepResult, expect_steps, step_metrics, train_step
from orchestrator.report.reporter import Reporter
from orchestrator.run.checkpoint import TRAINED, Checkpoint, whole_folder
from orchestrator.run.phase_clock import Clock
from orchestrator.run.resuming import Resume, check_reference
from orchestrator.run.sample_ledger import checked_summary
from orchestrator.run.way_back import WayBack
from orchestrator.stages.alarm import Alarm, alarm_of
from orchestrator.stages.best_models import BestModels
from orchestrator.stages.card_metrics import step_work
from orchestrator.stages.evaluation import asked_heldout, evaluate, of_different_prompts, training_samples
from orchestrator.stages.fresh_labels import fresh_labels
from orchestrator.stages.retraining import Retraining, told
from orchestrator.stages.run_again import carry_through
from orchestrator.stages.stage import Stage, StepReport
from orchestrator.stages.step_samples import told_samples
from orchestrator.stages.win_rate import comparing
from roles.actor import Actor
from roles.batch import Prompts, Rollouts, Scored
from roles.critic import Critic
from roles.reward_trainer import RewardTrainer


def train(config: RunConfig, resume: Resume, data: PpoData) -> None:
    """Run all PPO steps, with evaluations and checkpoints, and save the trained actor in `run_dir/actor`."""
    controller, back = config.ppo.kl.controller, WayBack(config)

    @contextmanager
    def start(report: Reporter) -> Iterator[Stage]:
        report.status("preparing the models")
        models = resolve_models(config, config.model_roles)
        state = TrainState(PromptSource(data.training, config.seed), make_controller(controller))
        state.ptx = PtxSource(data.ptx, config.seed) if data.ptx else None
        questions = asked_heldout(config, data.heldout)
        report.status("starting the roles")
        with (
            alarm_of(config, back, report) as alarm,  # that the run has gone back is on the disk before the roles start
            training_roles(config, models, report.note, report.starting) as roles,
            fresh_labels(config, roles) as labels,
        ):
            gold = BestModels(config.evaluation.stop, Path(config.run_dir)) if config.evaluation.stop else None
            again = Retraining(config, roles, data.training, labels) if labels else None
            fingerprint = reference_fingerprint(roles)
            yield Ppo(config, roles, state, report, questions, fingerprint, alarm, gold=gold, retraining=again)

    targets = {"objective/kl": controller.target} if isinstance(controller, AdaptiveKl) else {}
    told: dict[str, Any] = {"title": "PPO", "data": data.summary.splitlines(), "targets": targets}
    carry_through(config, resume, start, back, steps=config.steps, **told)


@dataclass(slots=True)
class Ppo(Stage):
    """A PPO run in progress."""

    config: RunConfig
    roles: Roles
    state: TrainState
    report: Reporter
    questions: Mapping[str, Prompts]
    """The held-out prompts by the names of their sets, that which compares steps last; none: nothing is evaluated."""
    reference: str
    """The frozen model's fingerprint at the start."""
    alarm: Alarm
    batch: Scored | None = None
    """The scored samples of the current step."""
    gold: BestModels | None = None
    """The best models by their gold score; None: those of the last step are left."""
    retraining: Retraining | None = None
    """How the reward model goes on learning; None: it is frozen."""

    @property
    def cluster(self) -> RayCluster:
        """The cluster of all roles."""
        return self.roles.cluster

    @property
    def steps(self) -> int:
        """Number of PPO steps of the whole run."""
        return self.config.steps

    @property
    def step(self) -> int:
        """Number of PPO steps done."""
        return self.state.step

    @property
    def trained(self) -> Mapping[str, RoleGroup[Any]]:
        """The actor, the critic if there is one, and the reward model if it goes on learning."""
        others = {CRITIC: self.roles.critic, REWARD: self.retraining.group if self.retraining else None}
        return {ACTOR: self.roles.actor} | {role: group for role, group in others.items() if group is not None}

    def state_dict(self) -> dict[str, Any]:
        """The state of `TrainState`, the reference's fingerprint, the alerts' factor, and what the retraining needs."""
        retraining = {"retraining": self.retraining.state_dict()} if self.retraining else {}
        own = {"reference": self.reference, "slowed": self.alarm.slowed}
        return {**self.state.state_dict(), **own, **retraining}

    def load_state(self, checkpoint: Checkpoint) -> None:
        """Restore the state. CheckpointError if the reference has changed."""
        check_reference(checkpoint, self.reference, self.config)
        self.state.load_state_dict(checkpoint.state)
        self.alarm.slowed = checkpoint.state.get("slowed", 1.0)  # older checkpoints have none
        if self.retraining:
            self.retraining.load_state_dict(checkpoint.state["retraining"])
        if self.state.warm_at is not None:  # before the actor's state, whose next learning rate follows from it
            expect_steps(self.roles.actor, self.state.warm_at, self.config)

    def loaded(self) -> None:
        """Send the trained weights to the engines, and find out which evaluations count."""
        told = self.gold.resumed(self.scores, self.step) if self.gold else ""
        if told:
            self.report.note(told)
        if self.state.version:  # at 0 the engines have started with these weights
            self.roles.policy.load(self.roles.actor, version=self.state.version)

    def one_step(self, clock: Clock) -> StepReport:
        """Retrain the reward model if that is due; draw prompts, and train on the policy's responses."""
        rollout, state = self.config.rollout, self.state
        self.alarm.slow_down([self.roles.actor, self.roles.critic])
        retrained = self.retraining.before_step(state, clock) if self.retraining else {}
        if retrained:
            self.report.note(told(retrained, state.step))
        prompts = state.prompts.next(rollout.prompts_per_step, rollout.responses_per_prompt)
        coefficient = state.kl.coefficient
        result = train_step(self.roles, prompts, state, self.config, clock, self._keep)
        self.batch = None
        return self._told(result, clock, coefficient, retrained)

    def _keep(self, scored: Scored) -> None:
        self.batch = scored

    def _told(self, result: StepResult, clock: Clock, coefficient: float, retrained: Mapping[str, float]) -> StepReport:
        batch = result.batch
        metrics = {
            **step_metrics(result),
            "tokens/generated_per_s": float(batch.sampled_tokens.generated.sum()) / clock.seconds["generate"],
            "kl/coefficient": coefficient,
            "weights/version": self.state.version,
            **retrained,
            **self.roles.policy.recovery.drain(),
        }
        each, count = self.config.rollout.responses_per_prompt, self.config.evaluation.samples
        shown = training_samples(batch.some(of_different_prompts(len(batch), count, each)))
        line, write = told_samples(self.config, self.step, result)
        if result.actor is None and result.critic is None:
            self.report.note(f"step {self.step}: nothing was trained, all {len(batch)} responses are cut and masked")
        texts = self.state.ptx.drawn if self.state.ptx else None
        work = step_work(self.config, batch.sampled_tokens, batch.trained_tokens, texts)
        return StepReport(metrics, shown, work, line.to_json(), write, result.failed)

    def check_ledger(self) -> None:
        """Every sample of the run was trained on, or dropped for a reason; every prompt was drawn once in each pass."""
        self.report.note(checked_summary(Path(self.config.run_dir), len(self.state.prompts)))

    def after_step(self, told: StepReport) -> None:
        """Apply `ppo.kl.budget.slow_down`, and heed the alerts."""
        factor = slow_down_of(self.config.ppo.kl.budget, told.metrics)
        if factor is not None:
            self.roles.actor.call(Actor.slow_down, factor).result(self.config.deadlines.update_s)
            kl = told.metrics["objective/kl"]
            self.report.note(f"KL {kl:.1f} in step {self.step}: the actor's learning rate is times {factor:g}")
        self.alarm.after_step(self.step, told.metrics)

    def fallback(self, steps: Sequence[int]) -> Sequence[int]:
        """The newest good checkpoint, if an alert may send the run back to it."""
        return self.alarm.fallback(steps)

    @property
    def evaluate_every(self) -> int:
        """PPO steps between evaluations."""
        return self.config.evaluation.every

    def evaluate(self, label: str) -> None:
        """Measure the policy on all sets of held-out prompts."""
        how, state = self.config.evaluation, self.state
        where: dict[str, Any] = {"step": state.step, "label": label, "how": how}
        for name, prompts in self.questions.items():
            count, of = len(prompts) // how.responses_per_prompt, f" of {name}" if name else ""
            self.report.status(f"evaluating on {count} held-out prompts{of} ({label})")
            unproven = self.config.canary.enabled and state.canary.verified != state.version
            where |= {"compare": comparing(self.config), "check": self._check_weights if unproven else None}
            found = evaluate(self.roles, prompts, state.version, **where)
            self.report.evaluation(replace(found, name=name, decides=name == self.config.deciding_set))
        if self.questions:
            self.alarm.after_evaluation(self.report.evaluations)

    @property
    def evaluated(self) -> bool:
        """Whether there is an evaluation of the current step, or none is due."""
        every = self.evaluate_every
        due = every > 0 and self.step < self.steps and self.step % every == 0
        return not due or any(found.step == self.step for found in self.report.evaluations)

    @property
    def scores(self) -> Mapping[int, float]:
        """Step → score of its evaluation."""
        return {found.step: found.score for found in self.report.evaluations}

    @property
    def best(self) -> int | None:
        """The step of the best evaluation by its gold score; None: the last step."""
        return self.gold.best(self.scores) if self.gold else None

    @property
    def is_best(self) -> bool:
        """Whether the current step has the best evaluation, and its models are not kept yet."""
        return self.gold is not None and self.best == self.step != self.gold.kept

    @property
    def why_end(self) -> str:
        """Apply `evaluation.stop`."""
        return self.gold.why_end(self.scores) if self.gold else ""

    def _check_weights(self, rollouts: Rollouts) -> None:
        """Check the engines' weights, of which no batch has passed the check yet, on rows of an evaluation."""
        seen = canary.seen_of_each(self.roles, rollouts)
        self.state.canary.check(seen, self.state.version, self.config)

    def before_save(self) -> None:
        """Raise CheckpointError if the reference has changed; let the engines sleep, since sleeping optimizer states
        need their room to wake up."""
        now = reference_fingerprint(self.roles)
        if now != self.reference:
            raise CheckpointError(
                f"the reference model has moved ({self.reference} became {now}); its scores mean nothing"
            )
        self.roles.policy.rest()

    def before_rescue(self, error: BaseException) -> None:
        """End the engines that share GPUs. Engines with wrong weights are kept to name the tensors; they sleep
        already."""
        if not isinstance(error, WeightsDiffer):
            self.roles.policy.end()

    def explain(self, error: Exception) -> Exception:
        """For engines with wrong weights: an error that names the tensors that differ."""
        if not isinstance(error, WeightsDiffer):
            return error
        self.report.status("looking for the tensors that differ")
        return WeightsDiffer(f"{error}. {canary.culprits(self.roles, self.config)}")

    def keep_models(self) -> None:
        """Save the models of the current step in `run_dir/best`."""
        assert self.gold is not None
        self.save_models_in(self.gold.folder)

    def save_models(self) -> None:
        """Leave the models of the best evaluation or, without `evaluation.stop`, save those of the last step."""
        if self.gold is None or self.best is None:
            self.save_models_in(Path(self.config.run_dir))
        else:
            self.gold.move_to_run_dir()

    def save_models_in(self, folder: Path) -> None:
        """Save reward model (if it was retrained), critic, mean of the weights and policy, each completely or not at
        all. The policy is last and has the step of its weights: if it is there, everything is."""
        deadline_s = self.config.deadlines.save_s
        if self.retraining:
            with whole_folder(folder / RETRAINED) as partial:
                self.retraining.group.call(RewardTrainer.save_model, str(partial)).result(deadline_s)
        if self.roles.critic:
            scale = self.state.value_scale  # says nothing where the targets are plain
            with whole_folder(folder / CRITIC) as partial:
                self.roles.critic.call(Critic.save_model, str(partial), scale.mean, scale.deviation).result(deadline_s)
        if self.config.actor.ema_decay is not None:
            with whole_folder(folder / "actor_ema") as partial:
                self.roles.actor.call(Actor.save_average, str(partial)).result(deadline_s)
        with whole_folder(folder / ACTOR) as partial:
            self.roles.actor.call(Actor.save_model, str(partial)).result(deadline_s)
            (partial / TRAINED).write_text(json.dumps({"step": self.state.step}) + "\n")
