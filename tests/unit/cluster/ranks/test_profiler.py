"""Only the ranks that are named are profiled, around the step; the file is one of torch's profiler."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cluster.errors import ClusterError
from cluster.ranks import profiler
from cluster.ranks.identity import Identity
from cluster.ranks.rank_profiler import RankProfiler
from cluster.ranks.watch import Rank
from orchestrator.config.loading import load_config, load_root
from orchestrator.config.sft import SftRun
from orchestrator.errors import ConfigError
from orchestrator.stages.profiling import perhaps_profiled

TINY = Path(__file__).resolve().parents[4] / "configs/tiny.yaml"


def test_a_rank_leaves_what_torch_recorded(tmp_path: Path) -> None:
    rank, file = RankProfiler(), tmp_path / "profile/step-000003-actor-0.json.gz"
    rank.end(file)
    assert not file.exists(), "it was not begun"
    rank.begin()
    torch.ones(3) @ torch.ones(3)
    rank.end(file)
    names = {event.get("name") for event in json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]}
    assert "aten::dot" in names


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """(rank, path) of the questions that ranks are asked."""
    told = list[tuple[str, Any]]()

    def rank(role: str, number: int) -> Rank:
        def remote(origin: Any, path: str | None) -> tuple[None, None]:
            told.append((f"{role}.{number}", path))
            return None, None

        worker = SimpleNamespace(profile=SimpleNamespace(remote=remote))
        return Rank(Identity(role, number, "node", "log"), worker, None)

    ranks = [rank("actor", 0), rank("actor", 1), rank("rollout", 0)]
    monkeypatch.setattr(profiler, "STARTED", SimpleNamespace(ranks=ranks))
    monkeypatch.setattr(profiler, "wait_all", lambda calls, deadline_s: None)
    return told


def test_the_ranks_of_the_configuration_are_asked_in_its_steps(asked: list[tuple[str, Any]], tmp_path: Path) -> None:
    config = load_config(TINY, ["profile={steps: [3], ranks: [actor.1, rollout.0]}", f"run_dir={tmp_path}"])
    for step in (1, 2, 3, 4):
        with perhaps_profiled(config, step, asked.append):  # type: ignore[arg-type]
            asked.append((f"step {step}", None))
    folder = tmp_path / "profile"
    assert asked == [
        *(("step 1", None), ("step 2", None), ("actor.1", None), ("rollout.0", None), ("step 3", None)),
        ("actor.1", str(folder / "step-000003-actor-1.json.gz")),
        ("rollout.0", str(folder / "step-000003-rollout-0.json.gz")),
        ("step 4", None),
    ]


@pytest.mark.parametrize("when", ["begin", "end"])
def test_no_error_of_the_profiler_ends_the_step(
    asked: list[tuple[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    def fail(calls: Any, deadline_s: float) -> None:
        if (asked[-1][1] is None) == (when == "begin"):
            raise ClusterError("its disk is full")

    monkeypatch.setattr(profiler, "wait_all", fail)
    config, told = load_config(TINY, ["profile={steps: [3], ranks: [actor.1]}", f"run_dir={tmp_path}"]), list[str]()
    with perhaps_profiled(config, 3, told.append):
        pass
    assert told == ["the profile of step 3 is missing or not whole: its disk is full"]


def test_ranks_are_looked_up_again_at_the_end(
    asked: list[tuple[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine may have been started again, or not be there any more."""
    config, told = load_config(TINY, ["profile={steps: [3], ranks: [actor.1, rollout.0]}"]), list[str]()
    with perhaps_profiled(config, 3, told.append):
        left = [rank for rank in profiler.STARTED.ranks if rank.identity.role == "actor"]
        monkeypatch.setattr(profiler, "STARTED", SimpleNamespace(ranks=left))
        asked.clear()
    assert [name for name, _ in asked] == ["actor.1"]
    assert told == ["not profiled in step 3: rollout.0; the ranks are actor.0, actor.1"]


def test_a_rank_that_no_role_has_is_refused_before_anything_starts() -> None:
    with pytest.raises(ConfigError, match=r"profile\.ranks names actor\.7, but actor has 2 ranks"):
        load_config(TINY, ["profile={steps: [3], ranks: [actor.7]}"])
    with pytest.raises(ConfigError, match=r"there is no role actr"):
        load_config(TINY, ["profile={steps: [3], ranks: [actr.0]}"])


def test_a_role_that_the_run_does_not_start_is_refused_before_anything_starts() -> None:
    profile = "profile={steps: [3], ranks: [critic.0]}"
    load_config(TINY, [profile])
    with pytest.raises(ConfigError, match=r"critic\.0, but this run starts no critic; its roles are rollout, actor"):
        load_config(TINY, [profile, "ppo.advantage={type: grpo}", "rollout.responses_per_prompt=4"])
    load_root(SftRun, TINY.with_name("sft.yaml"), [profile])


def test_what_is_no_rank_is_refused() -> None:
    with pytest.raises(ConfigError, match="ranks"):
        load_config(TINY, ["profile={steps: [3], ranks: [actor]}"])
