"""A whole PPO run. A RunConfig flows in; trained weights, metrics and checkpoints flow out into its `run_dir`.
The steps themselves are `orchestrator.ppo.step`'s.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from cluster.errors import ClusterError
from cluster.ranks.calls import become_idle, wait_all, watching
from cluster.runtime.orders import ORDERS, Orders
from orchestrator.config.kl import AdaptiveKl
from orchestrator.config.loading import dump_config
from orchestrator.config.run import RunConfig
from orchestrator.data.prompts import PromptSource, Questions, heldout_prompts
from orchestrator.errors import CheckpointError, KlBudgetSpent, NotFinite, TetrarchError, WeightsDiffer
from orchestrator.groups import canary
from orchestrator.groups.build import resolve_models, training_roles
from orchestrator.groups.scoring import Roles
from orchestrator.groups.spread import spread
from orchestrator.ppo.kl import make_controller
from orchestrator.ppo.step import StepResult, TrainState, expect_steps, step_metrics, train_step
from orchestrator.report.reporter import Reporter
from orchestrator.run.checkpoint import TRAINED, Checkpoint, Checkpoints, size_gib, whole_folder
from orchestrator.run.phase_clock import Clock
from orchestrator.run.resuming import Resume, check_reference, checkpoint_to_resume, take_up
from orchestrator.stages.card_metrics import card_metrics, step_work
from orchestrator.stages.evaluation import evaluate, training_samples
from roles.actor import Actor
from roles.batch import Prompts, Rollouts, save_batch
from roles.critic import Critic
from roles.reference import FrozenPolicy

FAILED = "failed"
"""Where in `run_dir` the batches of failed steps go."""
RESCUE_S = 30.0
"""For actor and critic to end what they were doing when another role failed."""


def train(config: RunConfig, resume: Resume, training: Questions, heldout: Questions | None) -> None:
    """Run all PPO steps, with evaluations and checkpoints, and leave the trained actor in `run_dir/actor`.

    Args:
        training: the prompts to train on.
        heldout: those to evaluate on; None for no evaluations.
    """
    run_dir = Path(config.run_dir)
    checkpoints = Checkpoints(run_dir / "checkpoints", config.checkpoint.keep)
    checkpoint = checkpoint_to_resume(config, resume)
    ORDERS.listen()
    ORDERS.grace_s = config.deadlines.grace_s
    told = take_up(run_dir, checkpoint, config, resume) if checkpoint else []
    controller, settings = config.ppo.kl.controller, dump_config(config)
    report = Reporter(
        run_dir,
        name=run_dir.name,
        steps=config.steps,
        config_yaml=settings,
        tensorboard=config.report.tensorboard,
        html=config.report.html,
        resume_step=checkpoint.step if checkpoint else 0,
        targets={"objective/kl": controller.target} if isinstance(controller, AdaptiveKl) else {},
    )
    with report:
        for line in told:
            report.note(line)
        report.status("preparing the models")
        models = resolve_models(config, config.model_roles)
        state = TrainState(PromptSource(training, config.seed), make_controller(controller))
        questions = heldout_prompts(heldout, config.evaluation.prompts, config.seed) if heldout else None
        report.status("starting the roles")
        with training_roles(config, models) as roles:
            run = Run(config, roles, state, checkpoints, report, questions, settings=settings)
            if checkpoint is not None:
                run.restore(checkpoint)
            run.all_steps()


@dataclass(slots=True)
class Run:
    """One training run under way: the steps, and between them evaluations, checkpoints and reports."""

    config: RunConfig
    roles: Roles
    state: TrainState
    checkpoints: Checkpoints
    report: Reporter
    questions: Prompts | None
    """The held-out prompts."""
    reference: str = ""
    """The frozen model's fingerprint at the start."""
    settings: str = ""
    """The configuration as YAML, without secrets: what each checkpoint is written with."""
    orders: Orders = ORDERS
    finished: dict[str, Any] | None = None
    """The driver's state that actor and critic are in; None while they are updated."""
    saved_at: float = field(default_factory=time.monotonic)
    cost_told: bool = False

    def all_steps(self) -> None:
        """From the current step to the last; then save the actor. Ctrl-C and SIGTERM save what is trained, and end."""
        try:
            self._all_steps()
        except KeyboardInterrupt:
            self._rescue()
            raise

    def _all_steps(self) -> None:
        config, state = self.config, self.state
        if state.step == 0:
            self._evaluate("before")
        self.reference = self._reference_fingerprint()
        while state.step < config.steps:
            self._heed(self._one_step())
            last = state.step == config.steps
            if last or self._due():
                self.save()
            self.orders.release()
            if not last and config.evaluation.every and state.step % config.evaluation.every == 0:
                self._evaluate(f"step {state.step}")
        self._evaluate("after")
        self._save_models()

    def _due(self) -> bool:
        """Whether a checkpoint is due after the step that has ended."""
        config = self.config.checkpoint
        by_step = config.every > 0 and self.state.step % config.every == 0
        return by_step or time.monotonic() - self.saved_at >= config.interval_s

    def _save_models(self) -> None:
        """Critic, mean of the weights, policy: each whole or not at all. The policy is last, with the step that it is
        of: whoever finds it finds everything."""
        run_dir, deadline_s = Path(self.config.run_dir), self.config.deadlines.save_s
        self.report.status("saving the models")
        if self.roles.critic:
            scale = self.state.value_scale  # says nothing where the targets are plain
            with whole_folder(run_dir / "critic") as folder:
                self.roles.critic.call(Critic.save_model, str(folder), scale.mean, scale.deviation).result(deadline_s)
        if self.config.actor.ema_decay is not None:
            with whole_folder(run_dir / "actor_ema") as folder:
                self.roles.actor.call(Actor.save_average, str(folder)).result(deadline_s)
        with whole_folder(run_dir / "actor") as folder:
            self.roles.actor.call(Actor.save_model, str(folder)).result(deadline_s)
            (folder / TRAINED).write_text(json.dumps({"step": self.state.step}) + "\n")
        self.report.note(f"most host memory in use: {self.roles.cluster.usage().host_peak:.1f} GiB")

    def save(self) -> None:
        """One checkpoint of everything that changes."""
        self.report.status(f"saving checkpoint {self.state.step}")
        now = self._reference_fingerprint()
        if now != self.reference:
            raise CheckpointError(
                f"the reference model has moved ({self.reference} became {now}); its scores mean nothing"
            )
        self.roles.policy.rest()  # optimizer states that sleep need the room to wake up in
        self._write_checkpoint(self.state.state_dict())

    def _write_checkpoint(self, state: dict[str, Any]) -> Path:
        """The driver's `state`, and that of actor and critic as they are. What the first one costs is told."""
        began, deadline_s = time.monotonic(), min(self.config.deadlines.save_s, self.orders.left_s)

        def write(folder: Path) -> None:
            calls = [self.roles.actor.call(Actor.save_state, str(folder / "actor"))]
            if self.roles.critic:
                calls.append(self.roles.critic.call(Critic.save_state, str(folder / "critic")))
            wait_all(calls, deadline_s)

        whole = {**state, "reference": self.reference, "config": self.settings}
        path = self.checkpoints.save(state["step"], whole, write)
        self.saved_at = time.monotonic()
        if not self.cost_told:
            seconds, kept = self.saved_at - began, self.checkpoints.keep
            self.report.note(f"a checkpoint: {seconds:.1f} s, {size_gib(path):.2f} GiB; the newest {kept} are kept")
            self.cost_told = True
        return path

    def _rescue(self, *, engines_rest: bool = False) -> None:
        """Before the run ends early: save the last finished step, if actor and critic are still in that state and can
        do it. Engines that share their cards are ended, if they do not rest already."""
        state, newest = self.finished, self.checkpoints.newest()
        if state is None or not self.orders.left_s or state["step"] == (newest.step if newest else 0):
            return
        trained = [*self.roles.actor.ranks, *(self.roles.critic.ranks if self.roles.critic else ())]
        self.report.status(f"saving checkpoint {state['step']} before the run ends")
        if not engines_rest:  # else as in `save`
            self.roles.policy.end()
        with watching(trained):
            try:
                if become_idle(trained, min(RESCUE_S, self.orders.left_s)):
                    self.report.note(f"saved {self._write_checkpoint(state)}; go on from there with --resume")
                else:
                    self.report.note(f"step {state['step']} could not be saved: a rank of actor or critic hangs")
            except (ClusterError, OSError) as error:
                self.report.note(f"step {state['step']} could not be saved: {error}")

    def _keep_batch(self) -> None:
        """What the step that failed was about to be trained on, for whoever looks for the reason."""
        if self.state.batch is None:
            return
        file = Path(self.config.run_dir) / FAILED / f"step-{self.state.step + 1:06d}.safetensors"
        try:
            save_batch(self.state.batch, file)
        except (OSError, SafetensorError) as error:  # what the step failed of is the one to raise
            return self.report.note(f"the batch of the step that failed could not be written to {file}: {error}")
        self.report.note(f"the batch of the step that failed is in {file} (texts: {file.with_suffix('.json').name})")

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from `checkpoint`: driver, actor, critic and engines."""
        self.report.status(f"resuming from {checkpoint.path}")
        check_reference(checkpoint, self._reference_fingerprint(), self.config)
        self.state.load_state_dict(checkpoint.state)
        if self.state.warm_at is not None:  # before the state, whose next learning rate follows from it
            expect_steps(self.roles, self.state, self.config)
        calls = [self.roles.actor.call(Actor.load_state, str(checkpoint.path / "actor"))]
        if self.roles.critic:
            calls.append(self.roles.critic.call(Critic.load_state, str(checkpoint.path / "critic")))
        wait_all(calls, self.config.deadlines.start_s)
        if self.state.version:  # at 0 the engines have started with these weights
            self.roles.policy.load(self.roles.actor, version=self.state.version)

    def _heed(self, kl: float) -> None:
        """What `ppo.kl.budget` says of a batch whose KL is so many nats a response."""
        budget, far = self.config.ppo.kl.budget, f"KL {kl:.1f} nats a response in step {self.state.step}"
        if budget.stop is not None and kl > budget.stop:
            self.save()
            raise KlBudgetSpent(
                f"{far} is over ppo.kl.budget.stop={budget.stop:g}; a checkpoint is saved. Go on from an earlier one "
                "(--resume-from STEP) with a lower learning rate or a larger KL coefficient"
            )
        if budget.slow_down is not None and kl > budget.slow_down:
            self.roles.actor.call(Actor.slow_down, budget.factor).result(self.config.deadlines.update_s)
            self.report.note(f"{far}: the actor's learning rate is multiplied by {budget.factor:g}")
        elif budget.warn is not None and kl > budget.warn:
            self.report.note(f"{far} is far from the reference")

    def _one_step(self) -> float:
        """Its KL, in nats a response."""
        config, state = self.config, self.state
        rollout = config.rollout
        clock = Clock(self._begin)
        step, self.finished = state.step + 1, state.state_dict()
        prompts = state.prompts.next(rollout.prompts_per_step, rollout.responses_per_prompt)
        coefficient = state.kl.coefficient
        try:
            result = train_step(self.roles, prompts, state, config, clock)
        except WeightsDiffer as error:
            self._keep_batch()
            raise self._without_engines(error) from error
        except NotFinite as error:
            self._keep_batch()
            if error.role in ("reward", "reference"):  # the others' state is not worth keeping
                self._rescue()
            raise NotFinite(error.role, f"in step {step} {error}") from error
        except (ClusterError, TetrarchError):
            self.report.note(f"step {step} has failed")
            self._keep_batch()
            self._rescue()
            raise
        self.finished = state.state_dict()
        return self._report_step(result, clock, coefficient)

    def _report_step(self, result: StepResult, clock: Clock, coefficient: float) -> float:
        state, usage = self.state, self.roles.cluster.usage()
        seconds = clock.metrics(usage.busy)
        metrics = {
            **step_metrics(result),
            **seconds,
            **card_metrics(usage.ranks, clock, step_work(self.config, result.scored)),
            "tokens/generated_per_s": float(result.scored.response_mask.sum()) / seconds["time/generate_s"],
            "memory/host_peak_gib": usage.host_peak,
            "kl/coefficient": coefficient,
            "weights/version": state.version,
        }
        self.report.step(state.step, metrics, training_samples(result.scored, self.config.evaluation.samples))
        return result.experience.kl

    def _begin(self, phase: str) -> None:
        """A part of the step begins. From the update on only the whole step can be saved, and orders to end wait."""
        if phase == "update":
            self.orders.hold()
            self.finished = None
        self.report.phase(phase)

    def _evaluate(self, label: str) -> None:
        if self.questions is None:
            return
        self.report.status(f"evaluating on {len(self.questions)} held-out prompts ({label})")
        samples, state = self.config.evaluation.samples, self.state
        where: dict[str, Any] = {"step": state.step, "label": label, "samples": samples, "check": self._check_weights}
        try:
            self.report.evaluation(evaluate(self.roles, self.questions, state.version, **where))
        except ClusterError:
            self._rescue()
            raise
        except WeightsDiffer as error:
            self.finished = state.state_dict()
            raise self._without_engines(error) from error

    def _without_engines(self, error: WeightsDiffer) -> WeightsDiffer:
        """What to raise: `error` and the tensors that differ. What was trained is saved."""
        self._rescue(engines_rest=True)
        self.report.status("looking for the tensors that differ")
        return WeightsDiffer(f"{error}. {canary.culprits(self.roles, self.config)}")

    def _check_weights(self, rollouts: Rollouts) -> None:
        """Look at rows sampled for an evaluation, if no batch has shown yet that the engines' weights are right."""
        state, few = self.state, rollouts.select(range(min(canary.ROWS, len(rollouts))))
        if state.canary.verified != state.version and self.config.canary.enabled:
            logprobs = spread(self.roles.actor, Actor.logprobs, few).result(self.config.deadlines.score_s)
            state.canary.check(few, logprobs, state.version, self.config)

    def _reference_fingerprint(self) -> str:
        return self.roles.reference.call(FrozenPolicy.reference_fingerprint).result(self.config.deadlines.score_s)[0]
