"""Checks of the user's functions and classes before the start: here their files are parsed, never run.

A section of the configuration flows in; nothing flows out, or a ConfigError that names key, value and fix.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping

from cluster.role_table import LABELLER
from orchestrator.checks.python_files import defined
from orchestrator.config.evaluation import EvaluationRun
from orchestrator.config.run import RunConfig
from orchestrator.config.schema import section_key
from orchestrator.errors import ConfigError
from roles.config.environment import FunctionEnvironment
from roles.config.rewards import FunctionReward, OneReward

SIGNATURE = "score(prompts, responses, *, response_token_ids, finished, columns) -> list[float]"
OPENRLHF = "queries, prompts, labels"
ENVIRONMENT = "a class with reset(columns) -> messages and step(response) -> (messages or None, reward)"
KEYWORDS = ("response_token_ids", "finished", "columns")
"""Keyword arguments of the function, after prompts and responses."""
ENDINGS = ("sys.exit", "exit", "quit", "os._exit")
NO_LISTS = (ast.Dict, ast.DictComp, ast.Set, ast.SetComp, ast.Constant, ast.JoinedStr)
"""Expressions whose value is never a list of numbers."""


def check_functions(config: EvaluationRun) -> None:
    """Check every function or class that the configuration of a run names."""
    for key, function in functions_of(config).items():
        check_function(function, key)
    if config.environment is not None:
        check_environment(config.environment)


def functions_of(config: EvaluationRun) -> dict[str, FunctionReward]:
    """Key path → every reward function and judge of a run."""
    judges = {"evaluation.judge": config.judge}
    if isinstance(config, RunConfig) and config.retraining is not None:
        judges["retraining.judge"] = config.section(LABELLER)
    given = {key: judge for key, judge in judges.items() if isinstance(judge, FunctionReward)}
    return {**reward_functions(config.scorers), **given}


def reward_functions(scorers: Mapping[str, OneReward]) -> dict[str, FunctionReward]:
    """Key path → every function among the rewards, given by role."""
    return {section_key(role): one for role, one in scorers.items() if isinstance(one, FunctionReward)}


def check_reward_functions(scorers: Mapping[str, OneReward]) -> None:
    """Check every function among the rewards, by role."""
    for key, function in reward_functions(scorers).items():
        check_function(function, key)


def check_environment(config: FunctionEnvironment) -> None:
    """Raise ConfigError unless the file exists, is Python, and defines the class;
    `orchestrator.checks.environment_tasks` tries it."""
    node = defined(config.path, config.name, "environment", f"define {config.name}, {ENVIRONMENT}")
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        raise ConfigError(f"environment.name={config.name} is a function in {config.path}; it must be {ENVIRONMENT}")


def check_function(config: FunctionReward, key: str) -> None:
    """Raise ConfigError unless the file exists, is Python, and defines the function with suitable arguments."""
    theirs = config.protocol == "openrlhf"
    signature = f"{config.name}({OPENRLHF})" if theirs else SIGNATURE.replace("score", config.name, 1)
    node = defined(config.path, config.name, key, f"define {signature}")
    wrong = _wrong(node, theirs)
    if wrong:
        raise ConfigError(
            f"{key}.path={config.path}, line {node.lineno}: {config.name} {wrong}; it must be callable as {signature}"
        )


def _wrong(node: ast.stmt, theirs: bool) -> str | None:
    """Why a call would fail; None if it would not, or nobody can tell (an import, a decorator)."""
    match node:
        case ast.AsyncFunctionDef():
            return "is async"
        case ast.ClassDef():
            return "is a class, not a function"
        case ast.FunctionDef(decorator_list=[]):
            return _wrong_arguments(node.args, theirs) or (None if theirs else _wrong_answer(node))
        case ast.Assign(value=ast.Lambda(args=arguments)):
            return _wrong_arguments(arguments, theirs)
        case ast.Assign(value=ast.Constant() | ast.List() | ast.Dict() | ast.Tuple() as value):
            return f"is {ast.unparse(value)[:80]}, not a function"
    return None


def _wrong_arguments(given: ast.arguments, theirs: bool) -> str | None:
    """Prompts and responses come by position, the others by name; in OpenRLHF's protocol all three by position."""
    count, keywords = (3, ()) if theirs else (2, KEYWORDS)
    positional = [argument.arg for argument in [*given.posonlyargs, *given.args]]
    named = {argument.arg for argument in given.args[max(0, count - len(given.posonlyargs)) :]}
    named |= {argument.arg for argument in given.kwonlyargs}
    if len(positional) < count and given.vararg is None:
        return f"takes {len(positional)} positional arguments, not {count}"
    nameless = [argument.arg for argument in given.posonlyargs[count:]]
    if nameless:
        return f"takes {', '.join(nameless)} only by position (a `/` follows them)"
    lacking = [name for name in keywords if name not in named]
    if lacking and given.kwarg is None:
        return f"does not take {', '.join(lacking)}"
    required = positional[count : len(positional) - len(given.defaults)]
    pairs = zip(given.kwonlyargs, given.kw_defaults, strict=True)
    required += [argument.arg for argument, default in pairs if default is None]
    unknown = [name for name in required if name not in keywords]
    return f"needs {', '.join(unknown)}, which it is not given" if unknown else None


def _wrong_answer(function: ast.FunctionDef) -> str | None:
    """An answer that is visibly no list of numbers, or an end of the process instead of one."""
    for statement in function.body:
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
            called = ast.unparse(statement.value.func)
            if called in ENDINGS:
                return f"ends its process (line {statement.lineno}: {called}); raise an error instead"
    answers = list(_own_returns(function))
    yields = any(isinstance(node, ast.Yield | ast.YieldFrom) for node in ast.walk(function))
    if not answers and not yields and ast.unparse(function.body[-1]) != "...":
        return "returns nothing (it has no `return`), not a list of numbers"
    for answer in answers:
        if answer.value is None or (isinstance(answer.value, NO_LISTS) and not _has_scores(answer.value)):
            shown = "nothing" if answer.value is None else ast.unparse(answer.value)[:80]
            return f"returns {shown} (line {answer.lineno}), not a list of numbers"
    return None


def _has_scores(value: ast.expr) -> bool:
    """Whether it is `{"scores": …, …}`, or a mapping whose keys nobody can tell."""
    return isinstance(value, ast.Dict) and any(
        key is None or not isinstance(key, ast.Constant) or key.value == "scores" for key in value.keys
    )


def _own_returns(function: ast.FunctionDef) -> Iterator[ast.Return]:
    """Not those of functions inside it."""
    queue: list[ast.AST] = list(function.body)
    while queue:
        node = queue.pop(0)
        if isinstance(node, ast.Return):
            yield node
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            queue += ast.iter_child_nodes(node)
