"""OpenRLHF's sizes and colocation flags → `placement: {type: openrlhf}`. Roles share cards exactly where theirs do."""

from __future__ import annotations

from orchestrator.importing.draft import Draft

THEIRS = {"actor": "actor", "critic": "critic", "reference": "ref", "reward": "reward"}
"""Our roles → the beginnings of their options."""


def size(draft: Draft, role: str) -> tuple[int, int]:
    """(nodes, GPUs of each)."""
    name = THEIRS[role]
    return draft.options.whole(f"{name}.num_nodes"), draft.options.whole(f"{name}.num_gpus_per_node")


def ranks(draft: Draft, critic: bool) -> int:
    """Ranks of the largest trained role."""
    nodes, each = size(draft, "actor")
    if critic and not draft.options.flag("train.colocate_all"):
        other = size(draft, "critic")
        return max(nodes * each, other[0] * other[1])
    return nodes * each


def put_placement(draft: Draft, critic: bool) -> None:
    """Sizes of the roles that there are, and who shares."""
    options = draft.options
    draft.put("placement.type", "openrlhf")
    together = options.flag("train.colocate_all")
    homes = {"reference": "actor" if together or options.flag("train.colocate_actor_ref") else None}
    if critic:
        homes["critic"] = "actor" if together else None
    if draft.data["reward"]["type"] == "model":
        pair = critic and options.flag("train.colocate_critic_reward")
        homes["reward"] = "actor" if together else "critic" if pair else None
    if not options.number("algo.kl.init_coef") and not homes["reference"]:
        homes["reference"] = "actor"
        why = "with coefficient 0 OpenRLHF has no reference; here it measures the KL, on the actor's cards"
        draft.differs("algo.kl.init_coef", why)
    _put_sizes(draft, homes)
    draft.put("placement.colocate_all_models", together, "train.colocate_all")
    if not together:
        draft.put("placement.colocate_actor_ref", homes["reference"] == "actor", "train.colocate_actor_ref")
        draft.put("placement.colocate_critic_reward", homes.get("reward") == "critic", "train.colocate_critic_reward")
        if options.flag("train.colocate_critic_reward") and homes.get("reward") != "critic":
            draft.moot("train.colocate_critic_reward", "there is no critic, or no reward model")
    _put_engines(draft, together and not options.flag("train.async_enable"))


def _put_sizes(draft: Draft, homes: dict[str, str | None]) -> None:
    """A role on another's cards has that role's size; theirs may be smaller."""
    for role, name in THEIRS.items():
        if role not in ("actor", *homes):
            for part in ("num_nodes", "num_gpus_per_node"):
                draft.moot(f"{name}.{part}", f"the run has no {role} on GPUs")
            continue
        home = homes.get(role) or role
        home = homes.get(home) or home  # the reward on the critic's cards
        nodes, each = size(draft, home)
        draft.put(f"placement.{name}_num_nodes", nodes, f"{name}.num_nodes")
        draft.put(f"placement.{name}_num_gpus_per_node", each, f"{name}.num_gpus_per_node")
        said = [option for option in (f"{name}.num_nodes", f"{name}.num_gpus_per_node") if option in draft.options]
        if said and size(draft, role) != (nodes, each):
            draft.differs(said[0], f"the {role} is on all {nodes} x {each} GPUs of the {home}")


def _put_engines(draft: Draft, sharing: bool) -> None:
    options = draft.options
    nodes, each = size(draft, "actor")
    width = options.whole("vllm.tensor_parallel_size")
    number = options.whole("vllm.num_engines", least=0) if options.value("vllm.num_engines") is not None else 0
    if not number:
        number, sharing = max(nodes * (each // width), 1), each % width == 0
        draft.differs("vllm.num_engines", f"without engines OpenRLHF's actor generates; {number} engines do here")
    draft.put("placement.vllm_num_engines", number, "vllm.num_engines")
    draft.put("placement.vllm_tensor_parallel_size", width, "vllm.tensor_parallel_size")
    draft.put("placement.colocate_engines", sharing, "train.colocate_all")
