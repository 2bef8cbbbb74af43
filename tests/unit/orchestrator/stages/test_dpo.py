"""The reference of DPO is asked once, and a run goes on with the same one alone."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from orchestrator.config.dpo import DpoRun
from orchestrator.config.loading import validate_root
from orchestrator.data.preference_samples import DpoData, PreferenceSamples
from orchestrator.errors import CheckpointError
from orchestrator.run.checkpoint import Checkpoint
from orchestrator.run.learned_data import LearnedData
from orchestrator.stages import reference_logprobs
from orchestrator.stages.dpo import PreferenceTraining
from orchestrator.stages.reference_logprobs import ReferenceLogprobs, ask_reference
from roles.batch import Sequences
from roles.losses.preference_numbers import PreferenceNumbers
from tests.unit.orchestrator.fakes import Answers


class Ranks:
    """Two ranks: a response's log-probability is the sum of its tokens, with a minus; `weights` is their hash."""

    def __init__(self, weights: str = "w") -> None:
        self.weights, self.asked = weights, 0

    def __len__(self) -> int:
        return 2

    def call(self, method: Any) -> Answers:
        assert method.__name__ == "reference_fingerprint"
        return Answers([self.weights] * 2)

    def map(self, method: Any, shards: list[Sequences]) -> Answers:
        assert method.__name__ == "response_logprobs"
        self.asked += sum(map(len, shards))
        return Answers([-(shard.token_ids * shard.response_mask).sum(1).float() for shard in shards])


def samples(first: int, count: int) -> PreferenceSamples:
    tokens = torch.arange(first, first + 3 * count).view(count, 3)
    mask = torch.tensor([[False, True, True]]).expand(count, 3)
    return PreferenceSamples(
        Sequences(tokens, torch.full((count,), 3), mask), torch.tensor([[0, 1], [2, 3]]), None, torch.ones(2)
    )


@pytest.fixture
def data() -> DpoData:
    return DpoData(samples(1, 6), samples(100, 4), (), "")


def config(folder: Path, **changes: Any) -> DpoRun:
    (folder / "config.json").write_text("{}")
    dpo = {"output": str(folder / "out"), "model": {"path": "m"}, "data": {"path": "d"}, **changes}
    return validate_root(DpoRun, {"dpo": dpo, "model_cache": str(folder / "cache")})


def ask(ranks: Ranks, folder: Path, data: DpoData, **changes: Any) -> tuple[ReferenceLogprobs, list[str]]:
    told: list[str] = []
    report: Any = SimpleNamespace(status=lambda text: None, note=told.append)
    group: Any = ranks
    return ask_reference(group, config(folder, **changes), folder, data, report), told


def test_a_reference_is_asked_once(tmp_path: Path, data: DpoData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference_logprobs, "ASKED_AT_ONCE", 4)
    ranks = Ranks()
    first, told = ask(ranks, tmp_path, data)
    assert ranks.asked == 10
    assert told == [f"reference: 10 responses, 0 of them known from {tmp_path}/cache/reference-logprobs"]
    assert first.training.tolist() == [-(2 + 3 + 6 * row) for row in range(6)] and first.heldout is not None
    again, told = ask(ranks, tmp_path, data)
    assert ranks.asked == 10 and told[0].startswith("reference: 10 responses, 10 of them known")
    assert torch.equal(again.training, first.training) and again.model == first.model
    for file in sorted((tmp_path / "cache/reference-logprobs").iterdir())[:1]:
        file.write_bytes(file.read_bytes()[:-1] + b"!")
    repaired, _ = ask(ranks, tmp_path, data)
    assert 10 < ranks.asked < 15 and torch.equal(repaired.training, first.training), "a damaged file is asked again"


def test_another_model_or_dtype_is_another_reference(tmp_path: Path, data: DpoData) -> None:
    found = [ask(ranks := Ranks(weights), tmp_path, data)[0].model for weights in ("w", "v")]
    assert ranks.asked == 10
    (tmp_path / "code.py").write_text("scale = 2")
    found.append(ask(Ranks(), tmp_path, data)[0].model)
    assert len(set(found)) == 3


@pytest.mark.parametrize("loss", ["simpo", "orpo"])
def test_a_loss_without_a_reference_asks_none(tmp_path: Path, data: DpoData, loss: str) -> None:
    ranks = Ranks()
    found, told = ask(ranks, tmp_path, data, loss={"type": loss})
    assert (ranks.asked, told, found.model) == (0, [], None) and not (tmp_path / "cache").exists()
    assert not found.training.any()


def test_a_run_does_not_go_on_against_another_reference(tmp_path: Path, data: DpoData) -> None:
    learned, nobody = LearnedData.preferences("d", 3), Any
    reference = ReferenceLogprobs("r", torch.zeros(6), torch.zeros(4))
    parts: Any = (nobody, nobody, [[0], [1], [0]], learned, nobody, config(tmp_path), data, reference)
    stage = PreferenceTraining(*parts)
    written = stage.state_dict()
    assert written == {"step": 0, "preferences": "d", "reference": "r", "ends": {}}
    stage.load_state(Checkpoint(tmp_path, 2, {**written, "step": 2}))
    assert stage.step == 2
    with pytest.raises(CheckpointError, match=r"trained against the reference q, but dpo\.model=m is now r"):
        stage.load_state(Checkpoint(tmp_path, 2, {**written, "reference": "q"}))


def test_what_is_held_out_is_measured_like_a_step(tmp_path: Path, data: DpoData) -> None:
    told: list[str] = []
    report: Any = SimpleNamespace(note=told.append)
    ranks, nobody = Ranks(), Any
    _, heldout = (-(part.responses.token_ids[:, 1:]).sum(1).float() for part in (data.training, data.heldout) if part)
    reference = ReferenceLogprobs("r", torch.zeros(6), heldout - torch.tensor([1.0, 0.0, 0.0, 3.0]))
    learned = LearnedData.preferences("d", 3)
    parts: Any = (nobody, ranks, [[0]], learned, report, config(tmp_path, loss={"type": "sigmoid", "beta": 1.0}))
    stage = PreferenceTraining(*parts, data, reference)
    stage.evaluate("before")
    assert told == ["held out, before training: loss 1.6809, accuracy 50.0%, margin -1.000 on 2 samples"]
    assert isinstance(stage.quality, PreferenceNumbers) and stage.quality.kl == pytest.approx(-1.0)
