"""The steps of a run on `plain`'s formulas: the order of Ouyang et al. (arXiv 2203.02155) and the N+ details."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tests.unit.wiring.plain import (
    Adam,
    Network,
    Rows,
    Said,
    Scale,
    advantages,
    classifier,
    combined,
    estimate,
    policy,
    policy_losses,
    shaped,
    value_losses,
    weights,
    whitened,
)

WHITENED = ("gae", "reinforce++", "reinforce++-baseline")
Numbers = dict[str, Tensor]


class Run:
    """`batches`: what vLLM was asked and answered; `began`: role → parameters that it began with; `beside`: the rows of
    the pre-training loss in each update of the actor."""

    def __init__(
        self, said: Said, batches: list[list[Any]], began: dict[str, Numbers], beside: Sequence[Any] = ()
    ) -> None:
        self.texts = iter([beside_of(share, step) for share in beside for step in share.steps])
        self.said, self.ppo, self.batches = said, said["ppo"], iter(batches)
        actor, critic, self.each = said["actor"], said["critic"], said["rollout"]["responses_per_prompt"]
        own = actor["model"]["path"]
        self.actor = policy(own, began["actor"], actor["lora"])
        named = said["reference"]["model"]
        self.reference = policy(named["path"] if named else own, {})
        self.per_step = self.ppo["epochs"] * self.ppo["mini_batches"]
        late = critic["warmup"]["max_steps"]
        self.adam = Adam(self.actor, actor["optimizer"], (said["steps"] - late) * self.per_step, actor["ema_decay"])
        reward = said["reward"]
        scorers = {f"reward.{name}": own for name, own in reward.get("members", {}).items()} or {"reward": reward}
        self.members = {
            role.removeprefix("reward."): classifier(own["model"]["path"], began[role]) for role, own in scorers.items()
        }
        self.critic: Network | None = None
        if self.ppo["advantage"]["type"] == "gae":
            start = critic["model"] or (actor if critic["initialise_from"] == "policy" else reward)["model"]
            self.critic = classifier(start["path"], began["critic"], critic["lora"])
            self.critic_adam = Adam(self.critic, critic["optimizer"], said["steps"] * self.per_step)
        controller = self.ppo["kl"]["controller"]
        self.coefficient = controller["initial"] if controller["type"] == "adaptive" else controller["coefficient"]
        self.scale, self.value_scale = Scale(), Scale()
        self.warm_at: int | None = None
        self.numbers: Numbers = {}
        self.stopped = False

    def all_steps(self) -> Numbers:
        """Names → what the run ends with, and what its steps tell."""
        for step in range(self.said["steps"]):
            told = self.one_step(step)
            self.numbers |= {f"{name}@{step}": torch.as_tensor(value).double() for name, value in told.items()}
            kl, budget = float(told["objective/kl"]), self.ppo["kl"]["budget"]
            if budget["tokens"] is not None:
                kl *= budget["tokens"] / float(told["response/length_mean"])
            if budget["stop"] is not None and kl > budget["stop"]:
                self.stopped = True
                break
            if "lr/actor" in told and budget["slow_down"] is not None and kl > budget["slow_down"]:
                self.adam.factor *= budget["factor"]
        found = {"actor": self.actor.trained, "critic": self.critic.trained if self.critic else {}}
        if self.said["actor"]["ema_decay"] is not None:
            found["average"] = self.adam.mean
        for role, tensors in found.items():
            self.numbers |= {f"{role} {name}": tensor.detach() for name, tensor in tensors.items()}
        return self.numbers

    def asked(self, temperature: float) -> Rows:
        """The next batch, sampled as the values say."""
        batch, said = next(self.batches), self.said["rollout"]
        for answer in batch:
            params = answer.params
            assert params.temperature == temperature
            assert params.max_tokens == said["max_response_tokens"]
            assert params.min_tokens == said["min_response_tokens"]
            assert all(getattr(params, name) == said[name] for name in ("top_p", "top_k", "min_p"))
        return Rows.of(batch)

    def sampled(self) -> tuple[Rows, Tensor | None]:
        """A step's responses; the shaped scores of the greedy ones, where they are the baseline."""
        said, greedy = self.said["rollout"], None
        if self.ppo["advantage"]["type"] == "remax":
            greedy = self.asked(0.0)
            assert len(greedy.tokens) == said["prompts_per_step"]
        rows = self.asked(said["temperature"])
        assert len(rows.tokens) == said["prompts_per_step"] * self.each
        scores = self.scores(rows)
        self.scale.update(scores)
        return rows, None if greedy is None else shaped(self.scores(greedy), greedy, self.ppo, self.scale)

    def scores(self, rows: Rows) -> Tensor:
        last = (rows.lengths - 1)[:, None]
        with torch.no_grad():
            members = {name: network.numbers(rows).gather(1, last)[:, 0] for name, network in self.members.items()}
        reward = self.said["reward"]
        return combined(members, reward["combine"] if reward["type"] == "ensemble" else {"type": "mean"})

    def one_step(self, step: int) -> dict[str, Any]:
        ppo, how = self.ppo, (self.said["rollout"]["temperature"], self.said["rollout"]["min_response_tokens"])
        rows, greedy = self.sampled()
        raw = self.scores(rows)
        with torch.no_grad():
            own, reference = (net.scores(rows, *how)[0] for net in (self.actor, self.reference))
            whose = self.said["actor"]["old_logprobs"]
            old = own if whose == "recompute" else rows.sampled
            critics = self.critic.state_values(rows) if self.critic else torch.zeros_like(old)
        values = critics
        if ppo["value"]["normalise"]:
            values = (critics * self.value_scale.deviation + self.value_scale.mean) * rows.mask
        mask, cut = rows.mask, torch.zeros(len(raw))
        last = mask.double().cumsum(1).argmax(1)[:, None]
        if ppo["truncated"]["type"] == "mask":
            mask = mask & rows.ended[:, None]
        if ppo["truncated"]["type"] == "bootstrap":
            cut = torch.where(rows.ended, 0.0, values.gather(1, last)[:, 0])
        kl, coefficient = ppo["kl"], self.coefficient
        rewards = torch.zeros_like(old)
        if kl["where"] == "reward":
            rewards = -coefficient * estimate(kl["estimator"], old, reference) * rows.mask
        rewards = rewards.scatter_add(1, last, shaped(raw, rows, ppo, self.scale)[:, None])
        told: dict[str, Any] = {
            "reward/mean": (rewards.sum(1))[mask.any(1)].mean(),
            "score/mean": raw.mean(),
            "objective/kl": ((old - reference) * rows.mask).sum() / len(raw),
            "response/length_mean": rows.mask.sum() / len(raw),
            "kl/coefficient": coefficient,
        }
        used = whitened(rewards, mask, keep_mean=True) if ppo["whiten_rewards"] else rewards
        gain, returns = advantages(used, values, mask, cut, self.said, self.each, greedy)
        explained = 1 - (returns - values)[mask].var(correction=0) / returns[mask].var(correction=0)
        told["advantage/mean"] = gain[mask].mean()
        if ppo["value"]["normalise"]:
            self.value_scale.update(returns[mask])
            returns = (returns - self.value_scale.mean) / self.value_scale.deviation * mask
        whitens = ppo["whiten_advantages"]
        if whitens or (whitens is None and ppo["advantage"]["type"] in WHITENED):
            gain = whitened(gain, mask)
        if self.critic:
            told |= self.update_critic(rows, mask, critics, returns, step)
        if self.begins(step, float(explained)):
            told |= self.update_actor(rows, mask, old if whose == "rollout" else own, reference, gain, step)
            if kl["controller"]["type"] == "adaptive":
                error = float(told["objective/kl"]) / kl["controller"]["target"] - 1
                share = min(1.0, len(raw) / kl["controller"]["horizon"])
                self.coefficient *= 1 + max(-0.2, min(0.2, error)) * share
        return told

    def begins(self, step: int, explained: float) -> bool:
        """Whether the actor is trained."""
        warmup = self.said["critic"]["warmup"]
        gate = warmup["until_explained_variance"]
        if self.warm_at is None and (step >= warmup["max_steps"] or (gate is not None and explained >= gate)):
            self.warm_at = step
            self.adam.total = (self.said["steps"] - step) * self.per_step
        return self.warm_at is not None

    def parts(self, count: int, step: int) -> list[list[int]]:
        """Rows of each optimizer step: a fresh permutation an epoch."""
        source = torch.Generator().manual_seed(self.said["seed"] + step)
        orders = [torch.randperm(count, generator=source) for _ in range(self.ppo["epochs"])]
        return [sorted(part.tolist()) for order in orders for part in order.chunk(self.ppo["mini_batches"])]

    def update_critic(self, rows: Rows, mask: Tensor, old: Tensor, returns: Tensor, step: int) -> dict[str, Any]:
        assert self.critic
        said, longest = self.ppo["value"], self.said["rollout"]["max_response_tokens"]
        losses, clips, norms, rate = [], [], [], 0.0
        for part in self.parts(len(mask), step):
            values = self.critic.state_values(rows.pick(part))
            loss, clipped = value_losses(values, old[part], returns[part], said["clip"])
            total = (loss * weights(mask[part], said["mean"], longest)).sum()
            norm, rate = self.critic_adam.step(said["coefficient"] * total)
            losses.append(total.detach())
            clips.append(clipped[mask[part]])
            norms.append(norm)
        return {
            "value/loss": torch.stack(losses).mean(),
            "value/clip_fraction": torch.cat(clips).double().mean(),
            "value/gradient_norm": sum(norms) / len(norms),
            "lr/critic": rate,
        }

    def update_actor(
        self, rows: Rows, mask: Tensor, old: Tensor, reference: Tensor, gain: Tensor, step: int
    ) -> dict[str, Any]:
        said, kl, longest = self.ppo["policy"], self.ppo["kl"], self.said["rollout"]["max_response_tokens"]
        losses, clips, norms, entropies, factors, rate = [], [], [], [], [], 0.0
        ptx, crossed, counted = self.ppo.get("ptx"), 0.0, 0
        for part in self.parts(len(mask), step):
            here, own = rows.pick(part), mask[part]
            how = self.said["rollout"]
            logprobs, entropy = self.actor.scores(here, how["temperature"], how["min_response_tokens"])
            loss, clipped, factor = policy_losses(logprobs, old[part], here.sampled, gain[part], own, said)
            weight = weights(own, said["mean"], longest)
            losses.append((loss * factor * weight).sum().detach())
            total = (loss * factor * weight).sum() - said["entropy_coefficient"] * (entropy * weight).sum()
            if kl["where"] == "loss":
                total = total + self.coefficient * (estimate(kl["estimator"], logprobs, reference[part]) * weight).sum()
            if ptx:
                text = next(self.texts)
                assert len(text.tokens) == ptx["sequences_per_mini_batch"]
                entropy_of_text, tokens = -self.actor.scores(text, 1.0)[0].sum(), int(text.mask.sum())
                total = total + ptx["coefficient"] * entropy_of_text / tokens
                crossed, counted = crossed + float(entropy_of_text.detach()), counted + tokens
            norm, rate = self.adam.step(total)
            clips.append(clipped[own])
            entropies.append(entropy[own].detach())
            factors.append(factor[own])
            norms.append(norm)
        return {
            "policy/loss": torch.stack(losses).mean(),
            "policy/clip_fraction": torch.cat(clips).double().mean(),
            "policy/importance_mean": torch.cat(factors).mean(),
            "policy/gradient_norm": sum(norms) / len(norms),
            "objective/entropy": torch.cat(entropies).mean(),
            "lr/actor": rate,
            **({"ptx/loss": crossed / counted, "ptx/tokens": counted} if ptx else {}),
        }


def beside_of(share: Any, rows: list[int]) -> Rows:
    """Rows of a text, with nothing of a rollout."""
    batch = share.experience.select(rows)
    return Rows(batch.token_ids, batch.lengths, batch.response_mask, *[torch.zeros(0)] * 2)
