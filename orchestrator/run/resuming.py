"""Resuming: from which checkpoint, with which changed keys, and what happens to later files of the run.

A configuration and the user's choice of a checkpoint flow in; the Checkpoint and the changed keys flow out, or a
ConfigError before any file of the run has been changed. `orchestrator.run.resume_rules` says which keys may change.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cluster.placement.plan import ranks_of, tensor_parallel_size
from cluster.role_table import ENGINES, ROLES
from orchestrator.config.base import BaseConfig
from orchestrator.config.loading import dump_config, validate_root
from orchestrator.config.run import RunConfig
from orchestrator.config.yaml_text import YamlError, parse_yaml
from orchestrator.errors import CheckpointError, ConfigError
from orchestrator.report import run_files
from orchestrator.run.checkpoint import BEST, HF, MANIFEST, MODELS, Checkpoint, Checkpoints, step_of, trained_step
from orchestrator.run.model_contents import code_contents, model_contents
from orchestrator.run.resume_rules import ResumeRules, rules_of

Resume = Literal["newest"] | int | None
"""The checkpoint to resume from: the newest, that of a step, or none (a new run)."""
BEGINNING = 0
"""In place of a checkpoint's step: the run begins anew, and all that it has left is set aside."""

SET_ASIDE = "set-aside"
"""Folder in `run_dir` for files that are newer than the checkpoint of `--resume-from`."""


@dataclass(frozen=True, slots=True)
class ChangedKey:
    """A key whose value differs from the checkpoint's."""

    key: str
    before: str
    now: str
    why_not: str | None = None
    """Why the key cannot change; None: it may, and the new value counts."""

    def __str__(self) -> str:
        return f"{self.key}: {self.before} in the checkpoint, now {self.now}"


def checkpoint_to_resume(config: BaseConfig, resume: Resume) -> Checkpoint | None:
    """The chosen checkpoint; ConfigError if it does not exist, or if `config` cannot be resumed from it."""
    if resume is None or resume == BEGINNING:
        return None
    folder = Path(config.run_dir)
    checkpoints = Checkpoints(folder / "checkpoints", config.checkpoint.keep)
    found = checkpoints.newest(content=True) if resume == "newest" else checkpoints.of_step(resume, content=True)
    if found is None:
        raise ConfigError(_nothing_to_resume(config, checkpoints, resume))
    steps = rules_of(config).steps(config)
    if steps is not None and found.step > steps:
        raise ConfigError(f"steps={steps}, but {found.path} is at step {found.step}; raise steps")
    if resume == "newest" and steps is not None and trained_step(folder) == steps:
        raise ConfigError(f"run_dir={folder} has done all its steps={steps}; raise steps to go on")
    refused = [change for change in changes(found, config) if change.why_not] or changed_models(found, config)
    if refused:
        lines = [f"{change}; this cannot change: {change.why_not}" for change in refused]
        advice = f"go back to what {found.path} has, or start anew with another {config.folder_key}"
        raise ConfigError("\n".join([*lines, advice]))
    try:
        run_files.read_record(folder)
    except ValueError as error:
        raise ConfigError(f"run_dir={folder}: {error}") from None
    return found


def _nothing_to_resume(config: BaseConfig, checkpoints: Checkpoints, resume: Resume) -> str:
    folder, elsewhere = config.run_dir, f"start anew with another {config.folder_key}"
    damaged = [f"{path} is damaged: {what}" for path, what in checkpoints.damaged().items()]
    if resume != "newest" and checkpoints.steps():
        steps = ", ".join(map(str, checkpoints.steps()))
        return "\n".join(
            [f"run_dir={folder} holds no whole checkpoint of step {resume}; it has those of {steps}", *damaged]
        )
    if damaged:
        lead = f"run_dir={folder} holds no whole checkpoint; put the files back, or {elsewhere}"
        return "\n".join([lead, *damaged])
    return f"run_dir={folder} holds no checkpoint to resume from; {elsewhere}, or remove this one"


def take_up(run_dir: Path, checkpoint: Checkpoint | None, config: BaseConfig, resume: Resume) -> list[str]:
    """Bring the run's files to the state of `checkpoint` (None: before the first step), if they are newer; returns
    messages for the user."""
    if checkpoint is None:
        later = set_aside(run_dir, BEGINNING, rules_of(config).leaves)
        return [] if later is None else [f"what came before is in {later}"]
    newer = Checkpoints(run_dir / "checkpoints", config.checkpoint.keep).damaged(after=checkpoint.step)
    told = [f"{folder} is damaged: {what}; going on from step {checkpoint.step}" for folder, what in newer.items()]
    later = set_aside(run_dir, checkpoint.step, rules_of(config).leaves) if newer or resume != "newest" else None
    if later is not None:
        told.append(f"what came after step {checkpoint.step} is in {later}")
    changed = changes(checkpoint, config)
    code = changed_code(checkpoint, config, {change.key for change in changed})
    return [*told, *map(str, changed), *code, *other_layout(checkpoint, config)]


def check_reference(checkpoint: Checkpoint, fingerprint: str, config: RunConfig) -> None:
    """Raise CheckpointError if the reference's `fingerprint` is not that of the checkpoint."""
    from roles.zero.digest import VERSION  # imports torch

    written = str(checkpoint.state["reference"])
    if fingerprint == checkpoint.state["reference"]:
        return
    if not written.startswith(f"{VERSION}-"):
        raise CheckpointError(
            f"{checkpoint.path} holds a fingerprint of the reference that this version cannot read: another version of "
            f"Tetrarch has written it; resume with that one, or start anew with another {config.folder_key}"
        )
    raise CheckpointError(
        f"{checkpoint.path} was trained against the reference {written}, but "
        f"{config.reference.model or config.actor.model} is {fingerprint}; use the same one"
    )


def changes(checkpoint: Checkpoint, config: BaseConfig) -> list[ChangedKey]:
    """Differences from the configuration in the checkpoint, in the order of the schema."""
    rules, written = rules_of(config), _written(checkpoint, config)
    plain = [parse_yaml(dump_config(one)) for one in (written, config)]  # both without secrets
    found = [
        ChangedKey(key, show_value(before), show_value(now), why_not(key, rules))
        for key, before, now in differing(*plain)
        if rules.unread.isdisjoint(_names(key))
    ]
    return found


def changed_models(checkpoint: Checkpoint, config: BaseConfig) -> list[ChangedKey]:
    """The models whose files are others than when the checkpoint was written, each with the first such file."""
    rules, written = rules_of(config), checkpoint.state.get(MODELS, {})
    found = []
    for key, now in model_contents(config).items() if written else ():
        before, model = written.get(key, now), config.sharded[key].model
        for name in _differing(before, now)[:1]:
            was, became = (f"hash {files[name]}" if name in files else "none" for files in (before, now))
            where = f"{name} of {key}.model.path={model.path if model else ''}"
            found.append(ChangedKey(where, was, became, why_not(f"{key}.model.path", rules)))
    return found


def changed_code(checkpoint: Checkpoint, config: BaseConfig, others: Collection[str]) -> list[str]:
    """For the user: the Python files that are others than when the run before started, though their paths are not;
    `others`: keys whose values are."""
    written, told = checkpoint.state.get(MODELS, {}), list[str]()
    for key, now in code_contents(config).items():
        differ = [] if key in others else _differing(written.get(key, now), now)
        if differ:
            have = "has" if len(differ) == 1 else "have"
            follows = f"{have} changed since the checkpoint; the run goes on with what is there now"
            told.append(f"{key}: {', '.join(differ)} {follows}")
    return told


def _differing(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Names of the files whose hashes are others, or that are there only before or now."""
    return [name for name in {**before, **now} if before.get(name) != now.get(name)]


def other_layout(checkpoint: Checkpoint, config: BaseConfig) -> list[str]:
    """For the user: which roles' ranks, stages or engines are others than the checkpoint's, and what follows."""
    before, now = map(_layout, (_written(checkpoint, config), config))
    differ = {role: was for role, was in before.items() if now.get(role, was) != was}
    moved = [f"{role}: {was} in the checkpoint, now {now[role]}" for role, was in differ.items()]
    if differ.keys() - {ENGINES}:
        moved.append("weights, moments and schedules are shared out anew over the ranks")
    follows = (
        f"from step {checkpoint.step + 1} on the run agrees with one on the old layout up to rounding, not to the bit: "
        "sums over ranks, micro-batches and the engines' batches are other ones"
    )
    return [*moved, follows] if moved else []


def _layout(config: BaseConfig) -> dict[str, str]:
    """Role → how its model is held, such as `ranks 2, ZeRO stage 3`."""
    found: dict[str, str] = {}
    for role in config.model_roles:
        number = ranks_of(config.placement, role)
        if role == ENGINES:
            found[role] = f"engines {number}, tensor_parallel_size {tensor_parallel_size(config.placement)}"
        else:
            found[role] = f"ranks {number}, ZeRO stage {config.sharded_section(role).zero.stage}"
    return found


def _written(checkpoint: Checkpoint, config: BaseConfig) -> BaseConfig:
    """The configuration with which the checkpoint was written."""
    advice = f"resume with that one, or start anew with another {config.folder_key}"
    return validate_root(type(config), *written_settings(checkpoint, advice))


def written_settings(checkpoint: Checkpoint, advice: str) -> tuple[dict[str, Any], str]:
    """The plain values of the configuration with which the checkpoint was written, and their name in errors. `advice`:
    what to do if another version has written it."""
    if "config" not in checkpoint.state:
        raise ConfigError(
            f"{checkpoint.path} does not say with which configuration it was written: another version of Tetrarch has "
            f"written it; {advice}"
        )
    text, name = checkpoint.state["config"], f"the configuration in {checkpoint.path}"
    try:
        data = parse_yaml(text) if isinstance(text, str) else None
    except YamlError as error:
        raise ConfigError(f"{name} is not YAML: {error}; put {MANIFEST} back, or remove the checkpoint") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{name} is no mapping of keys; put {MANIFEST} back, or remove the checkpoint")
    return data, name


def why_not(key: str, rules: ResumeRules) -> str | None:
    """Why a key cannot change; None if it may. KeyError for a key that has no rule."""
    for name in _names(key):
        if name in rules.may_change:
            return None
        if name in rules.stays:
            return rules.stays[name]
    if key in ROLES and "frozen.model" in rules.stays:
        return rules.stays["frozen.model"]  # the section did not exist before
    raise KeyError(key)


def set_aside(run_dir: Path, step: int, leaves: Sequence[str]) -> Path | None:
    """Set aside what is newer than `step`: later checkpoints and what the end of the run has left are moved, the
    reports' files copied.

    Returns the folder; None if nothing was newer. `leaves`: files and folders in `run_dir`.
    """
    dated = (folder for place in ("checkpoints", HF) for folder in (run_dir / place).glob("step-*"))
    later = [folder for folder in dated if (step_of(folder) or 0) > step]
    left = [run_dir / name for name in leaves] if trained_step(run_dir) != step else []
    left += [run_dir / BEST] if (trained_step(run_dir / BEST) or 0) > step else []
    left += run_files.kept_samples(run_dir, after=step).values()
    moved = [*later, *(path for path in left if path.exists())]
    lines = run_files.read_lines(run_dir / run_files.METRICS_FILE)
    if not moved and all(line["step"] <= step for line in lines):
        return None
    number = 1
    while (place := run_dir / SET_ASIDE / str(number)).exists():
        number += 1
    place.mkdir(parents=True)
    for name in run_files.ALL_FILES:
        if (run_dir / name).exists():
            shutil.copy2(run_dir / name, place)
    for path in moved:
        target = place / path.relative_to(run_dir)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    return place


def _names(key: str) -> Iterator[str]:
    """The names under which a key may have its rule: its own, then those of the sections around it."""
    key = re.sub(r"^reward\.members\.[^.]+\.", "reward.", key)
    while key:
        yield key
        role, _, rest = key.partition(".")
        if rest and role in ROLES:
            yield f"{'trained' if ROLES[role].trained else 'frozen'}.{rest}"
        key = key.rpartition(".")[0]


def differing(before: Any, now: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(key, value before, value now) of plain values that differ; for a section of another type, only its type."""
    if before == now:
        return
    if not isinstance(before, dict) or not isinstance(now, dict):
        yield path, before, now
    elif "type" in before and "type" in now and before["type"] != now["type"]:
        yield f"{path}.type", before["type"], now["type"]
    else:
        for key in {**before, **now}:
            inner = f"{path}.{key}" if path else str(key)
            yield from differing(before.get(key), now.get(key), inner)


def show_value(value: Any) -> str:
    """A plain value in a message, at most 120 characters of it."""
    text = json.dumps(value, ensure_ascii=False)
    return text.strip('"') if len(text) <= 120 else f"{text[:117]}..."
