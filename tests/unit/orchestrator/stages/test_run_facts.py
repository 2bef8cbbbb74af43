"""What the head of a report says a run was made on."""

from __future__ import annotations

import importlib.metadata
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

from orchestrator.config.loading import load_config
from orchestrator.stages import run_facts
from orchestrator.stages.run_facts import code, machine, product

ROOT = Path(__file__).resolve().parents[4]


def test_models_ranks_and_machine_of_a_run() -> None:
    facts = run_facts.run_facts(load_config(ROOT / "configs/smoke.yaml"))
    actor = "runs/inputs/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf (actor, reference)"
    assert facts["Models"] == f"{actor}, runs/smoke-reward/model (critic, reward)"
    assert facts["Ranks"] == "rollout 1, actor 1, critic 2, reference 1, reward 1"
    assert "CPU" in facts["Machine"] and "GiB" in facts["Machine"] and facts["Code"].startswith("tetrarch ")


def test_functions_and_services_that_score_are_named() -> None:
    members = "{model: {type: model, model: {path: m}}, short: {type: function, path: short.py}}"
    judge = "{type: remote, urls: ['http://me:pass@host/score', 'http://other/score']}"
    labeller = "retraining={every: 2, judge: {type: function, path: judge.py}}"
    said = [f"reward={{type: ensemble, members: {members}}}", f"evaluation.judge={judge}", "critic.model.path=m"]
    facts = run_facts.run_facts(load_config(ROOT / "configs/tiny.yaml", said))
    services = "http://***@host/score and http://other/score (evaluation.judge)"
    assert facts["Scored by"] == f"short.py (reward.members.short), {services}"
    said = ["reward={type: model, model: {path: m}}", labeller, "critic.model.path=m"]
    facts = run_facts.run_facts(load_config(ROOT / "configs/tiny.yaml", said))
    assert facts["Scored by"] == "judge.py (retraining.judge)"
    assert "Scored by" not in run_facts.run_facts(load_config(ROOT / "configs/tiny.yaml"))


def test_cards_are_named_without_asking_their_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for card in range(2):
        (tmp_path / f"0000:0{card}").mkdir()
        (tmp_path / f"0000:0{card}/information").write_text("Model: \t NVIDIA H100\nIRQ: 1\n")
    monkeypatch.setattr(run_facts, "CARDS", tmp_path)
    machine.cache_clear()
    assert machine().endswith(" GiB, 2 NVIDIA H100")
    machine.cache_clear()


def test_sources_that_are_not_installed_have_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    assert product() == f"tetrarch {version('tetrarch')}"
    monkeypatch.setattr(importlib.metadata.Distribution, "from_name", lose)
    assert product() == "tetrarch, not installed"


def lose(name: str) -> None:
    raise PackageNotFoundError(name)


def test_the_commit_of_a_checkout_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_facts, "SOURCE", tmp_path)
    code.cache_clear()
    assert "commit" not in code(), "installed from a wheel"
    name = ["-c", "user.name=a", "-c", "user.email=a@b"]
    (tmp_path / "a.py").write_text("1")
    for words in (["init", "-q"], ["add", "a.py"], [*name, "commit", "-qm", "one"]):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True)
    code.cache_clear()
    clean = code()
    (tmp_path / "a.py").write_text("2")
    code.cache_clear()
    assert code() == f"{clean} with changes" and len(clean.split("commit ")[1]) == 12
    code.cache_clear()
