"""`tetrarch plan --suggest`: the search agrees with brute force, and what it suggests can be written into the file."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import yaml
from transformers import LlamaConfig
from typer.testing import CliRunner

from cluster.config import EnginesConfig, GroupsPlacement, PlacedGroup
from cluster.role_table import ENGINES
from orchestrator.commands import app as cli
from orchestrator.config.loading import dump_config, load_config, validate
from orchestrator.config.rules.rule_table import broken_rules
from orchestrator.config.run import RunConfig
from orchestrator.errors import ConfigError
from orchestrator.planning import gpu_shares
from orchestrator.planning import suggest as module
from orchestrator.planning.layout_planner import layout
from orchestrator.planning.suggest import apply, settings, suggest

ROOT = Path(__file__).resolve().parents[4]


def small(
    nodes: int, gpus: int, accelerator: str = "H100-80GB", model: str = "meta-llama/Llama-2-7b-hf", stage: int = 3
) -> RunConfig:
    role = {"model": {"path": model}, "zero": {"stage": stage}}
    return validate(
        {
            "run_dir": "runs/small",
            "steps": 1,
            "device": "cuda",
            "dtype": "bfloat16",
            "prompts": {"train": {"path": "prompts.jsonl"}, "max_tokens": 512},
            "actor": role,
            "critic": role,
            "reference": role,
            "reward": {"type": "model", **role},
            "rollout": {"prompts_per_step": 64, "max_response_tokens": 256, "stream_samples": 8},
            "placement": {
                "type": "groups",
                "pools": {"gpus": {"nodes": nodes, "gpus_per_node": gpus, "accelerator": accelerator}},
                "groups": {
                    "all": {
                        "pool": "gpus",
                        "nodes": nodes,
                        "gpus_per_node": gpus,
                        "roles": ["actor", "critic", "reference", "reward"],
                        "engines": {"number": nodes * gpus},
                    }
                },
            },
        }
    )


def brute_force(config: RunConfig, count: int) -> list[float]:
    """Seconds of the best structures, each with its best settings: every label for every role, every size for every
    label, every tensor-parallel size, every setting."""
    assert isinstance(config.placement, GroupsPlacement)
    pool = config.placement.pools["gpus"]
    sizes = [(nodes, pool.gpus_per_node) for nodes in range(1, pool.nodes + 1)]
    sizes += [(1, part) for part in (4, 2, 1) if part < pool.gpus_per_node]
    roles, best = config.model_roles, {}
    for labels in itertools.product(range(len(roles)), repeat=len(roles)):
        used = sorted(set(labels))
        if labels[0] != 0 or used != list(range(len(used))) or list(dict.fromkeys(labels)) != used:
            continue  # the same groups under other labels
        for chosen in itertools.product(sizes, repeat=len(used)):
            if sum(nodes * per for nodes, per in chosen) != pool.nodes * pool.gpus_per_node:
                continue
            for width in (1, 2, 4):
                if chosen[0][1] % width:
                    continue
                groups = {
                    str(label): PlacedGroup(
                        pool="gpus",
                        nodes=nodes,
                        gpus_per_node=per,
                        roles=[
                            role for role, own in zip(roles, labels, strict=True) if own == label and role != ENGINES
                        ],
                        engines=EnginesConfig(number=nodes * per // width, tensor_parallel_size=width)
                        if label == 0
                        else None,
                    )
                    for label, (nodes, per) in zip(used, chosen, strict=True)
                }
                placement = config.placement.model_copy(update={"groups": groups})
                made = None  # no setting changes who sits where
                for setting in settings(config, placement):
                    tried = apply(config, placement, setting)
                    if broken_rules(tried):
                        continue
                    planned = layout(tried, made=made)
                    made = planned.plan
                    if not planned.shortages:
                        key = (labels, chosen, width)
                        best[key] = min(best.get(key, float("inf")), planned.step.total)
    return sorted(best.values())[:count]


@pytest.mark.parametrize(
    ("nodes", "gpus", "accelerator", "stage"),
    [
        pytest.param(1, 4, "H100-80GB", 3, marks=pytest.mark.slow),
        pytest.param(2, 2, "A100-80GB", 3, marks=pytest.mark.slow),
        (1, 2, "H200-141GB", 3),
        pytest.param(1, 4, "H100-80GB", 2, marks=pytest.mark.slow),
    ],
)
def test_the_search_agrees_with_brute_force(
    nodes: int, gpus: int, accelerator: str, stage: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FACTORS", (1, 2))
    monkeypatch.setattr(module, "UTILIZATIONS", (0.4, 0.8))
    monkeypatch.setattr(module, "TIE", 0.0)
    config = small(nodes, gpus, accelerator, stage=stage)
    found = suggest(config)
    assert [one.layout.step.total for one in found] == pytest.approx(brute_force(config, len(found)))
    assert found and all(not one.layout.shortages and not broken_rules(one.config) for one in found)


def test_the_share_of_memory_in_the_file_stays_if_no_other_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FACTORS", (1,))
    config = small(1, 2, "H200-141GB")
    engine = config.rollout.engine.model_copy(update={"gpu_memory_utilization": 0.31})
    config = config.model_copy(update={"rollout": config.rollout.model_copy(update={"engine": engine})})
    assert suggest(config, count=1)[0].config.rollout.engine.gpu_memory_utilization == 0.31


def test_what_the_prediction_cannot_tell_apart_shares_a_rank_and_the_simplest_is_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "FACTORS", (1, 2))
    monkeypatch.setattr(module, "UTILIZATIONS", (0.4, 0.8))
    config = small(1, 2, "H200-141GB")
    every = brute_force(config, 1000)
    ranks, rank, end = {}, 0, 0.0
    for seconds in every:
        if seconds > end:
            rank, end = rank + 1, seconds * (1 + module.TIE)
        ranks[rank] = end
    found = suggest(config, count=len(every))
    assert len(found) == len(every) and ranks.keys() == {one.rank for one in found}
    assert [one.rank for one in found] == sorted(one.rank for one in found)
    assert all(one.layout.step.total <= one.within == pytest.approx(ranks[one.rank]) for one in found)
    assert all(not one.layout.shortages and not broken_rules(one.config) for one in found)
    assert suggest(config, count=2) == found[:2]
    for one, after in itertools.pairwise(found):
        assert one.rank < after.rank or parts_and_moves(one.config) <= parts_and_moves(after.config)
    assert any(one.layout.step.total > after.layout.step.total for one, after in itertools.pairwise(found))


def parts_and_moves(config: RunConfig) -> int:
    """Groups, and models that do not stay on their cards."""
    assert isinstance(config.placement, GroupsPlacement)
    zeros = (config.actor.zero, config.critic.zero)
    moves = sum(zero.sleep or zero.offload_optimizer for zero in zeros) + bool(config.rollout.engine.sleep)
    return len(config.placement.groups) + moves


def test_what_is_suggested_can_be_written_into_the_file(tmp_path: Path) -> None:
    path = ROOT / "configs/llama3-8b-two-pools.yaml"
    best = suggest(load_config(path))[0]
    file = tmp_path / "best.yaml"
    data = yaml.safe_load(path.read_text())
    data.pop("placement")
    file.write_text(
        yaml.safe_dump(_merged(data, yaml.safe_load(yaml.safe_dump(best.changes(), sort_keys=False))), sort_keys=False)
    )
    again = load_config(file)
    assert dump_config(again) == dump_config(validate(best.config.model_dump(by_alias=True)))
    assert layout(again).step.total == pytest.approx(best.layout.step.total)
    assert best.layout.step.total < layout(load_config(path)).step.total


def _merged(data: dict, changes: dict) -> dict:  # type: ignore[type-arg]
    for key, value in changes.items():
        data[key] = _merged(data.get(key) or {}, value) if isinstance(value, dict) else value
    return data


def test_nothing_is_suggested_where_nothing_fits() -> None:
    assert suggest(small(1, 2, "L4-24GB", "meta-llama/Meta-Llama-3-70B")) == []


def test_a_machine_without_gpus_has_nothing_to_search() -> None:
    with pytest.raises(ConfigError, match="--suggest needs pools"):
        suggest(load_config(ROOT / "configs/smoke.yaml"))


@pytest.mark.parametrize("nodes", range(2, 65))
def test_many_nodes_are_shared_out_in_lots_and_none_is_left_over(nodes: int) -> None:
    pools = {"gpus": small(1, 8).placement.pools["gpus"].model_copy(update={"nodes": nodes})}  # type: ignore[union-attr]
    for groups in (1, 2, 3):
        found = list(gpu_shares._shared_out(groups, pools))
        assert 0 < len(found) < 200 or nodes < groups
        assert {sum(many * per for _, many, per in shares) for shares in found} <= {8 * nodes}


def test_heads_that_do_not_spread_are_not_suggested(tmp_path: Path) -> None:
    LlamaConfig(num_attention_heads=28, num_key_value_heads=4, hidden_size=3584, num_hidden_layers=2).save_pretrained(
        tmp_path
    )
    config = small(1, 8, model=str(tmp_path))
    found = suggest(config)
    assert parts_and_moves(found[0].config) == 1, "a small model: one group, and nothing moves"
    assert found[0].config.actor == config.actor, "what is as good stays as in the file"
    widths = {one.layout.engines.parallel for one in found}
    assert widths and widths <= {1, 2, 4}


def test_a_structure_whose_cpus_do_not_do_is_left_out() -> None:
    function = {"type": "function", "path": "reward.py", "workers": 70}
    data = yaml.safe_load(dump_config(small(2, 1)))
    data["placement"]["groups"]["all"]["roles"].remove("reward")
    data["placement"]["pools"]["gpus"]["cpus_per_node"] = 38
    assert suggest(validate({**data, "reward": function}))


def test_where_the_most_cpus_of_a_rank_are_too_many_for_a_node_the_fewest_are_suggested(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "FACTORS", (1,))
    few = "placement.pools.h100.cpus_per_node=40"
    most = "placement.groups.values.cpus_per_rank=8"
    config = load_config(ROOT / "configs/llama3-8b-2x8.yaml", [few, most])
    assert layout(config).shortages == []
    found = suggest(config)
    assert len(found) == module.COUNT
    asked = [{group.cpus_per_rank for group in one.config.placement.groups.values()} for one in found]  # type: ignore[union-attr]
    assert {1} in asked
    roomy = suggest(load_config(ROOT / "configs/llama3-8b-2x8.yaml", [few.replace("40", "400"), most]), count=1)
    assert {group.cpus_per_rank for group in roomy[0].config.placement.groups.values()} == {8}  # type: ignore[union-attr]


def test_the_command_prints_five_layouts_and_the_yaml_of_the_best() -> None:
    file = str(ROOT / "configs/llama3-8b-1x8.yaml")
    done = CliRunner().invoke(cli.app, ["plan", file, "--suggest", "placement.pools.h100.price_per_hour=20"])
    assert done.exit_code == 0, done.output
    plan, _, written = done.output.partition("The first of them, to write into the file:")
    assert plan.count("vLLM+") >= 5 and "as in the file" in plan and "price:" in plan
    assert set(yaml.safe_load(written)) == {"actor", "critic", "reference", "reward", "rollout", "placement"}
    nothing = CliRunner().invoke(cli.app, ["plan", str(ROOT / "configs/smoke.yaml"), "--suggest"])
    assert nothing.exit_code == 2
