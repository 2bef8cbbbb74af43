"""The step as a file for Perfetto: everybody has a lane, and nothing overlaps in it."""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from pathlib import Path
from time import process_time

import pytest
import yaml
from typer.testing import CliRunner

import orchestrator.planning.trace
from orchestrator.commands import app as cli
from orchestrator.config.loading import load_config, validate
from orchestrator.config.run import RunConfig
from orchestrator.planning.efficiency import load_efficiency
from orchestrator.planning.layout_planner import layout
from orchestrator.planning.planned_layout import PlannedLayout
from orchestrator.planning.trace import trace_events

ROOT = Path(__file__).resolve().parents[4]
TWO_NODES = ROOT / "configs/llama3-8b-2x8.yaml"


def drawn(planned: PlannedLayout) -> list[dict[str, object]]:
    return [event for event in trace_events(planned.step.course, planned.plan) if event["ph"] == "X"]


def lanes(events: list[dict[str, object]]) -> dict[tuple[object, object], list[tuple[float, float]]]:
    found = defaultdict(list)
    for event in events:
        begin, seconds = float(str(event["ts"])), float(str(event["dur"]))
        found[event["pid"], event["tid"]].append((begin, begin + seconds))
    return found


def test_the_command_writes_a_trace_of_all_cards(tmp_path: Path) -> None:
    file = tmp_path / "step.json"
    done = CliRunner().invoke(cli.app, ["plan", str(TWO_NODES), "--trace", str(file)])
    assert done.exit_code == 0, done.output
    events = json.loads(file.read_text())["traceEvents"]
    planned = layout(load_config(TWO_NODES))
    assert [event for event in events if event["ph"] == "X"] == drawn(planned)
    cards = {(event["pid"], event["tid"]) for event in events if event["name"] == "thread_name"}
    assert cards == {(load.node, load.gpu) for load in planned.gpus} | {(-1, 0)}
    phases = [event for event in drawn(planned) if event["pid"] == -1]
    assert {event["name"]: event["dur"] for event in phases} == pytest.approx(
        {phase: 1e6 * seconds for phase, seconds in planned.step.phases.items()}
    )


@pytest.mark.parametrize("correction", [1.0, 2.5])
@pytest.mark.parametrize("change", ["rollout.stream_samples=0", "rollout.stream_samples=8", "rollout.engine.sleep=1"])
def test_a_card_does_one_thing_at_a_time(change: str, correction: float) -> None:
    plain = load_efficiency()
    factors = plain.model_copy(update={"correction": plain.correction.model_copy(update={"score": correction})})
    for file in (TWO_NODES, ROOT / "configs/llama3-70b-32xa800.yaml"):
        for works in lanes(drawn(layout(load_config(file, [change]), factors))).values():
            ordered = sorted(set(works))  # a push is done by both of its ends
            assert all(end <= begin + 1 for (_, end), (begin, _) in itertools.pairwise(ordered))


def test_every_rank_has_a_lane_without_gpus_too() -> None:
    model = "meta-llama/Meta-Llama-3-8B"
    change = [f"{role}.model={{path: {model}}}" for role in ("actor", "reward", "critic")]
    planned = layout(load_config(ROOT / "configs/tiny.yaml", change))
    events = drawn(planned)
    assert len(lanes(events)) == len([slot for slot in planned.plan.slots if slot.role != "judge"]) + 1


def test_lengths_and_trace_depend_on_the_seed_alone() -> None:
    once, again, other = (layout(load_config(TWO_NODES, [f"seed={seed}"])).step for seed in (1, 1, 2))
    assert once.course == again.course and once.course != other.course
    assert once.total == pytest.approx(other.total, rel=0.1)


def test_many_events_are_drawn_as_few(monkeypatch: pytest.MonkeyPatch) -> None:
    planned = layout(load_config(TWO_NODES, ["rollout.stream_samples=4"]))
    all_of_them = drawn(planned)
    monkeypatch.setattr(orchestrator.planning.trace, "MOST", 100)
    few = drawn(planned)
    assert len(few) < len(all_of_them) / 5
    assert lanes(few).keys() == lanes(all_of_them).keys()


def large() -> RunConfig:
    """10 000 cards."""
    data = yaml.safe_load((ROOT / "configs/llama3-8b-2x8.yaml").read_text())
    pool = {"nodes": 1250, "gpus_per_node": 8, "accelerator": "H100-80GB"}

    def group(nodes: int, **who: object) -> dict[str, object]:
        return {"pool": "h100", "nodes": nodes, "gpus_per_node": 8, **who}

    data["placement"] = {
        "type": "groups",
        "pools": {"h100": pool},
        "groups": {
            "trained": group(600, roles=["actor", "critic"]),
            "frozen": group(150, roles=["reference", "reward"]),
            "engines": group(500, engines={"number": 4000, "tensor_parallel_size": 1}),
        },
    }
    data["rollout"] |= {"prompts_per_step": 65536, "engine": {"gpu_memory_utilization": 0.9}}
    return validate(data)


def test_ten_thousand_cards_are_planned_in_seconds() -> None:
    began = process_time()
    planned = layout(large())
    assert len(planned.gpus) == 10_000 and planned.step.total > 0
    assert len(drawn(planned)) >= 10_000
    assert process_time() - began < 10
