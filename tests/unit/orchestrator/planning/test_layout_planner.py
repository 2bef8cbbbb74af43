"""`tetrarch plan`: every shipped layout fits, one that does not says why, and the plan is what is drawn."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from transformers import LlamaConfig
from typer.testing import CliRunner

from cluster.estimate.memory import GIB, MEMORY_PHASES, REDUCE_BUCKET, RUNTIME
from orchestrator.commands import app as cli
from orchestrator.config.loading import load_config
from orchestrator.config.run import RunConfig
from orchestrator.errors import ConfigError
from orchestrator.planning.layout_drawing import draw, to_json
from orchestrator.planning.layout_planner import layout
from orchestrator.planning.planned_layout import PlannedLayout
from orchestrator.planning.predicted_step import kv_room
from orchestrator.planning.smallest_change import smallest_change
from tests.unit.cluster.placement.test_gpu_groups import check_sound
from tests.unit.outside import outside

ROOT = Path(__file__).resolve().parents[4]
SEVENTY_B = ROOT / "configs/llama3-70b-32xa800.yaml"
ON_GPUS = sorted(path for path in (ROOT / "configs").glob("*.yaml") if "\ndevice: cuda" in path.read_text())
FULL_ADAM = ["actor.zero.offload_optimizer=false", "critic.zero.offload_optimizer=false"]


def one_layout(config: RunConfig) -> list[PlannedLayout]:
    return [layout(config)]


def text_of(planned: PlannedLayout, fix: list[str] | None = None) -> str:
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(draw(planned, fix))
    return console.export_text()


def test_there_are_layouts() -> None:
    assert len(ON_GPUS) == 6


@pytest.mark.parametrize("path", ON_GPUS, ids=lambda path: path.stem)
def test_every_shipped_layout_fits_and_is_planned_quickly(path: Path) -> None:
    began = time.process_time()
    planned = layout(load_config(path))
    assert time.process_time() - began < 10
    assert planned.shortages == []
    check_sound(planned.plan, 8)
    lines = text_of(planned).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[-1].strip() == "It fits."


def test_a_plan_for_gpus_loads_neither_torch_nor_transformers() -> None:
    program = (
        "import os, sys\n"
        "os.environ['HF_HUB_OFFLINE'] = '1'\n"
        "from orchestrator.commands import app as cli\n"
        "from typer.testing import CliRunner\n"
        "for path in sys.argv[1:]:\n"
        "    lora = ['actor.lora={rank: 8}', 'critic.lora={rank: 8, targets: [q_proj, v_proj]}']\n"
        "    for command in (['plan', path], ['plan', path, *lora], ['config', path], ['plan', '--help']):\n"
        "        done = CliRunner().invoke(cli.app, command)\n"
        "        assert done.exit_code == 0, (command, done.output)\n"
        "print(sorted({'torch', 'transformers', 'ray', 'vllm', 'deepspeed', 'datasets'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, ON_GPUS)], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


MEMBER = "{type: model, model: {path: OpenRLHF/Llama-3-8b-rm-mixture}}"
ENSEMBLE = f"reward={{type: ensemble, members: {{safe: {MEMBER}, kind: {MEMBER}}}}}"
CRITIC = "critic.initialise_from=policy"
TWO_NODES, THEIRS = ROOT / "configs/llama3-8b-2x8.yaml", ROOT / "configs/llama3-70b-32xa800.yaml"


@pytest.mark.parametrize(
    ("change", "homes"),
    [
        ([], {"reward.safe": "frozen", "reward.kind": "frozen"}),
        (
            [
                "placement.groups.frozen.roles=[reference, reward.kind]",
                "placement.groups.values.roles=[critic, reward]",
            ],
            {"reward.safe": "values", "reward.kind": "frozen"},
        ),
    ],
)
def test_the_members_of_an_ensemble_share_a_group_or_have_their_own(change: list[str], homes: dict[str, str]) -> None:
    """`reward` in `roles` is every member that is not named."""
    config = load_config(TWO_NODES, [ENSEMBLE, CRITIC, *change])
    planned = layout(config)
    places = {"values": {0, 1, 2, 3}, "frozen": {4, 5, 6, 7}}
    for role, home in homes.items():
        slots = planned.plan.of(role)
        assert {gpu for slot in slots for gpu in slot.gpus} == places[home] and len(slots) == 4
        held = planned.gpus[-1 if home == "frozen" else 8].phases["score"]
        assert held[role, "weights"] == pytest.approx(2 * planned.sizes[role].parameters / 4)
    assert "reward.kind" in text_of(planned) and "reward.safe" in text_of(planned)


def test_the_members_of_an_ensemble_share_the_reward_nodes_of_openrlhf() -> None:
    planned = layout(load_config(THEIRS, [ENSEMBLE, CRITIC]))
    first, second = (planned.plan.of(role) for role in ("reward.safe", "reward.kind"))
    assert [slot.gpus for slot in first] == [slot.gpus for slot in second] and len(first) == 8
    assert {slot.share for slot in first} == {0.5}


@pytest.mark.parametrize("name", ["smoke", "tiny"])
def test_without_gpus_the_processes_are_listed(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = "meta-llama/Meta-Llama-3-8B"
    change = [f"actor.model={{path: {model}}}", f"reward.model={{path: {model}}}", f"critic.model={{path: {model}}}"]
    shown = text_of(layout(load_config(ROOT / f"configs/{name}.yaml", change)))
    assert "No GPUs" in shown and "vLLM" in shown


def test_the_smoke_runs_host_memory_is_foreseen(tmp_path: Path) -> None:
    """9.6 GiB were measured with these sizes (tests/README)."""
    for name, layers in (("policy", 30), ("reward", 3)):
        sizes = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": layers, "vocab_size": 49152}
        heads = {"num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True}
        LlamaConfig(**sizes, **heads).save_pretrained(tmp_path / name)
    models = [f"actor.model={{path: {tmp_path / 'policy'}}}", f"reward.model={{path: {tmp_path / 'reward'}}}"]
    planned = layout(load_config(ROOT / "configs/smoke.yaml", models))
    assert sum(planned.hosts[0].held.values()) == pytest.approx(9.6 * GIB, rel=0.2)
    assert planned.shortages == []


def test_a_machine_that_is_too_small_is_told(tmp_path: Path) -> None:
    model = "meta-llama/Meta-Llama-3-70B"
    change = [f"{role}.model={{path: {model}}}" for role in ("actor", "reward", "critic")]
    config = load_config(ROOT / "configs/tiny.yaml", change)
    (shortage,) = layout(config).shortages
    assert shortage.startswith("host of node 0:") and "actor's optimizer" in shortage
    assert "give the roles that are short a larger machine" in " ".join(text_of(layout(config)).split())


def test_the_known_seventy_b_layout() -> None:
    shown = text_of(layout(load_config(SEVENTY_B)))
    assert "32 GPUs, 8 nodes: 2 vLLM, 8 actor, 8 critic, 8 ref, 8" in shown
    for part in ("vLLM 0 (TP 4)  actor 0-3", "vLLM 1 (TP 4)  actor 4-7", "critic 4-7", "reward 0-3", "ref 4-7"):
        assert part in shown


def test_without_a_critic_its_gpus_are_not_planned() -> None:
    change = ["ppo.advantage={type: grpo}", "rollout.responses_per_prompt=8", "critic={}", "placement.pool=null"]
    sizes = [f"placement.{role}_num_nodes=2" for role in ("actor", "ref", "reward")]
    without = ["placement.critic_num_nodes=0", "placement.critic_num_gpus_per_node=4"]
    planned = layout(load_config(SEVENTY_B, [*change, *sizes, *without]))
    assert len(planned.gpus) == 24 and "critic" not in planned.plan.roles and "critic" not in planned.sizes
    assert set(planned.step.busy) == {("rollout", "actor"), ("reward",), ("reference",)}
    with pytest.raises(ConfigError, match=r"placement\.critic_num_nodes: 0"):
        load_config(SEVENTY_B, [*change, *sizes])


def test_full_adam_for_seventy_b_does_not_fit_and_the_fix_is_named() -> None:
    config = load_config(SEVENTY_B, FULL_ADAM)
    planned = layout(config)
    first, second = planned.shortages
    assert first.startswith("GPUs of rollout and actor:") and "actor's optimizer" in first
    assert second.startswith("GPUs of critic:")
    assert smallest_change(config, one_layout) == [
        "actor.zero.offload_optimizer=true",
        "critic.zero.offload_optimizer=true",
    ]


def test_an_optimizer_that_sleeps_makes_room_for_generation() -> None:
    path = ROOT / "configs/llama3-8b-1x8.yaml"
    awake, asleep = (layout(load_config(path, change)) for change in ([], ["actor.zero.sleep=true"]))
    moved = 8.03e9 * (4 + 12) / 8
    for phase in ("generate", "score", "push"):
        saved = sum(awake.gpus[0].phases[phase].values()) - sum(asleep.gpus[0].phases[phase].values())
        assert saved == pytest.approx(moved + 2 * REDUCE_BUCKET, rel=0.01)
    for phase in ("train actor", "train critic"):  # both updates run side by side here
        assert asleep.gpus[0].phases[phase] == awake.gpus[0].phases[phase]


def test_engines_that_stay_awake_are_counted_while_others_train() -> None:
    asleep, awake = (
        layout(load_config(SEVENTY_B, [f"rollout.engine.sleep={level}"])).gpus[0].phases["train actor"]
        for level in (1, 0)
    )
    engine = sum(size for (role, _), size in awake.items() if role == "rollout")
    assert engine == pytest.approx(0.6 * 79.2 * GIB)
    assert sum(awake.values()) - sum(asleep.values()) > engine - 2 * GIB


def test_actor_and_critic_on_one_card_train_at_the_same_time() -> None:
    apart, together = (
        layout(load_config(ROOT / f"configs/{name}.yaml")) for name in ("llama3-8b-2x8", "llama3-8b-1x8")
    )
    for planned, both in ((apart, False), (together, True)):
        for phase, other in (("train actor", "critic"), ("train critic", "actor")):
            held = planned.gpus[0].phases[phase]
            assert ((other, "activations") in held) == both


def test_an_engine_without_room_for_a_sample_is_a_shortage() -> None:
    config = load_config(SEVENTY_B, ["rollout.engine.gpu_memory_utilization=0.3"])
    (line,) = layout(config).shortages
    assert line.startswith("the engines: rollout.engine.gpu_memory_utilization=0.3 has no room for one sample")
    assert smallest_change(config, one_layout) == ["rollout.engine.gpu_memory_utilization=0.5"]


def test_what_vllm_itself_takes_is_part_of_its_share_of_a_card() -> None:
    one_node, key = ROOT / "configs/llama3-8b-1x8.yaml", "rollout.engine.gpu_memory_utilization"
    (line,) = layout(load_config(one_node, [f"{key}=0.197"])).shortages  # weights and a sample take 0.191 of a card
    assert "15.0 GiB and 1.5 GiB on each card" in line
    least = float(line.split("; use ")[1].removesuffix(" or more"))
    assert layout(load_config(one_node, [f"{key}={least}"])).shortages == []
    assert layout(load_config(one_node, [f"{key}={least - 0.01}"])).shortages != []
    config = load_config(one_node)
    engines, pool = layout(config).engines, config.placement.pools["h100"]
    assert engines is not None
    assert kv_room(config, engines, pool) == pytest.approx(0.35 * 79.6 * GIB - engines.weights - RUNTIME)


def test_the_longest_conversation_is_what_an_engine_needs_room_for() -> None:
    walk = ["environment={path: env.py, max_tokens: 6000}", "prompts.too_long=error"]
    single, conversation = load_config(SEVENTY_B), load_config(SEVENTY_B, walk)
    tokens = [config.longest_sample for config in (single, conversation)]
    samples = [layout(config).engines.kv_of_a_sample for config in (single, conversation)]
    assert samples[1] / samples[0] == pytest.approx(tokens[1] / tokens[0])
    assert layout(conversation).step.phases["generate"] > layout(single).step.phases["generate"]


def test_a_model_of_unknown_size_does_not_keep_a_run_from_starting() -> None:
    started = CliRunner().invoke(cli.app, ["train", str(SEVENTY_B), "actor.model.path=me/mine"])
    assert "no plan: actor.model.path=me/mine is not a folder" in started.output
    assert "data/prompts.jsonl" in started.output


def test_hosts_hold_what_leaves_the_cards() -> None:
    planned = layout(load_config(SEVENTY_B))
    first, second, *_ = planned.hosts
    parameters = planned.sizes["actor"].parameters
    # Each rank and each of the four processes of an engine is a Python process with its libraries.
    for host in (first, second):
        assert host.held.pop(("actor", "libraries")) == pytest.approx(4 * 0.35 * GIB)
        assert host.held.pop(("rollout", "libraries")) == pytest.approx(4 * 0.55 * GIB)
    # Of each of 4 ranks on a node: float32 weights and two moments of an eighth, and gradients twice, in pinned memory.
    gradients = second.held.pop(("actor", "offloaded gradients (float32)"))
    assert sum(second.held.values()) == pytest.approx(4 * 12 * parameters / 8)
    assert 4 * 8 * parameters / 8 < gradients < 4 * 16 * parameters / 8
    first.held.pop(("actor", "offloaded gradients (float32)"))
    # The first rank collects the whole model when it is saved; of several on a host, one after the other.
    assert sum(first.held.values()) == pytest.approx(sum(second.held.values()) + 2 * parameters)
    (node,) = layout(load_config(ROOT / "configs/llama3-8b-1x8.yaml")).hosts
    saved = [item for item in node.held if item[1] == "whole model, while it is saved"]
    assert len(saved) == 1 and saved[0][0] in ("actor", "critic")
    short = load_config(ROOT / "configs/llama3-8b-1x8.yaml", ["placement.pools.h100.host_memory_gib=100"])
    assert smallest_change(short, lambda config: [layout(config)]) == ["rollout.engine.sleep=2"], (
        "weights leave the host"
    )
    small = load_config(SEVENTY_B, ["placement.pool.host_memory_gib=500"])
    assert any("host of node 0" in line for line in layout(small).shortages)
    assert "give the roles that are short a larger machine" in " ".join(text_of(layout(small)).split())


def test_a_host_is_full_where_ray_ends_processes_and_near_it_there_is_a_warning() -> None:
    """The fullest host of this layout holds 929 GiB."""
    full, tight, roomy = (
        layout(load_config(SEVENTY_B, [f"placement.pool.host_memory_gib={size}"])) for size in (960, 1000, 1100)
    )
    assert any("host of node 0" in line and "95% of it usable" in line for line in full.shortages)
    assert tight.shortages == roomy.shortages == []
    assert "the host of node 0 is 93% full; Ray ends processes at 95%" in tight.warnings
    assert not [line for line in roomy.warnings if "host" in line]
    assert layout(load_config(SEVENTY_B, ["placement.pool.host_memory_gib=930"])).shortages


def test_a_reward_model_that_is_not_there_yet_is_assumed_and_said() -> None:
    planned = layout(load_config(SEVENTY_B))
    assert planned.notes == (
        "reward.model.path=models/llama-3-70b-reward is not there yet: counted as large as the actor",
    )


def test_the_numbers_as_json() -> None:
    data = json.loads(json.dumps(to_json("train", [layout(load_config(SEVENTY_B))])))
    assert data["fits"] is True and len(data["gpus"]) == 32 and len(data["ranks"]) == 34
    for gpu in data["gpus"]:
        assert set(gpu["phases"]) == set(MEMORY_PHASES)
        assert gpu["peak_gib"] == pytest.approx(sum(gpu["phases"][gpu["peak_phase"]].values()))


@pytest.mark.parametrize("model", ["meta-llama/Meta-Llama-3-8B-Instruct", "meta-llama/Llama-3.1-8B-Instruct"])
def test_samples_longer_than_a_known_model_reads_are_refused_in_the_words_of_training(model: str) -> None:
    long = ["prompts.max_tokens=8192", "rollout.max_response_tokens=8192", f"actor.model.path={model}"]
    file = str(ROOT / "configs/llama3-8b-1x8.yaml")
    done = CliRunner().invoke(cli.app, ["plan", file, *long], env={"COLUMNS": "300"})
    if "3.1" in model:
        assert done.exit_code != 2 and "more than" not in done.output
        return
    assert done.exit_code == 2
    assert (
        "is 16384 tokens, more than the 8192 that actor.model.path=meta-llama/Meta-Llama-3-8B-Instruct can"
        in " ".join(done.output.split())
    )


def test_the_command(tmp_path: Path) -> None:
    svg, numbers = tmp_path / "plan.svg", tmp_path / "plan.json"
    fits = CliRunner().invoke(cli.app, ["plan", str(SEVENTY_B), "--svg", str(svg), "--json", str(numbers)])
    assert fits.exit_code == 0, fits.output
    assert svg.read_text().startswith("<svg") and outside(svg.read_text()) == []
    assert outside(Console(record=True, file=StringIO()).export_svg()), "by itself it asks a server for fonts"
    assert json.loads(numbers.read_text())["fits"] is True
    short = CliRunner().invoke(cli.app, ["plan", str(SEVENTY_B), *FULL_ADAM])
    assert short.exit_code == 1
    assert "It does not fit" in short.output and "actor.zero.offload_optimizer=true" in short.output


SHARED = ["actor.lora.rank=16", "reference={share_actor: true}"]


def test_a_reference_that_is_the_actor_has_no_place_of_its_own() -> None:
    """In groups it is refused one, in OpenRLHF's words it gets none."""
    ours, theirs = (ROOT / f"configs/{name}.yaml" for name in ("llama3-8b-2x8", "llama3-70b-32xa800"))
    groups = load_config(ours).placement.groups  # type: ignore[union-attr]
    home = next(name for name, group in groups.items() if "reference" in group.roles)
    with pytest.raises(ConfigError, match=r"share_actor=true needs no GPUs; take `reference` out of placement.groups"):
        load_config(ours, SHARED)
    without = [role for role in groups[home].roles if role != "reference"]
    planned = layout(load_config(ours, [*SHARED, f"placement.groups.{home}.roles={json.dumps(without)}"]))
    assert "reference" not in planned.plan.roles
    shared, alone = (layout(load_config(theirs, said)) for said in ([*SHARED, "placement.ref_num_nodes=0"], SHARED[:1]))
    assert "reference" not in shared.plan.roles
    assert shared.step.busy["rollout", "actor"] > alone.step.busy["rollout", "actor"], "it scores twice"

    with pytest.raises(ConfigError, match=r"ref_num_nodes=0, but reference\.share_actor=false needs GPUs"):
        load_config(theirs, ["placement.ref_num_nodes=0"])


def test_rounds_of_dynamic_sampling_are_said_not_to_be_counted() -> None:
    said = [
        "rollout.engine.sleep=1",
        "ppo.dynamic_sampling.rounds=4",
        "rollout.responses_per_prompt=4",
        "rollout.prompts_per_step=256",
    ]
    notes = layout(load_config(SEVENTY_B, said)).notes
    assert any("one round; each of up to 3 others" in note for note in notes)
    assert not any("dynamic_sampling" in note for note in layout(load_config(SEVENTY_B)).notes)


def test_an_actor_that_computes_no_old_log_probabilities_is_free_while_others_score() -> None:
    seconds = [
        layout(load_config(SEVENTY_B, [f"actor.old_logprobs={how}"])).step.busy["rollout", "actor"]
        for how in ("recompute", "rollout")
    ]
    assert seconds[1] < seconds[0]


def test_adapters_shrink_the_plan() -> None:
    """Full Adam for 70B does not fit on these cards; adapters do, with nothing offloaded."""
    adapters = ["actor.lora.rank=16", "critic.lora.rank=16"]
    assert layout(load_config(SEVENTY_B, FULL_ADAM)).shortages
    assert layout(load_config(SEVENTY_B, [*FULL_ADAM, *adapters])).shortages == []


def test_a_reward_model_that_is_retrained_has_an_optimizer_and_a_phase_of_its_own() -> None:
    file, own = ROOT / "configs/llama3-8b-2x8.yaml", "retraining={every: 4, judge: {type: function, path: judge.py}}"
    frozen, retrained = layout(load_config(file)), layout(load_config(file, [own]))
    head = layout(load_config(file, [own, "retraining.freeze_backbone=true"]))
    assert "train reward" not in frozen.phases and retrained.phases.index("train reward") > 1

    def of_the_reward(planned: PlannedLayout, phase: str) -> dict[str, float]:
        card = next(load for load in planned.gpus if "reward" in load.roles)
        return {item: size for (role, item), size in card.phases[phase].items() if role == "reward"}

    parameters, ranks = retrained.sizes["reward"].parameters, len(retrained.plan.of("reward"))
    optimizer = "optimizer (float32 weights and moments)"
    assert optimizer not in of_the_reward(frozen, "generate")
    assert of_the_reward(retrained, "generate")[optimizer] == pytest.approx(12 * parameters / ranks)
    assert of_the_reward(head, "generate")[optimizer] == pytest.approx(12 * retrained.sizes["reward"].hidden / ranks)
    for phase in ("train actor", "train critic"):
        assert "head and a block of logits" not in of_the_reward(retrained, phase), "it is trained between the steps"
        assert of_the_reward(retrained, phase).get("activations") is None
    assert of_the_reward(retrained, "train reward")["activations"] > 0
    assert retrained.step.phases == frozen.step.phases
    assert any("retraining" in note and "every 4 steps" in note for note in retrained.notes)


def test_a_model_that_labels_has_a_place_of_its_own() -> None:
    file, model = ROOT / "configs/llama3-8b-2x8.yaml", load_config(ROOT / "configs/llama3-8b-2x8.yaml").reward
    judge = {"type": "model", "model": {"path": model.model.path}}  # type: ignore[union-attr]
    own = [f"retraining={json.dumps({'every': 4, 'judge': judge})}"]
    with pytest.raises(ConfigError, match="labeller"):
        load_config(file, own)
    placement = load_config(file).placement.model_dump(mode="json")
    group = next(group for group in placement["groups"].values() if "reward" in group["roles"])
    group["roles"] = [*group["roles"], "labeller"]
    planned = layout(load_config(file, [*own, f"placement={json.dumps(placement)}"]))
    assert planned.sizes["labeller"] == planned.sizes["reward"]
    assert len(planned.plan.of("labeller")) == len(planned.plan.of("reward"))
    card = next(load for load in planned.gpus if "labeller" in load.roles)
    assert card.phases["generate"]["labeller", "weights"] > 0
    assert not [item for role, item in card.phases["train reward"] if role == "labeller" and "optimizer" in item]


def test_training_refuses_what_cannot_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it looks at models or prompts, none of which are here."""
    refused = CliRunner().invoke(cli.app, ["train", str(SEVENTY_B), *FULL_ADAM])
    assert refused.exit_code == 2
    assert "the placement does not fit" in refused.output and "--force" in refused.output
    forced = CliRunner().invoke(cli.app, ["train", str(SEVENTY_B), *FULL_ADAM, "--force"])
    assert "the configuration is wrong" in forced.output and "data/prompts.jsonl" in forced.output


def test_a_pre_training_loss_takes_memory_for_its_longest_row_and_time_in_the_actors_update() -> None:
    ptx = ["ppo.ptx={data: {path: t.jsonl}, coefficient: 1.0, sequences_per_mini_batch: 64, max_tokens: 8192}"]
    plain, beside = (layout(load_config(SEVENTY_B, more)) for more in ([], ptx))
    assert plain.step.phases["update"] * 1.05 < beside.step.phases["update"]
    for phase in ("generate", "push"):
        assert plain.step.phases[phase] == pytest.approx(beside.step.phases[phase])

    def held(planned: PlannedLayout) -> float:
        return max(sum(load.phases["train actor"].values()) for load in planned.gpus)

    assert held(plain) < held(beside)
    assert any("rows of ppo.ptx.data: assumed" in note for note in beside.notes)
