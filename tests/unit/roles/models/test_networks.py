"""Policy and value models on packed sequences against transformers' own forward of each sequence alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from roles.errors import ModelError
from roles.models.networks import PolicyModel, ValueModel, _exact_rotary
from roles.packing import Packed, pack

VOCAB = 50
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": VOCAB, "pad_token_id": 0}
LLAMA = SMALL | {"intermediate_size": 64, "initializer_range": 0.2, "bos_token_id": 1, "eos_token_id": 2}
GROUPED = LLAMA | {"num_key_value_heads": 2}
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-grouped": ("LlamaConfig", GROUPED),
    "llama-tied": ("LlamaConfig", LLAMA | {"tie_word_embeddings": True}),
    "qwen2": ("Qwen2Config", GROUPED),
    "qwen3": ("Qwen3Config", GROUPED | {"head_dim": 16}),
    "mistral-window": ("MistralConfig", GROUPED | {"sliding_window": 4}),
    "gemma": ("GemmaConfig", GROUPED | {"head_dim": 8}),
    "phi3": ("Phi3Config", GROUPED),
    "granite-scaled": ("GraniteConfig", GROUPED | {"logits_scaling": 4.0}),
    "gpt-neox": ("GPTNeoXConfig", LLAMA),
    "stablelm-keeps-keywords": ("StableLmConfig", GROUPED),
    "nemotron-keeps-keywords": ("NemotronConfig", GROUPED),
    "gpt2-dropout": ("GPT2Config", SMALL | {"initializer_range": 0.2, "bos_token_id": 1, "eos_token_id": 2}),
    "opt-dropout": ("OPTConfig", SMALL | {"ffn_dim": 64, "word_embed_proj_dim": 32, "init_std": 0.2}),
}
LENGTHS = torch.tensor([7, 3, 11, 1, 5])
TOKENS = torch.randint(3, VOCAB, (5, 11), generator=torch.Generator().manual_seed(0))
PACKED = pack(TOKENS, LENGTHS)


def write(folder: Path, architecture: str, auto: Any = AutoModelForCausalLM, **changes: Any) -> PreTrainedModel:
    """A randomly initialised model, written to `folder`; returned with transformers' eager attention, dropout off."""
    name, options = ARCHITECTURES[architecture]
    config = getattr(transformers, name)(**(options | changes))
    torch.manual_seed(1)
    model = auto.from_config(config, attn_implementation="eager", dtype=torch.float32)
    for parameter in model.parameters():  # norms and biases too: ones and zeros would hide a wrong one
        parameter.data += 0.02 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return model.eval()


def targets(packed: Packed = PACKED) -> tuple[Tensor, Tensor]:
    """Every token that has a next one in its own sequence, and that next one."""
    last = packed.starts[1:].long() - 1
    positions = torch.tensor([i for i in range(len(packed.token_ids)) if i not in last.tolist()])
    return positions, packed.token_ids[positions + 1]


def compare_gradients(got: nn.Module, wanted: nn.Module) -> None:
    expected = {name: parameter.grad for name, parameter in wanted.named_parameters()}
    for name, parameter in got.named_parameters():
        reference = expected[name]
        if reference is None:
            assert parameter.grad is None, name
        else:
            assert parameter.grad is not None, name
            scale = max(1.0, float(reference.abs().max()))  # a small entry may be the difference of large terms
            torch.testing.assert_close(
                parameter.grad, reference, atol=1e-5 * scale, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
            )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_policy_equals_each_sequence_alone(tmp_path: Path, architecture: str) -> None:
    alone = write(tmp_path, architecture)
    policy = PolicyModel.load(tmp_path).train()
    positions, labels = targets()
    logprobs, entropy = policy(packed=PACKED, positions=positions, labels=labels, temperature=0.7, with_entropy=True)
    expected, expected_entropy = [], []
    for row, length in enumerate(LENGTHS.tolist()):
        every = (alone(TOKENS[row : row + 1, :length]).logits[0, :-1] / 0.7).log_softmax(-1)
        expected.append(every.gather(-1, TOKENS[row, 1:length, None])[:, 0])
        expected_entropy.append(-(every.exp() * every).sum(-1))
    wanted = torch.cat(expected)
    torch.testing.assert_close(logprobs, wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(entropy, torch.cat(expected_entropy), atol=1e-5, rtol=1e-5)
    weight = torch.randn(len(wanted), generator=torch.Generator().manual_seed(2))
    (logprobs * weight).sum().backward()
    (wanted * weight).sum().backward()
    compare_gradients(policy.model, alone)


class Shapes(TorchDispatchMode):
    """Notes the shape of every tensor that is made."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.seen |= {
            tuple(t.shape) for t in (out if isinstance(out, tuple | list) else [out]) if isinstance(t, Tensor)
        }
        return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", ["llama-grouped", "mistral-window", "gpt2-dropout"])
def test_no_mask_over_all_tokens_is_made(tmp_path: Path, architecture: str, dtype: torch.dtype) -> None:
    write(tmp_path, architecture)
    policy = PolicyModel.load(tmp_path, dtype=dtype)
    positions, labels = targets()
    with Shapes() as shapes:
        policy(packed=PACKED, positions=positions, labels=labels, temperature=1.0)[0].sum().backward()
    tokens = len(PACKED.token_ids)
    assert (tokens, 32) in shapes.seen or (1, tokens, 32) in shapes.seen
    assert not [shape for shape in shapes.seen if shape.count(tokens) > 1]


def test_logits_are_computed_where_they_are_wanted_only(tmp_path: Path) -> None:
    write(tmp_path, "llama-grouped")
    policy = PolicyModel.load(tmp_path)
    rows: list[int] = []
    policy.model.lm_head.register_forward_hook(lambda module, given, out: rows.append(len(given[0])))
    positions, labels = targets()
    every, _ = policy(packed=PACKED, positions=positions, labels=labels, temperature=1.0)
    some, nothing = policy(packed=PACKED, positions=positions[3:7], labels=labels[3:7], temperature=1.0)
    assert rows == [len(positions), 4]
    assert nothing is None
    torch.testing.assert_close(some, every[3:7])


def test_no_wanted_position_gives_zero_gradients_to_every_weight(tmp_path: Path) -> None:
    """A rank without work runs such a micro-batch, so that the others do not wait for its gradients."""
    write(tmp_path, "llama-grouped")
    policy, critic = PolicyModel.load(tmp_path), ValueModel.load(tmp_path, new_head_seed=0)
    dummy, nothing = pack(torch.tensor([[3]]), torch.tensor([1])), torch.empty(0, dtype=torch.int64)
    logprobs, entropy = policy(packed=dummy, positions=nothing, labels=nothing, temperature=1.0, with_entropy=True)
    values = critic(packed=dummy, positions=nothing)
    assert logprobs.shape == entropy.shape == values.shape == (0,)
    (logprobs.sum() + entropy.sum() + values.sum()).backward()
    for parameter in [*policy.parameters(), *critic.parameters()]:
        assert parameter.grad is not None
        assert not parameter.grad.any()


@pytest.mark.parametrize("architecture", ["llama-grouped", "stablelm-keeps-keywords"])
def test_gradient_checkpointing_changes_no_gradient(tmp_path: Path, architecture: str) -> None:
    write(tmp_path, architecture)
    positions, labels = targets()
    models = [PolicyModel.load(tmp_path, gradient_checkpointing=on).train() for on in (False, True)]
    for model in models:
        model(packed=PACKED, positions=positions, labels=labels, temperature=1.0)[0].sum().backward()
    assert models[1].model.is_gradient_checkpointing
    compare_gradients(models[1], models[0])


def test_bfloat16_answers_in_float32(tmp_path: Path) -> None:
    write(tmp_path, "llama-grouped", initializer_range=0.05)
    positions, labels = targets()
    wide, narrow = (PolicyModel.load(tmp_path, dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
    expected, logprobs = (
        m(packed=PACKED, positions=positions, labels=labels, temperature=1.0)[0] for m in (wide, narrow)
    )
    assert next(narrow.parameters()).dtype == torch.bfloat16
    assert logprobs.dtype == torch.float32
    torch.testing.assert_close(logprobs, expected, atol=0.05, rtol=0.05)
    values = ValueModel.load(tmp_path, dtype=torch.bfloat16, new_head_seed=0)(packed=PACKED, positions=positions)
    assert values.dtype == torch.float32
    assert not torch.equal(values, values.bfloat16().float())


def test_saved_models_open_as_ordinary_folders(tmp_path: Path) -> None:
    write(tmp_path / "a", "llama-tied")
    policy, critic = PolicyModel.load(tmp_path / "a"), ValueModel.load(tmp_path / "a", new_head_seed=1)
    critic.model.config.score_shift = 1.5
    policy.model.save_pretrained(tmp_path / "b")
    critic.model.save_pretrained(tmp_path / "c")
    positions, labels = targets()
    again, critic_again = PolicyModel.load(tmp_path / "b"), ValueModel.load(tmp_path / "c")
    raw, centred = critic(packed=PACKED, positions=positions), critic_again(packed=PACKED, positions=positions)
    assert torch.equal(centred, raw - 1.5)
    asked = {"packed": PACKED, "positions": positions, "labels": labels, "temperature": 1.0}
    assert torch.equal(again(**asked)[0], policy(**asked)[0])
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "c")
    assert plain.config._attn_implementation == "sdpa"
    assert "roles" not in (tmp_path / "b" / "config.json").read_text()


def test_rotary_frequencies_that_loading_rounded_are_made_again(tmp_path: Path) -> None:
    write(tmp_path, "llama-grouped")
    model = PolicyModel.load(tmp_path, dtype=torch.bfloat16).model
    exact = model.model.rotary_emb.inv_freq.clone()
    model.model.rotary_emb.to(torch.bfloat16)
    _exact_rotary(model)
    assert exact.dtype == torch.float32
    assert torch.equal(model.model.rotary_emb.inv_freq, exact)


def test_a_folder_that_lacks_weights_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "llama-grouped", AutoModelForSequenceClassification, num_labels=1)
    with pytest.raises(ModelError, match=r"lm_head\.weight"):
        PolicyModel.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("BloomConfig", {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
        ("FalconConfig", SMALL),
        ("MambaConfig", {"hidden_size": 32, "num_hidden_layers": 1, "state_size": 4}),
    ],
)
def test_architectures_that_would_mix_sequences_are_refused(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    config = getattr(transformers, name)(**(options | {"vocab_size": VOCAB, "pad_token_id": 0}))
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="cannot keep packed sequences apart"):
        PolicyModel.load(tmp_path)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nowhere"):
        PolicyModel.load(tmp_path / "nowhere")
