"""How much of the published rates a step reaches: a YAML file flows in, an Efficiency flows out.

Called by `orchestrator.planning`, `orchestrator.calibration` and `orchestrator.cli`.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import yaml
from pydantic import ValidationError

from cluster.config import Efficiency
from orchestrator.errors import ConfigError

SHIPPED = Path(__file__).with_name("efficiency.yaml")


@cache
def load_efficiency(path: Path = SHIPPED) -> Efficiency:
    """ConfigError if the file is not there or wrong."""
    try:
        return Efficiency.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigError(f"the efficiency file {path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, ValidationError) as error:
        raise ConfigError(f"the efficiency file {path} is wrong: {error}") from error
