"""Pushes from DeepSpeed ZeRO-3 ranks to vLLM engines over gloo: afterwards the engines sample from the new weights."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from roles.config.models import LoraConfig
from roles.errors import RolloutError, WeightTransferError
from roles.rollout import RolloutEngine
from roles.rollout_setup import RolloutSetup
from roles.transfer.connect import quiet_port
from roles.transfer.probe import differences
from tests.integration import architectures
from tests.integration.engines import ENVIRONMENT, engine_setup, gap, make_prompts
from tests.integration.hosted import Host, HostClient, hosts
from tests.integration.tiny_model import save_tiny_llama
from tests.integration.trainer import Trainer

SHARED_MEMORY = Path("/dev/shm")
TOLERANCES = {"float32": 1e-5, "bfloat16": 0.1}
"""Largest difference of a token's log-probability, in nats."""


@contextmanager
def running(
    folder: Path, model: Path, setups: list[RolloutSetup], ranks: int, lora: LoraConfig | None = None
) -> Iterator[tuple[list[Host], HostClient]]:
    """The engines and a client of all trainer ranks, connected."""
    rank_env = {"RANK": "{rank}", "LOCAL_RANK": "{rank}", "WORLD_SIZE": str(ranks), "MASTER_PORT": str(quiet_port())}
    trainer_env = ENVIRONMENT | rank_env | {"MASTER_ADDR": "127.0.0.1"}
    with hosts(folder, RolloutEngine, [[setup] for setup in setups], ENVIRONMENT) as engines:
        trainer_arguments = [[str(model), [engine.address for engine in engines], lora]] * ranks
        with hosts(folder, Trainer, trainer_arguments, trainer_env) as trainers:
            client = HostClient([trainer.address for trainer in trainers])
            client.call("connect")
            yield engines, client


def worst_gap(engine: Host, trainers: HostClient, version: int, temperature: float = 1.0) -> torch.Tensor:
    rollouts = engine.call("generate", make_prompts(6), version)
    return gap(rollouts, trainers.call("logprobs", rollouts.token_ids, rollouts.lengths, temperature)[0]).max()


def differing(engine: Host, trainers: HostClient) -> list[str]:
    """The tensors that an engine, asked with its own kernels, holds otherwise than the trainer."""
    found = differences(trainers.call("products")[0], engine.call("weight_products"))
    assert len(found) == 14, "all but the tied head: per layer four matrices and two norms, embedding, last norm"
    return [name for name, value in found.items() if value > 1e-5]


def test_two_zero_ranks_push_to_two_engines(tmp_path: Path) -> None:
    """The head is tied to the embedding, which vLLM's reload forgets on CPU. The trainer has adapters (with which the
    plain model computes unmerged), the engines get merged weights."""
    model = save_tiny_llama(tmp_path / "model", tie=True)
    setups = [engine_setup(model, index=index) for index in range(2)]
    with running(tmp_path, model, setups, ranks=2, lora=LoraConfig(rank=4, alpha=8)) as (engines, trainers):
        assert trainers.call("sharded") == [True, True]
        before = worst_gap(engines[0], trainers, 0)
        assert before < 1e-5
        for version in (1, 2, 3):
            trainers.call("shake", version)
            trainers.call("push", version)
            with ThreadPoolExecutor() as pool:
                gaps = list(pool.map(lambda engine: worst_gap(engine, trainers, version), engines))  # noqa: B023
            assert max(gaps) < 1e-5, f"token soup at version {version}"
        assert differing(engines[0], trainers) == []
        _refuses_what_is_wrong(engines, trainers)


def _refuses_what_is_wrong(engines: list[Host], trainers: HostClient) -> None:
    with pytest.raises(RolloutError, match="weights of version 3, not of version 2"):
        engines[1].call("generate", make_prompts(2), 2)
    with pytest.raises(WeightTransferError, match="pushed version 3 after version 3"):
        engines[0].call("start_weight_update", 3)
    trainers.call("shake", 4)
    rank_0, rank_1 = (HostClient([address]) for address in trainers.addresses)
    with ThreadPoolExecutor() as pool:
        helping = pool.submit(rank_1.call, "push", 4)
        with pytest.raises(WeightTransferError, match="version 4 arrived corrupted"):
            rank_0.call("push_spoiled", 4)
        helping.result()
    with pytest.raises(RolloutError, match="no verified weights"):
        engines[0].call("generate", make_prompts(2), 4)
    assert differing(engines[0], trainers) == ["model.layers.1.mlp.gate_up_proj.weight"], "where the number was spoiled"
    with pytest.raises(WeightTransferError, match="broke off"):
        rank_0.call("push", 5)


@pytest.mark.parametrize(
    ("architecture", "workers", "dtype"),
    [
        ("Qwen3Moe", 1, "float32"),
        pytest.param("Qwen3Moe", 2, "float32", marks=pytest.mark.slow),
        *(pytest.param("Llama", 2, dtype, marks=pytest.mark.slow) for dtype in TOLERANCES),
    ],
)
def test_one_zero_rank_pushes_to_an_engine_of_some_workers(
    tmp_path: Path, architecture: str, workers: int, dtype: str
) -> None:
    """Two workers are tensor parallel. The wire has the engine's dtype, whatever the trainer's. Experts, which
    transformers holds in one tensor, travel as they are in the folder, and vLLM's CPU build packs them anew."""
    model = architectures.save(architecture, tmp_path / "model")
    tolerance = TOLERANCES[dtype]
    setup = engine_setup(model, tensor_parallel=workers, dtype=dtype, temperature=0.7)
    shared = set(SHARED_MEMORY.iterdir())
    with running(tmp_path, model, [setup], ranks=1) as ((engine,), trainers):
        assert {it for it in set(SHARED_MEMORY.iterdir()) - shared if "cpushm" in it.name} == set()
        facts: Any = engine.call("describe")
        assert (facts.workers, facts.dtype) == (workers, dtype)
        for version in (1, 2, 3):
            trainers.call("shake", version)
            trainers.call("push", version)
            assert worst_gap(engine, trainers, version, 0.7) < tolerance


PUSHED = [name for name in architectures.OWN_ATTENTION if "," not in name]


@pytest.mark.slow
@pytest.mark.parametrize("name", PUSHED)
def test_pushed_weights_are_right_where_only_the_trainers_attention_is_refused(tmp_path: Path, name: str) -> None:
    """Pushed by a plain model. All other architectures: `test_architectures`."""
    model = architectures.save(name, tmp_path / "model")
    with running(tmp_path, model, [engine_setup(model)], ranks=1) as ((engine,), trainers):
        assert worst_gap(engine, trainers, 0) < 1e-4
        for version in (1, 2):
            trainers.call("shake", version)
            trainers.call("push", version)
            assert worst_gap(engine, trainers, version) < 1e-4
