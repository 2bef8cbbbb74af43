"""Checks what `tetrarch label` needs, and reads the responses and the constitution. A ConfigError names key, value and
fix. The cheap checks come first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from orchestrator.checks.engine_fit import check_engine
from orchestrator.checks.model_support import check_attention, check_weights
from orchestrator.checks.models import ModelFacts, check_context, check_folder, check_tokenizer, model_facts
from orchestrator.checks.preparation import check_cards
from orchestrator.checks.run_folders import check_writable
from orchestrator.config.labelling import Constitution, EndpointJudge, LabellingRun, ModelJudge
from orchestrator.config.problems import problem_lines
from orchestrator.config.sampling import SamplingConfig
from orchestrator.config.yaml_text import YamlError, parse_yaml
from orchestrator.data.dataset_rows import check_source
from orchestrator.errors import ConfigError
from orchestrator.run.endpoint_key import endpoint_key

if TYPE_CHECKING:
    from orchestrator.data.records import Record


@dataclass(frozen=True, slots=True)
class LabelInputs:
    """What is asked about, and with what."""

    records: list[Record]
    constitution: Constitution | None
    api_key: str | None
    """Of the endpoint; None if it wants none."""
    summary: str
    """For the user: what was read."""
    example: str = ""


def prepare_label(config: LabellingRun) -> LabelInputs:
    """Check what `tetrarch label` needs; returns what was read on the way."""
    labelling, judge = config.labelling, config.labelling.judge
    check_writable(Path(labelling.output), "labelling.output")
    constitution = None if labelling.constitution is None else read_constitution(Path(labelling.constitution))
    api_key = endpoint_key(judge, "labelling.judge") if isinstance(judge, EndpointJudge) else None
    check_source(labelling.data, "labelling.data")
    if isinstance(judge, ModelJudge):
        _check_judge(config)
    from orchestrator.data.candidates import fitting_prompt  # loads transformers
    from orchestrator.data.judge_tasks import comparable, revisable
    from orchestrator.data.samples import read_records
    from orchestrator.data.statistics import DataStatistics

    use: Callable[[Record], object] = revisable if constitution else comparable
    if config.sampling is not None and labelling.candidates is not None:
        policy = _check_model(config.sampling, "labelling.candidates")
        use = partial(fitting_prompt, policy.tokenizer, labelling.candidates)
    statistics = DataStatistics("labelling.data")
    found = read_records(labelling.data, statistics, "candidates", use)
    return LabelInputs([record for record, _ in found], constitution, api_key, "\n".join(statistics.lines()))


def read_constitution(path: Path) -> Constitution:
    """The principles in a YAML file."""
    where = f"labelling.constitution={path}"
    try:
        return Constitution.model_validate(parse_yaml(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{where} cannot be read: {error}; name a YAML file") from None
    except YamlError as error:
        raise ConfigError(f"{where} is not YAML: {error}; correct it") from None
    except ValidationError as error:
        lines = problem_lines(error.errors(), Constitution)
        raise ConfigError("\n".join(f"{where}: {line}" for line in lines)) from None


def _check_model(engines: SamplingConfig, key: str) -> ModelFacts:
    """The model in the section `key`, which the engines can run."""
    given = engines.actor.model
    check_folder(given, f"{key}.model")
    check_cards(engines.device)
    model = model_facts(given, f"{key}.model", engines.model_cache)
    check_tokenizer(model)
    check_context(model, engines.longest_sample, f"{key}.max_tokens")
    check_attention(model)
    check_weights(model, "policy")
    try:
        check_engine(engines, model)
    except ConfigError as error:
        raise ConfigError(str(error).replace("rollout.engine.", f"{key}.engine.")) from None
    return model


def _check_judge(config: LabellingRun) -> None:
    assert config.engines is not None
    model = _check_model(config.engines, "labelling.judge")
    if config.labelling.constitution is None:
        from orchestrator.data.judge_prompts import LETTERS, letter_tokens

        lacking = [letter for letter in LETTERS if not letter_tokens(model.tokenizer, letter)]
        if lacking:
            raise ConfigError(
                f"{model.where}: its tokenizer has no token for {' and '.join(lacking)}, the judge's answers; use "
                "another model"
            )
