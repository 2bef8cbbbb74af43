"""The models that a run leaves on its way cost it nothing, whatever becomes of their cards."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.config.loading import load_config
from orchestrator.stages.left_models import leave_models
from tests.unit.orchestrator.stages.test_run import TINY


@pytest.mark.parametrize("metrics", ["", "{\n"], ids=["whole", "damaged"])
def test_a_card_that_cannot_be_made_is_told_and_ends_nothing(tmp_path: Path, metrics: str) -> None:
    (tmp_path / "metrics.jsonl").write_text(metrics)
    save: Any = lambda folder: [(folder / role).mkdir(parents=True) for role in ("actor", "critic")]  # noqa: E731
    stage: Any = SimpleNamespace(step=10, before_save=lambda: None, save_models_in=save)
    told = list[str]()
    leave_models(stage, load_config(TINY, [f"run_dir={tmp_path}"]), "seed: 1\n", told.append)
    cards = sorted(path.parent.name for path in tmp_path.glob("hf/step-000010/*/README.md"))
    if metrics:
        (line,) = told
        assert "hf/step-000010 is without model cards" in line and "metrics.jsonl" in line and cards == []
    else:
        assert (cards, told) == (["actor", "critic"], [])
