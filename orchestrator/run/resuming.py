"""Going on from a checkpoint: from which one, with which keys of the configuration changed, and what becomes of what
came after it.

A RunConfig and the user's choice of a checkpoint flow in; the Checkpoint and the changed keys flow out, or a
ConfigError before any file in the run has been touched. Each key of the schema stands in one of two lists below: it may
change, and then counts from the next step on, or it stays.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cluster.placement.plan import ranks_of
from cluster.role_table import ROLES, trained_roles
from orchestrator.config.loading import dump_config, validate
from orchestrator.config.run import RunConfig
from orchestrator.config.yaml_text import parse_yaml
from orchestrator.errors import CheckpointError, ConfigError
from orchestrator.report import run_files
from orchestrator.run.checkpoint import Checkpoint, Checkpoints, step_of, trained_step

Resume = Literal["newest"] | int | None
"""From which checkpoint: the newest, that of a step, or none (a new run)."""

SET_ASIDE = "set-aside"
"""Where in `run_dir` goes what came after the checkpoint that `--resume-from` names."""

_CHANGING = """
run_dir steps model_cache deadlines report checkpoint placement
evaluation.every evaluation.prompts evaluation.samples
evaluation.judge.workers evaluation.judge.timeout_s evaluation.judge.retries
trained.micro_batch_tokens trained.gradient_checkpointing trained.model.trust_remote_code canary
trained.optimizer.learning_rate trained.optimizer.schedule
frozen.micro_batch_tokens frozen.zero frozen.model.trust_remote_code reward.urls reward.headers
reward.workers reward.timeout_s reward.retries environment.workers environment.timeout_s environment.retries
rollout.prompts_per_step rollout.responses_per_prompt rollout.stream_samples rollout.engine
ppo.policy.clip ppo.policy.clip_high ppo.policy.dual_clip ppo.policy.entropy_coefficient ppo.policy.importance
ppo.value.clip ppo.value.coefficient ppo.kl.budget ppo.kl.allow_biased
ppo.kl.controller.coefficient ppo.kl.controller.target ppo.kl.controller.horizon
"""
MAY_CHANGE = frozenset(_CHANGING.split())
"""Keys, or whole sections. `trained` and `frozen` stand for the roles of that kind, `reward` also for each member of an
ensemble."""

STAYS = {
    key: why
    for why, keys in {
        "the prompts' order and all sampling follow from it": "seed",
        "the tensors in the checkpoint are laid out for it": "device dtype trained.zero trained.lora",
        "the trained model started from it": "trained.model critic.initialise_from",
        "the KL is measured against it": "frozen.model reference.share_actor",
        "the position in the prompts would mean another one": "prompts.train prompts.max_tokens prompts.column "
        "prompts.too_long",
        "evaluations before and after would not be comparable": "prompts.heldout evaluation.judge",
        "the state of the optimizer and its count of steps depend on it": "trained.optimizer.betas "
        "trained.optimizer.epsilon trained.optimizer.weight_decay trained.optimizer.max_gradient_norm ppo.epochs "
        "ppo.mini_batches",
        "the mean in the checkpoint was taken with it": "actor.ema_decay",
        "it is spent, or half spent": "critic.warmup ppo.kl.controller.initial",
        "the checkpoint has the state of that controller": "ppo.kl.controller.type",
        "policy and critic have been trained for it": "reward.type reward.text_bridge reward.model reward.path "
        "reward.name reward.members reward.combine environment environment.type environment.path environment.name "
        "environment.max_turns environment.max_tokens environment.cut_turn rollout.max_response_tokens "
        "rollout.min_response_tokens rollout.temperature rollout.top_p rollout.top_k ppo.advantage "
        "ppo.whiten_advantages ppo.whiten_rewards ppo.score ppo.truncated ppo.kl.where ppo.kl.estimator "
        "ppo.policy.type ppo.policy.mean ppo.value.mean ppo.value.normalise",
    }.items()
    for key in keys.split()
}
"""Key, or whole section → why it cannot change."""


@dataclass(frozen=True, slots=True)
class ChangedKey:
    """A key that has another value than in the checkpoint."""

    key: str
    before: str
    now: str
    why_not: str | None = None
    """Why it cannot change; None: it may, and counts."""

    def __str__(self) -> str:
        return f"{self.key}: {self.before} in the checkpoint, now {self.now}"


def checkpoint_to_resume(config: RunConfig, resume: Resume) -> Checkpoint | None:
    """The checkpoint that is meant; ConfigError if it is not there, or cannot be gone on from with `config`."""
    if resume is None:
        return None
    folder = Path(config.run_dir)
    checkpoints = Checkpoints(folder / "checkpoints", config.checkpoint.keep)
    found = checkpoints.newest() if resume == "newest" else checkpoints.of_step(resume)
    if found is None:
        raise ConfigError(_nothing_to_resume(folder, checkpoints, resume))
    if found.step > config.steps:
        raise ConfigError(f"steps={config.steps}, but {found.path} is at step {found.step}; raise steps")
    if resume == "newest" and trained_step(folder) == config.steps:
        raise ConfigError(f"run_dir={folder} has done all its steps={config.steps}; raise steps to go on")
    refused = [change for change in changes(found, config) if change.why_not]
    if refused:
        lines = [f"{change}; this cannot change: {change.why_not}" for change in refused]
        raise ConfigError("\n".join([*lines, f"go back to what {found.path} has, or start anew in another run_dir"]))
    return found


def _nothing_to_resume(folder: Path, checkpoints: Checkpoints, resume: Resume) -> str:
    damaged = [f"{path} is damaged: {what}" for path, what in checkpoints.damaged().items()]
    if resume != "newest" and checkpoints.steps():
        steps = ", ".join(map(str, checkpoints.steps()))
        return "\n".join(
            [f"run_dir={folder} holds no whole checkpoint of step {resume}; it has those of {steps}", *damaged]
        )
    if damaged:
        mend = "put the files back, or start anew in another run_dir"
        return "\n".join([f"run_dir={folder} holds no whole checkpoint; {mend}", *damaged])
    return f"run_dir={folder} holds no checkpoint to resume from; start anew in another run_dir, or remove this one"


def take_up(run_dir: Path, checkpoint: Checkpoint, config: RunConfig, resume: Resume) -> list[str]:
    """Make the run's files those of `checkpoint`, if it is not what they end with; what to tell the user."""
    damaged = Checkpoints(run_dir / "checkpoints", config.checkpoint.keep).damaged()
    newer = {folder: what for folder, what in damaged.items() if (step_of(folder) or 0) > checkpoint.step}
    told = [f"{folder} is damaged: {what}; going on from step {checkpoint.step}" for folder, what in newer.items()]
    later = set_aside(run_dir, checkpoint.step) if newer or resume != "newest" else None
    if later is not None:
        told.append(f"what came after step {checkpoint.step} is in {later}")
    return [*told, *map(str, changes(checkpoint, config))]


def check_reference(checkpoint: Checkpoint, fingerprint: str, config: RunConfig) -> None:
    """CheckpointError if the reference, which has this fingerprint, is not that of the checkpoint."""
    from roles.zero.digest import VERSION  # loads torch

    written = str(checkpoint.state["reference"])
    if fingerprint == checkpoint.state["reference"]:
        return
    if not written.startswith(f"{VERSION}-"):
        raise CheckpointError(
            f"{checkpoint.path} holds a fingerprint of the reference that this version cannot read: another version of "
            "Tetrarch has written it; resume with that one, or start anew in another run_dir"
        )
    raise CheckpointError(
        f"{checkpoint.path} was trained against the reference {written}, but "
        f"{config.reference.model or config.actor.model} is {fingerprint}; use the same one"
    )


def changes(checkpoint: Checkpoint, config: RunConfig) -> list[ChangedKey]:
    """What differs from the configuration that the checkpoint was written with, in the order of the schema."""
    if "config" not in checkpoint.state:
        raise ConfigError(
            f"{checkpoint.path} does not say with which configuration it was written: another version of Tetrarch has "
            "written it; resume with that one, or start anew in another run_dir"
        )
    written = validate(parse_yaml(checkpoint.state["config"]), f"the configuration in {checkpoint.path}")
    plain = [parse_yaml(dump_config(one)) for one in (written, config)]  # both without secrets
    found = [ChangedKey(key, _show(before), _show(now), why_not(key)) for key, before, now in _differing(*plain)]
    for role in [role for role in trained_roles() if all(role in one.model_roles for one in (written, config))]:
        before, now = (ranks_of(one.placement, role) for one in (written, config))
        if before != now:
            found.append(ChangedKey(f"ranks of {role}", str(before), str(now), "its checkpoint is sharded over them"))
    return found


def why_not(key: str) -> str | None:
    """Why a key cannot change; None if it may. KeyError for a key that has no rule."""
    for name in _names(key):
        if name in MAY_CHANGE:
            return None
        if name in STAYS:
            return STAYS[name]
    if key in ROLES:
        return STAYS["frozen.model"]  # a section that was not there
    raise KeyError(key)


def set_aside(run_dir: Path, step: int) -> Path | None:
    """Put what came after `step` out of the way: later checkpoints and trained models are moved, the reports' files
    copied. Where to; None if nothing came after it."""
    later = [folder for folder in (run_dir / "checkpoints").glob("step-*") if (step_of(folder) or 0) > step]
    trained = [run_dir / name for name in (*trained_roles(), "actor_ema")] if trained_step(run_dir) != step else []
    moved = [*later, *(folder for folder in trained if folder.is_dir())]
    lines = run_files.read_lines(run_dir / run_files.METRICS_FILE)
    if not moved and all(line["step"] <= step for line in lines):
        return None
    number = 1
    while (place := run_dir / SET_ASIDE / str(number)).exists():
        number += 1
    (place / "checkpoints").mkdir(parents=True)
    for name in run_files.ALL_FILES:
        if (run_dir / name).exists():
            shutil.copy2(run_dir / name, place)
    for folder in moved:
        folder.rename(place / folder.relative_to(run_dir))
    return place


def _names(key: str) -> Iterator[str]:
    """Under which names a key may have its rule: its own, then those of the sections around it."""
    key = re.sub(r"^reward\.members\.[^.]+\.", "reward.", key)
    while key:
        yield key
        role, _, rest = key.partition(".")
        if rest and role in ROLES:
            yield f"{'trained' if ROLES[role].trained else 'frozen'}.{rest}"
        key = key.rpartition(".")[0]


def _differing(before: Any, now: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(key, value before, value now) of plain values; of a section that is of another type now, its type alone."""
    if before == now:
        return
    if not isinstance(before, dict) or not isinstance(now, dict):
        yield path, before, now
    elif "type" in before and "type" in now and before["type"] != now["type"]:
        yield f"{path}.type", before["type"], now["type"]
    else:
        for key in {**before, **now}:
            inner = f"{path}.{key}" if path else str(key)
            yield from _differing(before.get(key), now.get(key), inner)


def _show(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text.strip('"') if len(text) <= 120 else f"{text[:117]}..."
