from __future__ import annotations

import json
from pathlib import Path

from roles.rollout_setup import stop_token_ids


def test_stop_tokens_come_from_the_generation_config_and_the_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 9}))
    assert stop_token_ids(tmp_path, None) == (9,)
    assert stop_token_ids(tmp_path, 4) == (4, 9)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 2]}))
    assert stop_token_ids(tmp_path, 2) == (2, 7)
    (tmp_path / "generation_config.json").write_text(json.dumps({"temperature": 1}))
    assert stop_token_ids(tmp_path, None) == (9,)
