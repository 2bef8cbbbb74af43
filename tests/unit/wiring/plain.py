"""PPO as its papers have it, in plain torch and float64: plain values of a YAML file and the sampled responses in, what
the program should have computed out. Shares no code with the program, and reads no default: the values say everything.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from tests.unit.wiring.tiny import ENDS

Said = Mapping[str, Any]


@dataclass
class Rows:
    """Prompts and responses, padded on the right: `[batch, time]`."""

    tokens: Tensor
    lengths: Tensor
    mask: Tensor
    sampled: Tensor
    """vLLM's log-probabilities."""
    ended: Tensor

    @classmethod
    def of(cls, batch: list[Any]) -> Rows:
        width = max(len(answer.prompt) + len(answer.tokens) for answer in batch)
        tokens, sampled = torch.zeros(len(batch), width, dtype=torch.long), torch.zeros(len(batch), width).double()
        mask = torch.zeros(len(batch), width, dtype=torch.bool)
        for row, answer in enumerate(batch):
            first, last = len(answer.prompt), len(answer.prompt) + len(answer.tokens)
            tokens[row, :last] = torch.tensor(answer.prompt + answer.tokens)
            sampled[row, first:last] = torch.tensor(answer.logprobs, dtype=torch.double)
            mask[row, first:last] = True
        lengths = torch.tensor([len(answer.prompt) + len(answer.tokens) for answer in batch])
        return cls(tokens, lengths, mask, sampled, torch.tensor([answer.ended for answer in batch]))

    def pick(self, rows: list[int]) -> Rows:
        return Rows(*(getattr(self, name)[rows] for name in ("tokens", "lengths", "mask", "sampled", "ended")))


class Network:
    """A transformers model whose weights are `values`, with adapters beside some of them."""

    def __init__(self, folder: str, kind: Any, began: Mapping[str, Tensor], lora: Said | None) -> None:
        config = AutoConfig.from_pretrained(folder, num_labels=1)
        self.model = kind.from_pretrained(folder, config=config, dtype=torch.double, attn_implementation="eager").eval()
        self.values = {name: tensor.detach().clone() for name, tensor in self.model.named_parameters()}
        if kind is AutoModelForSequenceClassification:  # a head that the folder lacks is drawn: take it as it was
            self.values["score.weight"] = began["score.weight"].double()
        adapters = {name: tensor.double() for name, tensor in began.items() if name.endswith((".lora_A", ".lora_B"))}
        self.scale = lora["alpha"] / lora["rank"] if lora else 0.0
        heads = {name: tensor for name, tensor in self.values.items() if name.startswith("score.")}
        self.trained = {**adapters, **heads} if lora else dict(self.values)
        for tensor in self.trained.values():
            tensor.requires_grad_(True)
        self.values |= self.trained

    def hidden_and_logits(self, rows: Rows) -> tuple[Tensor, Tensor]:
        weights = {name: value for name, value in self.values.items() if ".lora_" not in name}
        for name in [name for name in self.values if name.endswith(".lora_A")]:
            a, b, weight = self.values[name], self.values[name[:-1] + "B"], name.replace("lora_A", "weight")
            weights[weight] = weights[weight] + self.scale * b @ a
        seen = torch.arange(rows.tokens.shape[1]) < rows.lengths[:, None]
        options = {"input_ids": rows.tokens, "attention_mask": seen.long(), "output_hidden_states": True}
        self.model.config.pad_token_id = None
        if hasattr(self.model, "score"):
            base = {k.removeprefix("model."): v for k, v in weights.items() if k.startswith("model.")}
            hidden = functional_call(self.model.model, base, (), options).last_hidden_state
            return hidden, hidden @ weights["score.weight"].T
        output = functional_call(self.model, weights, (), options)
        return output.hidden_states[-1], output.logits

    def scores(self, rows: Rows, temperature: float, least: int = 0) -> tuple[Tensor, Tensor]:
        """Log-probability of each generated token, and the entropy where it was drawn; 0 elsewhere. A response has at
        least `least` tokens before its end."""
        logits = self.hidden_and_logits(rows)[1] / temperature
        starts = rows.mask.double().argmax(1)[:, None]
        early = rows.mask & (torch.arange(rows.mask.shape[1]) - starts < least)
        logits[:, :-1, ENDS] = logits[:, :-1, ENDS].masked_fill(early[:, 1:], -1e30)
        logprobs = logits.log_softmax(-1)
        entropy = -(logprobs.exp() * logprobs).sum(-1)
        own = logprobs[:, :-1].gather(2, rows.tokens[:, 1:, None])[..., 0]
        return before(own) * rows.mask, before(entropy[:, :-1]) * rows.mask

    def numbers(self, rows: Rows) -> Tensor:
        """Of a classifier, at every token."""
        return self.hidden_and_logits(rows)[1][..., 0]

    def state_values(self, rows: Rows) -> Tensor:
        return before(self.numbers(rows)[:, :-1]) * rows.mask


def before(x: Tensor) -> Tensor:
    """Numbers read at the token before → in the token's own column."""
    return torch.nn.functional.pad(x, (1, 0))


@dataclass
class Adam:
    """AdamW with clipping by the global norm, decay of matrices alone, and a schedule."""

    network: Network
    said: Said
    total: int
    decay_of_mean: float | None = None
    steps: int = 0
    factor: float = 1.0
    m: dict[str, Tensor] = field(default_factory=dict)
    v: dict[str, Tensor] = field(default_factory=dict)
    mean: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.mean = {name: value.detach().clone() for name, value in self.network.values.items()}

    def rate(self) -> float:
        schedule, step = self.said["schedule"], self.steps
        warm = schedule["warmup_steps"]
        done = min(1.0, (step - warm) / max(1, self.total - warm))
        left, low = {"linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}, schedule.get("floor", 0.0)
        shape = 1.0 if schedule["type"] == "constant" else low + (1 - low) * left[schedule["type"]]
        return float(self.said["learning_rate"] * self.factor * ((step + 1) / (warm + 1) if step < warm else shape))

    def step(self, loss: Tensor) -> tuple[float, float]:
        """Gradient norm before clipping, and the rate."""
        names = list(self.network.trained)
        found = torch.autograd.grad(loss, [self.network.trained[name] for name in names], materialize_grads=True)
        norm = float(torch.stack([gradient.square().sum() for gradient in found]).sum().sqrt())
        (b1, b2), rate = self.said["betas"], self.rate()
        held = min(1.0, self.said["max_gradient_norm"] / (norm + 1e-6))
        self.steps += 1
        with torch.no_grad():
            for name, gradient in zip(names, found, strict=True):
                value, g = self.network.trained[name], gradient * held
                self.m[name] = b1 * self.m.get(name, torch.zeros_like(g)) + (1 - b1) * g
                self.v[name] = b2 * self.v.get(name, torch.zeros_like(g)) + (1 - b2) * g * g
                if value.dim() > 1:
                    value -= rate * self.said["weight_decay"] * value
                m, v = self.m[name] / (1 - b1**self.steps), self.v[name] / (1 - b2**self.steps)
                value -= rate * m / (v.sqrt() + self.said["epsilon"])
            if self.decay_of_mean is not None:
                for name, value in self.network.values.items():
                    self.mean[name] = self.decay_of_mean * self.mean[name] + (1 - self.decay_of_mean) * value
        return norm, rate


class Scale:
    """Mean and biased deviation of all numbers so far."""

    def __init__(self) -> None:
        self.all = torch.zeros(0, dtype=torch.double)

    def update(self, numbers: Tensor) -> None:
        self.all = torch.cat([self.all, numbers])

    @property
    def mean(self) -> Tensor:
        return self.all.mean() if len(self.all) else torch.tensor(0.0)

    @property
    def deviation(self) -> Tensor:
        return self.all.std(correction=0) + 1e-8 if len(self.all) else torch.tensor(1.0)


def combined(members: dict[str, Tensor], how: Said) -> Tensor:
    """What an ensemble says."""
    all_ = torch.stack(list(members.values()))
    match how["type"]:
        case "worst":
            return all_.min(0).values
        case "mean_minus_std":
            return all_.mean(0) - how["factor"] * all_.std(0, correction=0)
        case "weighted":
            return sum((how["weights"][name] * own for name, own in members.items()), torch.zeros(()))
    return all_.mean(0)


def shaped(scores: Tensor, rows: Rows, ppo: Said, scale: Scale) -> Tensor:
    said, lengths = ppo["score"], rows.mask.sum(1).double()
    if said["normalise"]:
        scores = (scores - scale.mean) / scale.deviation
    if said["clip"] is not None:
        scores = scores.clamp(-said["clip"], said["clip"])
    length = said["length"]
    if length["type"] == "linear":
        scores = scores - length["per_token"] * lengths
    if length["type"] == "soft_overlong":
        over = (lengths - (length["longest"] - length["buffer"])) / length["buffer"]
        scores = scores - length["penalty"] * over.clamp(0, 1)
    if ppo["truncated"]["type"] == "penalty":
        scores = torch.where(rows.ended, scores, ppo["truncated"]["score"])
    return scores


def estimate(kind: str, logprobs: Tensor, reference: Tensor) -> Tensor:
    """Of the KL, per token."""
    difference = logprobs - reference
    return {"k1": difference, "k2": difference**2 / 2, "k3": (-difference).exp() - 1 + difference}[kind]


def discounted(deltas: Tensor, mask: Tensor, decay: float) -> Tensor:
    """Σ decay^k·delta of the generated tokens from each on."""
    sums = torch.zeros_like(deltas)
    for row, columns in enumerate(own.nonzero().flatten().tolist() for own in mask):
        for n, t in enumerate(columns):
            sums[row, t] = sum(decay**k * deltas[row, later] for k, later in enumerate(columns[n:]))
    return sums


def advantages(rewards: Tensor, values: Tensor, mask: Tensor, cut: Tensor, said: Said, each: int, greedy: Any) -> Any:
    """Advantages and returns; `cut`: value after the last token."""
    kind, ppo = said["ppo"]["advantage"]["type"], said["ppo"]["advantage"]
    if kind == "gae":
        deltas = torch.zeros_like(rewards)
        for row, columns in enumerate(own.nonzero().flatten().tolist() for own in mask):
            for t, after in zip(columns, [*columns[1:], *[None] * bool(columns)], strict=True):
                following = cut[row] if after is None else values[row, after]
                deltas[row, t] = rewards[row, t] + ppo["gamma"] * following - values[row, t]
        lambdas = ppo["lambda"], ppo["lambda"] if ppo["critic_lambda"] is None else ppo["critic_lambda"]
        for_actor, for_critic = (discounted(deltas, mask, ppo["gamma"] * x) for x in lambdas)
        return for_actor, (for_critic + values) * mask
    if kind == "reinforce++":
        found = discounted(rewards * mask, mask, ppo["gamma"])
    elif kind == "remax":
        found = (discounted(rewards * mask, mask, 1.0) - greedy.repeat_interleave(each)[:, None]) * mask
    else:
        total, found = (rewards * mask).sum(1), torch.zeros_like(rewards)
        for first in range(0, len(total), each):
            group = [row for row in range(first, first + each) if mask[row].any()]
            for row in group:
                others = [other for other in group if other != row]
                advantage = total[row] - (total[others] if kind == "rloo" else total[group]).mean()
                found[row] = advantage / (total[group].std() + 1e-6 if kind == "grpo" else 1) * mask[row]
    return found, found


def whitened(x: Tensor, mask: Tensor, keep_mean: bool = False) -> Tensor:
    mean, deviation = x[mask].mean(), (x[mask].var(correction=0) + 1e-8).sqrt()
    return ((x - mean) / deviation + (mean if keep_mean else 0)) * mask


def weights(mask: Tensor, mean: str, constant: int) -> Tensor:
    """Of each token in the loss of an optimizer step."""
    used = mask.any(1).sum()
    per_row = {
        "token": mask.sum(),
        "sequence": used * mask.sum(1, keepdim=True).clamp(min=1),
        "constant": used * constant,
    }
    return mask / per_row[mean]


def over_rows(x: Tensor, mask: Tensor) -> Tensor:
    """Each row's mean, at its tokens."""
    return ((x * mask).sum(1) / mask.sum(1).clamp(min=1))[:, None] * mask


def policy_losses(logprobs: Tensor, old: Tensor, sampled: Tensor, gain: Tensor, mask: Tensor, said: Said) -> Any:
    """Per token: loss, whether it was clipped, weight for vLLM's distribution."""
    low, high = said["clip"], said["clip"] if said["clip_high"] is None else said["clip_high"]
    ratio = (logprobs - old).exp()
    if said["type"] == "gspo":
        log_own = logprobs - old
        ratio = (over_rows(log_own, mask).detach() + log_own - log_own.detach()).exp()
    held = ratio.clamp(1 - low, 1 + high)
    if said["type"] == "cispo":
        loss, clipped = -gain * held.detach() * logprobs, held != ratio
    else:
        loss, clipped = torch.maximum(-gain * ratio, -gain * held), -gain * held > -gain * ratio
        if said["dual_clip"] is not None and said["type"] == "clipped":
            loss = torch.where(gain < 0, torch.minimum(loss, -gain * said["dual_clip"]), loss)
    gap, importance = (old - sampled).exp(), said["importance"]
    match importance["type"]:
        case "truncated":
            factor = gap.clamp(max=importance["cap"])
        case "icepop":
            factor = gap * ((gap >= importance["low"]) & (gap <= importance["high"]))
        case "reject":
            whole = over_rows(old - sampled, mask).exp()
            factor = ((whole >= importance["low"]) & (whole <= importance["high"])).double()
        case _:
            factor = torch.ones_like(gap)
    return loss, clipped, factor


def value_losses(values: Tensor, old: Tensor, returns: Tensor, clip: float | None) -> tuple[Tensor, Tensor]:
    plain = (values - returns) ** 2
    if clip is None:
        return plain / 2, torch.zeros_like(plain, dtype=torch.bool)
    held = (torch.minimum(torch.maximum(values, old - clip), old + clip) - returns) ** 2
    return torch.maximum(plain, held) / 2, held > plain


def policy(folder: str, began: Mapping[str, Tensor], lora: Said | None = None) -> Network:
    return Network(folder, AutoModelForCausalLM, began, lora)


def classifier(folder: str, began: Mapping[str, Tensor], lora: Said | None = None) -> Network:
    return Network(folder, AutoModelForSequenceClassification, began, lora)
