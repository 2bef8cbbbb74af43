from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from roles.rollout import RolloutEngine
from roles.rollout_setup import overrides, stop_token_ids


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
