"""Hugging Face folders of trained models, each with its model card: a stage flows in, or a folder that is there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from orchestrator.config.base import BaseConfig
from orchestrator.data.dataset_rows import is_hub_name
from orchestrator.report.model_card import USED_AS, CardFacts, write_model_card
from orchestrator.report.run_files import RunRecord, read_record
from orchestrator.run.checkpoint import HF, step_name
from orchestrator.stages.stage import Stage


def leave_models(stage: Stage, config: BaseConfig, settings: str, tell: Callable[[str], None]) -> None:
    """Save the models of the step that has ended in `run_dir/hf/step-000010/actor` and so on. `tell`: says to the user
    that a card could not be written."""
    folder = Path(config.run_dir) / HF / step_name(stage.step)
    stage.before_save()
    stage.save_models_in(folder)
    _describe_models(_models_in(folder), stage.step, config, settings, tell)


def leave_last_models(stage: Stage, config: BaseConfig, settings: str, tell: Callable[[str], None]) -> None:
    """Save the models that a run leaves at its end. `tell`: as in `leave_models`."""
    stage.save_models()
    section, _, key = config.folder_key.rpartition(".")
    if section:  # a training of one model, whose folder its section names
        models = {Path(getattr(getattr(config, section), key)): next(iter(stage.trained))}
    else:
        models = _models_in(Path(config.run_dir))
    _describe_models(models, stage.step if stage.best is None else stage.best, config, settings, tell)


def _models_in(folder: Path) -> dict[Path, str]:
    """Model folder in `folder` → its role."""
    roles = {path: path.name.partition("_")[0] for path in folder.iterdir()}  # of `actor_ema`, `reward_retrained` too
    return {path: role for path, role in roles.items() if path.is_dir() and role in USED_AS}


def _describe_models(
    models: Mapping[Path, str], step: int, config: BaseConfig, settings: str, tell: Callable[[str], None]
) -> None:
    """Write the cards of these models of `step`."""
    try:
        record = read_record(Path(config.run_dir))
    except ValueError as error:
        return tell(f"{', '.join(map(str, models))}: without model card: {error}")
    for folder, role in models.items():
        describe_model(folder, role, step, record, config, settings)


def describe_model(folder: Path, role: str, step: int, record: RunRecord, config: BaseConfig, settings: str) -> None:
    """Write the card of the model of `role` after `step`. `settings`: the configuration as YAML, without secrets."""
    model = config.sharded_section(role).model
    assert model is not None, "a trained role has a model"
    facts = CardFacts(role, step, settings, base=model.path, on_hub=is_hub_name(model.path))
    write_model_card(folder, facts, record)
