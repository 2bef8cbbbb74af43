"""Loads the share of the published rates that a step reaches: a YAML file flows in, an Efficiency flows out."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from pydantic import ValidationError

from cluster.config import Efficiency
from orchestrator.config.problems import problem_lines
from orchestrator.config.yaml_text import YamlError, parse_yaml
from orchestrator.errors import ConfigError

SHIPPED = Path(__file__).with_name("efficiency.yaml")


@cache
def load_efficiency(path: Path = SHIPPED) -> Efficiency:
    """The factors in the file `path`. ConfigError if the file is missing or wrong."""
    fix = f"start from a copy of {SHIPPED}, or say --calibrate RUN"
    try:
        return Efficiency.model_validate(parse_yaml(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the efficiency file {path} cannot be read ({error}); {fix}") from None
    except YamlError as error:
        raise ConfigError(f"the efficiency file {path} is not YAML: {error}; {fix}") from None
    except ValidationError as error:
        first, *others = problem_lines(error.errors(), Efficiency)
        more = f" (and {len(others)} more)" if others else ""
        raise ConfigError(f"the efficiency file {path}: {first}{more}; {fix}") from None
