"""DeepSpeed's settings, and the order in which it is asked to move its states."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from deepspeed.runtime.zero.offload_config import OffloadStateTypeEnum
from transformers import AutoModelForCausalLM

from roles.config.models import OptimizerConfig, ZeroConfig
from roles.models.networks import PolicyModel
from roles.packing import pack
from roles.zero.settings import deepspeed_config
from roles.zero.setup import ModelSetup
from roles.zero.sharded import ShardedModel
from roles.zero.work import Term, Work

SETUP = ModelSetup(
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


class Recorder:
    """Stands for DeepSpeed's engine (moving states needs a GPU) and writes down what is asked of it."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.basic_optimizer = SimpleNamespace(state={})
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
        self.optimizer = SimpleNamespace(
            grad_partitions_flat_buffer=torch.ones(4), offloaded_states={OffloadStateTypeEnum.lp_grads}
        )

    def __getattr__(self, name: str) -> Any:
        def record(*arguments: Any, **options: Any) -> Any:
            include = [state.value for state in options.get("include", [])]
            if include != ["lp_grads"]:  # they are not copied: see `roles.zero.sleeping`
                self.log.append(" ".join([name, *include]))
            return {"get_lr": [1e-3], "get_global_grad_norm": 1.0}.get(name)

        return record


MOVED = "offload_states optim_states hp_params contiguous_grad_buffer"


def engine_on(recorder: Recorder, zero: ZeroConfig) -> ShardedModel:
    engine = object.__new__(ShardedModel)
    engine.setup, engine.world_size, engine.module = replace(SETUP, zero=zero), 1, torch.nn.Identity()
    engine._deepspeed, engine._average, engine.device = recorder, None, torch.device("cpu")
    state: Any = SimpleNamespace(saving=lambda *a, copied: recorder.save_state, load=lambda f: recorder.load_state())
    engine._state = state
    return engine


def test_states_that_sleep_are_on_the_card_for_the_whole_update_and_no_longer() -> None:
    recorder = Recorder()
    work = [Work(lengths=[3, 2], denominator=2.0)] * 2
    engine_on(recorder, ZeroConfig(sleep=True)).train(Term(work, lambda step, items: torch.tensor(0.0)))
    moves = [line for line in recorder.log if "states" in line or line in ("backward", "step")]
    assert moves == ["reload_states", "backward", "step", "backward", "step", MOVED]


def test_states_that_sleep_wake_for_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    monkeypatch.setattr(torch.distributed, "barrier", lambda: recorder.barrier())
    engine = engine_on(recorder, ZeroConfig(sleep=True))
    engine.save_state(tmp_path)
    (tmp_path / "state").mkdir()
    engine.load_state(tmp_path)
    assert recorder.log == [
        *("reload_states", "save_state", MOVED),
        *("barrier", "reload_states", "load_state", MOVED),
    ]


def test_states_that_do_not_sleep_stay_where_they_are(tmp_path: Path) -> None:
    recorder = Recorder()
    engine_on(recorder, ZeroConfig()).save_state(tmp_path)
    assert recorder.log == ["save_state"]


def test_a_failed_update_is_not_followed_by_a_move() -> None:
    recorder = Recorder()

    def fails(step: int, items: list[int]) -> torch.Tensor:
        raise RuntimeError("the loss")

    with pytest.raises(RuntimeError, match="the loss"):
        engine_on(recorder, ZeroConfig(sleep=True)).train(Term([Work(lengths=[3], denominator=1.0)], fails))
    assert MOVED not in recorder.log


def test_free_pages_go_back_to_the_host_after_passes_and_after_an_update(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    recorder.optimizer.empty_partition_cache = lambda: None
    engine = engine_on(recorder, ZeroConfig())
    monkeypatch.setattr("roles.zero.sharded.HEAP", SimpleNamespace(give_back=lambda: recorder.log.append("heap")))
    assert list(engine.passes([3])) == [[0]]
    assert recorder.log.pop() == "heap"
    engine.train(Term([Work(lengths=[3], denominator=1.0)], lambda step, items: torch.tensor(0.0)))
    assert recorder.log[-1] == "heap"
    assert recorder.log.count("heap") == 1


@pytest.mark.parametrize("kind", ["MixtralConfig", "PhimoeConfig"])
def test_experts_are_chosen_in_training_as_in_scoring_also_where_activations_are_computed_again(
    kind: str, tmp_path: Path
) -> None:
    """In training mode both routers add noise, and Phi-MoE's draws the experts at random."""
    sizes = {"hidden_size": 32, "intermediate_size": 32, "vocab_size": 50, "num_attention_heads": 4}
    more = {"num_hidden_layers": 2, "num_key_value_heads": 2, "num_local_experts": 4, "router_jitter_noise": 0.3}
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(getattr(transformers, kind)(**sizes, **more)).save_pretrained(tmp_path)
    model, packed = (
        PolicyModel.load(tmp_path, gradient_checkpointing=True),
        pack(torch.arange(8)[None], torch.tensor([8])),
    )
    engine, positions, seen = engine_on(Recorder(), ZeroConfig()), torch.arange(7), list[torch.Tensor]()
    engine.module, engine.setup = model.eval(), replace(engine.setup, gradient_checkpointing=True)
    layers: Any = model.model.base_model.layers
    layers[0].register_forward_pre_hook(lambda *_: seen.append(torch.ones(())))

    def logprobs() -> torch.Tensor:
        return model(packed=packed, positions=positions, labels=positions + 1, temperature=1.0)[0]

    def loss(step: int, items: list[int]) -> torch.Tensor:
        found = logprobs()
        seen.clear()
        found.sum().backward()
        assert len(seen) == 1, "its activations are computed again"
        seen[:] = [found.detach()]
        return found.detach().sum()

    with torch.no_grad():
        scored = logprobs()
    engine.train(Term([Work(lengths=[8], denominator=1.0)], loss))
    assert torch.equal(seen[0], scored) and not any(part.training for part in model.modules())
