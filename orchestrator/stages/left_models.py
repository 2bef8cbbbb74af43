"""Hugging Face folders of trained models, each with its model card: a stage flows in, or a folder that is there."""

from __future__ import annotations

from collections.abc import Callable
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
    run_dir = Path(config.run_dir)
    folder = run_dir / HF / step_name(stage.step)
    stage.before_save()
    stage.save_models_in(folder)
    try:
        record = read_record(run_dir)
    except ValueError as error:
        return tell(f"{folder} is without model cards: {error}")
    for model in folder.iterdir():
        role = model.name.partition("_")[0]  # of `actor_ema` and `reward_retrained` too
        if role in USED_AS:
            describe_model(model, role, stage.step, record, config, settings)


def describe_model(folder: Path, role: str, step: int, record: RunRecord, config: BaseConfig, settings: str) -> None:
    """Write the card of the model of `role` after `step`. `settings`: the configuration as YAML, without secrets."""
    model = config.sharded_section(role).model
    assert model is not None, "a trained role has a model"
    facts = CardFacts(role, step, settings, base=model.path, on_hub=is_hub_name(model.path))
    write_model_card(folder, facts, record)
