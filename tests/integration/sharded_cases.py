"""What the ranks of `test_sharded` do, and the plain single-process torch that they are compared with."""

from __future__ import annotations

import itertools
import math
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from roles.batch import Rollouts
from roles.config.losses import PolicyLossConfig, ValueLossConfig
from roles.config.models import OptimizerConfig, ScheduleConfig, ZeroConfig
from roles.losses.kl_estimators import KL_ESTIMATORS
from roles.losses.policy_loss import POLICY_LOSSES
from roles.losses.value_loss import value_loss
from roles.rows import Batch, put_back
from roles.shares import ActorExperience, RankShare
from roles.zero.setup import ModelSetup
from tests.integration.tiny_model import EOS, VOCABULARY

TEMPERATURE = 0.7
OPTIMIZER = OptimizerConfig(learning_rate=1e-3, max_gradient_norm=0.5, schedule=ScheduleConfig(type="constant"))


def setup_of(folder: Path, **changes: Any) -> ModelSetup:
    """A trained model on the CPU in float32."""
    setup = ModelSetup(
        model_path=str(folder),
        device="cpu",
        dtype="float32",
        seed=1,
        zero=ZeroConfig(),
        micro_batch_tokens=64,
        optimizer=OPTIMIZER,
        optimizer_steps=100,
    )
    return replace(setup, **changes)


def rollouts_of(rows: int, seed: int = 0, prompt_tokens: int = 8, response_tokens: int = 13) -> Rollouts:
    """Ragged rows of at most so many tokens; one has a gap in its mask."""
    draw = torch.Generator().manual_seed(seed)
    prompt = torch.randint(1, prompt_tokens + 1, (rows,), generator=draw)
    lengths = prompt + torch.randint(1, response_tokens + 1, (rows,), generator=draw)
    column = torch.arange(int(lengths.max()))
    valid = column < lengths[:, None]
    mask = valid & (column >= prompt[:, None])
    mask[0, int(prompt[0]) + 1] = False
    tokens = torch.randint(3, VOCABULARY, valid.shape, generator=draw) * valid
    return Rollouts(
        token_ids=tokens,
        lengths=lengths,
        response_mask=mask,
        rollout_logprobs=torch.zeros(valid.shape),
        turn_rewards=torch.zeros_like(mask, dtype=torch.float32),
        finished=torch.ones(rows, dtype=torch.bool),
        versions=torch.zeros(rows, dtype=torch.long),
        prompts=["p"] * rows,
        responses=["r"] * rows,
        columns={},
        counted=[{}] * rows,
    )


def worded(folder: Path, rollouts: Rollouts) -> Rollouts:
    """The rollouts with their texts; every second row ends itself, with EOS."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokens = rollouts.token_ids.clone()
    finished = torch.arange(len(rollouts)) % 2 == 0
    tokens[finished, rollouts.lengths[finished] - 1] = EOS
    prompts, responses = [], []
    for row, length in enumerate(rollouts.lengths.tolist()):
        start = int(rollouts.response_mask[row].nonzero()[0])
        prompts.append(tokenizer.decode(tokens[row, :start]))
        responses.append(tokenizer.decode(tokens[row, start:length], skip_special_tokens=True))
    return replace(rollouts, token_ids=tokens, finished=finished, prompts=prompts, responses=responses)


def long_rollouts(tokens: int) -> Rollouts:
    """One row of so many tokens."""
    ids = torch.full((1, tokens), 5)
    mask = torch.ones(1, tokens, dtype=torch.bool)
    mask[0, 0] = False
    return Rollouts(
        token_ids=ids,
        lengths=torch.tensor([tokens]),
        response_mask=mask,
        rollout_logprobs=torch.zeros(1, tokens),
        turn_rewards=torch.zeros_like(mask, dtype=torch.float32),
        finished=torch.tensor([False]),
        versions=torch.tensor([0]),
        prompts=["p"],
        responses=["r"],
        columns={},
        counted=[{}],
    )


@dataclass(frozen=True, slots=True)
class Experience(Batch):
    """What either role learns from, so that one batch serves the tests of both."""

    token_ids: Tensor
    lengths: Tensor
    response_mask: Tensor
    rows: Tensor
    old_logprobs: Tensor
    rollout_logprobs: Tensor
    reference_logprobs: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor


def steps_of(*batches: Experience) -> RankShare[Any]:
    """One optimizer step on each batch."""
    ends = list(itertools.accumulate(len(batch) for batch in batches))
    steps = [list(range(end - len(batch), end)) for batch, end in zip(batches, ends, strict=True)]
    return RankShare(Experience.concatenate(batches), steps)


def experience_of(rows: int, seed: int = 0, prompt_tokens: int = 8, response_tokens: int = 13) -> Experience:
    """Random numbers of a sensible size; the last row is not trained on."""
    rollouts = rollouts_of(rows, seed, prompt_tokens, response_tokens)
    draw = torch.Generator().manual_seed(seed + 1)
    mask = rollouts.response_mask.clone()
    mask[-1] = False

    def noise(scale: float, shift: float = 0.0) -> Tensor:
        return (torch.randn(mask.shape, generator=draw) * scale + shift) * mask

    return Experience(
        token_ids=rollouts.token_ids,
        lengths=rollouts.lengths,
        response_mask=mask,
        rows=torch.arange(rows),
        old_logprobs=noise(0.3, -math.log(VOCABULARY)),
        rollout_logprobs=noise(0.3, -math.log(VOCABULARY)),
        reference_logprobs=noise(0.3, -math.log(VOCABULARY)),
        values=noise(1.0),
        advantages=noise(1.0),
        returns=noise(1.0),
    )


EQUAL_LENGTH = 12


def long_experience(rows: int) -> Experience:
    """Rows of `EQUAL_LENGTH` tokens with responses of many lengths, so that means of means would differ."""
    batch = experience_of(rows)
    width, draw = EQUAL_LENGTH, torch.Generator().manual_seed(5)
    begin = torch.arange(rows) % (width - 2) + 1
    mask = torch.arange(width) >= begin[:, None]

    def noise(scale: float, shift: float = 0.0) -> Tensor:
        return (torch.randn(mask.shape, generator=draw) * scale + shift) * mask

    tokens = torch.randint(3, VOCABULARY, mask.shape, generator=draw)
    numbers = {name: noise(1.0) for name in ("values", "advantages", "returns", "reference_logprobs")}
    return replace(
        batch,
        token_ids=tokens,
        lengths=torch.full((rows,), width),
        response_mask=mask,
        old_logprobs=noise(0.3, -math.log(VOCABULARY)),
        rollout_logprobs=noise(0.3, -math.log(VOCABULARY)),
        **numbers,
    )


def padded_gradient(folder: Path, batch: Experience, kind: str) -> dict[str, Tensor]:
    """Of the loss of the whole batch at once, with padding after each row, in plain transformers."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    auto = AutoModelForCausalLM if kind == "actor" else AutoModelForSequenceClassification
    model = auto.from_pretrained(folder, attn_implementation="eager")  # others leave soft caps out
    padding = torch.zeros(len(batch), 3, dtype=torch.long)
    ids = torch.cat([batch.token_ids, padding], 1)
    attended = torch.cat([torch.ones_like(batch.token_ids), padding], 1)
    mask = batch.response_mask[:, 1:]
    if kind == "actor":
        logits = model(ids, attention_mask=attended).logits[:, : mask.shape[1]] / TEMPERATURE
        new = logits.log_softmax(-1).gather(2, batch.token_ids[:, 1:, None])[:, :, 0]
        options = {"clip_low": 0.2, "clip_high": 0.2}
        losses, _ = POLICY_LOSSES["clipped"](new, batch.old_logprobs[:, 1:], batch.advantages[:, 1:], **options)
    else:
        hidden = model.base_model(ids, attention_mask=attended).last_hidden_state[:, : mask.shape[1]]
        values = model.score(hidden)[:, :, 0] - model.config.score_shift
        losses, _ = value_loss(values, batch.values[:, 1:], batch.returns[:, 1:], 0.2)
    losses[mask].mean().backward()
    return {"model." + n: p.grad for n, p in model.named_parameters()}


def shares(batch: Any, ranks: int) -> list[Any]:
    """Very unequal shares: all ranks but the first get one row."""
    rows = list(range(len(batch)))
    return batch.split([rows[ranks - 1 :], *([row] for row in rows[: ranks - 1])])


def captured(model: Any) -> list[dict[str, Tensor]]:
    """Grows by the whole, averaged gradients of each optimizer step of `model`, before they are clipped."""
    from deepspeed.utils import safe_get_full_grad

    seen: list[dict[str, Tensor]] = []
    step = model._deepspeed.step

    def recording() -> None:
        sharded = model.setup.zero.stage > 0
        named = [(n, p) for n, p in model.module.named_parameters() if p.requires_grad]
        seen.append({n: (safe_get_full_grad(p) if sharded else p.grad).float().clone() for n, p in named})
        step()

    model._deepspeed.step = recording
    return seen


def whole_weights(model: Any) -> dict[str, Tensor]:
    """All parameters, by name."""
    return {name: tensor.clone() for name, tensor in model._full_parameters(model.module)}


def _mine(parts: list[Any]) -> Any:
    return parts[torch.distributed.get_rank()]


def update_actor(
    setup: ModelSetup, loss: PolicyLossConfig, batches: list[Experience], extra: tuple[int, str, float] | None = None
) -> dict[str, Any]:
    """One update; gradients of each step, final weights, statistics. `extra`: longest response, KL estimator and β."""
    from roles.actor import Actor, LossExtra
    from roles.models import scoring_head as head

    head.BLOCK, head.NARROWEST = 1, 48  # several blocks of the small vocabulary
    actor = Actor(setup, loss, TEMPERATURE, LossExtra(*extra[:2]) if extra else None)
    gradients = captured(actor._model)
    shards = [_mine(shares(batch, actor._model.world_size)) for batch in batches]
    stats = actor.update(steps_of(*shards), extra[2] if extra else 0.0)
    return {"gradients": gradients, "weights": whole_weights(actor._model), "stats": stats}


def update_with_pretraining(
    setup: ModelSetup, loss: PolicyLossConfig, batches: list[Experience], texts: list[Experience], coefficient: float
) -> dict[str, Any]:
    """`update_actor` with texts beside each optimizer step, all of them on the first rank."""
    from roles.actor import Actor, LossExtra

    actor = Actor(setup, loss, TEMPERATURE, LossExtra(ptx_coefficient=coefficient))
    gradients, rank = captured(actor._model), torch.distributed.get_rank()
    shards = [_mine(shares(batch, actor._model.world_size)) for batch in batches]
    own = [text.select(range(len(text)) if rank == 0 else []) for text in texts]
    stats = actor.update(replace(steps_of(*shards), beside=steps_of(*own)))
    return {"gradients": gradients, "weights": whole_weights(actor._model), "stats": stats}


def update_supervised(setup: ModelSetup, batches: list[Experience]) -> dict[str, Any]:
    """The same for a policy that imitates; and the loss of each token of the first batch before the update."""
    from roles.batch import Sequences
    from roles.supervised import Supervised

    policy = Supervised(setup)
    gradients, shards = captured(policy._model), [_mine(shares(batch, policy._model.world_size)) for batch in batches]
    losses = policy.losses(Sequences.of(shards[0]))
    stats = policy.update(steps_of(*shards))
    return {"gradients": gradients, "weights": whole_weights(policy._model), "stats": stats, "losses": losses}


def plain_cross_entropy(model: Any, batch: Experience) -> Tensor:
    """Mean over all tokens in the response mask."""
    logits = model(batch.token_ids).logits[:, :-1]  # padding stands at the right
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch.token_ids[:, 1:], reduction="none")
    return losses[batch.response_mask[:, 1:]].mean()


def preferences_of(seed: int, labelled: bool) -> Any:
    """Six pairs of responses, or six labelled responses, with invented numbers of a reference."""
    from roles.shares import LabelledResponses, PreferencePairs, ReferencedResponses

    sides = []
    for side in (0, 1):
        batch = experience_of(7, seed + side).select(range(6))  # the last has no trained token
        reference = -torch.rand(6, generator=torch.Generator().manual_seed(seed + side)) * 20
        if labelled:
            reference = reference / 4 - 6 * batch.response_mask.sum(1)  # less likely than to the policy: a KL above 0
        sides.append(ReferencedResponses(batch.token_ids, batch.lengths, batch.response_mask, reference))
    if labelled:
        return LabelledResponses(*sides, torch.tensor([True, False, True, True, False, False]), torch.arange(6))
    return PreferencePairs(*sides, torch.arange(6), torch.ones(6))


def update_preferences(setup: ModelSetup, loss: Any, batches: list[Any]) -> dict[str, Any]:
    """Gradients and statistics of each optimizer step of a policy that learns preferences, and the final weights."""
    from roles.preference_policy import PreferencePolicy

    policy = PreferencePolicy(setup, loss)
    gradients = captured(policy._model)
    stats = [policy.update(_mine(shares(batch, policy._model.world_size))) for batch in batches]
    return {"gradients": gradients, "weights": whole_weights(policy._model), "stats": stats}


def plain_preference_loss(model: Any, batch: Any, loss: Any) -> Tensor:
    """Mean over the pairs or labelled responses, of padded rows one by one."""
    from roles.losses.preference_loss import kto
    from roles.losses.preference_numbers import preference_losses

    labelled = loss.type == "kto"
    sides = (batch.responses, batch.mismatched) if labelled else (batch.chosen, batch.rejected)
    numbers = []
    for side in sides:
        logprobs = model(side.token_ids).logits[:, :-1].log_softmax(-1)
        taken = logprobs.gather(-1, side.token_ids[:, 1:, None]).squeeze(-1)
        numbers.append((taken * side.response_mask[:, 1:]).sum(1))
    references = [side.reference_logprob for side in sides]
    if labelled:
        kl = (numbers[1] - references[1]).mean().detach().clamp(min=0)
        assert float(kl) > 0, "a clamped estimate would hide what it is made of"
        return kto(numbers[0], references[0], batch.desirable, kl, beta=loss.beta).mean()
    tokens = torch.cat([side.response_mask.sum(1) for side in sides])
    return preference_losses(loss, torch.cat(numbers), torch.cat(references), tokens)[0].mean()


def grown_over_many_lengths(setup: ModelSetup, first: int, last: int) -> float:
    """MiB that the process has gained by updates on one row each, of `first`, `first` + 1, … `last` tokens."""
    import psutil

    from roles.actor import Actor

    process, actor, like = psutil.Process(), Actor(setup, PolicyLossConfig(), TEMPERATURE), experience_of(2)

    def row(tokens: int) -> Experience:
        numbers = torch.zeros(1, tokens)
        mask = torch.arange(tokens)[None] > 0
        ids = torch.full((1, tokens), 5)
        same = dict.fromkeys(("old_logprobs", "rollout_logprobs", "reference_logprobs", "values", "returns"), numbers)
        changes = {"token_ids": ids, "lengths": torch.tensor([tokens]), "response_mask": mask, "advantages": numbers}
        return replace(like, rows=torch.tensor([0]), **changes, **same)

    actor.update(steps_of(row(first)))
    before = process.memory_info().rss
    for tokens in range(first, last + 1):
        actor.update(steps_of(row(tokens)))
    return (process.memory_info().rss - before) / 2**20


def adapted(setup: ModelSetup, batches: list[Experience], rollouts: Rollouts, folder: str) -> dict[str, Any]:
    """An actor with adapters: two log-probabilities of all rows before and after an update, and what is saved."""
    from roles.actor import Actor

    actor = Actor(setup, PolicyLossConfig(), TEMPERATURE)
    gradients = captured(actor._model)

    def both() -> tuple[Tensor, Tensor]:
        mask = rollouts.response_mask
        return put_back(actor.logprobs(rollouts), mask), put_back(actor.reference_logprobs(rollouts), mask)

    before = both(), actor.reference_fingerprint()
    stats = actor.update(steps_of(*(_mine(shares(batch, actor._model.world_size)) for batch in batches)))
    actor.save_model(f"{folder}/model")
    actor.save_state(f"{folder}/state")
    return {
        "gradients": gradients,
        "weights": whole_weights(actor._model),
        "stats": stats,
        "before": before,
        "after": (both(), actor.reference_fingerprint()),
    }


def slowed_down(setup: ModelSetup, batch: Experience, folder: str) -> list[float]:
    """Learning rates of an update, of one after slowing down to a quarter, and of one after a resume."""
    from roles.actor import Actor

    rates = []
    actor = Actor(setup, PolicyLossConfig(), TEMPERATURE)
    shard = steps_of(_mine(shares(batch, actor._model.world_size)))
    rates.append(actor.update(shard).learning_rate)
    actor.slow_down(0.25)
    rates.append(actor.update(shard).learning_rate)
    actor.save_state(folder)
    resumed = Actor(setup, PolicyLossConfig(), TEMPERATURE)
    resumed.load_state(folder)
    return [*rates, resumed.update(shard).learning_rate]


def resumed_with(setup: ModelSetup, changed: ModelSetup, batch: Experience, folder: str) -> list[float]:
    """Learning rates of one update before a checkpoint, which has been slowed down to a quarter since, and of the two
    that follow with another setup."""
    from roles.actor import Actor

    first, second = (Actor(one, PolicyLossConfig(), TEMPERATURE) for one in (setup, changed))
    shard = steps_of(_mine(shares(batch, torch.distributed.get_world_size())))
    rates = [first.update(shard).learning_rate]
    first.slow_down(0.25)
    first.save_state(folder)
    second.load_state(folder)
    return [*rates, *(second.update(shard).learning_rate for _ in range(2))]


def averaged(setup: ModelSetup, batches: list[Experience], folder: str) -> dict[str, Any]:
    """Weights after every optimizer step; the mean is saved and loaded half-way, and saved as a model in the end."""
    from roles.actor import Actor

    actor = Actor(setup, PolicyLossConfig(), TEMPERATURE)
    mine = [_mine(shares(batch, torch.distributed.get_world_size())) for batch in batches]
    seen = [whole_weights(actor._model)]
    for number, batch in enumerate(mine):
        if number == 1:
            actor.save_state(folder)
            actor = Actor(setup, PolicyLossConfig(), TEMPERATURE)
            actor.load_state(folder)
        actor.update(steps_of(batch))
        seen.append(whole_weights(actor._model))
    actor.save_average(f"{folder}/mean")
    return {"weights": seen, "unmoved": whole_weights(actor._model)}


def expected_end(setup: ModelSetup, batch: Experience) -> list[float]:
    """Learning rates of three optimizer steps; after the first, the schedule is told to end with the third."""
    from roles.actor import Actor

    actor = Actor(setup, PolicyLossConfig(), TEMPERATURE)
    shard = steps_of(_mine(shares(batch, torch.distributed.get_world_size())))
    rates = [actor.update(shard).learning_rate]
    actor.expect(3)
    return [*rates, *(actor.update(shard).learning_rate for _ in range(2))]


def update_actor_loaded_in_shards(
    setup: ModelSetup, loss: PolicyLossConfig, batches: list[Experience]
) -> dict[str, Any]:
    """`update_actor` with the model loaded as it is on GPUs."""
    from roles.zero import sharded as sharded

    usual = sharded._sharded_loading
    sharded._sharded_loading = lambda setup, settings: usual(replace(setup, device="cuda"), settings)
    try:
        return update_actor(setup, loss, batches)
    finally:
        sharded._sharded_loading = usual


def update_critic(setup: ModelSetup, loss: ValueLossConfig, batches: list[Experience]) -> dict[str, Any]:
    """The same for a critic."""
    from roles.critic import Critic

    critic = Critic(setup, loss, 1)
    gradients = captured(critic._model)
    stats = critic.update(steps_of(*(_mine(shares(batch, critic._model.world_size)) for batch in batches)))
    return {"gradients": gradients, "weights": whole_weights(critic._model), "stats": stats}


def first_ratio(setup: ModelSetup, rollouts: Rollouts) -> tuple[Tensor, Any]:
    """Old log-probabilities from the actor itself, then an update with them."""
    from roles.actor import Actor

    actor = Actor(setup, PolicyLossConfig(), TEMPERATURE)
    mine = _mine(shares(rollouts, actor._model.world_size))
    old = put_back(actor.logprobs(mine), mine.response_mask)
    blank = torch.zeros_like(old)
    advantages = torch.linspace(-1, 1, old.numel()).reshape(old.shape) * mine.response_mask
    rows = torch.arange(len(old))
    batch = ActorExperience(mine.token_ids, mine.lengths, mine.response_mask, rows, old, blank, blank, advantages)
    return old, actor.update(RankShare(batch, [rows.tolist()]))


def gathered_ahead(setup: ModelSetup, rollouts: Rollouts, batch: Experience) -> tuple[set[str], Tensor, Tensor]:
    """Scoring between updates where ZeRO-3 gathers ahead, as on cards: what is left of its gathers, and the numbers."""
    from roles.actor import Actor
    from roles.zero import sharded as sharded

    plain = sharded.deepspeed_config

    def with_prefetch(*arguments: Any) -> dict[str, Any]:
        settings = plain(*arguments)
        settings["zero_optimization"] |= {"stage3_prefetch_bucket_size": 10**7, "stage3_param_persistence_threshold": 0}
        return settings

    sharded.deepspeed_config = with_prefetch
    try:
        actor = Actor(setup, PolicyLossConfig(), TEMPERATURE)
    finally:
        sharded.deepspeed_config = plain
    mine = _mine(shares(batch, actor._model.world_size))
    for _ in range(2):
        actor.update(steps_of(mine))
    numbers = actor.logprobs(_mine(shares(rollouts, actor._model.world_size)))
    left = {str(parameter.ds_status) for parameter in actor._model.module.parameters()}
    actor._model.fingerprint()
    again = actor.logprobs(_mine(shares(rollouts, actor._model.world_size)))
    actor.update(steps_of(mine))
    return left, numbers, again


def frozen(setup: ModelSetup, policy: Rollouts) -> dict[str, Any]:
    """A reference: its log-probabilities, fingerprints, and how much of the model rests on this rank."""
    from roles.reference import Reference

    reference = Reference(setup, TEMPERATURE)
    before = reference.reference_fingerprint()
    mine = _mine(shares(policy, reference._model.world_size))
    logprobs = put_back(reference.reference_logprobs(mine), mine.response_mask)
    nothing = reference.reference_logprobs(policy.select([])) if reference._model.world_size == 1 else None
    parameters = list(reference._model.module.parameters())
    matrices = [p for p in parameters if len(p.ds_shape) > 1] if setup.zero.stage == 3 else []
    return {
        "logprobs": logprobs,
        "nothing": nothing,
        "fingerprints": (before, reference.reference_fingerprint()),
        "kept": sum(p.ds_tensor.numel() + p.numel() for p in matrices),
        "whole": sum(p.ds_numel for p in matrices),
    }


def empty_shard(setup: ModelSetup, rollouts: Rollouts) -> list[int]:
    """All rows on rank 0, none elsewhere: nobody hangs."""
    from roles.critic import Critic

    critic = Critic(setup, ValueLossConfig(), 1)
    rows = list(range(len(rollouts))) if torch.distributed.get_rank() == 0 else []
    return list(critic.values(rollouts.select(rows)).shape)


def interrupted(setup: ModelSetup, batches: list[Experience], folder: str) -> dict[str, Any]:
    """n steps at once, and k steps + saving + loading into a new model + (n - k) steps."""
    from roles.actor import Actor

    def actor() -> Actor:
        return Actor(setup, PolicyLossConfig(), TEMPERATURE)

    through, first, second = actor(), actor(), actor()
    mine = [_mine(shares(batch, torch.distributed.get_world_size())) for batch in batches]
    expected = [through.update(steps_of(batch)) for batch in mine]
    for batch in mine[:2]:
        first.update(steps_of(batch))
    first.save_state(folder)
    second.load_state(folder)
    stats = [second.update(steps_of(batch)) for batch in mine[2:]]
    return {
        "expected": (expected[2:], whole_weights(through._model)),
        "resumed": (stats, whole_weights(second._model)),
    }


def asleep(setup: ModelSetup, batches: list[Experience], folder: str) -> dict[str, Any]:
    """As `interrupted`, with states that sleep between the updates; and which states are saved, and loaded.

    Moving is DeepSpeed's own code, of host memory here. It demands its fused optimizer, which is for GPUs alone:
    torch's stands in.
    """
    import deepspeed.ops.adam
    from deepspeed.runtime.zero.offload_config import OffloadStateTypeEnum as State
    from deepspeed.runtime.zero.utils import ZERO_SUPPORTED_OPTIMIZERS

    class FusedAdam(torch.optim.AdamW):
        def __init__(self, groups: Any, adam_w_mode: bool, **options: Any) -> None:
            super().__init__(groups, fused=True, **options)

    from roles.actor import Actor

    kept, deepspeed.ops.adam.FusedAdam = deepspeed.ops.adam.FusedAdam, FusedAdam
    module, deepspeed.ops.adam.fused_adam.FusedAdam = deepspeed.ops.adam.fused_adam.FusedAdam, FusedAdam
    ZERO_SUPPORTED_OPTIMIZERS.append(FusedAdam)
    try:
        sleeping = replace(setup, zero=ZeroConfig(sleep=True))
        first, second = (Actor(sleeping, PolicyLossConfig(), TEMPERATURE) for _ in range(2))
        mine = [_mine(shares(batch, torch.distributed.get_world_size())) for batch in batches]
        for batch in mine[:2]:
            first.update(steps_of(batch))
        first.save_state(folder)
        (file,) = Path(folder).glob(f"*/rank-{torch.distributed.get_rank():05d}.safetensors")
        saved = {name.partition("/")[0] for name in load_file(file)}
        second.load_state(folder)
        zero = second._model._deepspeed.optimizer
        asleep = {State.optim_states, State.hp_params, State.lp_grads} <= zero.offloaded_states
        gradient_bytes = zero.grad_partitions_flat_buffer.untyped_storage().nbytes()
        stats = [second.update(steps_of(batch)) for batch in mine[2:]]
        return {
            "resumed": (stats, whole_weights(second._model)),
            "saved": saved,
            "asleep": asleep,
            "gradient_bytes": gradient_bytes,
        }
    finally:
        ZERO_SUPPORTED_OPTIMIZERS.remove(FusedAdam)
        deepspeed.ops.adam.FusedAdam, deepspeed.ops.adam.fused_adam.FusedAdam = kept, module


def state_in_full(model: Any) -> dict[str, Tensor]:
    """All that training has changed in a model, whole: by DeepSpeed's own means to gather it, not by ours."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    optimizer = model._deepspeed.optimizer
    named = [(name, p) for name, p in model.module.named_parameters() if p.requires_grad]
    found = {f"weight {name}": tensor for name, tensor in whole_weights(model).items()}
    if model._average:
        found |= {f"mean {name}": tensor.clone() for name, tensor in model._average.whole()}
    if model.setup.zero.stage == 0:
        masters = {p: p for _, p in named}
        if model.setup.dtype == "bfloat16":
            groups = zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True)
            masters = {p: master for group in groups for p, master in zip(*group, strict=True)}
        for name, p in named:
            found[f"full precision {name}"] = masters[p].detach().clone()
            found |= {f"{key} {name}": optimizer.state[masters[p]][key].clone() for key in ("exp_avg", "exp_avg_sq")}
        return found
    if model.setup.zero.stage < 3:
        optimizer._hp_optimizer_states_linked = False
        optimizer._lazy_init_hp_params_optimizer_state()
    for name, p in named:
        found[f"full precision {name}"] = safe_get_full_fp32_param(p).clone()
        found |= {f"{key} {name}": safe_get_full_optimizer_state(p, key) for key in ("exp_avg", "exp_avg_sq")}
    return found


def left_state(setup: ModelSetup, batches: list[Experience], folder: str) -> dict[str, Any]:
    """Train on the first half of the batches, slow down, save; the whole state, and what comes of the other half."""
    from roles.actor import Actor

    actor, half = Actor(setup, PolicyLossConfig(), TEMPERATURE), len(batches) // 2
    mine = [_mine(shares(batch, torch.distributed.get_world_size())) for batch in batches]
    for batch in mine[:half]:
        actor.update(steps_of(batch))
    actor.slow_down(0.7)
    actor.save_state(folder)
    state = state_in_full(actor._model)
    stats = [actor.update(steps_of(batch)) for batch in mine[half:]]
    return {"state": state, "stats": stats, "weights": whole_weights(actor._model)}


def taken_up(setup: ModelSetup, batches: list[Experience], folder: str) -> dict[str, Any]:
    """Load what `left_state` has saved, perhaps on other ranks; the whole state, and what comes of the other half."""
    from roles.actor import Actor

    actor, half = Actor(setup, PolicyLossConfig(), TEMPERATURE), len(batches) // 2
    mine = [_mine(shares(batch, torch.distributed.get_world_size())) for batch in batches]
    actor.load_state(folder)
    state = state_in_full(actor._model)
    stats = [actor.update(steps_of(batch)) for batch in mine[half:]]
    return {"state": state, "stats": stats, "weights": whole_weights(actor._model)}


class Malicious:
    """Unpickling it makes the folder `mark`."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self._mark),)


def state_of(setup: ModelSetup, folder: str) -> dict[str, str]:
    """Save the checkpoint of an actor; the hashes of its files."""
    from roles.actor import Actor

    return Actor(setup, PolicyLossConfig(), TEMPERATURE).save_state(folder)


def saved_behind(setup: ModelSetup, batches: list[Experience], folder: str) -> tuple[dict[str, str], dict[str, str]]:
    """Hashes of a checkpoint that is written at once, and of one that a thread writes while the actor is trained."""
    from roles.actor import Actor

    actor = Actor(setup, PolicyLossConfig(), TEMPERATURE)
    first, second = (steps_of(_mine(shares(batch, torch.distributed.get_world_size()))) for batch in batches)
    actor.update(first)
    at_once = actor.save_state(f"{folder}/at-once")
    assert actor.begin_saving(f"{folder}/behind") == {}
    actor.update(second)
    while (behind := actor.written()) is None:
        time.sleep(0.01)
    return at_once, behind


def resumed_as(setup: ModelSetup, folder: str) -> None:
    """An actor that goes on from a checkpoint of others."""
    from roles.actor import Actor

    Actor(setup, PolicyLossConfig(), TEMPERATURE).load_state(folder)


def saved(setup: ModelSetup, batch: Experience, folder: str, kind: str) -> tuple[dict[str, Tensor], str]:
    """Train a step, save a Hugging Face folder; the weights and the fingerprint."""
    from roles.actor import Actor
    from roles.critic import Critic

    role = Actor(setup, PolicyLossConfig(), TEMPERATURE) if kind == "policy" else Critic(setup, ValueLossConfig(), 1)
    role.update(steps_of(_mine(shares(batch, torch.distributed.get_world_size()))))
    role.save_model(folder)
    role.save_state(f"{folder}-state")
    return whole_weights(role._model), role._model.fingerprint()


def scored(setup: ModelSetup, policy: str, bridge: bool, rollouts: Rollouts) -> Tensor:
    """The reward model's numbers for this rank's share."""
    from roles.reward_model import RewardModel
    from roles.text.policy_text import PolicyText

    model = RewardModel(setup, PolicyText(policy) if bridge else None)
    return model.score(_mine(shares(rollouts, model._model.world_size)))


def compiled() -> dict[str, Any]:
    """Traces of a compiler: directories that DeepSpeed or torch fill when they build something."""
    import os
    import sys

    return {
        "extensions": "torch.utils.cpp_extension" in sys.modules and os.path.exists(os.environ["TORCH_EXTENSIONS_DIR"]),
        "inductor": "torch._inductor.compile_fx" in sys.modules,
    }


def plain_policy_loss(model: Any, batch: Experience, config: PolicyLossConfig) -> Tensor:
    """The clipped surrogate of the whole batch by transformers alone, one row at a time."""
    total, tokens, sequences = torch.zeros(()), 0, 0
    for row, length in enumerate(batch.lengths.tolist()):
        mask = batch.response_mask[row, 1:length]
        if not mask.any():
            continue
        ids = batch.token_ids[row, :length]
        logits = model(ids[None]).logits[0, :-1] / TEMPERATURE
        logprobs = logits.log_softmax(-1).gather(1, ids[1:, None])[:, 0]
        entropy = -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1)
        ratio = (logprobs - batch.old_logprobs[row, 1:length]).exp()
        advantage = batch.advantages[row, 1:length]
        gain = torch.minimum(ratio * advantage, ratio.clamp(1 - config.clip, 1 + config.clip) * advantage)
        loss = (-gain - config.entropy_coefficient * entropy)[mask]
        total = total + (loss.sum() if config.mean == "token" else loss.mean())
        tokens += int(mask.sum())
        sequences += 1
    return total / (tokens if config.mean == "token" else sequences)


def plain_loss_with_kl(
    model: Any, batch: Experience, config: PolicyLossConfig, extra: tuple[int, str, float]
) -> Tensor:
    """The same with any loss of the table and a KL penalty, one row at a time; `mean: constant`."""
    constant, estimator, coefficient = extra
    total, sequences = torch.zeros(()), 0
    for row, length in enumerate(batch.lengths.tolist()):
        mask = batch.response_mask[row, 1:length]
        if not mask.any():
            continue
        ids = batch.token_ids[row, :length]
        logprobs = (model(ids[None]).logits[0, :-1] / TEMPERATURE).log_softmax(-1).gather(1, ids[1:, None])[:, 0][mask]
        old, advantages, reference = (
            field[row, 1:length][mask] for field in (batch.old_logprobs, batch.advantages, batch.reference_logprobs)
        )
        own = torch.zeros(len(logprobs), dtype=torch.long)
        clips = {"clip_low": config.clip, "clip_high": config.clip, "sequences": own}
        loss, _ = POLICY_LOSSES[config.type](logprobs, old, advantages, **clips)
        total = total + (loss + coefficient * KL_ESTIMATORS[estimator](logprobs, reference)).sum() / constant
        sequences += 1
    return total / sequences


def plain_value_loss(model: Any, batch: Experience, config: ValueLossConfig) -> Tensor:
    """The clipped squared error of the whole batch by transformers alone, one row at a time."""
    assert config.clip is not None
    total, tokens = torch.zeros(()), 0
    for row, length in enumerate(batch.lengths.tolist()):
        mask = batch.response_mask[row, 1:length]
        hidden = model.base_model(batch.token_ids[None, row, :length]).last_hidden_state[0, :-1]
        values = model.score(hidden)[:, 0] - model.config.score_shift
        old, target = batch.values[row, 1:length], batch.returns[row, 1:length]
        clipped = old + (values - old).clamp(-config.clip, config.clip)
        loss = 0.5 * torch.maximum((values - target) ** 2, (clipped - target) ** 2)
        total, tokens = total + loss[mask].sum(), tokens + int(mask.sum())
    return config.coefficient * total / tokens


def plain_training(model: Any, losses: list[Any], prefix: str = "model.") -> dict[str, Any]:
    """AdamW with clipping: gradients of each step before clipping, norms, final weights."""
    options = {"lr": OPTIMIZER.learning_rate, "betas": OPTIMIZER.betas, "eps": OPTIMIZER.epsilon, "weight_decay": 0.0}
    trained = {prefix + n: p for n, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), **options)
    gradients, norms = [], []
    for loss in losses:
        loss(model).backward()
        gradients.append({name: p.grad.clone() for name, p in trained.items()})
        norms.append(float(torch.nn.utils.clip_grad_norm_(trained.values(), OPTIMIZER.max_gradient_norm)))
        optimizer.step()
        optimizer.zero_grad()
    weights = {prefix + n: p.detach().clone() for n, p in model.named_parameters()}
    return {"gradients": gradients, "norms": norms, "weights": weights}
