"""Scripts of other frameworks: what they become is a configuration that loads, or they are refused."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.config.loading import validate
from orchestrator.config.yaml_text import parse_yaml
from orchestrator.importing.importer import Imported
from orchestrator.importing.openrlhf import import_openrlhf
from orchestrator.importing.trl import import_trl
from orchestrator.importing.verl import import_verl
from tests.unit.fuzz.commands import examples
from tests.unit.fuzz.damage import damaged
from tests.unit.fuzz.world import World

IMPORTERS: dict[str, Callable[..., Imported]] = {
    "import-openrlhf": import_openrlhf,
    "import-verl": import_verl,
    "import-trl": import_trl,
}
SOUND = {
    "import-openrlhf": [
        b"set -x\nray job submit -- python3 -m openrlhf.cli.train_ppo_ray \\\n  --pretrain a/b --save_path x",
        b"read -r -d '' T <<EOF\nopenrlhf.cli.train_ppo_ray --actor.num_nodes 1 \\\n --pretrain ${M:-a/b} \\\n"
        b" --prompt_data a,b --prompt_data_probs 0.5,0.5 --colocate_all_models\nEOF\ndeepspeed --module $T\n",
        b'ARGS=(--pretrain a/b --lambd 0.9)\nbash -c "python -m openrlhf.cli.train_ppo_ray ${ARGS[@]} --use_kl_loss"\n',
    ],
    "import-verl": [
        b"m=$HOME/a\nN=$((4 / 2))\npython3 -m verl.trainer.main_ppo \\\n  algorithm.adv_estimator=gae \\\n"
        b"  data.train_files=\"['$m', 'b']\" actor_rollout_ref.model.path=a/b +data.x={a:1,b:[1,2]} \\\n"
        b"  actor_rollout_ref.rollout.n=$N critic.optim.lr=1e-5 trainer.nnodes=1 $@\n",
        b"trainer: {nnodes: 1, n_gpus_per_node: 8}\nactor_rollout_ref:\n  model: {path: a/b}\n",
    ],
    "import-trl": [
        b"accelerate launch --config_file z.yaml ppo.py --dataset_name a/b --learning_rate 3e-6 \\\n"
        b"  --sft_model_path a/b --reward_model_path c/d --use_peft --lora_target_modules q_proj v_proj\n",
        b"learning_rate: 3.0e-6\nsft_model_path: a/b\nreward_model_path: c/d\nkl_coef: 0.05\nreport_to: [wandb]\n",
        b'{"learning_rate": 3e-6, "sft_model_path": "a/b", "reward_model_path": "c/d", "report_to": null}',
    ],
}


def test_the_scripts_are_sound(world: World) -> None:
    for command, scripts in SOUND.items():
        for script in scripts:
            assert world.refusal(command, world.write_bytes(script, "script.sh")) is None, script


@examples(30)
@given(st.data(), st.sampled_from(sorted(SOUND)))
def test_a_damaged_script(world: World, data: st.DataObject, command: str) -> None:
    file = world.write_bytes(data.draw(st.sampled_from(SOUND[command]).flatmap(damaged)), "script.sh")
    if world.refusal(command, file) is None:
        assert validate(parse_yaml(IMPORTERS[command](file).text))
