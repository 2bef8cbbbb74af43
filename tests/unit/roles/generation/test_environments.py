"""Environments in real child processes: what they are given, what becomes of those that fail or hang."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from roles.config.environment import FunctionEnvironment
from roles.errors import EnvironmentFailed
from roles.generation.environment_worker import Said
from roles.generation.environments import Environments

USER = "def user(text):\n    return [{'role': 'user', 'content': text}]\n"
ECHO = """
class Env:
    def reset(self, columns, seed):
        self.log = [f"{columns['name']} {seed}"]
        return user(self.log[0])

    def step(self, response):
        self.log.append(response)
        return (None if response == "bye" else user(" ".join(self.log))), len(self.log) / 2
"""

Make = Callable[..., Environments]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made: list[Environments] = []

    def start(body: str, **options: Any) -> Environments:
        path = tmp_path / "env.py"
        path.write_text(USER + textwrap.dedent(body))
        config = FunctionEnvironment(path=str(path), max_tokens=64, **{"timeout_s": 20.0, "retries": 0} | options)
        made.append(Environments(config))
        made[-1].begin()
        return made[-1]

    yield start
    for environments in made:
        environments.close()


def talk(environments: Environments, row: int, responses: list[str], name: str = "a") -> list[Said]:
    """All that the environment says in one conversation."""
    said: list[Said] = []
    for turn in range(len(responses) + 1):
        said.append(environments.ask(row, {"name": name}, 7 + row, said, responses[:turn]).result())
    return said


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


@pytest.mark.parametrize("workers", [1, 2])
def test_every_conversation_has_an_instance_of_its_own(make: Make, workers: int) -> None:
    environments = make(ECHO, workers=workers)
    said: dict[int, list[Said]] = {0: [], 1: [], 2: []}
    for turn in range(3):
        asked = {
            row: environments.ask(row, {"name": f"n{row}"}, row, said[row], [f"r{row}"] * turn) for row in (2, 0, 1)
        }
        for row, future in asked.items():
            said[row].append(future.result())
    for row, heard in said.items():
        assert heard == [
            (user(f"n{row} {row}"), 0.0, {}),
            (user(f"n{row} {row} r{row}"), 1.0, {}),
            (user(f"n{row} {row} r{row} r{row}"), 1.5, {}),
        ]


def test_none_ends_a_conversation(make: Make) -> None:
    assert talk(make(ECHO), 0, ["hi", "bye"])[-1] == (None, 1.5, {})


def test_a_reset_without_a_seed_is_given_none(make: Make) -> None:
    environments = make("class Env:\n    def reset(self, columns):\n        return user(str(columns))")
    assert environments.ask(0, {"x": 1}, 7, [], []).result() == (user("{'x': 1}"), 0.0, {})


def test_a_new_batch_begins_new_conversations(make: Make) -> None:
    environments = make(ECHO)
    talk(environments, 0, ["left open"])
    environments.begin()
    assert talk(environments, 0, ["hi"], name="b") == [(user("b 7"), 0.0, {}), (user("b 7 hi"), 1.0, {})]


FLAKY = """
import os, time

class Env:
    def reset(self, columns):
        self.count = 0
        return user("go")

    def step(self, response):
        if response == "fail" and not os.path.exists(__file__ + ".failed"):
            open(__file__ + ".failed", "w").close()
            {how}
        self.count += 1
        return user(f"{{response}} {{self.count}}"), float(self.count)
"""


@pytest.mark.parametrize("how", ["raise OSError('gone')", "time.sleep(600)", "os._exit(3)"])
def test_one_that_fails_once_catches_up_and_its_neighbours_too(make: Make, how: str) -> None:
    # On a busy machine, answers of those that do not hang may be late, too.
    patience = {"retries": 5, "timeout_s": 2.0} if "sleep" in how else {"retries": 1, "timeout_s": 60.0}
    environments = make(FLAKY.format(how=how), **patience)
    neighbour = talk(environments, 1, ["a"])
    said = talk(environments, 0, ["a", "b", "fail"])
    assert said == [(user("go"), 0.0, {}), (user("a 1"), 1.0, {}), (user("b 2"), 2.0, {}), (user("fail 3"), 3.0, {})]
    again = environments.ask(1, {"name": "a"}, 8, neighbour, ["a", "b"]).result()
    assert again == (user("b 2"), 2.0, {})


def test_a_failure_names_sample_turn_and_what_was_raised(make: Make) -> None:
    environments = make(FLAKY.replace("and not os", "or os").format(how="raise OSError('gone')"), retries=2)
    with pytest.raises(EnvironmentFailed) as caught:
        talk(environments, 0, ["a", "fail"], name="sample 5")
    for part in ("Env of", "turn 2, after the response 'fail'", "sample 5", "failed 3 times", "OSError: gone"):
        assert part in str(caught.value)


def test_one_that_hangs_is_ended_by_its_deadline(make: Make) -> None:
    environments = make(
        "import time\nclass Env:\n    def reset(self, columns):\n        time.sleep(600)", timeout_s=0.3
    )
    with pytest.raises(EnvironmentFailed, match=r"reset of the sample.*once.*no answer within 0\.3 s"):
        environments.ask(0, {}, 7, [], []).result()


def test_one_that_answers_otherwise_when_repeated_is_refused(make: Make) -> None:
    body = FLAKY.replace('user("go")', "user(str(time.time()))").format(how="raise OSError('gone')")
    with pytest.raises(EnvironmentFailed, match=r"reset said .* when the conversation was repeated.*but"):
        talk(make(body, retries=1), 0, ["a", "fail"])


@pytest.mark.parametrize(
    ("answer", "part"),
    [
        ("user('x')", "not (messages or None, reward)"),
        ("(user('x'), float('nan'))", "the reward nan"),
        ("(user('x'), 1e300)", "the reward 1e+300"),
        ("(user('\\ud800'), 0.0)", "half of a surrogate pair"),
        ("__import__('sys').exit(3)", "SystemExit: 3"),
        ("(None, 1.0, {'a': 1}, 2)", "not (messages or None, reward) or (messages or None, reward, metrics)"),
        ("(None, 1.0, [1])", "step gave the metrics [1], not a mapping of names to numbers"),
        ("(None, 1.0, {'solved': 'yes'})", "step gave the metric 'solved' the value 'yes', not a finite number"),
        ("(None, 1.0, {'solved': float('nan')})", "the metric 'solved' the value nan, not a finite number"),
        ("(None, 1.0, {'my name': 1})", "step called a metric 'my name'"),
        ("(user('x'), None)", "must be real number"),
        ("([], 1.0)", "gave the messages []"),
        ("('x', 1.0)", "gave the messages 'x'"),
        ("([{'role': 'user'}], 1.0)", "not a list such as"),
        ("([{'role': 'user', 'content': 5}], 1.0)", "not a list such as"),
        ("([{'role': 'user', 'content': 'x', 'more': print}], 1.0)", "not JSON serializable"),
    ],
)
def test_answers_that_are_none_are_refused(make: Make, answer: str, part: str) -> None:
    reset = "    def reset(self, columns):\n        return user('x')\n"
    body = f"class Env:\n{reset}    def step(self, response):\n        return {answer}"
    with pytest.raises(EnvironmentFailed) as caught:
        talk(make(body), 0, ["a"])
    assert part in str(caught.value)


@pytest.mark.parametrize(("body", "part"), [("1 +", "SyntaxError"), ("x = 1", "no attribute 'Env'")])
def test_a_file_that_cannot_be_loaded_fails_at_the_start(make: Make, body: str, part: str) -> None:
    with pytest.raises(EnvironmentFailed, match="cannot be loaded") as caught:
        make(body)
    assert part in str(caught.value)
