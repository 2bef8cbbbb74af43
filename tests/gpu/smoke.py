"""`configs/smoke.yaml` for one card: prints it with the placement of `one-gpu.yaml`.

.venv/bin/python -m tests.gpu.smoke > runs/smoke-card.yaml
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
CARD = ("placement", "deadlines")
"""Sections that the card's file gives."""
ENGINE = {"gpu_memory_utilization": 0.3, "enforce_eager": True, "sleep": 1}


def settings() -> dict[str, Any]:
    """The smoke run's settings with everything on one card."""
    smoke: dict[str, Any] = yaml.safe_load((HERE.parents[1] / "configs" / "smoke.yaml").read_text(encoding="utf-8"))
    card: dict[str, Any] = yaml.safe_load((HERE / "one-gpu.yaml").read_text(encoding="utf-8"))
    del smoke["rollout"]["engine"]["kv_cache_gib"]  # for CPUs
    smoke["rollout"]["engine"] |= ENGINE
    return smoke | {key: card[key] for key in CARD} | {"device": "cuda"}


if __name__ == "__main__":
    print(yaml.safe_dump(settings(), sort_keys=False), end="")
