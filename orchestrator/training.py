"""A whole PPO run. A RunConfig flows in; trained weights, metrics and checkpoints flow out into its `run_dir`.

The steps themselves are `orchestrator.ppo`'s. Called by `orchestrator.cli`.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.calls import become_idle, wait_all, watching
from cluster.errors import ClusterError
from orchestrator import canary
from orchestrator.build import resolve_models, training_roles
from orchestrator.card_metrics import StepWork, card_metrics
from orchestrator.checkpoint import TRAINED, Checkpoint, Checkpoints, whole_folder
from orchestrator.config import RunConfig
from orchestrator.errors import CheckpointError, KlBudgetSpent, NotFinite, WeightsDiffer
from orchestrator.evaluation import evaluate, training_samples
from orchestrator.groups import Roles, spread
from orchestrator.kl import make_controller
from orchestrator.loading import dump_config
from orchestrator.model_sources import UnknownModel
from orchestrator.planning import role_sizes
from orchestrator.ppo import StepResult, TrainState, expect_steps, step_metrics, train_step
from orchestrator.ppo_config import AdaptiveKl
from orchestrator.prompts import PromptSource, Questions, heldout_prompts
from orchestrator.report import Reporter
from orchestrator.timing import Clock
from roles.actor import Actor
from roles.batch import Prompts, Rollouts, save_batch
from roles.critic import Critic
from roles.digest import VERSION
from roles.reference import FrozenPolicy

FAILED = "failed"
"""Where in `run_dir` the batches of failed steps go."""
RESCUE_S = 30.0
"""For actor and critic to end what they were doing when another role failed."""


def train(config: RunConfig, resume: bool, training: Questions, heldout: Questions | None) -> None:
    """Run all PPO steps, with evaluations and checkpoints, and leave the trained actor in `run_dir/actor`.

    Args:
        training: the prompts to train on.
        heldout: those to evaluate on; None for no evaluations.
    """
    run_dir = Path(config.run_dir)
    checkpoints = Checkpoints(run_dir / "checkpoints", config.checkpoint.keep)
    checkpoint = checkpoints.require_newest() if resume else None
    controller = config.ppo.kl.controller
    report = Reporter(
        run_dir,
        name=run_dir.name,
        steps=config.steps,
        config_yaml=dump_config(config),
        tensorboard=config.report.tensorboard,
        html=config.report.html,
        resume_step=checkpoint.step if checkpoint else 0,
        kl_target=controller.target if isinstance(controller, AdaptiveKl) else None,
    )
    with report:
        report.status("preparing the models")
        models = resolve_models(config, config.model_roles)
        state = TrainState(PromptSource(training, config.seed), make_controller(controller))
        questions = heldout_prompts(heldout, config.evaluation.prompts, config.seed) if heldout else None
        report.status("starting the roles")
        with training_roles(config, models) as roles:
            run = Run(config, roles, state, checkpoints, report, questions)
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

    def all_steps(self) -> None:
        """From the current step to the last; then save the actor."""
        config, state = self.config, self.state
        if state.step == 0:
            self._evaluate("before")
        self.reference = self._reference_fingerprint()
        while state.step < config.steps:
            self._heed(self._one_step())
            last = state.step == config.steps
            if last or (config.checkpoint.every and state.step % config.checkpoint.every == 0):
                self.save()
            if not last and config.evaluation.every and state.step % config.evaluation.every == 0:
                self._evaluate(f"step {state.step}")
        self._evaluate("after")
        self._save_models()

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
        """The driver's `state`, and that of actor and critic as they are."""

        def write(folder: Path) -> None:
            calls = [self.roles.actor.call(Actor.save_state, str(folder / "actor"))]
            if self.roles.critic:
                calls.append(self.roles.critic.call(Critic.save_state, str(folder / "critic")))
            wait_all(calls, self.config.deadlines.save_s)

        return self.checkpoints.save(state["step"], {**state, "reference": self.reference}, write)

    def _rescue(self, state: dict[str, Any]) -> None:
        """After a failure of other roles: save what was trained up to `state`, if actor and critic can still do it."""
        newest = self.checkpoints.newest()
        if state["step"] == (newest.step if newest else 0):
            return
        trained = [*self.roles.actor.ranks, *(self.roles.critic.ranks if self.roles.critic else ())]
        self.report.status(f"saving checkpoint {state['step']} before the run ends")
        with watching(trained):
            try:
                if become_idle(trained, RESCUE_S):
                    self.report.note(f"saved {self._write_checkpoint(state)}; go on from there with --resume")
                else:
                    self.report.note(f"step {state['step']} could not be saved: a rank of actor or critic hangs")
            except ClusterError as error:
                self.report.note(f"step {state['step']} could not be saved: {error}")

    def _keep_batch(self) -> None:
        """What the step that failed was about to be trained on, for whoever looks for the reason."""
        if self.state.batch is None:
            return
        file = Path(self.config.run_dir) / FAILED / f"step-{self.state.step + 1:06d}.safetensors"
        save_batch(self.state.batch, file)
        self.report.note(f"the batch of the step that failed is in {file} (texts: {file.with_suffix('.json').name})")

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from `checkpoint`: driver, actor, critic and engines."""
        self.report.status(f"resuming from {checkpoint.path}")
        fingerprint = self._reference_fingerprint()
        if fingerprint != checkpoint.state["reference"]:
            if not str(checkpoint.state["reference"]).startswith(f"{VERSION}-"):
                raise CheckpointError(
                    f"{checkpoint.path} holds a fingerprint of the reference that this version cannot read: another "
                    "version of Tetrarch has written it; resume with that one, or start anew in another run_dir"
                )
            raise CheckpointError(
                f"{checkpoint.path} was trained against the reference {checkpoint.state['reference']}, "
                f"but {self.config.reference.model or self.config.actor.model} is {fingerprint}; use the same one"
            )
        calls = [self.roles.actor.call(Actor.load_state, str(checkpoint.path / "actor"))]
        if self.roles.critic:
            calls.append(self.roles.critic.call(Critic.load_state, str(checkpoint.path / "critic")))
        wait_all(calls, self.config.deadlines.start_s)
        self.state.load_state_dict(checkpoint.state)
        if self.state.warm_at is not None:
            expect_steps(self.roles, self.state, self.config)
        if self.state.version:  # at 0 the engines have started with these weights
            self.roles.policy.load(self.roles.actor, version=self.state.version)

    def _heed(self, kl: float) -> None:
        """What `ppo.kl.budget` says of a batch whose KL is so many nats a response."""
        budget, far = self.config.ppo.kl.budget, f"KL {kl:.1f} nats a response in step {self.state.step}"
        if budget.stop is not None and kl > budget.stop:
            self.save()
            raise KlBudgetSpent(
                f"{far} is over ppo.kl.budget.stop={budget.stop:g}; a checkpoint is saved. Resume from an earlier one "
                "with a lower learning rate or a larger KL coefficient"
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
        clock = Clock(self.report.phase)
        before = state.state_dict()
        prompts = state.prompts.next(rollout.prompts_per_step, rollout.responses_per_prompt)
        coefficient = state.kl.coefficient
        try:
            result = train_step(self.roles, prompts, state, config, clock)
        except ClusterError:
            self.report.note(f"step {before['step'] + 1} has failed")
            self._keep_batch()
            if "update" not in clock.seconds:  # actor and critic are as they were
                self._rescue(before)
            raise
        except WeightsDiffer as error:
            self._keep_batch()
            raise self._without_engines(error, before) from error
        except NotFinite as error:
            self._keep_batch()
            if error.role in ("reward", "reference"):  # the others' state is not worth keeping
                self._rescue(before)
            raise NotFinite(error.role, f"in step {before['step'] + 1} {error}") from error
        usage = self.roles.cluster.usage()
        seconds = clock.metrics(usage.busy)
        metrics = {
            **step_metrics(result),
            **seconds,
            **card_metrics(usage.ranks, clock, self._work(result)),
            "tokens/generated_per_s": float(result.scored.response_mask.sum()) / seconds["time/generate_s"],
            "memory/host_peak_gib": usage.host_peak,
            "kl/coefficient": coefficient,
            "weights/version": state.version,
        }
        self.report.step(state.step, metrics, training_samples(result.scored, config.evaluation.samples))
        return result.experience.kl

    def _work(self, result: StepResult) -> StepWork | None:
        """What the roles have computed; None without GPUs, or where a model's size is not known."""
        if self.config.device == "cpu":
            return None
        scored = result.scored
        with suppress(UnknownModel):
            return StepWork(
                role_sizes(self.config),
                samples=len(scored),
                tokens=float(scored.lengths.float().mean()),
                scored=float(scored.response_mask.sum()) / len(scored),
                epochs=self.config.ppo.epochs,
            )
        return None

    def _evaluate(self, label: str) -> None:
        if self.questions is None:
            return
        self.report.status(f"evaluating on {len(self.questions)} held-out prompts ({label})")
        samples, state = self.config.evaluation.samples, self.state
        where: dict[str, Any] = {"step": state.step, "label": label, "samples": samples, "check": self._check_weights}
        try:
            self.report.evaluation(evaluate(self.roles, self.questions, state.version, **where))
        except WeightsDiffer as error:
            raise self._without_engines(error, state.state_dict()) from error

    def _without_engines(self, error: WeightsDiffer, state: dict[str, Any]) -> WeightsDiffer:
        """What to raise, now that the engines' weights are not the actor's: `error` and the tensors that differ. What
        was trained up to `state` is saved."""
        self._rescue(state)
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
