"""Whether the engines sample from the trainer's weights: limits, truncated sampling, planted faults."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from vllm.model_executor.layers.linear import LinearBase

import orchestrator.groups.canary
from cluster.errors import RankFailure
from orchestrator.config.canary import CanaryConfig
from orchestrator.errors import WeightsDiffer
from orchestrator.groups.canary import Canary, SeenRows, culprits, seen_of_each, unexplained_gap
from roles.batch import Scored
from roles.config.rollout import RolloutConfig
from roles.models.networks import PolicyModel
from roles.transfer.probe import EngineProducts, engine_products, trainer_products
from tests.integration.tiny_model import save_tiny_llama
from tests.unit.orchestrator.ppo.test_experience import make_scored


def config(
    dtype: str = "float32", engine: str | None = None, canary: dict[str, Any] | None = None, **rollout: Any
) -> Any:
    settings = {"prompts_per_step": 1, "max_response_tokens": 8, "engine": {"dtype": engine}, **rollout}
    return SimpleNamespace(
        dtype=dtype, rollout=RolloutConfig.model_validate(settings), canary=CanaryConfig.model_validate(canary or {})
    )


def batch(gap: float) -> Scored:
    """Half of the engine's log-probabilities are too high by `gap`, half too low."""
    scored = make_scored()
    signs = torch.where(torch.arange(scored.old_logprobs.shape[1]) % 2 == 0, 1.0, -1.0)
    rollouts = replace(scored.rollouts, rollout_logprobs=scored.old_logprobs + gap * signs)
    return replace(scored, rollouts=rollouts)


def passes(canary: Canary, gap: float, version: int, settings: Any) -> bool:
    scored = batch(gap)
    try:
        canary.check(SeenRows(scored.rollouts, scored.old_logprobs, []), version, settings)
    except WeightsDiffer:
        return False
    return True


def test_float32_has_one_limit() -> None:
    canary = Canary()
    assert passes(canary, 5e-6, 0, config()) and canary.baseline == pytest.approx(5e-6, rel=0.1)
    assert passes(canary, 9e-5, 1, config()) and not passes(canary, 1.2e-4, 2, config())
    assert not passes(Canary(), 1.2e-4, 0, config()), "engines that have loaded the folder wrong"
    assert passes(Canary(), 1.2e-4, 0, config(temperature=0.5)), "logits are divided by the temperature"
    assert not passes(Canary(), 1.2e-4, 0, config(temperature=2.0))


@pytest.mark.parametrize(("dtype", "engine"), [("bfloat16", None), ("float32", "bfloat16"), ("bfloat16", "float32")])
def test_bfloat16_is_measured_by_the_weights_that_were_not_pushed(dtype: str, engine: str | None) -> None:
    settings, canary = config(dtype, engine), Canary()
    assert not passes(canary, 0.3, 0, settings) and canary.baseline is None
    assert passes(canary, 0.012, 0, settings)
    assert passes(canary, 0.008, 0, settings) and canary.baseline == pytest.approx(0.012, rel=0.01)
    assert passes(canary, 0.055, 1, settings) and not passes(canary, 0.065, 1, settings)
    quiet = Canary(baseline=1e-4)
    assert passes(quiet, 0.009, 1, settings) and not passes(quiet, 0.011, 1, settings)


def test_a_resumed_run_keeps_the_measure_and_verifies_again() -> None:
    canary, resumed = Canary(), Canary()
    assert passes(canary, 0.02, 0, config("bfloat16")) and passes(canary, 0.02, 3, config("bfloat16"))
    resumed.load_state_dict(canary.state_dict())
    assert resumed.verified is None and canary.verified == 3
    assert not passes(resumed, 0.15, 4, config("bfloat16")), "0.2 is for weights from the folder alone"
    assert passes(resumed, 0.09, 4, config("bfloat16"))


def test_the_configuration_sets_the_limit_and_turns_it_off() -> None:
    assert passes(Canary(), 0.4, 1, config(canary={"limit": 0.5}))
    assert not passes(Canary(), 0.6, 1, config(canary={"limit": 0.5}))
    assert passes(Canary(baseline=0.02), 0.15, 1, config("bfloat16", canary={"growth": 8}))
    assert passes(Canary(), 7.0, 1, config(canary={"enabled": False}))


def test_log_probabilities_that_are_not_numbers_do_not_pass() -> None:
    assert not passes(Canary(), float("nan"), 0, config())


def of_two_engines(gaps: tuple[float, float], made_by: list[int]) -> SeenRows:
    """What engine 0 and engine 1 have made, with a gap of each."""
    scored = make_scored([(2, 3)] * len(made_by))
    each = torch.tensor([gaps[engine] for engine in made_by]).unsqueeze(1)
    rollouts = replace(scored.rollouts, rollout_logprobs=scored.old_logprobs + each)
    return SeenRows(rollouts, scored.old_logprobs, made_by)


def test_one_wrong_engine_is_not_hidden_by_the_right_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is not replaced: with engines that sleep, with ReMax, in an evaluation."""
    monkeypatch.setattr(orchestrator.groups.canary, "FEW_TOKENS", 18)
    canary = Canary(baseline=4e-6, dtypes="float32 float32")
    canary.check(of_two_engines((9e-5, 9e-5), [0, 1] * 6), 3, config())
    seen = of_two_engines((1e-6, 1.8e-4), [0, 1] * 6)
    assert canary.wrong_engines(seen, 4, config()) == {1}
    with pytest.raises(WeightsDiffer, match=r"engine 1 .*by 0\.00018 nats per token \(mean over 18 tokens\)"):
        canary.check(seen, 4, config())
    assert canary.verified == 3


def test_a_few_tokens_do_not_prove_an_engine_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their gaps vary by more than the limit; a wrong one's are larger, and what all have together counts anyway."""
    monkeypatch.setattr(orchestrator.groups.canary, "FEW_TOKENS", 16)
    canary, right = Canary(baseline=4e-6, dtypes="float32 float32"), [0] * 20
    canary.check(of_two_engines((1e-6, 2e-4), [*right, 1]), 3, config())
    assert canary.wrong_engines(of_two_engines((1e-6, 2e-4), [*right, 1]), 3, config()) == set()
    assert canary.wrong_engines(of_two_engines((1e-6, 6e-4), [*right, 1]), 3, config()) == {1}
    with pytest.raises(WeightsDiffer, match="the engines do not"):
        canary.check(of_two_engines((2e-4, 2e-4), [0, 1]), 3, config())


def test_every_wrong_engine_is_named() -> None:
    scored = make_scored([(2, 300)] * 3)
    gaps = torch.tensor([[2e-4], [1e-6], [4e-4]])
    seen = SeenRows(
        replace(scored.rollouts, rollout_logprobs=scored.old_logprobs + gaps), scored.old_logprobs, [4, 5, 6]
    )
    with pytest.raises(
        WeightsDiffer, match=r"^engines 4, 6 do not .* by 0\.0003 nats per token \(mean over 600 tokens\)"
    ):
        Canary(baseline=4e-6, dtypes="float32 float32").check(seen, 3, config())


def test_some_rows_of_every_engine_are_looked_at() -> None:
    rollouts = make_scored([(2, 3)] * 40).rollouts
    asked: list[int] = []

    def told(roles: Any, few: Any) -> Tensor:
        asked.append(len(few))
        return few.rollout_logprobs

    roles: Any = SimpleNamespace(policy=SimpleNamespace(made_by=[0] * 30 + [1] * 10))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(orchestrator.groups.canary, "actors_logprobs", told)
        seen = seen_of_each(roles, rollouts)
    assert seen.made_by == [0] * 8 + [1] * 8 and asked == [16]


@pytest.mark.parametrize("how", [{"top_p": 0.9}, {"top_k": 5}, {"min_p": 0.1}, {"min_p": 0.3, "top_p": 0.9}])
def test_what_truncated_sampling_adds_is_no_difference(how: dict[str, Any]) -> None:
    """The engine's are of the distribution that is left: here of a real one, with right and with wrong weights."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(400, 20, generator=generator)
    kept = torch.ones_like(logits, dtype=torch.bool)
    ordered = logits.argsort(1, descending=True)
    if "top_k" in how:
        kept = torch.zeros_like(kept).scatter_(1, ordered[:, :5], True)
    if "min_p" in how:  # vLLM applies it before the others
        kept = logits.softmax(1) >= how["min_p"] * logits.softmax(1).amax(1, keepdim=True)
    if "top_p" in how:
        left = logits.masked_fill(~kept, -torch.inf).softmax(1).gather(1, ordered)
        kept &= torch.zeros_like(kept).scatter_(1, ordered, left.cumsum(1) - left < 0.9)
    tokens = logits.masked_fill(~kept, -torch.inf).softmax(1).multinomial(1, generator=generator)
    sampled = logits.masked_fill(~kept, -torch.inf).log_softmax(1).gather(1, tokens)[:, 0]
    own = logits.log_softmax(1).gather(1, tokens)[:, 0]
    far = 0.02 if [*how] == ["top_p"] else 0.2  # what is left of many tokens by rank is not known: less is seen
    wrong = (logits + far * torch.randn(logits.shape, generator=generator)).log_softmax(1).gather(1, tokens)[:, 0]
    mask = torch.ones(1, 400, dtype=torch.bool)
    rows: Any = SimpleNamespace(rollout_logprobs=sampled[None], response_mask=mask)
    settings = config(**how).rollout
    assert (sampled - own).mean() > 0.01
    assert unexplained_gap(rows, own[None], settings).mean() < 1e-6
    assert unexplained_gap(rows, wrong[None], settings).mean() > 1e-3


def test_a_forbidden_end_explains_no_difference() -> None:
    """The actor's log-probabilities are of the same distribution, without EOS."""
    rows: Any = SimpleNamespace(
        rollout_logprobs=torch.tensor([[-1.0, -1.0]]), response_mask=torch.tensor([[True, True]])
    )
    settings = config(min_response_tokens=2).rollout
    assert unexplained_gap(rows, torch.tensor([[-1.2, -1.0]]), settings).tolist() == pytest.approx([0.2, 0.0])


def test_top_k_excuses_no_token_that_the_actor_would_hardly_say() -> None:
    """It was among the likeliest k, so that all that is left out together is less likely still."""
    rows: Any = SimpleNamespace(rollout_logprobs=torch.zeros(1, 2), response_mask=torch.ones(1, 2, dtype=torch.bool))
    gap = unexplained_gap(rows, torch.tensor([[-20.0, -3.0]]), config(top_k=50).rollout)
    assert gap.tolist() == [pytest.approx(20, abs=0.01), 0]


def test_a_gap_that_was_measured_with_other_dtypes_says_nothing() -> None:
    """A resumed run may change `rollout.engine.dtype`."""
    coarse, fine = Canary(), Canary()
    assert passes(coarse, 0.02, 0, config(engine="bfloat16")) and passes(fine, 4e-6, 0, config())
    exact, rounded = Canary(), Canary()
    exact.load_state_dict(coarse.state_dict())
    rounded.load_state_dict(fine.state_dict())
    assert not passes(exact, 0.05, 3, config()), "five times the gap of bfloat16"
    assert passes(rounded, 0.05, 3, config(engine="bfloat16")), "it was 4e-6 in float32"
    assert not passes(rounded, 0.25, 4, config(engine="bfloat16"))


class _Linear(LinearBase):
    """As far as the probe looks at it."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        torch.nn.Module.__init__(self)
        self.weight, self.bias = linear.weight, linear.bias
        self.input_size, self.params_dtype = linear.in_features, linear.weight.dtype
        self.quant_method: Any = SimpleNamespace(apply=lambda layer, x, bias: x @ layer.weight.t())

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError


def test_a_wrong_bias_is_named() -> None:
    trainer, engine = torch.nn.ModuleDict({"q": torch.nn.Linear(4, 3)}), torch.nn.Linear(4, 3)
    engine.load_state_dict(trainer["q"].state_dict())
    held = torch.nn.ModuleDict({"q": _Linear(engine)})
    actor = trainer_products(trainer.named_parameters(), torch.float32)
    assert "None of the 2 tensors" in culprits(roles_with(actor, engine_products(held)), config())
    engine.bias.data += 1
    told = culprits(roles_with(actor, engine_products(held)), config())
    assert "1 differ; most, relative to their size: q.bias" in told


FAULTS = {
    "dropped": lambda held, before: held.copy_(before),  # the engine keeps what it had
    "zeroed": lambda held, before: held.zero_(),
    "transposed": lambda held, before: held.copy_(held.t().clone()),
    "swapped": lambda held, before: held.copy_(held.roll(1, 0)),
    "rounded": lambda held, before: held.copy_(held.bfloat16().float()),
    "stale": lambda held, before: held.add_(before - held, alpha=0.1),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[PolicyModel, dict[str, Tensor]]:
    """The trainer's model after an update, and its parameters before that."""
    model = PolicyModel.load(save_tiny_llama(tmp_path_factory.mktemp("model"), tie=False))
    before = {name: parameter.detach().clone() for name, parameter in model.model.named_parameters()}
    generator = torch.Generator().manual_seed(1)
    for parameter in model.model.parameters():
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)
    return model, before


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", ["model.layers.1.self_attn.q_proj.weight", "model.layers.0.self_attn.o_proj.weight"])
def test_each_fault_of_one_tensor_is_caught_and_named(
    models: tuple[PolicyModel, dict[str, Tensor]], fault: str, name: str
) -> None:
    """The engine is the same model with one wrong tensor; tokens are scored by both."""
    model, before = models
    tokens = torch.randint(3, 128, (4, 24), generator=torch.Generator().manual_seed(2))
    mask = (torch.arange(24) >= 4).expand(4, 24).contiguous()
    rollouts = replace(make_scored([(4, 20)] * 4).rollouts, token_ids=tokens, response_mask=mask)
    right, actor = logprobs(model, tokens), trainer_products(model.model.named_parameters(), torch.float32)
    held = dict(model.model.named_parameters())[name].data
    kept = held.clone()
    FAULTS[fault](held, before[name])
    wrong, engine = logprobs(model, tokens), trainer_products(model.model.named_parameters(), torch.float32)
    held.copy_(kept)
    canary = Canary()
    canary.check(SeenRows(replace(rollouts, rollout_logprobs=right), right, []), 0, config())
    with pytest.raises(WeightsDiffer):
        canary.check(SeenRows(replace(rollouts, rollout_logprobs=wrong), right, []), 1, config())
    told = culprits(roles_with(actor, EngineProducts(engine)), config())
    assert f"1 differ; most, relative to their size: {name} (" in told


def logprobs(model: PolicyModel, tokens: Tensor) -> Tensor:
    """float32 `[batch, time]`."""
    from roles.zero.micro_batch import MicroBatch

    mask = torch.ones_like(tokens, dtype=torch.bool)
    mask[:, 0] = False
    rows: Any = SimpleNamespace(token_ids=tokens, lengths=torch.full((len(tokens),), tokens.shape[1]))
    rows.response_mask = mask
    micro = MicroBatch.of(rows, list(range(len(tokens))), torch.device("cpu"))
    with torch.no_grad():
        found, _ = model(packed=micro.packed, positions=micro.positions, labels=micro.labels, temperature=1.0)
    out = torch.zeros(tokens.shape)
    out[mask] = found
    return out


def roles_with(actor: Any, engine: Any) -> Any:
    def group(answer: Any) -> Any:
        def call(method: Any) -> Any:
            if isinstance(answer, Exception):
                raise answer
            return SimpleNamespace(result=lambda deadline_s: [answer])

        return SimpleNamespace(call=call)

    policy = SimpleNamespace(engines=group(engine))
    return SimpleNamespace(actor=group(actor), policy=policy, deadlines=SimpleNamespace(push_s=1.0))


def test_fused_tensors_are_compared_with_their_parts_in_order() -> None:
    parts = {f"layers.0.attn.{part}.weight": torch.randn(3) for part in ("q", "k", "v")}
    fused = {"qkv": ["q", "k", "v"]}
    right = EngineProducts({"layers.0.attn.qkv.weight": torch.cat(list(parts.values()))}, fused)
    assert "None of the 1 tensors compared differs" in culprits(roles_with(parts, right), config())
    turned = EngineProducts({"layers.0.attn.qkv.weight": torch.cat(list(parts.values())[::-1])}, fused)
    assert "layers.0.attn.qkv.weight" in culprits(roles_with(parts, turned), config())


def test_engines_that_cannot_be_compared_say_so() -> None:
    assert "asleep or split" in culprits(roles_with({}, None), config())
    assert "could not be compared: rank 0 died" in culprits(roles_with({}, RankFailure("rank 0 died")), config())
