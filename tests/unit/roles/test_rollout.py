from __future__ import annotations

import json
import os
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from roles.config.rollout import RolloutConfig
from roles.rollout import RolloutEngine
from roles.rollout_setup import RolloutSetup, overrides, start_engine, stop_token_ids
from roles.transfer.facts import ENGINE_NAME

SHARED_MEMORY = Path("/dev/shm")


def test_stop_tokens_come_from_the_generation_config_and_the_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 9}))
    assert stop_token_ids(tmp_path, None) == (9,)
    assert stop_token_ids(tmp_path, 4) == (4, 9)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 2]}))
    assert stop_token_ids(tmp_path, 2) == (2, 7)
    (tmp_path / "generation_config.json").write_text(json.dumps({"temperature": 1}))
    assert stop_token_ids(tmp_path, None) == (9,)


@pytest.mark.parametrize(
    ("config", "read"),
    [
        ({"model_type": "cohere2", "sliding_window": 24}, {"sliding_window": 23}),
        ({"model_type": "cohere2", "sliding_window": None}, {}),
        ({"model_type": "mistral", "sliding_window": 24}, {}),
        ({"model_type": "cohere"}, {}),
    ],
)
def test_an_engine_whose_windows_would_be_wider_reads_narrower_ones(
    tmp_path: Path, config: dict[str, Any], read: dict[str, Any]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert overrides(tmp_path) == read


def test_the_engine_that_makes_windows_wider_does_so() -> None:
    """As it stands in its source: importing it takes seconds."""
    (package,) = find_spec("vllm").submodule_search_locations  # type: ignore[union-attr, misc]
    for name in ("commandr", "cohere2_moe"):
        assert "config.sliding_window + 1" in Path(package, f"model_executor/models/{name}.py").read_text(), name


def test_an_engine_has_its_place_among_those_that_are_pushed_to() -> None:
    """After a failure a push may go to some of the engines."""
    joined: list[int] = []
    engine: Any = RolloutEngine.__new__(RolloutEngine)
    engine._setup = SimpleNamespace(index=3, tensor_parallel_size=2)
    engine._engine = SimpleNamespace(collective_rpc=lambda method, args: joined.append(args[0]["rank_offset"]))
    engine.init_weight_transfer({"rank_offset": 1}, [0, 1, 2, 3])
    engine.init_weight_transfer({"rank_offset": 1}, [1, 3])
    engine.init_weight_transfer({"rank_offset": 1}, [3])
    assert joined == [7, 3, 1]


def test_memory_that_the_processes_of_an_engine_share_has_no_name_once_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a killed engine leaves nothing behind; the memory of others stays."""
    from vllm.v1.engine.llm_engine import LLMEngine

    (tmp_path / "config.json").write_text("{}")
    made: list[Path] = []
    other = SHARED_MEMORY / f"another-{tmp_path.name}-{os.getpid()}"

    def start(arguments: object) -> str:
        made.extend(SHARED_MEMORY / f"{os.environ[ENGINE_NAME]}-12-tp:0-cpushm_{rank}" for rank in range(2))
        for file in (*made, other):
            file.touch()
        return "engine"

    monkeypatch.setenv(ENGINE_NAME, "")
    monkeypatch.setattr(LLMEngine, "from_engine_args", start)
    setup = RolloutSetup(
        model_path=str(tmp_path),
        device="cpu",
        dtype="float32",
        seed=0,
        rollout=RolloutConfig(prompts_per_step=1, max_response_tokens=1),
        max_model_tokens=8,
        pad_token_id=0,
        stop_token_ids=(),
        backend="gloo",
    )
    try:
        assert start_engine(setup) == "engine" and len(made) == 2
        assert not any(file.exists() for file in made) and other.exists()
    finally:
        for file in (*made, other):
            file.unlink(missing_ok=True)
