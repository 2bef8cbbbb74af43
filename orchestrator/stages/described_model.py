"""Gives folders of trained models their model cards: a configuration and the files of its run flow in."""

from __future__ import annotations

from pathlib import Path

from orchestrator.config.base import BaseConfig
from orchestrator.data.dataset_rows import is_hub_name
from orchestrator.report.model_card import USED_AS, CardFacts, write_model_card
from orchestrator.report.run_files import read_record


def describe_models(folder: Path, step: int, config: BaseConfig, settings: str) -> None:
    """Write the card of each model in `folder`, such as `folder/actor`; see `describe_model`."""
    for model in folder.iterdir():
        role = model.name.partition("_")[0]  # of `actor_ema` and `reward_retrained` too
        if role in USED_AS:
            describe_model(model, role, step, Path(config.run_dir), config, settings)


def describe_model(folder: Path, role: str, step: int, run_dir: Path, config: BaseConfig, settings: str) -> None:
    """Write the card of the model of `role` after `step`. `settings`: the configuration as YAML, without secrets.
    ValueError if a file of the run cannot be read."""
    model = config.sharded_section(role).model
    assert model is not None, "a trained role has a model"
    facts = CardFacts(role, step, settings, base=model.path, on_hub=is_hub_name(model.path))
    write_model_card(folder, facts, read_record(run_dir))
