"""DeepSpeed's settings."""

from __future__ import annotations

from dataclasses import replace

from roles.config import OptimizerConfig, ZeroConfig
from roles.engine import EngineSetup, deepspeed_config

SETUP = EngineSetup(
    model_path="none",
    device="cpu",
    dtype="float32",
    seed=1,
    zero=ZeroConfig(),
    micro_batch_tokens=64,
    optimizer=OptimizerConfig(),
    optimizer_steps=10,
)


def test_frozen_models_are_sharded_by_stage_3_only() -> None:
    for stage, expected in ((0, 0), (1, 0), (2, 0), (3, 3)):
        frozen = replace(SETUP, optimizer=None, zero=ZeroConfig(stage=stage))
        assert deepspeed_config(frozen, 2)["zero_optimization"]["stage"] == expected
        trained = replace(SETUP, zero=ZeroConfig(stage=stage))
        assert deepspeed_config(trained, 2)["zero_optimization"]["stage"] == stage


def test_settings_follow_the_configuration() -> None:
    optimizer = OptimizerConfig(max_gradient_norm=0.3)
    zero = ZeroConfig(offload_optimizer=True, offload_parameters=True)
    settings = deepspeed_config(replace(SETUP, device="cuda", dtype="bfloat16", optimizer=optimizer, zero=zero), 4)
    assert settings["gradient_clipping"] == 0.3
    assert settings["bf16"]["enabled"] and settings["data_types"]["grad_accum_dtype"] == "fp32"
    assert settings["zero_optimization"]["offload_optimizer"]["device"] == "cpu"
    assert settings["zero_optimization"]["offload_param"]["device"] == "cpu"
    assert settings["train_batch_size"] == 4
