"""`roles.losses.policy_loss` against the golden values of other people's code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from roles.losses.logprobs import entropy, token_logprobs
from roles.losses.means import denominator, masked_mean_weight
from roles.losses.policy_loss import policy_loss
from roles.losses.preference_loss import bradley_terry, dpo, ipo
from roles.losses.value_loss import value_loss
from tests.reference.golden import Case, cases, kinds

MEANS = {"token": "token_mean", "sequence": "seq_mean_token_mean"}
FLOAT32 = 1e-6
"""The weights are float32: a third is one to 1e-8 only."""


def mean(loss: Tensor, mask: Tensor, how: str) -> Tensor:
    return (loss * masked_mean_weight(mask, how)).sum() / denominator(mask, how)


@pytest.mark.parametrize("case", cases("policy_loss"), ids=str)
@pytest.mark.parametrize("how", ["token", "sequence"])
def test_policy_loss_and_its_gradient(case: Case, how: str) -> None:
    new = case.inputs["new"].clone().requires_grad_()
    loss, clipped = policy_loss(
        new,
        case.inputs["old"],
        case.inputs["adv"],
        clip_low=case.params["clip_low"],
        clip_high=case.params["clip_high"],
        dual_clip=case.params["dual_clip"],
    )
    value = mean(loss, case.mask, how)
    (slope,) = torch.autograd.grad(value, new)
    for author in ("openrlhf", "verl"):
        case.check(f"{author}_{MEANS[how]}", value.detach(), FLOAT32)
        case.check(f"{author}_{MEANS[how]}_grad", slope, FLOAT32)
    case.check("verl_clipfrac", mean(clipped.double(), case.mask, "token"), FLOAT32)
    case.check("openrlhf_clipfrac", mean(clipped.double(), case.mask, "token"), FLOAT32)
    if how == "token" and case.params["dual_clip"] is None:
        case.check("trl_token_mean", value.detach())
        case.check("nplus_token_mean", value.detach())


@pytest.mark.parametrize("case", cases("value_loss"), ids=str)
@pytest.mark.parametrize("how", ["token", "sequence"])
def test_value_loss_and_its_gradient(case: Case, how: str) -> None:
    values = case.inputs["values"].clone().requires_grad_()
    loss, clipped = value_loss(values, case.inputs["old_values"], case.inputs["returns"], case.params["clip"])
    value = mean(loss, case.mask, how)
    (slope,) = torch.autograd.grad(value, values)
    for author in ("openrlhf", "verl"):
        if f"{author}_{MEANS[how]}" in case.outputs:
            case.check(f"{author}_{MEANS[how]}", value.detach(), FLOAT32)
            case.check(f"{author}_{MEANS[how]}_grad", slope, FLOAT32)
    case.check("verl_clipfrac", mean(clipped.double(), case.mask, "token"), FLOAT32)
    if how == "token":
        case.check("trl_token_mean", value.detach())
        case.check("nplus_token_mean", value.detach())


@pytest.mark.parametrize("case", cases("global_normaliser"), ids=str)
@pytest.mark.parametrize("how", ["token", "sequence"])
def test_shards_with_the_global_denominator_average_to_the_whole(case: Case, how: str) -> None:
    short = {"token": "token", "sequence": "seq"}[how]
    loss, mask, ranks = case.inputs["loss"], case.mask, case.params["dp_size"]
    whole = denominator(mask, how)
    shards = torch.stack(
        [(loss[a:b] * masked_mean_weight(mask[a:b], how)).sum() / whole * ranks for a, b in case.params["shards"]]
    )
    case.check(f"verl_shards_{short}", shards, FLOAT32)
    case.check(f"openrlhf_shards_{short}", shards, FLOAT32)
    case.check(f"full_{short}", shards.mean(), FLOAT32)
    case.check(f"full_{short}", mean(loss, mask, how), FLOAT32)


@pytest.mark.parametrize("case", cases("logprobs_entropy"), ids=str)
def test_logprobs_and_entropy(case: Case) -> None:
    logits, labels = case.inputs["logits"], case.inputs["labels"]
    flat, temperature = logits.flatten(0, 1), case.params["temperature"]
    logprobs = token_logprobs(flat, labels.flatten(), temperature).view_as(labels)
    entropies = entropy(flat * temperature, temperature).view_as(labels)  # the authors' takes the logits as they come
    for author in ("openrlhf", "verl", "trl"):
        case.check(f"{author}_logp", logprobs)
    for author in ("openrlhf", "verl"):
        case.check(f"{author}_entropy", entropies)
    case.check("verl_entropy_loss_token_mean", mean(entropies, case.mask, "token"), FLOAT32)


@pytest.mark.parametrize("case", cases("bradley_terry"), ids=str)
def test_bradley_terry(case: Case) -> None:
    chosen, rejected = case.inputs["chosen"].clone().requires_grad_(), case.inputs["rejected"]
    loss = bradley_terry(chosen, rejected).mean()
    (slope,) = torch.autograd.grad(loss, chosen)
    for author in ("openrlhf", "openrlhf_logexp", "nplus"):
        case.check(author, loss.detach())
    case.check("openrlhf_grad_chosen", slope)
    case.check("openrlhf_margin", bradley_terry(chosen, rejected, case.inputs["margin"]).mean().detach())


@pytest.mark.parametrize("case", cases("dpo_loss"), ids=str)
def test_dpo_and_ipo(case: Case) -> None:
    """Sums over a response, as OpenRLHF and N+ have them (TRL's ipo takes means over tokens)."""
    pairs = [case.inputs[name] for name in ("policy_chosen", "policy_rejected", "ref_chosen", "ref_rejected")]
    chosen, rejected = (pair.clone().requires_grad_() for pair in pairs[:2])
    beta, smoothing = case.params["beta"], case.params["label_smoothing"]
    losses = (
        ipo(chosen, rejected, *pairs[2:], beta=beta)
        if case.params["ipo"]
        else dpo(chosen, rejected, *pairs[2:], beta=beta, label_smoothing=smoothing)
    )
    case.check("nplus_per_pair", losses.detach())
    for author in ("openrlhf", "nplus"):
        case.check(author, losses.mean().detach())
    slopes = torch.autograd.grad(losses.mean(), [chosen, rejected])
    case.check("openrlhf_grad_chosen", slopes[0])
    case.check("openrlhf_grad_rejected", slopes[1])


def test_every_golden_case_is_looked_at() -> None:
    """By some test of ours: a kind that nobody asks for would pass unseen."""
    asked = set()
    for test in (Path(__file__).parents[2]).rglob("test_*golden.py"):
        asked |= set(re.findall(r'cases\("(\w+)"\)', test.read_text()))
    assert asked == kinds()
