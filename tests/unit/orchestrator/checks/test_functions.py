"""A reward function that cannot be called is refused with file and line; it is never run."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.checks.functions import check_function
from orchestrator.errors import ConfigError
from roles.config.rewards import FunctionReward
from tests.unit.orchestrator.checks.door import REWARD, World, refused


@pytest.mark.parametrize(
    ("key", "command"),
    [("reward", "train"), ("evaluation.judge", "train"), ("reward_training.pairs.judge", "reward")],
)
def test_a_missing_reward_function_file(world: World, key: str, command: str) -> None:
    world.set("critic.model", {"path": str(world.policy)})
    world.set(key, {"type": "function", "path": "nowhere.py"})
    refused(world, f"{key}.path=nowhere.py does not exist", command=command)


@pytest.mark.parametrize(
    "text",
    [
        REWARD,
        "def score(prompts, responses, **more): ...",
        "def score(*args, **more): ...",
        "def score(a, b, response_token_ids, finished, columns, extra=1): ...",
        "def score(a, b, *, finished, columns, response_token_ids, extra=1): ...",
        "from elsewhere import score",
        "score = make_score()",
        "score = lambda prompts, responses, **more: [0.0]",
        "import os, numpy.linalg\nfrom elsewhere import x\ntry: import nowhere\nexcept ImportError: pass\n" + REWARD,
        "@given_the_rest\ndef score(prompts, responses): ...",
        "def score(prompts, responses, **more):\n    def of(x): return {}\n    return [of(x) for x in responses]",
        "def score(prompts, responses, **more):\n    yield from ()",
        "def score(p, r, /, response_token_ids, finished, columns): ...",
        "if True:\n    def score(prompts, responses, **more): ...",
        "raise RuntimeError('never run at the door')\n" + REWARD,
    ],
)
def test_functions_that_can_be_called(tmp_path: Path, text: str) -> None:
    path = tmp_path / "reward.py"
    path.write_text(text)
    (tmp_path / "elsewhere.py").write_text("")
    check_function(FunctionReward(type="function", path=str(path)), "reward")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("def score(:", ["is not Python", "line 1"]),
        ("def scores(prompts, responses, **more): ...", ["reward.name=score is not defined", "did you mean `scores`?"]),
        ("x = 1", ["reward.name=score is not defined", "define score(prompts, responses"]),
        (
            "import os\n\nimport nothing_here.x\n" + REWARD,
            ["line 3 imports `nothing_here`, which is neither installed here nor beside the file"],
        ),
        ("from . import x\n" + REWARD, ["line 1 imports relatively", "import by name"]),
        ("a\0b", ["is not Python:", "null bytes"]),
        ("x = " + "-" * 100_000 + "1", ["nested too deeply"]),
        ("class score: pass", ["line 1: score is a class, not a function"]),
        ("\nscore = 3", ["line 2: score is 3, not a function"]),
        ("score = lambda prompts: [0.0]", ["score takes 1 positional arguments"]),
        ("def score(p, r, response_token_ids, finished, columns, /): ...", ["columns only by position"]),
        ("def score(p, r, **more):\n    import sys; sys.exit(3)", ["ends its process (line 2: sys.exit)"]),
        ("def score(p, r, **more):\n    return {0: 1.0}", ["returns {0: 1.0} (line 2), not a list of numbers"]),
        ("def score(p, r, **more):\n    return {'scores': [1.0], 'metrics': {}}", []),
        ("def score(p, r, **more):\n    return {**more}", []),
        ("def score(p, r, **more):\n    if p:\n        return 'x'\n    return [1]", ["returns 'x' (line 3)"]),
        ("def score(p, r, **more):\n    return", ["returns nothing (line 2)"]),
        ("def score(p, r, **more):\n    print(r)", ["returns nothing (it has no `return`)"]),
        ("async def score(prompts, responses, **more): ...", ["is async"]),
        ("def score(prompts, **more): ...", ["takes 1 positional arguments"]),
        ("def score(prompts, responses): ...", ["does not take response_token_ids, finished, columns"]),
        ("def score(prompts, responses, *, columns, **more): ...", []),
        ("def score(prompts, responses, *, answers, **more): ...", ["needs answers, which it is not given"]),
        ("def score(prompts, responses, answers, **more): ...", ["needs answers"]),
    ],
)
def test_functions_that_cannot(tmp_path: Path, text: str, parts: list[str]) -> None:
    path = tmp_path / "reward.py"
    path.write_text(text)
    config = FunctionReward(type="function", path=str(path))
    if not parts:
        check_function(config, "reward")
        return
    with pytest.raises(ConfigError) as caught:
        check_function(config, "reward")
    assert [part for part in [*parts, str(path)] if part not in str(caught.value)] == [], caught.value


def test_functions_for_openrlhf_have_its_three_arguments(tmp_path: Path) -> None:
    path = tmp_path / "reward.py"
    config = FunctionReward(type="function", path=str(path), name="reward_func", protocol="openrlhf")
    path.write_text("def reward_func(queries, prompts, labels):\n    return {'rewards': 1.0}\n")
    check_function(config, "reward")
    path.write_text("def reward_func(queries, prompts):\n    return 1.0\n")
    with pytest.raises(ConfigError, match=r"takes 2 positional arguments, not 3; .* reward_func\(queries, prompts"):
        check_function(config, "reward")
