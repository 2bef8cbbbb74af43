"""Checks that the prompts have the columns that what scores their responses reads, before anything starts.

A configuration and the prompts flow in; nothing flows out, or a ConfigError that names key, value and fix.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from cluster.role_table import LABELLER
from orchestrator.checks.functions import functions_of
from orchestrator.checks.python_files import defined
from orchestrator.config.evaluation import EvaluationRun
from orchestrator.config.labelling import EndpointJudge
from orchestrator.config.run import RunConfig
from orchestrator.config.schema import section_key
from orchestrator.data.prompts import Questions
from orchestrator.data.records import LEARNED_COLUMNS
from orchestrator.data.row_files import Where
from orchestrator.errors import ConfigError
from roles.config.rewards import ModelReward, RemoteReward
from roles.text.messages import MESSAGES


def check_columns(config: EvaluationRun, part: str, questions: Questions) -> None:
    """The prompts `prompts.PART` have every column that a function reads by its name, and none that a service cannot be
    sent."""
    elsewhere = "evaluation.judge" if part == "train" else "retraining.judge"
    for key, function in functions_of(config).items():
        if key == elsewhere:
            continue
        node = defined(function.path, function.name, key, f"define {function.name}")
        for line, name in _read_columns(node):
            if name not in questions.columns:
                known = ", ".join(questions.columns) or "no other than the prompt"
                raise ConfigError(
                    f"{key}.path={function.path}, line {line}: {function.name} reads the column {name!r}, but "
                    f"{questions.where} has {known}; add it to the rows, or say with prompts.{part}.columns what it is"
                )
    by = config.evaluation.by
    if part != "train" and by is not None and by not in questions.columns:
        known = ", ".join(questions.columns) or "no other than the prompt"
        raise ConfigError(f"evaluation.by={by}: {questions.where} has {known}, and no such column; change it, or null")
    check_sendable(config, part, questions.columns, questions.where)


def _read_columns(node: ast.stmt) -> Iterator[tuple[int, str]]:
    """Line and name of every `columns["name"]` of a function that looks for no column first."""
    found = list(ast.walk(node)) if isinstance(node, ast.FunctionDef) else []
    if any(isinstance(inner, ast.Try) for inner in found):
        return
    compared = [inner.left for inner in found if isinstance(inner, ast.Compare)]
    asked = {constant.value for constant in compared if isinstance(constant, ast.Constant)}
    for inner in found:
        match inner:
            case ast.Subscript(value=ast.Name(id="columns"), slice=ast.Constant(value=str(name)), ctx=ast.Load()):
                if name not in asked:
                    yield inner.lineno, name


def check_sendable(config: EvaluationRun, part: str, columns: Mapping[str, Sequence[Any]], where: Where) -> None:
    """A reward over HTTP is sent all columns as JSON, which has no dates, bytes or NaN; one of them as labels."""
    asked = {section_key(role): one for role, one in config.scorers.items() if not isinstance(one, ModelReward)}
    if isinstance(config, RunConfig) and part == "train" and config.retraining is not None:
        judge = config.section(LABELLER)
        asked |= {} if isinstance(judge, EndpointJudge | ModelReward) else {"retraining.judge": judge}
    asked |= {"evaluation.judge": config.judge} if config.judge and part != "train" else {}
    for key, one in asked.items():
        if one.label is not None and one.label not in columns:
            known = ", ".join(columns) or "no other than the prompt"
            raise ConfigError(f"{key}.label={one.label}: prompts.{part} has {known}, and no such column; change it")
    remote = [key for key, one in asked.items() if isinstance(one, RemoteReward)]
    if remote:
        _check_json(
            columns, where, f"{remote[0]} (type: remote) cannot be sent as JSON", partial(json.dumps, allow_nan=False)
        )


def check_kept_columns(questions: Questions) -> None:
    """The rows of `tetrarch best-of-n` keep the columns that nothing is learned from, and chats, as JSON."""
    kept = {name: values for name, values in questions.columns.items() if name not in LEARNED_COLUMNS - {MESSAGES}}
    _check_json(kept, questions.where, "best-of-n cannot write as JSON", partial(json.dumps, ensure_ascii=False))


def _check_json(columns: Mapping[str, Sequence[Any]], where: Where, which: str, text: Callable[[Any], str]) -> None:
    for name, values in columns.items():
        for row, value in enumerate(values):
            try:
                text(value).encode()
            except (TypeError, ValueError) as error:
                raise ConfigError(
                    f"{where.row(row)} has {type(value).__name__} in the column `{name}`, which {which}: {error}; "
                    "write such values as text, or remove the column"
                ) from None
