"""Heads of reward models and critics as different programs save them: the right number, or refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, PreTrainedModel

from roles.config.models import ModelConfig
from roles.errors import ModelError
from roles.model_files.conversion import resolve_model
from roles.model_files.value_heads import find_head, normalisation
from roles.model_files.weight_check import check_weights
from roles.model_files.weight_files import Stored, stored_weights
from roles.models.networks import ValueModel
from roles.reward_trainer import RewardTrainer
from tests.integration.tiny_model import save_tokenizer
from tests.unit.roles.models.test_networks import ARCHITECTURES, LENGTHS, PACKED, TOKENS, compare_gradients, write

BIAS = 0.7
CLASSIFIERS = sorted(ARCHITECTURES.keys() - {"granite-scaled"})
"""Granite has none."""
Tensors = dict[str, Tensor]


def last_numbers(model: PreTrainedModel) -> Tensor:
    """What transformers' classifier says of each sequence."""
    with torch.no_grad():
        return torch.cat([model(TOKENS[row : row + 1, : int(length)]).logits[0] for row, length in enumerate(LENGTHS)])


def scored(folder: Path, **options: Any) -> Tensor:
    """What ours says of each sequence."""
    model = ValueModel.load(folder, **options)
    with torch.no_grad():
        numbers: Tensor = model(packed=PACKED, positions=PACKED.starts[1:].long() - 1)
    return numbers


def edit(folder: Path, change: Callable[[Tensors], Tensors], **said: Any) -> None:
    """Rewrite the folder's tensors, and keys of its config.json."""
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | said))


def reward_model(folder: Path, architecture: str = "llama-grouped") -> PreTrainedModel:
    """A classifier of transformers, with a bias that transformers itself does not read back."""
    model = write(folder, architecture, AutoModelForSequenceClassification, num_labels=1)
    model.score.bias = torch.nn.Parameter(torch.tensor([BIAS]))
    return model


def named(head: str, bias: bool = True) -> Callable[[Tensors], Tensors]:
    """The tensors with the head under another name."""

    def change(tensors: Tensors) -> Tensors:
        weight = tensors.pop("score.weight")
        return tensors | {f"{head}.weight": weight} | ({f"{head}.bias": torch.tensor([BIAS])} if bias else {})

    return change


@pytest.mark.parametrize("architecture", CLASSIFIERS)
def test_a_bias_counts_and_is_saved(tmp_path: Path, architecture: str) -> None:
    """`score.bias` of models that were trained by the N+ recipe."""
    model = reward_model(tmp_path / "a", architecture)
    edit(tmp_path / "a", named("score"))
    check_weights(tmp_path / "a", "reward")
    expected = last_numbers(model)
    torch.testing.assert_close(scored(tmp_path / "a"), expected, atol=1e-5, rtol=1e-5)
    ValueModel.load(tmp_path / "a").model.save_pretrained(tmp_path / "b")
    assert stored_weights(tmp_path / "b")["score.bias"].shape == (1,)
    check_weights(tmp_path / "b", "reward")
    assert torch.equal(scored(tmp_path / "b"), scored(tmp_path / "a"))


def test_a_bias_is_trained(tmp_path: Path) -> None:
    model = reward_model(tmp_path)
    edit(tmp_path, named("score"))
    critic = ValueModel.load(tmp_path, zero_head=True).train()
    for numbers in (
        critic(packed=PACKED, positions=PACKED.starts[1:].long() - 1),
        torch.cat([model(TOKENS[row : row + 1, : int(length)]).logits[0] for row, length in enumerate(LENGTHS)]),
    ):
        (numbers * torch.arange(1.0, 6.0)).sum().backward()
    compare_gradients(critic.model, model)
    assert critic.model.score.bias.grad == pytest.approx(15.0)


@pytest.mark.parametrize(
    ("head", "bias", "dtype"),
    [
        ("score", False, torch.bfloat16),
        ("value_head", False, torch.float32),
        ("v_head", True, torch.float32),
        ("v_head.summary", True, torch.float32),
        ("v_head.summary", True, torch.bfloat16),
        ("classifier", True, torch.float32),
        ("reward_head", False, torch.bfloat16),
        ("my_own", True, torch.float32),
    ],
)
def test_a_head_under_another_name(tmp_path: Path, head: str, bias: bool, dtype: torch.dtype) -> None:
    """OpenRLHF says which in `value_head_prefix`; TRL keeps the language head beside it."""
    model = reward_model(tmp_path / "a")
    if not bias:
        model.score.bias = None
    edit(tmp_path / "a", named(head, bias), value_head_prefix="my_own", architectures=["RewardModel"])
    edit(tmp_path / "a", lambda tensors: tensors | {"lm_head.weight": torch.ones(50, 32)})
    check_weights(tmp_path / "a", "reward")
    check_weights(tmp_path / "a", "value")
    exact = dtype == torch.float32
    torch.testing.assert_close(
        scored(tmp_path / "a", dtype=dtype),
        last_numbers(model),
        **({"atol": 1e-5} if exact else {"atol": 0.1}),
        rtol=0.02,
    )
    assert torch.equal(scored(tmp_path / "a", dtype=dtype, zero_head=True), scored(tmp_path / "a", dtype=dtype))
    ValueModel.load(tmp_path / "a", dtype=dtype).model.save_pretrained(tmp_path / "b")
    check_weights(tmp_path / "b", "reward")
    assert "score.weight" in stored_weights(tmp_path / "b") and "lm_head.weight" not in stored_weights(tmp_path / "b")
    assert torch.equal(scored(tmp_path / "b", dtype=dtype), scored(tmp_path / "a", dtype=dtype))


@pytest.mark.parametrize(
    "architecture", ["llama-grouped", "qwen2", "mistral-window", "gpt2-dropout", "gpt-neox", "phi3"]
)
def test_a_token_classifier_is_a_critic(tmp_path: Path, architecture: str) -> None:
    """With its bias, which may stand under `score` or `classifier`, and a number at every token."""
    model = write(tmp_path, architecture, AutoModelForTokenClassification, num_labels=1)
    check_weights(tmp_path, "value")
    critic = ValueModel.load(tmp_path, zero_head=True)
    with torch.no_grad():
        values = critic(packed=PACKED, positions=torch.arange(len(PACKED.token_ids)))
        wanted = [model(TOKENS[row : row + 1, : int(length)]).logits[0, :, 0] for row, length in enumerate(LENGTHS)]
    torch.testing.assert_close(values, torch.cat(wanted), atol=1e-5, rtol=1e-5)
    assert critic.model.score.bias is not None


def test_weights_of_pytorch_have_heads_too(tmp_path: Path) -> None:
    model = reward_model(tmp_path)
    tensors = named("v_head.summary")(load_file(tmp_path / "model.safetensors"))
    (tmp_path / "model.safetensors").unlink()
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    check_weights(tmp_path, "value")
    torch.testing.assert_close(scored(tmp_path), last_numbers(model), atol=1e-5, rtol=1e-5)


def test_a_cut_model_keeps_its_head(tmp_path: Path) -> None:
    """Under whatever name, with its bias and its normalisation."""
    reward_model(tmp_path / "a")
    edit(tmp_path / "a", named("value_head"), architectures=["RewardModel"], mean=0.5, std=2.0)
    save_tokenizer(tmp_path / "a")
    cut = resolve_model(ModelConfig(path=str(tmp_path / "a"), layers=1), tmp_path / "cache")
    whole = ValueModel.load(tmp_path / "a")
    whole.model.model.layers = whole.model.model.layers[:1]
    with torch.no_grad():
        expected = whole(packed=PACKED, positions=PACKED.starts[1:].long() - 1)
    assert torch.equal(scored(cut), expected)


def test_openrlhfs_normalisation(tmp_path: Path) -> None:
    """(number - mean) / std: of OpenRLHF's RewardModel, whose config.json also speaks of two labels."""
    model = reward_model(tmp_path / "a")
    model.score.bias = None
    labels = {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "label2id": {"LABEL_0": 0, "LABEL_1": 1}}
    edit(tmp_path / "a", lambda tensors: tensors, architectures=["RewardModel"], mean=0.5, std=2.5, **labels)
    expected = (last_numbers(model) - 0.5) / 2.5
    torch.testing.assert_close(scored(tmp_path / "a"), expected, atol=1e-5, rtol=1e-5)
    loaded = ValueModel.load(tmp_path / "a")
    loaded.model.save_pretrained(tmp_path / "b")
    said = json.loads((tmp_path / "b" / "config.json").read_text())
    assert "mean" not in said and "std" not in said and len(said["id2label"]) == 1
    assert torch.equal(scored(tmp_path / "b"), scored(tmp_path / "a"))
    loaded.rescale(mean=3.0, deviation=2.0)
    loaded.model.save_pretrained(tmp_path / "c")
    torch.testing.assert_close(scored(tmp_path / "c"), expected * 2 + 3, atol=1e-5, rtol=1e-5)


def test_a_reward_model_that_is_trained_on_is_centred_once(tmp_path: Path) -> None:
    """What is saved takes the mean of today's numbers off them, whatever was taken off already."""
    reward_model(tmp_path / "a")
    edit(tmp_path / "a", lambda tensors: tensors, score_shift=0.4, score_scale=2.0)
    trainer, today = object.__new__(RewardTrainer), scored(tmp_path / "a")
    module = ValueModel.load(tmp_path / "a")
    trainer._model = SimpleNamespace(module=module, save_model=module.model.save_pretrained)  # type: ignore[assignment]
    trainer.save_model(tmp_path / "b", float(today.mean()))
    torch.testing.assert_close(scored(tmp_path / "b"), today - today.mean(), atol=1e-5, rtol=1e-5)


def test_what_a_config_says_of_its_numbers() -> None:
    assert normalisation({}) == (1.0, 0.0)
    assert normalisation({"score_shift": 2, "score_scale": 3.0, "mean": 9.0, "std": 9.0}) == (3.0, 2.0)
    assert normalisation({"mean": 3.0, "std": 2.0}) == (0.5, 1.5)
    assert normalisation({"mean": 3.0, "std": 2.0, "normalize_reward": True}) == (0.5, 1.5)
    assert normalisation({"mean": 3.0, "std": 2.0, "normalize_reward": False}) == (1.0, 0.0)
    for wrong in ({"mean": 3.0}, {"std": 2.0}, {"mean": 0.0, "std": 0.0}, {"mean": 0.0, "std": -1.0}):
        with pytest.raises(ModelError, match="give both, std above 0"):
            normalisation(wrong)
    for value in ("1.5", [1.0], float("nan"), float("inf"), True):
        with pytest.raises(ModelError, match="is not a number; correct or remove it"):
            normalisation({"mean": value, "std": 1.0})


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        ({"score.weight": (2, 32)}, r"has 2 labels \(score\.weight has 2 rows\).*num_labels=1"),
        ({"v_head.weight": (32,)}, r"v_head\.weight has the shape \(32,\), not \[1, hidden_size\]"),
        (
            {"score.weight": (1, 32), "v_head.summary.weight": (1, 32)},
            r"has 2 heads \(score\.weight, v_head\.summary\.weight\); remove",
        ),
    ],
)
def test_heads_that_are_none(heads: dict[str, tuple[int, ...]], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        find_head({name: Stored(Path("file"), shape) for name, shape in heads.items()}, {})


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ({"score.0.weight": (16, 32), "score.2.weight": (1, 16)}, r"lacks .*: score\.weight; .* not: score\.0\.weight"),
        ({"v_head.0.weight": (16, 32)}, r"lacks .*: score\.weight; .* has not: v_head\.0\.weight"),
        ({"score.weight": (1, 16)}, r"score\.weight \(1, 16\), not \(1, 32\)"),
        ({"score.weight": (1, 32), "score.scale": (1,)}, r"has not: score\.scale"),
    ],
)
def test_deep_heads_and_those_of_another_width_are_refused(
    tmp_path: Path, head: dict[str, tuple[int, ...]], message: str
) -> None:
    reward_model(tmp_path)

    def change(tensors: Tensors) -> Tensors:
        del tensors["score.weight"]
        return tensors | {name: torch.zeros(shape) for name, shape in head.items()}

    edit(tmp_path, change)
    with pytest.raises(ModelError, match=message):
        check_weights(tmp_path, "reward")


def test_a_value_head_makes_no_policy(tmp_path: Path) -> None:
    """vLLM would not load it either."""
    write(tmp_path, "llama-grouped")
    edit(tmp_path, lambda tensors: tensors | {"v_head.summary.weight": torch.zeros(1, 32)})
    check_weights(tmp_path, "value")
    with pytest.raises(ModelError, match=r"has not: v_head\.summary\.weight"):
        check_weights(tmp_path, "policy")
