"""What a push carries is what `save_pretrained` writes: names, shapes, values, layer by layer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.core_model_loading import Transpose, WeightConverter

from roles.config.models import LoraConfig
from roles.errors import ModelError, WeightTransferError
from roles.models.attention import check_architecture
from roles.models.lora import adapt
from roles.transfer.checkpoint_format import CheckpointFormat
from roles.transfer.connect import ZeroSource
from roles.zero.gather import layers, parameter_shapes
from tests.integration import architectures


def groups(model: nn.Module) -> list[list[str]]:
    return layers([name for name, _ in parameter_shapes(model)])


@pytest.mark.parametrize(
    "name", ["Llama", "Qwen3", "GPTNeoX", "Qwen3Moe", "Mixtral", "Phimoe", "GraniteMoe", "DeepseekV3", "Ernie4_5_Moe"]
)
def test_a_push_is_the_folder(tmp_path: Path, name: str) -> None:
    """Also after a change of the weights, with what is not trained in its own dtype."""
    folder = architectures.save(name, tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.5)
    model.save_pretrained(tmp_path / "changed")
    written = load_file(tmp_path / "changed" / "model.safetensors")
    source = ZeroSource(model, groups(model), torch.bfloat16)
    sent = {key: tensor.clone() for key, tensor in source}
    assert sent.keys() == written.keys() == load_file(folder / "model.safetensors").keys()
    assert [(m.name, m.shape) for m in source.metadata()] == [(key, tuple(t.shape)) for key, t in sent.items()]
    buffers = {key for key, _ in model.named_buffers()}
    for key, tensor in written.items():
        dtype = tensor.dtype if key in buffers else torch.bfloat16
        assert sent[key].dtype == dtype and torch.equal(sent[key], tensor.to(dtype)), key


def test_layers_stay_apart(tmp_path: Path) -> None:
    """So that no more than one is whole at a time, however its weights are named."""
    model = AutoModelForCausalLM.from_pretrained(architectures.save("Qwen3Moe", tmp_path / "model"))
    names = list(CheckpointFormat(model, groups(model)).shapes)
    assert [len(group) for group in layers(names)] == [1, 21, 21, 2]


def test_conversions_that_loading_had_no_use_for_are_not_reversed(tmp_path: Path) -> None:
    """As after a sharded load: a list with all that transformers knows of the architecture."""
    from transformers.conversion_mapping import get_model_conversion_mapping

    model = AutoModelForCausalLM.from_pretrained(architectures.save("Llama", tmp_path / "model"))
    before = list(CheckpointFormat(model, groups(model)).shapes)
    model._weight_conversions = get_model_conversion_mapping(model)
    assert model._weight_conversions, "the legacy ones at least"
    assert list(CheckpointFormat(model, groups(model)).shapes) == before


def test_experts_beside_adapters_are_written_as_in_the_folder(tmp_path: Path) -> None:
    folder = architectures.save("Qwen3Moe", tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(folder)
    adapt(model, LoraConfig(rank=2, alpha=4, targets=["q_proj"]))
    written = load_file(folder / "model.safetensors")
    sent = dict(CheckpointFormat(model, groups(model)))
    assert sent.keys() == written.keys()
    assert all(torch.equal(sent[key], tensor) for key, tensor in written.items()), "B is 0"


def test_a_tensor_that_is_turned_under_its_own_name_is_sent_as_the_folder_has_it(tmp_path: Path) -> None:
    """As the experts of Qwen3-VL are. A square one keeps its shape, too."""
    model = AutoModelForCausalLM.from_pretrained(architectures.save("Llama", tmp_path / "model"))
    assert all(as_it_is for _, as_it_is in CheckpointFormat(model, groups(model))._written), "nothing to convert"
    turned = WeightConverter("self_attn.q_proj.weight", "self_attn.q_proj.weight", operations=[Transpose(0, 1)])
    turned._was_used = True
    model._weight_conversions = [turned]
    name = "model.layers.0.self_attn.q_proj.weight"
    held = dict(model.named_parameters())[name].detach().clone()
    sent = {key: tensor.clone() for key, tensor in CheckpointFormat(model, groups(model))}
    assert torch.equal(sent[name], held.t()) and not torch.equal(held, held.t())


def test_a_tensor_that_several_layers_make_up_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "roles.transfer.checkpoint_format._converted", lambda module, tensors: dict.fromkeys(["w"], torch.ones(1))
    )
    with pytest.raises(WeightTransferError, match="Sequential writes w from several layers"):
        CheckpointFormat(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), [["0.weight"], ["1.weight"]])


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("Gemma2", None),
        ("GptOss", None),
        ("Bloom", "2 of the 2 layers of this .* do not use transformers' attention interface"),
        ("Falcon", "2 of the 2 layers"),
        ("Qwen3Next", "2 of the 2 layers"),
        ("StableLm", None),
        ("Llama", None),
        ("Mixtral", None),
        ("DeepseekV3", None),
    ],
)
def test_an_architecture_that_cannot_read_packed_sequences_is_known_without_weights(name: str, why: str | None) -> None:
    if why is None:
        check_architecture(architectures.config(name))
    else:
        with pytest.raises(ModelError, match=why):
            check_architecture(architectures.config(name))
