"""`tetrarch replay --role`: the update of actor or critic in one step, computed again by that role alone.

A run, a step and a role flow in. The role starts from the checkpoint before the step and learns from the samples that
the run has kept of it (`samples/step-N.parquet`, with the columns of `TRAINED_ON`); what differs flows out. The run is
only read; nothing is generated or scored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cluster.ranks.calls import Call
from cluster.ranks.role_group import RoleGroup
from cluster.role_table import ACTOR, CRITIC
from orchestrator.config.loading import load_root
from orchestrator.config.report import TokenColumn
from orchestrator.config.roots import ROOTS
from orchestrator.config.run import RunConfig
from orchestrator.data.demonstrations import PtxSource, read_ptx
from orchestrator.errors import ConfigError
from orchestrator.groups.build import builder
from orchestrator.groups.recovery import TellUser
from orchestrator.groups.resolved_models import resolve_models
from orchestrator.ppo.kl import make_controller, slow_down_of
from orchestrator.ppo.mini_batches import schedule_of, share_out
from orchestrator.ppo.own_batch import start_actor_update
from orchestrator.ppo.step import expect_steps
from orchestrator.report import run_files
from orchestrator.run.checkpoint import Checkpoint
from orchestrator.run.run_difference import RunDifference, update_difference
from orchestrator.run.sample_ledger import NO_SPREAD, TRUNCATED
from orchestrator.stages.replay import checkpoint_before, replayed_settings
from orchestrator.stages.resume_proof import clear
from orchestrator.stages.stage import Trainable
from roles.actor import Actor
from roles.critic import Critic
from roles.measured import measured
from roles.shares import ActorExperience, CriticExperience
from roles.zero.trained_rank import TrainedRank

TRAINED_ON: Mapping[str, tuple[TokenColumn, ...]] = {
    ACTOR: ("old_logprobs", "rollout_logprobs", "reference_logprobs", "advantages"),
    CRITIC: ("values", "returns"),
}
"""Role → the columns of `report.samples.token_columns` that its update reads, beside `token_ids`."""


def update_replayed(
    run_dir: Path, step: int, role: str, folder: Path, overrides: Sequence[str], tell: TellUser
) -> RunDifference:
    """Compute the update of `role` in `step` again in `folder`, which is replaced, and compare its metrics and state.
    ConfigError if the run has no such role, or has kept neither the checkpoint before the step nor its samples with the
    columns that the role learns from. `tell`: as in `Builder`.
    """
    before = checkpoint_before(run_dir, step)
    metrics = _metrics(run_dir, step, role)
    experience = recorded_experience(run_files.samples_of(run_dir, step), role)
    log = folder.with_name(f"{folder.name}.log")
    clear(folder, log)
    log.touch()
    folder.mkdir()
    config = load_root(ROOTS["train"], replayed_settings(run_dir, overrides, folder), [f"run_dir={folder}"])
    assert isinstance(config, RunConfig)
    computed, hashes = _updated(config, before, experience, _slowed(run_dir, before), metrics, folder / role, tell)
    return update_difference(run_dir, step, role, (metrics, computed), folder, hashes)


def recorded_experience(file: Path, role: str) -> ActorExperience | CriticExperience:
    """What `role` was trained on in a step, bit for bit, from the file with the step's samples; numbers that its loss
    does not read are there too. ConfigError if it lacks what the role learns from."""
    from pyarrow import parquet

    needed = ("token_ids", *TRAINED_ON[role])
    if not file.is_file():
        raise ConfigError(f"{file} is not there, from which the {role} would learn; {_mend(needed)}")
    with run_files.reading(file):
        table = parquet.ParquetFile(file).read()
    if missing := [name for name in needed if name not in table.column_names]:
        raise ConfigError(f"{file} has no column {', '.join(missing)}; {_mend(needed)}")
    with run_files.reading(file):
        columns = table.filter([reason != NO_SPREAD for reason in table["dropped"].to_pylist()]).to_pydict()
        prompts = columns["prompt_token_ids"]
        rows = [[*prompt, *rest] for prompt, rest in zip(prompts, columns["token_ids"], strict=True)]
        lengths = [len(row) for row in rows]
        width = max(lengths)

        def padded(values: Sequence[Sequence[Any]], dtype: torch.dtype) -> Tensor:
            return torch.tensor([[*row, *[0] * (width - len(row))] for row in values], dtype=dtype)

        def after_prompt(name: str, dtype: torch.dtype) -> Tensor:
            whole = [[0] * len(prompt) + list(own) for prompt, own in zip(prompts, columns[name], strict=True)]
            return padded(whole, dtype)

        learned = torch.tensor([reason != TRUNCATED for reason in columns["dropped"]]).unsqueeze(1)
        mask = after_prompt("generated", torch.bool) & learned
        tokens = padded(rows, torch.int64), torch.tensor(lengths), mask, torch.arange(len(rows))
        numbers = {name: after_prompt(name, torch.float32) * mask for name in TRAINED_ON[role]}
        return ActorExperience(*tokens, **numbers) if role == ACTOR else CriticExperience(*tokens, **numbers)


def _mend(needed: Sequence[str]) -> str:
    return f"set report.samples.token_columns: [{', '.join(needed)}] in the next run, or replay with all roles"


def _metrics(run_dir: Path, step: int, role: str) -> Mapping[str, Any]:
    """The run's metrics of a step. ConfigError if `role` was not trained in it."""
    lines = [line for line in run_files.read_lines(run_dir / run_files.METRICS_FILE) if line["step"] == step]
    if not lines:
        raise ConfigError(f"{run_dir} has no metrics of step {step}; choose a step that it has done")
    trained = [name for name in TRAINED_ON if f"lr/{name}" in lines[-1]]
    if not trained:
        raise ConfigError(f"nothing was trained in step {step} of {run_dir}: no response had a trained token")
    if role not in trained:
        raise ConfigError(f"the {role} was not trained in step {step} of {run_dir}, but {' and '.join(trained)}")
    return lines[-1]


def _slowed(run_dir: Path, before: Checkpoint) -> float:
    """What an alert that sent the run back to this very checkpoint has multiplied its learning rates by."""
    lines = run_files.read_lines(run_dir / run_files.ALERTS_FILE)
    factors = [line["factor"] for line in lines if "factor" in line and line["step"] <= before.step]
    return min([*factors, 1.0]) / float(before.state.get("slowed", 1.0))


def _updated(
    config: RunConfig,
    before: Checkpoint,
    experience: ActorExperience | CriticExperience,
    slowed: float,
    metrics: Mapping[str, Any],
    folder: Path,
    tell: TellUser,
) -> tuple[dict[str, float], dict[str, str]]:
    """Metrics of the update, and path in `folder` → hash of the state after it. `metrics`: the run's of that step."""
    ppo, deadlines, step = config.ppo, config.deadlines, before.step
    schedule = schedule_of(ppo, config.seed + step)
    role = ACTOR if isinstance(experience, ActorExperience) else CRITIC
    with builder(config, {role: None}, tell) as build:
        models = resolve_models(config, [role])
        group: RoleGroup[Any] = build.actor(models) if role == ACTOR else build.critic(models)
        build.ready()
        if role == ACTOR:
            warm_at = before.state["warm_at"]
            expect_steps(group, step if warm_at is None else warm_at, config)
        group.call(Trainable.load_state, str(before.path / role)).result(deadlines.start_s)
        if slowed < 1.0:
            group.call(TrainedRank.slow_down, slowed).result(deadlines.update_s)
        call: Call[Any]
        if isinstance(experience, ActorExperience):
            kl = make_controller(ppo.kl.controller)
            kl.load_state_dict(before.state["kl"])
            texts = None if ppo.ptx is None else PtxSource(read_ptx(ppo.ptx, models.tokenizer), config.seed)
            if texts is not None:
                texts.load_state_dict(before.state["ptx"])
            shares = share_out(experience, ranks=len(group), **schedule)
            call = start_actor_update(group, shares, texts, kl.coefficient, config)
        else:
            call = group.map(Critic.update, share_out(experience, ranks=len(group), **schedule))
        stats = call.result(deadlines.update_s)[0]
        if role == ACTOR and (factor := slow_down_of(ppo.kl.budget, metrics)) is not None:
            group.call(Actor.slow_down, factor).result(deadlines.update_s)
        saved = group.call(Trainable.save_state, str(folder)).result(deadlines.save_s)
    return measured(stats), {name: known for ranks in saved for name, known in ranks.items()}
