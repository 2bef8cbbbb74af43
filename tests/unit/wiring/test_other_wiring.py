"""What no single key says: whose seed draws what, and what an evaluation measures with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pyarrow import parquet
from torch import Tensor

from orchestrator.config.evaluation import EvaluationRun
from orchestrator.config.loading import load_root
from orchestrator.data.prompts import read_questions
from orchestrator.stages.evaluation import evaluate_run
from roles.text.tokenizer import load_tokenizer
from tests.unit.wiring.base import base, short_run
from tests.unit.wiring.engines import FakeLLM
from tests.unit.wiring.plain import Rows, policy
from tests.unit.wiring.stage import stage, with_changes, written


def drawn(folder: Path, seed: int) -> dict[str, Tensor]:
    """What a run draws before its first step, and for its held-out prompts."""
    lora = {"rank": 2, "alpha": 3.0, "targets": ["q_proj"]}
    heldout = {"path": str(folder / "heldout.jsonl")}
    seen = short_run(folder, {"seed": seed, "actor.lora": lora, "critic.lora": lora, "prompts.heldout": heldout})
    name = "model.layers.0.self_attn.q_proj.lora_A"
    return {
        "heldout": torch.tensor([answer.params.seed for answer in seen.llms[0].batches[0]]),
        **{role: seen.groups[role].began[name] for role in ("actor", "critic")},
    }


def test_the_seed_draws_adapters_and_samples_of_evaluations(folder: Path) -> None:
    first, again, other = drawn(folder, 3), drawn(folder, 3), drawn(folder, 4)
    for name, tensor in first.items():
        assert torch.equal(tensor, again[name]) and not torch.equal(tensor, other[name]), name


HELDOUT = {"rollout.temperature": 1.6, "evaluation": {"prompts": 4, "samples": 0}}


def test_the_samples_of_a_step_are_kept_as_the_run_has_them(folder: Path, tmp_path: Path) -> None:
    columns = ["token_ids", "rollout_logprobs", "reference_logprobs", "advantages"]
    said = {"report.samples": {"texts": False, "token_columns": columns}, "ppo.whiten_advantages": True}
    seen = short_run(folder, said)
    seen.report.kept[0](tmp_path / "step.parquet")
    kept = parquet.read_table(tmp_path / "step.parquet").to_pydict()
    rows, metrics = Rows.of(seen.llms[0].batches[0]), seen.report.steps[0]
    assert "prompt" not in kept and len(kept["step"]) == len(rows.sampled)
    assert kept["seed"] == [answer.params.seed for answer in seen.llms[0].batches[0]]
    assert sum(kept["score"]) / len(kept["score"]) == pytest.approx(metrics["score/mean"], abs=1e-5)
    assert sum(kept["kl"]) / len(kept["kl"]) == pytest.approx(metrics["objective/kl"], abs=1e-5)
    reference = policy(str(folder / "other-policy"), {}).scores(rows, seen.config.rollout.temperature)[0].detach()
    for row, mask in enumerate(rows.mask.bool()):
        assert kept["rollout_logprobs"][row] == pytest.approx(rows.sampled[row][mask].tolist(), abs=1e-6)
        assert kept["reference_logprobs"][row] == pytest.approx(reference[row][mask].tolist(), abs=1e-4)
        assert len(kept["token_ids"][row]) == kept["length"][row] == int(mask.sum())
    advantages = torch.tensor([number for row in kept["advantages"] for number in row])
    assert float(advantages.mean()) == pytest.approx(0, abs=1e-5), "as they are trained on: whitened"
    assert [keep is None for keep in short_run(folder, {"report.samples": None}).report.kept][:1] == [True]


def kl_of(folder: Path, llm: FakeLLM, model: str) -> float:
    """Of the first batch, from vLLM's log-probabilities to those of `model` at temperature 1.6."""
    rows = Rows.of(llm.batches[0])
    reference = policy(str(folder / model), {}).scores(rows, 1.6)[0].detach()
    return float(((rows.sampled - reference) * rows.mask).sum(1).mean())


def test_an_evaluation_measures_the_kl_to_the_reference_at_the_runs_temperature(folder: Path) -> None:
    seen = short_run(folder, {**HELDOUT, "prompts.heldout": {"path": str(folder / "heldout.jsonl")}})
    before = seen.report.evaluations[0]
    assert before.kl.mean == pytest.approx(kl_of(folder, seen.llms[0], "other-policy"), abs=1e-4)


def test_tetrarch_evaluate_measures_it_in_the_same_way(folder: Path, tmp_path: Path) -> None:
    """Also where there is no reference of its own: the policy before it was trained."""
    for changes, model in (({}, "other-policy"), ({"reference.model": None}, "policy")):
        more: dict[str, Any] = {**HELDOUT, **changes, "run_dir": str(tmp_path)}
        more["prompts.heldout"] = {"path": str(folder / "heldout.jsonl")}
        written(with_changes(base(folder), more), tmp_path)
        config = load_root(EvaluationRun, tmp_path / "run.yaml")
        with stage() as seen:
            tokenizer = load_tokenizer(config.actor.model.path)
            result = evaluate_run(config, {"": read_questions(config.prompts, "heldout", tokenizer)})
        assert result.prompts == 4
        assert result.kl.mean == pytest.approx(kl_of(folder, seen.llms[0], model), abs=1e-4)
