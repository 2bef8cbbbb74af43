"""What overlaps in a step and what waits, how long its responses are, and what it costs."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from cluster.config import Correction
from cluster.placement.accelerators import ACCELERATORS
from orchestrator.config.loading import load_config, validate
from orchestrator.config.run import RunConfig
from orchestrator.errors import ConfigError
from orchestrator.planning.efficiency import load_efficiency
from orchestrator.planning.layout_drawing import draw, to_json
from orchestrator.planning.layout_planner import layout
from orchestrator.planning.predicted_step import RoleSeconds, response_lengths, side_by_side
from orchestrator.planning.smallest_change import smallest_change
from roles.scored_parts import ROWS_OF_A_RANK

ROOT = Path(__file__).resolve().parents[4]
SECONDS = RoleSeconds(
    generate=10.0,
    score={"actor": 4.0, "critic": 4.0, "reference": 3.0, "reward": 1.0},
    update={"actor": 20.0, "critic": 16.0},
    push=2.0,
)
TWO_NODES = ROOT / "configs/llama3-8b-2x8.yaml"
PLAIN = load_efficiency()
SPLIT = [("rollout", "actor"), ("critic",), ("reference", "reward")]
SHARED = ["reference={share_actor: true}", "actor.lora.rank=16", "placement.groups.frozen.roles=[reward]"]
TOGETHER = [("rollout", "actor", "critic", "reference", "reward")]


def test_split_groups_work_side_by_side_and_wait_for_the_slowest() -> None:
    step = side_by_side(SPLIT, SECONDS, PLAIN, 6)
    assert step.phases == {"generate": 10, "score": 4, "update": 20, "push": 2}
    assert step.idle(SPLIT[0]) == pytest.approx(0)
    assert step.idle(SPLIT[1]) == pytest.approx(1 - 20 / 36)
    assert step.idle(SPLIT[2]) == pytest.approx(1 - 4 / 36)


def test_roles_on_one_card_take_turns() -> None:
    step = side_by_side(TOGETHER, SECONDS, PLAIN, 6)
    assert step.phases == {"generate": 10, "score": 12, "update": 36, "push": 2}
    assert step.idle(TOGETHER[0]) == pytest.approx(0)


def test_scoring_as_samples_come_hides_behind_generation_except_on_the_engines_cards() -> None:
    step = side_by_side([("rollout",), ("actor",), *SPLIT[1:]], SECONDS, PLAIN, 6, streamed=0.25)
    assert step.phases["score"] == pytest.approx(1.0)  # the last quarter of the actor's and the critic's four seconds
    slow = RoleSeconds(generate=2.0, score={"reward": 8.0}, update={}, push=0.0)
    late = side_by_side([("rollout",), ("reward",)], slow, PLAIN, 6, streamed=0.25)
    assert late.phases["score"] == pytest.approx(8 - 0.75 * 2)
    corrected = PLAIN.model_copy(update={"correction": Correction(score=2)})
    twice = side_by_side([("rollout",), ("reward",)], slow, corrected, 6, streamed=0.25)
    assert twice.phases["score"] == pytest.approx(2 * late.phases["score"])
    shared = side_by_side(SPLIT, SECONDS, PLAIN, 6, streamed=0.25)
    assert shared.phases["score"] == pytest.approx(4)


def test_corrections_stretch_their_phase() -> None:
    stretched = PLAIN.model_copy(update={"correction": Correction(generate=2, score=3, update=0.5, push=4)})
    step = side_by_side(SPLIT, SECONDS, stretched, 6)
    assert step.phases == {"generate": 20, "score": 12, "update": 10, "push": 8}


def test_float32_has_no_tensor_cores() -> None:
    """An H100 has 67 of 989 TFLOPS then, and the weights are twice as wide; engines may have a dtype of their own."""
    assert ACCELERATORS["H100-80GB"].operations_per_s("float32") == 67e12
    narrow, wide = (layout(load_config(TWO_NODES, [f"dtype={dtype}"])).step for dtype in ("bfloat16", "float32"))
    assert 10 < wide.phases["update"] / narrow.phases["update"] < 989 / 67
    assert wide.phases["generate"] > 1.5 * narrow.phases["generate"]
    mixed = layout(load_config(TWO_NODES, ["dtype=float32", "rollout.engine.dtype=bfloat16"])).step
    assert mixed.phases["generate"] == pytest.approx(narrow.phases["generate"])
    assert mixed.phases["update"] == pytest.approx(wide.phases["update"])


def test_a_run_without_gpus_has_a_time_too() -> None:
    model = "meta-llama/Meta-Llama-3-8B"
    change = [f"{role}.model={{path: {model}}}" for role in ("actor", "reward", "critic")]
    planned = layout(load_config(ROOT / "configs/tiny.yaml", change))
    assert planned.step.total > 0 and list(planned.step.busy) == [tuple(planned.plan.roles)]


def test_lengths_come_from_the_limits_or_from_what_the_factors_say() -> None:
    run = load_config(ROOT / "configs/llama3-8b-2x8.yaml")  # responses of at most 1024
    assumed = response_lengths(run, PLAIN)
    assert assumed.mean == pytest.approx(512, rel=1e-3) and assumed.longest == 1024
    alike = response_lengths(run, PLAIN.model_copy(update={"response_spread": 0.0}))
    assert alike.tokens == (512, 512)
    measured = PLAIN.model_copy(update={"response_quantiles": {0.5: 0.125, 1.0: 0.75}, "response_share": None})
    assert response_lengths(run, measured).at(0.5) == 128 and response_lengths(run, measured).longest == 768
    moved = response_lengths(run, measured.model_copy(update={"response_share": 0.4}))
    assert moved.mean == pytest.approx(0.4 * 1024)
    forced = load_config(ROOT / "configs/llama3-8b-2x8.yaml", ["rollout.min_response_tokens=1024"])
    assert response_lengths(forced, PLAIN).tokens == (1024, 1024)
    bounded = load_config(ROOT / "configs/llama3-8b-2x8.yaml", ["rollout.min_response_tokens=300"])
    assert response_lengths(bounded, PLAIN).tokens[0] == 300


def test_the_longest_response_is_waited_for_and_told() -> None:
    run = load_config(ROOT / "configs/llama3-8b-2x8.yaml")
    alike = PLAIN.model_copy(update={"response_spread": 0.0})
    planned, even = layout(run, PLAIN), layout(run, alike)
    assert planned.step.phases["generate"] > 1.3 * even.step.phases["generate"]
    console = Console(width=200, record=True, file=StringIO())
    console.print(draw(planned))
    text = console.export_text()
    assert "prompts of 512, responses of 512 tokens)" in text
    assert "the longest 1024; assumed: a mean of 50% of the limit (response_share) with a spread of 1" in text


def without_critic(estimator: str) -> RunConfig:
    data = yaml.safe_load((ROOT / "configs/llama3-8b-1x8.yaml").read_text())
    del data["critic"]
    data["placement"]["groups"]["all"]["roles"] = ["actor", "reference", "reward"]
    data["ppo"] = {"advantage": {"type": estimator}}
    data["rollout"] |= {"responses_per_prompt": 4, "engine": {"gpu_memory_utilization": 0.9}}
    return validate(data)


@pytest.mark.parametrize("estimator", ["grpo", "rloo", "reinforce++", "remax"])
def test_a_run_without_a_critic_shows_none(estimator: str) -> None:
    run = without_critic(estimator)
    planned = layout(run)
    assert planned.shortages  # so that a change is proposed, too
    console = Console(width=200, record=True, file=StringIO())
    console.print(draw(planned, smallest_change(run, lambda changed: [layout(changed)])))
    shown = console.export_text() + json.dumps(to_json("train", [planned]))
    assert "train actor" in shown and "critic" not in shown


def test_the_greedy_responses_of_remax_come_first() -> None:
    remax, plain = (layout(without_critic(name)).step.phases["generate"] for name in ("remax", "reinforce++"))
    assert 1.1 * plain < remax < 2 * plain


def test_sleeping_engines_move_their_weights_out_and_back() -> None:
    file = ROOT / "configs/llama3-8b-1x8.yaml"
    asleep, dropped = (layout(load_config(file, [f"rollout.engine.sleep={n}"])).step.phases for n in (1, 2))
    moved = 8_030_261_248 * 2 / (64e9 * PLAIN.wire)
    assert asleep["generate"] - dropped["generate"] == pytest.approx(moved, rel=1e-3)
    assert asleep["push"] - dropped["push"] == pytest.approx(moved, rel=1e-3)


def test_prices_are_those_of_the_planned_nodes() -> None:
    path = ROOT / "configs/llama3-8b-two-pools.yaml"
    prices = ["placement.pools.h100.price_per_hour=20", "placement.pools.l40s.price_per_hour=7"]
    planned = layout(load_config(path, prices))
    assert planned.price_per_hour == 27
    assert planned.price_per_step == pytest.approx(27 * planned.step.total / 3600)
    assert layout(load_config(path, prices[:1])).price_per_step is None


def test_a_wrong_efficiency_file_is_told(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("compute: 2\n")
    with pytest.raises(ConfigError, match=r"compute=2: must be at most 1\.0 .*; start from a copy of"):
        load_efficiency(wrong)
    wrong.write_text("compute: [\n")
    with pytest.raises(ConfigError, match=r"is not YAML: .*; start from a copy of"):
        load_efficiency(wrong)
    with pytest.raises(ConfigError, match=r"cannot be read .*; start from a copy of"):
        load_efficiency(tmp_path / "missing.yaml")


@pytest.mark.parametrize(
    ("said", "ranks"),
    [
        (["actor.old_logprobs=recompute"], 8),
        (["actor.old_logprobs=rollout"], 4),
        (["actor.old_logprobs=rollout", *SHARED], 8),  # the actor scores for the reference
    ],
)
def test_what_is_scored_together_fills_the_ranks_that_score_and_no_others(said: list[str], ranks: int) -> None:
    """The actor has eight ranks, the others have four."""
    run = load_config(ROOT / "configs/llama3-8b-2x8.yaml", ["rollout.stream_samples=4", *said])
    passes = [event for event in layout(run).step.course.events if (event.role, event.name) == ("critic", "score")]
    assert len(passes) == run.samples_per_step / (ROWS_OF_A_RANK * ranks)
