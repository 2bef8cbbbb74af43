"""What a user is told about a placement that cannot be: exit code 2, and one line with key, value and fix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from orchestrator.commands import app as cli
from orchestrator.config.loading import load_config
from orchestrator.planning.layout_planner import layout

ROOT = Path(__file__).resolve().parents[4]
GROUPS, THEIRS, LOCAL = (str(ROOT / f"configs/{name}.yaml") for name in ("llama3-8b-2x8", "llama3-70b-32xa800", "tiny"))
SMALLEST, LARGEST = "must be at least 1", "must be at most 10000"
OTHER_TYPE = "a key of type openrlhf, but placement.type is groups (which has type, pools, groups)"

IN_GROUPS: dict[str, tuple[str, str]] = {
    # Unknown pool or role; a role missing, or placed twice.
    "groups.policy.pool=h200": ("groups.policy.pool='h200'", "use h100"),
    "groups.frozen.roles=[reference, jury]": (
        'groups.frozen.roles[1]="jury"',
        "one of actor, critic, reward, reference",
    ),
    "groups.frozen.roles=[reference]": ("has the role 'reward'", "add `roles: [reward]` to one of frozen, policy"),
    "groups.policy.engines=null": ("has vLLM engines", "add `engines: {number: …}` to one of frozen, policy"),
    "groups.frozen.roles=[reference, reward, critic]": (
        "groups.values.roles and placement.groups.frozen",
        "leave it in",
    ),
    "groups.frozen.roles=[reference, reward, reward]": ("groups.frozen.roles names reward twice", "once is enough"),
    "groups.values.engines={number: 4}": ("policy.engines and placement.groups.values.engines", "leave it in one"),
    "groups.spare={pool: h100, gpus_per_node: 4}": ("groups.spare has neither roles nor engines", "or delete it"),
    # Engines.
    "groups.policy.engines={number: 8, tensor_parallel_size: 3}": ("size=3 does not divide", "use 1, 2, 4, 8"),
    "groups.policy.engines.number=5": ("policy.engines: 5 x 1 GPU are 5, but the group has 8", "use number: 8"),
    # More than there is.
    "groups.policy.gpus_per_node=16": ("policy.gpus_per_node=16 is more than the 8 of a node", "use 8 and more nodes"),
    "groups.policy.nodes=3": ("policy.nodes=3 is more than the 2 of pool 'h100'", "use 2 or fewer"),
    "pools.h100.nodes=1": ("pools.h100.nodes=1 is too few", "use nodes: 2, or give the group fewer GPUs"),
    "pools.h100.cpus_per_node=10": ("pools.h100.cpus_per_node=10 is less than the 16 CPUs", "use 16, or a lower cpus_"),
    "pools.h100.accelerator=H100": ("pools.h100.accelerator='H100' is not known", "did you mean H100-80GB?"),
    # Zero, negative and absurd numbers; no numbers.
    "groups.policy.gpus_per_node=0": ("groups.policy.gpus_per_node=0", SMALLEST),
    "groups.policy.nodes=-1": ("groups.policy.nodes=-1", SMALLEST),
    "groups.policy.nodes=1000000000": ("groups.policy.nodes=1000000000", LARGEST),
    "groups.policy.nodes=1.5": ("groups.policy.nodes=1.5", "must be a whole number"),
    "groups.policy.nodes=true": ("groups.policy.nodes=true", "must be a number"),
    "groups.policy.engines.number=0": ("groups.policy.engines.number=0", SMALLEST),
    "groups.policy.cpus_per_rank=100000": ("groups.policy.cpus_per_rank=100000", LARGEST),
    "pools.h100.nodes=0": ("pools.h100.nodes=0", SMALLEST),
    "pools.h100.gpus_per_node=8000": ("pools.h100.gpus_per_node=8000", "must be at most 64"),
    "pools={}": ("placement.pools={}", "must not be empty; add an entry"),
    # Keys of one type under another.
    "type=grouped": ('type="grouped"', "did you mean `groups`?"),
    "actor_num_nodes=2": (OTHER_TYPE, "delete it, or use placement.type: openrlhf"),
    "pool={nodes: 1, gpus_per_node: 8}": (OTHER_TYPE, "did you mean `pools`?"),
    "actor={ranks: 2}": ("placement.actor: a key of type local", "delete it, or use placement.type: local"),
}
IN_THEIRS: dict[str, tuple[str, str]] = {
    "actor_num_gpus_per_node=8": ("actor_num_gpus_per_node=8 is more than placement.pool.gpus_per_node=4", "use 4 and"),
    "actor_num_nodes=0": ("actor_num_nodes=0", SMALLEST),
    "actor_num_nodes=1000000000": ("actor_num_nodes=1000000000", LARGEST),
    "vllm_num_engines=-2": ("vllm_num_engines=-2", SMALLEST),
    "vllm_num_engines=1000000000": ("vllm_num_engines=1000000000", LARGEST),
    "vllm_tensor_parallel_size=8": ("size=8 is more than the 4 GPUs of a node", "use 1 or 2 or 4"),
    "vllm_tensor_parallel_size=8 vllm_num_engines=1": (
        "size=8 does not divide actor_num_gpus_per",
        "4 (vllm_num_engines",
    ),
    "vllm_tensor_parallel_size=3": (
        "placement.pool.nodes=8 is too few",
        "use nodes: 10, or vllm_num_engines x vllm_tens",
    ),
    "colocate_all_models=true vllm_num_engines=3": ("8 GPUs, but 3 x 4 are 12", "use vllm_num_engines: 2"),
    "colocate_all_models=maybe": ('colocate_all_models="maybe"', "must be true or false"),
    "colocate_actor_ref=true ref_num_nodes=1": ("colocate_actor_ref=true", "use ref_num_nodes: 2 and ref_num_gpus_per"),
    "pool.nodes=7": ("placement.pool.nodes=7 is too few", "use nodes: 8"),
    "pool.accelerator=A800": ("placement.pool.accelerator='A800' is not known", "did you mean A800-80GB?"),
    "pool.cpus_per_node=4": (
        "placement.pool.cpus_per_node=4 is less than the 8 CPUs",
        "use 8, or a lower cpus_per_rank",
    ),
    "reward_num_nodes=0": ("placement.reward_num_nodes=0, but reward.type=model", "use 1 or more"),
    "groups={}": ("placement.groups: a key of type groups", "delete it, or use placement.type: groups"),
    "actor_num_gpus=2": ("placement.actor_num_gpus: unknown key", "did you mean `actor_num_"),
}
IN_LOCAL: dict[str, tuple[str, str]] = {
    "actor.ranks=0": ("actor.ranks=0", SMALLEST),
    "reward.ranks=100000000": ("reward.ranks=100000000", LARGEST),
    "jury.ranks=1": ("placement.jury: unknown key", "known here: type, actor, critic"),
    "actor.nodes=1": ("placement.actor.nodes: unknown key", "known here: ranks, threads"),
    "groups={}": ("placement.groups: a key of type groups, but placement.type is local", "use placement.type: groups"),
    "rollout.tensor_parallel_size=0": ("rollout.tensor_parallel_size=0", SMALLEST),
    "actor=2": ("placement.actor=2", "must be a mapping"),
}
CASES = [
    pytest.param(file, changes, parts, id=f"{Path(file).stem} {changes}")
    for file, cases in ((GROUPS, IN_GROUPS), (THEIRS, IN_THEIRS), (LOCAL, IN_LOCAL))
    for changes, parts in cases.items()
]


def overrides(changes: str) -> list[str]:
    """Keys of `placement`; several where none of them has a mapping or list."""
    each = changes.split(" ") if "{" not in changes and "[" not in changes else [changes]
    return [f"placement.{change}" for change in each]


@pytest.mark.parametrize("command", ["plan", "config"])
@pytest.mark.parametrize(("file", "changes", "parts"), CASES)
def test_one_line_with_the_value_and_the_mend(command: str, file: str, changes: str, parts: tuple[str, str]) -> None:
    told = CliRunner().invoke(cli.app, [command, file, *overrides(changes)])
    assert told.exit_code == 2, told.output
    headline, line = told.stderr.splitlines()
    assert headline == "error: the configuration is wrong"
    assert [part for part in parts if part not in line] == [], line
    assert told.stdout == ""
    if file == THEIRS and "groups" not in changes:
        assert "placement.groups" not in line and "'gpus'" not in line, "not in OpenRLHF's words"


@pytest.mark.parametrize("file", [GROUPS, THEIRS])
def test_a_reward_without_a_model_needs_no_group(file: str) -> None:
    told = CliRunner().invoke(cli.app, ["config", file, "reward={type: function, path: x.py}"])
    (_, line) = told.stderr.splitlines()
    assert told.exit_code == 2
    fixes = {
        GROUPS: "take `reward` out of placement.groups",
        THEIRS: "use placement.reward_num_nodes: 0, or leave it out",
    }
    assert f"reward.type=function needs no GPUs; {fixes[file]}" in line


def test_openrlhfs_form_plans_no_gpus_for_a_reward_that_is_a_function(tmp_path: Path) -> None:
    """The default of one node with eight GPUs counted for the reward, and made every node that large."""
    data: dict[str, Any] = yaml.safe_load(Path(THEIRS).read_text(encoding="utf-8"))
    data["reward"] = {"type": "function", "path": "configs/tiny/reward.py", "workers": 2}
    data["critic"]["model"] = data["actor"]["model"]
    for key in ("reward_num_nodes", "reward_num_gpus_per_node", "pool"):
        del data["placement"][key]
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(data), encoding="utf-8")
    made = layout(load_config(file)).plan
    assert made.nodes == 6
    assert all(demand.gpus == 4 for demand in made.demands)
    assert all(slot.gpus == () for slot in made.of("reward")) and len(made.of("reward")) == 2
    enough = layout(load_config(file, ["placement.pool={nodes: 6, gpus_per_node: 4}"])).plan
    assert enough.slots == made.slots
    shown = CliRunner().invoke(cli.app, ["plan", str(file)])
    assert "24 GPUs, 6 nodes: 2 vLLM, 8 actor, 8 critic, 8 ref" in shown.output
