"""Sizes without weights: exact counts, as their makers publish them."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from orchestrator.config.loading import load_config
from orchestrator.config.run import RunConfig
from orchestrator.errors import ConfigError
from orchestrator.sizes.meta_models import size_of
from orchestrator.sizes.model_sizes import adapters, check_adapters, model_size
from roles.config.models import ModelConfig
from roles.models.lora import adapt

ROOT = Path(__file__).resolve().parents[4]
PUBLISHED = {
    "meta-llama/Llama-2-7b-hf": 6_738_415_616,
    "meta-llama/Llama-2-13b-hf": 13_015_864_320,
    "meta-llama/Llama-2-70b-hf": 68_976_648_192,
    "codellama/CodeLlama-7b-hf": 6_738_546_688,
    "codellama/CodeLlama-13b-hf": 13_016_028_160,
    "codellama/CodeLlama-34b-hf": 33_743_970_304,
    "meta-llama/Meta-Llama-3-8B": 8_030_261_248,
    "meta-llama/Meta-Llama-3-70B": 70_553_706_496,
    "meta-llama/Llama-3.1-405B": 405_853_388_800,
    "meta-llama/Llama-3.2-1B": 1_235_814_400,
    "meta-llama/Llama-3.2-3B": 3_212_749_824,
    "allenai/Llama-3.1-Tulu-3-8B": 8_030_326_784,
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": 1_100_048_384,
    "HuggingFaceTB/SmolLM2-135M": 134_515_008,
    "HuggingFaceTB/SmolLM2-360M": 361_821_120,
    "HuggingFaceTB/SmolLM2-1.7B": 1_711_376_384,
    "HuggingFaceTB/SmolLM3-3B": 3_075_098_624,
    "01-ai/Yi-6B": 6_061_035_520,
    "01-ai/Yi-9B": 8_829_407_232,
    "01-ai/Yi-34B": 34_388_917_248,
    "tiiuae/Falcon3-1B-Base": 1_669_408_768,
    "tiiuae/Falcon3-3B-Base": 3_227_655_168,
    "tiiuae/Falcon3-7B-Base": 7_455_550_464,
    "tiiuae/Falcon3-10B-Base": 10_305_653_760,
    "deepseek-ai/deepseek-llm-7b-base": 6_910_365_696,
    "deepseek-ai/deepseek-coder-6.7b-base": 6_740_512_768,
    "mistralai/Mistral-7B-v0.1": 7_241_732_096,
    "mistralai/Mistral-7B-v0.3": 7_248_023_552,
    "mistralai/Mistral-Nemo-Base-2407": 12_247_782_400,
    "mistralai/Ministral-8B-Instruct-2410": 8_019_808_256,
    "mistralai/Mistral-Small-Instruct-2409": 22_247_282_688,
    "mistralai/Mistral-Small-24B-Base-2501": 23_572_403_200,
    "mistralai/Mistral-Large-Instruct-2407": 122_610_069_504,
    "mistralai/Mixtral-8x7B-v0.1": 46_702_792_704,
    "mistralai/Mixtral-8x22B-v0.1": 140_620_634_112,
    "mistralai/Mixtral-8x22B-Instruct-v0.1": 140_630_071_296,
    "Qwen/Qwen2.5-0.5B": 494_032_768,
    "Qwen/Qwen2.5-1.5B": 1_543_714_304,
    "Qwen/Qwen2.5-3B": 3_085_938_688,
    "Qwen/Qwen2.5-7B": 7_615_616_512,
    "Qwen/Qwen2.5-14B": 14_770_033_664,
    "Qwen/Qwen2.5-32B": 32_763_876_352,
    "Qwen/Qwen2.5-72B": 72_706_203_648,
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": 1_777_088_000,
    "Qwen/Qwen1.5-MoE-A2.7B": 14_315_784_192,
    "Qwen/Qwen3-0.6B": 596_049_920,
    "Qwen/Qwen3-1.7B": 1_720_574_976,
    "Qwen/Qwen3-4B": 4_022_468_096,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "Qwen/Qwen3-14B": 14_768_307_200,
    "Qwen/Qwen3-32B": 32_762_123_264,
    "Qwen/Qwen3-30B-A3B": 30_532_122_624,
    "Qwen/Qwen3-235B-A22B": 235_093_634_560,
    "google/gemma-2b": 2_506_172_416,
    "google/gemma-7b": 8_537_680_896,
    "google/gemma-2-2b": 2_614_341_888,
    "google/gemma-2-9b": 9_241_705_984,
    "google/gemma-2-27b": 27_227_128_320,
    "google/gemma-3-270m": 268_098_176,
    "google/gemma-3-1b-pt": 999_885_952,
    "google/gemma-3-4b-pt": 4_300_079_472,
    "microsoft/phi-1_5": 1_418_270_720,
    "microsoft/phi-2": 2_779_683_840,
    "microsoft/Phi-3-mini-4k-instruct": 3_821_079_552,
    "microsoft/Phi-3-medium-4k-instruct": 13_960_238_080,
    "microsoft/phi-4": 14_659_507_200,
    "microsoft/Phi-4-mini-instruct": 3_836_021_760,
    "allenai/OLMo-2-0425-1B": 1_484_916_736,
    "allenai/OLMo-2-1124-7B": 7_298_617_344,
    "allenai/OLMo-2-1124-13B": 13_716_198_400,
    "allenai/OLMo-2-0325-32B": 32_234_279_936,
    "allenai/OLMoE-1B-7B-0924": 6_919_161_856,
    "ibm-granite/granite-3.0-2b-base": 2_533_531_648,
    "ibm-granite/granite-3.0-8b-base": 8_170_848_256,
    "ibm-granite/granite-3.3-2b-base": 2_533_539_840,
    "ibm-granite/granite-3.3-8b-base": 8_170_864_640,
    "CohereLabs/aya-expanse-8b": 8_028_033_024,
    "CohereLabs/c4ai-command-r-v01": 34_980_831_232,
    "bigcode/starcoder2-3b": 3_030_371_328,
    "bigcode/starcoder2-7b": 7_173_923_840,
    "bigcode/starcoder2-15b": 15_957_889_024,
    "THUDM/GLM-4-9B-0414": 9_400_279_040,
    "deepseek-ai/DeepSeek-V2-Lite": 15_706_484_224,
    "deepseek-ai/DeepSeek-V2": 235_741_434_880,
    "deepseek-ai/DeepSeek-V3": 671_026_419_200 - 58 * 256,  # the routers' correction biases, which are no parameters
    "openai/gpt-oss-20b": 20_914_757_184,
    "openai/gpt-oss-120b": 116_829_156_672,
    "distilgpt2": 81_912_576,
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "EleutherAI/pythia-70m": 70_426_624,
    "EleutherAI/pythia-160m": 162_322_944,
    "EleutherAI/pythia-410m": 405_334_016,
    "EleutherAI/pythia-1b": 1_011_781_632,
    "EleutherAI/pythia-1.4b": 1_414_647_808,
    "EleutherAI/pythia-2.8b": 2_775_208_960,
    "EleutherAI/pythia-6.9b": 6_857_302_016,
    "EleutherAI/pythia-12b": 11_846_072_320,
    "facebook/opt-125m": 125_239_296,
    "facebook/opt-350m": 331_196_416,
    "facebook/opt-1.3b": 1_315_758_080,
    "facebook/opt-2.7b": 2_651_596_800,
    "facebook/opt-6.7b": 6_658_473_984,
    "facebook/opt-13b": 12_853_473_280,
}
"""As the published weights hold them: the hub's counts of safetensors files, `general.parameter_count` of GGUF files,
table 1 of Pythia's paper (arXiv 2304.01373). Of Qwen3's small models, whose files hold their tied head twice, once."""
ACTIVE = {
    "mistralai/Mixtral-8x7B-v0.1": (46.7, 12.9),  # mistral.ai/news/mixtral-of-experts
    "mistralai/Mixtral-8x22B-v0.1": (141, 39),  # mistral.ai/news/mixtral-8x22b
    "Qwen/Qwen1.5-MoE-A2.7B": (14.3, 2.7),  # its model card
    "Qwen/Qwen2-57B-A14B": (57.4, 14),  # arXiv 2407.10671
    "Qwen/Qwen3-30B-A3B": (30.5, 3.3),  # its model card
    "Qwen/Qwen3-235B-A22B": (235, 22),  # its model card
    "allenai/OLMoE-1B-7B-0924": (6.9, 1.3),  # arXiv 2409.02060
    "deepseek-ai/DeepSeek-V2": (236, 21),  # arXiv 2405.04434
    "deepseek-ai/DeepSeek-V3": (671, 37),  # arXiv 2412.19437
}
"""Billions of parameters: all, and those that work for one token."""


@pytest.mark.parametrize(("name", "parameters"), PUBLISHED.items())
def test_known_models(tmp_path: Path, name: str, parameters: int) -> None:
    assert model_size(ModelConfig(path=name), "actor.model", tmp_path).parameters == parameters


@pytest.mark.parametrize("name", ["meta-llama/Llama-2-7b-hf", "meta-llama/Meta-Llama-3-70B-Instruct", "Qwen/Qwen3-32B"])
def test_the_parts_of_a_model_add_up(tmp_path: Path, name: str) -> None:
    size = model_size(ModelConfig(path=name), "actor.model", tmp_path)
    assert size.layers * size.layer + 2 * size.embedding + size.hidden == size.parameters
    assert size.active_parameters == size.parameters == size.read_parameters(1)


@pytest.mark.parametrize(("name", "billions"), ACTIVE.items())
def test_experts_that_work_for_a_token(tmp_path: Path, name: str, billions: tuple[float, float]) -> None:
    size = model_size(ModelConfig(path=name), "actor.model", tmp_path)
    assert (size.parameters / 1e9, size.active_parameters / 1e9) == pytest.approx(billions, rel=0.03)
    assert size.active_in_layers < size.active_parameters
    assert size.read_parameters(1) == pytest.approx(size.active_parameters)
    assert size.read_parameters(10_000) == pytest.approx(size.parameters, rel=1e-3)


def test_experts_that_a_batch_touches(tmp_path: Path) -> None:
    """Against drawing them: 128 experts, 8 a token, 16 tokens."""
    size = model_size(ModelConfig(path="Qwen/Qwen3-30B-A3B"), "actor.model", tmp_path)
    draw, rounds, tokens = random.Random(0), 300, 16
    touched = [len({e for _ in range(tokens) for e in draw.sample(range(128), 8)}) for _ in range(rounds)]
    missed = 128 - sum(touched) / rounds
    assert size.read_parameters(tokens) == pytest.approx(size.parameters - missed * 48 * size.expert, rel=0.01)


@pytest.mark.parametrize("tied", [True, False])
def test_against_models_that_are_really_built(tied: bool) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=50, num_key_value_heads=2, tie_word_embeddings=tied, num_labels=1, **sizes)
    policy, critic = LlamaForCausalLM(config), LlamaForSequenceClassification(config)
    assert size_of(config).parameters == sum(p.numel() for p in policy.parameters())
    assert size_of(config, value_head=True).parameters == sum(p.numel() for p in critic.parameters())
    assert size_of(config).layer == sum(p.numel() for p in policy.model.layers[0].parameters())
    assert (size_of(config).kv_width, size_of(config, value_head=True).vocabulary) == (32, 0)


def lora_config(tmp_path: Path, **lora: object) -> RunConfig:
    """The tiny run on a small Llama, with adapters on actor and critic."""
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=50, num_key_value_heads=2, **sizes)
    config.save_pretrained(tmp_path)
    model = f"model={{path: {tmp_path}}}"
    both = [f"{role}.lora={json.dumps(lora)}" for role in ("actor", "critic")]
    return load_config(ROOT / "configs/tiny.yaml", [f"actor.{model}", f"critic.{model}", f"reward.{model}", *both])


def test_adapters_are_counted_by_hand(tmp_path: Path) -> None:
    config = lora_config(tmp_path, rank=2, targets=["q_proj", "down_proj"])
    beside = 3 * 2 * ((64 + 64) + (96 + 64))
    assert adapters(config, "actor") == beside
    assert adapters(config, "critic") == beside + 64, "and the value head"
    made = LlamaForCausalLM(LlamaConfig.from_pretrained(tmp_path))
    adapt(made, config.actor.lora)
    assert beside == sum(p.numel() for p in made.parameters() if p.requires_grad)
    plain = config.actor.model_copy(update={"lora": None})
    assert adapters(config.model_copy(update={"actor": plain}), "actor") is None


def test_a_target_that_is_no_layer_is_told_before_anything_starts(tmp_path: Path) -> None:
    config = lora_config(tmp_path, targets=["q_pro"])
    with pytest.raises(ConfigError, match=r"^actor\.lora\.targets: q_pro is no linear layer of this LlamaForCausalLM"):
        check_adapters(config)
