"""Adapters: what is trained, what a model with them computes, and what leaves it merged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from roles.config.models import LoraConfig
from roles.errors import ModelError
from roles.models.lora import adapt, adapted_layers, adapters_off, is_adapter, merged
from roles.models.networks import PolicyModel, ValueModel
from roles.transfer.connect import ZeroSource
from roles.zero.digest import Digest
from roles.zero.gather import full_parameters, layers, parameter_shapes
from tests.integration import architectures
from tests.unit.roles.models.test_networks import PACKED, targets, write

LORA = LoraConfig(rank=4, alpha=8)


def policy(folder: Path, lora: LoraConfig | None = LORA, dtype: torch.dtype = torch.float32) -> PolicyModel:
    """With adapters that already say something."""
    if not folder.joinpath("config.json").exists():
        write(folder, "llama-grouped")
    made = PolicyModel.load(folder, dtype=dtype)
    if lora:
        adapt(made.model, lora)
        shake(made.model)
    return made


def shake(model: PreTrainedModel) -> None:
    draw = torch.Generator().manual_seed(5)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            parameter.data.copy_(0.3 * torch.randn(parameter.shape, generator=draw))


def logprobs(model: PolicyModel) -> Tensor:
    positions, labels = targets()
    with torch.no_grad():
        answer: Tensor = model(packed=PACKED, positions=positions, labels=labels, temperature=0.7)[0]
    return answer


def whole(model: PreTrainedModel, *, adapted: bool = True) -> dict[str, Tensor]:
    groups = layers([name for name, _ in parameter_shapes(model)])
    return {name: tensor.clone() for name, tensor in full_parameters(model, groups, adapted=adapted)}


@pytest.mark.parametrize(
    ("architecture", "chosen"),
    [
        ("llama-grouped", "all-linear"),
        ("llama-grouped", ("q_proj", "mlp.down_proj")),
        ("gpt2-dropout", "all-linear"),
        ("gpt2-dropout", ("attn.c_proj",)),
    ],
)
def test_a_model_with_adapters_answers_as_the_merged_one(tmp_path: Path, architecture: str, chosen: object) -> None:
    """GPT-2 stores its matrices turned, a square one among them."""
    write(tmp_path, architecture)
    adapted = policy(tmp_path, LoraConfig(rank=4, alpha=8, targets=chosen))
    plain, base = policy(tmp_path, None), policy(tmp_path, None)
    plain.model.load_state_dict(whole(adapted.model), strict=plain.scores_in_blocks)  # a tied head is not among them
    torch.testing.assert_close(logprobs(adapted), logprobs(plain), atol=1e-5, rtol=1e-5)
    assert (logprobs(adapted) - logprobs(base)).abs().max() > 0.01
    before = base.state_dict()
    for name, tensor in whole(adapted.model, adapted=False).items():
        assert torch.equal(tensor, before[f"model.{name}"]), "merging moved a base weight"


def test_a_new_adapter_changes_nothing_and_depends_on_the_seed_alone(tmp_path: Path) -> None:
    base = policy(tmp_path, None)
    made = [policy(tmp_path, None) for _ in range(3)]
    for model, seed in zip(made, (1, 1, 2), strict=True):
        adapt(model.model, LORA, seed)
        torch.randn(3)
    first, same, other = (
        torch.cat([p.flatten() for n, p in model.named_parameters() if ".lora_A." in n]) for model in made
    )
    assert torch.equal(logprobs(made[0]), logprobs(base))
    assert torch.equal(first, same) and not torch.equal(first, other)


def test_switched_off_they_are_not_there_and_afterwards_they_learn_again(tmp_path: Path) -> None:
    adapted, base = policy(tmp_path), policy(tmp_path, None)
    now = logprobs(adapted)
    with adapters_off(adapted):
        assert torch.equal(logprobs(adapted), logprobs(base))
    assert torch.equal(logprobs(adapted), now)
    assert all(parameter.requires_grad == is_adapter(name) for name, parameter in adapted.named_parameters())


def test_only_adapters_are_trained_and_a_critics_head(tmp_path: Path) -> None:
    write(tmp_path / "reward", "llama-grouped", AutoModelForSequenceClassification, num_labels=1)
    critic = ValueModel.load(tmp_path / "reward")
    adapt(critic.model, LoraConfig(targets=("q_proj", "v_proj")))
    critic(packed=PACKED, positions=torch.arange(5)).sum().backward()
    trained = {name for name, parameter in critic.named_parameters() if parameter.grad is not None}
    sides = [f"lora_{side}.default.weight" for side in "AB"]
    layer = "model.model.layers.{}.self_attn.{}_proj.{}"
    assert trained == {layer.format(n, which, side) for n in (0, 1) for which in "qv" for side in sides} | {
        "model.score.weight"
    }


def test_names_and_shapes_are_those_of_the_model_without(tmp_path: Path) -> None:
    assert parameter_shapes(policy(tmp_path).model) == parameter_shapes(policy(tmp_path, None).model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_engines_are_given_the_merged_weights_in_their_own_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    adapted, plain = policy(tmp_path), policy(tmp_path, None)
    plain.model.load_state_dict(whole(adapted.model))
    groups = layers([name for name, _ in parameter_shapes(plain.model)])
    source = ZeroSource(adapted.model, groups, dtype)
    sent = {name: tensor.clone() for name, tensor in source}
    expected = Digest()
    for name, parameter in plain.model.named_parameters():
        expected.add(name, parameter.to(dtype))
    assert source.digest.hexdigest() == expected.hexdigest()
    assert [(p.name, p.dtype, p.shape) for p in source.metadata()] == [
        (name, tensor.dtype, tuple(tensor.shape)) for name, tensor in sent.items()
    ]


def test_merging_rounds_once(tmp_path: Path) -> None:
    adapted = policy(tmp_path, dtype=torch.bfloat16)
    name, layer = next(iter(adapted_layers(adapted.model).items()))
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    exact = layer.base_layer.weight.double() + 2.0 * b.double() @ a.double()
    assert name == "model.layers.0.self_attn.q_proj.weight" and a.dtype == torch.bfloat16
    torch.testing.assert_close(merged(layer.base_layer.weight.data, layer), exact.bfloat16(), atol=1e-6, rtol=2**-8)


@pytest.mark.parametrize("unknown", ["q_pro", "lm_head", "embed_tokens", "proj"])
def test_a_target_that_is_no_layer_is_named(tmp_path: Path, unknown: str) -> None:
    with pytest.raises(ModelError, match=rf"lora.targets: {unknown} is no linear layer of .*; it has down_proj, "):
        policy(tmp_path, LoraConfig(targets=("q_proj", unknown)))


@pytest.mark.parametrize("name", ["Glm4Moe", "DeepseekV3", "Qwen3Next", "Phimoe"])
def test_linear_layers_beside_the_experts_of_a_mixture_have_adapters_and_the_experts_have_none(name: str) -> None:
    """Their names are like those of the experts (`gate_proj`), which PEFT would take in their place. The routers of
    Phi-MoE inherit from a linear layer, and answer with more than its output."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(architectures.config(name))
    before = parameter_shapes(model)
    linear = {f"{part}.weight" for part, layer in model.named_modules() if type(layer) is nn.Linear}
    adapt(model, LORA)
    assert adapted_layers(model).keys() == linear - {"lm_head.weight"}
    assert parameter_shapes(model) == before
