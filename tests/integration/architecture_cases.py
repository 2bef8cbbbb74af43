"""What one trainer does with a model of any architecture, beside plain transformers and a vLLM engine.

A folder of `architectures.save` and the engine that has loaded it flow in; the largest differences flow out.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from roles.config.losses import PolicyLossConfig, ValueLossConfig
from roles.config.models import LoraConfig, OptimizerConfig, ScheduleConfig
from roles.models.lora import adapted_layers
from roles.rows import put_back
from roles.transfer.probe import differences
from roles.zero.gather import parameter_shapes
from tests.integration.engines import gap, make_prompts
from tests.integration.hosted import HostClient
from tests.integration.sharded_cases import (
    TEMPERATURE,
    Experience,
    captured,
    experience_of,
    padded_gradient,
    setup_of,
    steps_of,
)

MICRO_BATCH = 200

STEEP = OptimizerConfig(learning_rate=0.02, max_gradient_norm=1e6, schedule=ScheduleConfig(type="constant"))
"""AdamW's first step moves each weight by about as much: what does not reach an engine shows."""


@dataclass(frozen=True, slots=True)
class Policy:
    """Largest differences of log-probabilities in nats, where nothing else is said."""

    packed: float
    """The trainer's, of packed samples, from those of plain transformers with padding."""
    gradient: float
    """Of an update's gradient from that of plain transformers with padding, relative to a parameter's norm."""
    moved: float
    """How far the update moves them."""
    reloaded: float
    """Plain transformers with the saved folder, from the trainer."""
    before: float | None
    """The engine (None: there is none) with the folder, from the trainer: of what it samples itself."""
    pushed: float | None
    """The same after an update and a push, the worse of two."""
    differing: list[str]
    """Tensors that the engine holds otherwise than the trainer, as far as they can be compared."""


@dataclass(frozen=True, slots=True)
class Adapted:
    """The policy with adapters in all linear layers, after two updates."""

    layers: int
    """How many linear layers have one."""
    others: list[str]
    """Matrices of the decoder layers that have none."""
    idle: list[str]
    """Layers whose adapter was not trained."""
    reference: float
    """How far the log-probabilities without adapters have moved."""
    reloaded: float
    """Plain transformers with the saved, merged folder, from the trainer; nats."""
    pushed: float | None
    """The engine with merged weights, from the trainer; nats."""


@dataclass(frozen=True, slots=True)
class Values:
    """A critic from a language model's folder, after two updates (in the first one only its head has a gradient)."""

    first: float
    """Largest value before them, which must be 0."""
    gradient: float
    """Of the second update's gradient from that of plain transformers, relative to a parameter's norm."""
    reloaded: float
    """Plain transformers with padding and the saved folder, from the critic."""


def samples(seed: int = 0) -> Experience:
    """Longer and shorter than the windows of the architectures, several in a micro-batch."""
    return experience_of(8, seed, 24, 48)


def trained_policy(folder: Path, engine: HostClient | None) -> Policy:
    """Two updates, each with a push."""
    batch, actor = samples(), _actor(folder)
    gaps, differing = [_worst_gap(actor, engine, 0)] if engine else [], set()
    given, gradients = actor.logprobs(batch), captured(actor._model)
    if engine:
        actor.connect(engine)
    for version in (1, 2):
        actor.update(steps_of(samples(version)))
        if engine:
            actor.push(version)
            gaps.append(_worst_gap(actor, engine, version))
            found = differences(actor.weight_products(), engine.call("weight_products")[0])
            differing |= {name for name, value in found.items() if not value < 1e-4}
    actor.save_model(folder.parent / "saved")
    after = actor.logprobs(batch)
    return Policy(
        packed=_furthest(given, padded_logprobs(folder, batch)),
        gradient=_apart(gradients[0], padded_gradient(folder, samples(1), "actor")),
        moved=_furthest(after, given),
        reloaded=_furthest(after, padded_logprobs(folder.parent / "saved", batch)),
        before=gaps[0] if gaps else None,
        pushed=max(gaps[1:], default=None),
        differing=sorted(differing),
    )


def trained_adapters(folder: Path, engine: HostClient | None) -> Adapted:
    """Two updates of adapters (in the first one only B has a gradient) and a push of version 3."""
    batch, actor = samples(), _actor(folder, LoraConfig(rank=4, alpha=8))
    plain = actor.reference_logprobs(batch)
    gradients = captured(actor._model)
    for seed in (1, 2):
        actor.update(steps_of(samples(seed)))
    if engine:
        actor.connect(engine)
        actor.push(3)
    actor.save_model(folder.parent / "merged")
    after = actor.logprobs(batch)
    model = actor._model.module.model
    layers = adapted_layers(model)
    return Adapted(
        layers=len(layers),
        others=[
            name
            for name, shape in parameter_shapes(model)
            if ".layers." in f".{name}" or ".h." in f".{name}"
            if len(shape) > 1 and name not in layers
        ],
        idle=[name for name, gradient in gradients[-1].items() if not gradient.any()],
        reference=_furthest(actor.reference_logprobs(batch), plain),
        reloaded=_furthest(after, padded_logprobs(folder.parent / "merged", batch)),
        pushed=_worst_gap(actor, engine, 3) if engine else None,
    )


def trained_critic(folder: Path) -> Values:
    """Two updates."""
    from roles.critic import Critic

    batch, saved = samples(), folder.parent / "critic"
    critic = Critic(
        setup_of(folder, micro_batch_tokens=MICRO_BATCH, optimizer=STEEP), ValueLossConfig(coefficient=1.0), 1
    )
    first = critic.values(batch).abs().max()
    gradients = captured(critic._model)
    critic.update(steps_of(samples(1)))
    critic.save_model(folder.parent / "half")
    critic.update(steps_of(samples(2)))
    critic.save_model(saved)
    return Values(
        first=float(first),
        gradient=_apart(gradients[-1], padded_gradient(folder.parent / "half", samples(2), "critic")),
        reloaded=_furthest(critic.values(batch), padded_values(saved, batch)),
    )


def padded_logprobs(folder: Path, batch: Experience) -> Tensor:
    """`[n]`, of the generated tokens, by transformers alone."""
    from transformers import AutoModelForCausalLM

    logits = _plain(AutoModelForCausalLM, folder)(**_padded(batch)).logits[:, :-1] / TEMPERATURE
    chosen = logits.log_softmax(-1).gather(2, batch.token_ids[:, 1:, None])[:, :, 0]
    return torch.nn.functional.pad(chosen, (1, 0))[batch.response_mask]


def padded_values(folder: Path, batch: Experience) -> Tensor:
    """`[n]`, by transformers alone: of the state before each generated token."""
    from transformers import AutoModelForSequenceClassification

    model = _plain(AutoModelForSequenceClassification, folder)
    hidden = model.base_model(**_padded(batch)).last_hidden_state[:, :-1]
    values = torch.nn.functional.pad(model.score(hidden)[:, :, 0] - model.config.score_shift, (1, 0))
    return values[batch.response_mask]


def _plain(auto: Any, folder: Path) -> Any:
    """A model that takes every weight of the folder, and lacks none."""
    model, report = auto.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"], report
    return model.requires_grad_(False)


def _padded(batch: Experience) -> dict[str, Tensor]:
    attended = torch.arange(batch.token_ids.shape[1]) < batch.lengths[:, None]
    return {"input_ids": batch.token_ids, "attention_mask": attended.long()}


def _actor(folder: Path, lora: LoraConfig | None = None) -> Any:
    from roles.actor import Actor

    setup = setup_of(folder, micro_batch_tokens=MICRO_BATCH, optimizer=STEEP, lora=lora)
    return Actor(setup, PolicyLossConfig(), TEMPERATURE)


def _worst_gap(actor: Any, engine: HostClient, version: int) -> float:
    (rollouts,) = engine.call("generate", make_prompts(6), version)
    return float(gap(rollouts, put_back(actor.logprobs(rollouts), rollouts.response_mask)).max())


def _furthest(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


def _apart(got: dict[str, Tensor], wanted: dict[str, Tensor | None]) -> float:
    """The largest difference of two gradients, relative to the norm of a parameter's, or to 1e-4 of the whole's."""
    assert got.keys() == wanted.keys()
    known = {name: torch.zeros_like(got[name]) if tensor is None else tensor for name, tensor in wanted.items()}
    least = 1e-4 * float(torch.stack([tensor.norm() for tensor in known.values()]).norm())
    return max(float((got[name] - tensor).norm()) / max(float(tensor.norm()), least) for name, tensor in known.items())
