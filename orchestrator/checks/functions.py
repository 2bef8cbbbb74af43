"""The user's functions and classes before the start: their files are parsed, never run.

A section of the configuration flows in; nothing flows out, or a ConfigError that names key, value and fix.
"""

from __future__ import annotations

import ast
import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.config.evaluation import EvaluationRun
from orchestrator.config.schema import section_key
from orchestrator.errors import ConfigError
from roles.config.environment import FunctionEnvironment
from roles.config.rewards import FunctionReward, RemoteReward

SIGNATURE = "score(prompts, responses, *, response_token_ids, finished, columns) -> list[float]"
ENVIRONMENT = "a class with reset(columns) -> messages and step(response) -> (messages or None, reward)"
KEYWORDS = ("response_token_ids", "finished", "columns")
"""What the function is given by name, after prompts and responses."""


def check_functions(config: EvaluationRun) -> None:
    """Every function or class that the configuration of a run names."""
    for role, scorer in config.scorers.items():
        if isinstance(scorer, FunctionReward):
            check_function(scorer, section_key(role))
    if config.evaluation.judge is not None:
        check_function(config.evaluation.judge, "evaluation.judge")
    if config.environment is not None:
        check_environment(config.environment)


def check_sendable(config: EvaluationRun, part: str, columns: Mapping[str, Sequence[Any]]) -> None:
    """A reward over HTTP is sent all columns as JSON, which has no dates, bytes or NaN; one of them as labels."""
    services = [(section_key(role), one) for role, one in config.scorers.items() if isinstance(one, RemoteReward)]
    for key, service in services:
        if service.label is not None and service.label not in columns:
            known = ", ".join(columns) or "no other than the prompt"
            raise ConfigError(f"{key}.label={service.label}: prompts.{part} has {known}, and no such column; change it")
    remote = [key for key, _ in services]
    for name, values in columns.items() if remote else ():
        for row, value in enumerate(values):
            try:
                json.dumps(value, allow_nan=False)
            except (TypeError, ValueError) as error:
                raise ConfigError(
                    f"prompts.{part}: row {row} has {type(value).__name__} in the column `{name}`, which {remote[0]} "
                    f"(type: remote) cannot be sent as JSON: {error}; write such values as text, or remove the column"
                ) from None


def check_environment(config: FunctionEnvironment) -> None:
    """The file must be there, be Python, and define the class; `orchestrator.checks.environment_tasks` tries it."""
    node = _defined(config.path, config.name, "environment", f"define {config.name}, {ENVIRONMENT}")
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        raise ConfigError(f"environment.name={config.name} is a function in {config.path}; it must be {ENVIRONMENT}")


def check_function(config: FunctionReward, key: str) -> None:
    """The file must be there, be Python, and define the function with arguments that it can be called with."""
    signature = SIGNATURE.replace("score", config.name, 1)
    wrong = _wrong(_defined(config.path, config.name, key, f"define {signature}"))
    if wrong:
        raise ConfigError(f"{key}.path={config.path}: {config.name} {wrong}; it must be callable as {signature}")


def _defined(file: str, name: str, key: str, fix: str) -> ast.stmt:
    """Where the Python file's top level binds `name`; the ConfigError ends with `fix` if it does not."""
    path, where = Path(file), f"{key}.path={file}"
    if not path.is_file():
        kind = "is a directory" if path.is_dir() else "does not exist"
        raise ConfigError(f"{where} {kind}; name a Python file that defines {name}")
    try:
        module = ast.parse(path.read_bytes(), filename=str(path))
    except (SyntaxError, ValueError) as error:
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
        raise ConfigError(f"{where} is not Python{line}: {error.args[0]}; correct it") from None
    found = _top_level(module)
    if name not in found:
        known = sorted(name for name, node in found.items() if isinstance(node, ast.FunctionDef | ast.ClassDef))
        near = difflib.get_close_matches(name, known, n=1)
        fix = f"did you mean `{near[0]}`?" if near else fix
        raise ConfigError(f"{key}.name={name} is not defined in {file}; {fix}")
    return found[name]


def _top_level(module: ast.Module) -> dict[str, ast.stmt]:
    """Every name that the module's top level binds, also inside `if` and `try`."""
    found: dict[str, ast.stmt] = {}
    queue: list[ast.stmt] = list(module.body)
    while queue:
        node = queue.pop(0)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found[node.name] = node
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            found |= {(alias.asname or alias.name).split(".")[0]: node for alias in node.names}
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {name.id: node for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}
        elif isinstance(node, (ast.If, ast.Try, ast.With)):
            queue += [inner for inner in ast.walk(node) if isinstance(inner, ast.stmt) and inner is not node]
    return found


def _wrong(node: ast.stmt) -> str | None:
    """Why a call with our arguments would fail; None if it would not, or nobody can tell (an import, an assignment)."""
    if isinstance(node, ast.AsyncFunctionDef):
        return "is async"
    if not isinstance(node, ast.FunctionDef):
        return None
    given = node.args
    positional = [argument.arg for argument in [*given.posonlyargs, *given.args]]
    by_name = {argument.arg for argument in given.kwonlyargs} | set(positional[2:])
    if len(positional) < 2 and given.vararg is None:
        return f"takes {len(positional)} positional arguments, not 2"
    lacking = [name for name in KEYWORDS if name not in by_name]
    if lacking and given.kwarg is None:
        return f"does not take {', '.join(lacking)}"
    required = positional[2 : len(positional) - len(given.defaults)]
    pairs = zip(given.kwonlyargs, given.kw_defaults, strict=True)
    required += [argument.arg for argument, default in pairs if default is None]
    unknown = [name for name in required if name not in KEYWORDS]
    return f"needs {', '.join(unknown)}, which it is not given" if unknown else None
