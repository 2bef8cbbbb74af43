"""The models that a run leaves on its way cost it nothing, whatever becomes of their cards."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.config.loading import load_config, load_root
from orchestrator.config.sft import SftRun
from orchestrator.stages.left_models import leave_last_models, leave_models
from tests.unit.orchestrator.stages.test_run import TINY

NS: Any = SimpleNamespace


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
        assert "hf/step-000010/critic" in line and "without model card" in line and "metrics.jsonl" in line
        assert cards == []
    else:
        assert (cards, told) == (["actor", "critic"], [])


def test_the_models_of_the_end_have_their_cards_of_the_step_that_is_left(tmp_path: Path) -> None:
    lines = "".join(f'{{"step": {step}, "score/mean": {step / 4}}}\n' for step in (1, 2, 3))
    (tmp_path / "metrics.jsonl").write_text(lines)
    (tmp_path / "logs").mkdir()

    def save() -> None:
        for name in ("actor", "actor_ema", "critic"):
            (tmp_path / name).mkdir()

    config, told = load_config(TINY, [f"run_dir={tmp_path}"]), list[str]()
    leave_last_models(NS(step=3, best=2, save_models=save), config, "seed: 7\n", told.append)
    cards = {path.parent.name: path.read_text() for path in tmp_path.glob("*/README.md")}
    assert sorted(cards) == ["actor", "actor_ema", "critic"] and told == []
    assert (
        "after step 2" in cards["actor"] and "| `score/mean` | 0.5 |" in cards["actor"] and "seed: 7" in cards["actor"]
    )


def test_a_model_of_one_role_has_its_card_where_its_section_says(tmp_path: Path) -> None:
    output = tmp_path / "made"
    config = load_root(SftRun, Path("configs/sft.yaml"), [f"sft.output={output}"])
    Path(config.run_dir).mkdir(parents=True)
    stage = NS(step=3, best=None, save_models=output.mkdir, trained={"actor": None})
    leave_last_models(stage, config, "seed: 7\n", lambda line: None)
    assert "after step 3" in (output / "README.md").read_text()
