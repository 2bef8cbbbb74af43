"""A reward that is a Python function, with real child processes."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from roles.batch import Rollouts
from roles.config.rewards import FunctionReward
from roles.errors import RewardError
from roles.reward_function import FunctionScorer
from roles.reward_service import RemoteScorer

SIGNATURE = "def score(prompts, responses, *, response_token_ids, finished, columns):\n"


def rollouts(size: int, columns: dict[str, list[Any]] | None = None) -> Rollouts:
    """Row i: prompt [1, 2], response [10 + i, 3], padded with 0; odd rows are truncated."""
    token_ids = torch.tensor([[1, 2, 10 + i, 3, 0] for i in range(size)], dtype=torch.int64).reshape(size, 5)
    mask = torch.tensor([[False, False, True, True, False]] * size, dtype=torch.bool).reshape(size, 5)
    return Rollouts(
        token_ids=token_ids,
        lengths=torch.full((size,), 4, dtype=torch.int64),
        response_mask=mask,
        rollout_logprobs=torch.zeros(size, 5),
        turn_rewards=torch.zeros_like(mask, dtype=torch.float32),
        finished=torch.tensor([i % 2 == 0 for i in range(size)], dtype=torch.bool),
        versions=torch.zeros(size, dtype=torch.int64),
        prompts=[f"prompt {i}" for i in range(size)],
        responses=[f"response {i}" for i in range(size)],
        columns=columns if columns is not None else {"answer": [str(i) for i in range(size)]},
        counted=[{}] * size,
    )


@pytest.fixture
def scorer(tmp_path: Path) -> Iterator[Callable[..., FunctionScorer]]:
    made: list[FunctionScorer] = []

    def make(body: str, **options: Any) -> FunctionScorer:
        path = tmp_path / "reward.py"
        path.write_text(SIGNATURE + textwrap.indent(textwrap.dedent(body), "    "))
        made.append(FunctionScorer(FunctionReward(path=str(path), **options)))
        return made[-1]

    yield make
    for one in made:
        one.close()


THEIRS = """
class Tensor:
    def __init__(self, number):
        self.number = number

    def __float__(self):
        return self.number

def reward_func(queries, prompts, labels):
    assert queries == [prompts[0] + "response " + labels[0]], "one at a time"
    number = float(labels[0])
    return {{"rewards": {rewards}, "scores": 0.0, "extra_logs": {{}}}}
"""


@pytest.mark.parametrize("rewards", ["number", "[number]", "Tensor(number)"])
def test_a_function_for_openrlhf_gets_one_response_at_a_time(tmp_path: Path, rewards: str) -> None:
    path = tmp_path / "theirs.py"
    path.write_text(THEIRS.format(rewards=rewards))
    config = FunctionReward(path=str(path), name="reward_func", protocol="openrlhf", label="answer")
    one = FunctionScorer(config)
    assert one.score(rollouts(3)).tolist() == [0.0, 1.0, 2.0]
    one.close()


def test_a_function_for_openrlhf_may_return_the_reward_alone(tmp_path: Path) -> None:
    path = tmp_path / "plain.py"
    path.write_text("def f(queries, prompts, labels):\n    return 0.5 if labels == [''] else None\n")
    one = FunctionScorer(FunctionReward(path=str(path), name="f", protocol="openrlhf"))
    assert one.score(rollouts(2)).tolist() == [0.5, 0.5]
    one.close()


def failure(scorer: FunctionScorer | RemoteScorer, batch: Rollouts | None = None) -> str:
    with pytest.raises(RewardError) as caught:
        scorer.score(batch if batch is not None else rollouts(3))
    return str(caught.value)


def test_a_function_gets_everything_and_its_numbers_come_back(scorer: Callable[..., FunctionScorer]) -> None:
    body = """
    assert prompts == ["prompt 0", "prompt 1", "prompt 2"]
    assert responses == ["response 0", "response 1", "response 2"]
    assert response_token_ids == [[10, 3], [11, 3], [12, 3]]
    assert finished == [True, False, True]
    return [int(a) * 0.5 for a in columns["answer"]]
    """
    scores = scorer(body, retries=0).score(rollouts(3))
    assert scores.dtype == torch.float32 and scores.tolist() == [0.0, 0.5, 1.0]


def test_numbers_of_other_libraries_are_numbers(scorer: Callable[..., FunctionScorer]) -> None:
    assert scorer("import numpy; return numpy.arange(3)").score(rollouts(3)).tolist() == [0.0, 1.0, 2.0]


def test_named_numbers_come_back_beside_the_scores(scorer: Callable[..., FunctionScorer]) -> None:
    body = """
    import numpy
    lengths = numpy.array([len(answer) for answer in responses])
    return {"scores": [0.5] * 3, "metrics": {"long": lengths > 9, "words/first": (n for n in (1, 2.5, True))}}
    """
    found = scorer(body, retries=0).row_scores(rollouts(3))
    assert found.scores.tolist() == [0.5] * 3
    assert found.named == [{"long": 1.0, "words/first": first} for first in (1.0, 2.5, 1.0)]
    assert scorer("return {'scores': [1, 2, 3]}").row_scores(rollouts(3)).named == [{}, {}, {}]


@pytest.mark.parametrize(
    ("metrics", "part"),
    [
        ("{'tone': [1, 2]}", "metric tone has 2 numbers for 3 responses; return one for each"),
        ("{'tone': [1, 'good', 3]}", "metric tone of response 1 is 'good', not a finite number"),
        ("{'tone': [1, 2, float('nan')]}", "metric tone of response 2 is nan, not a finite number"),
        ("{'tone': [1, None, 3]}", "metric tone of response 1 is None, not a finite number"),
        ("{'tone': [1, 2, 1e300]}", "metric tone of response 2 is 1e+300, not a finite number"),
        ("{'tone': 1.0}", "'float' object is not iterable"),
        ("{'my tone': [1, 2, 3]}", "a metric is called 'my tone'; take at most 60 letters, digits and . _ - @ /"),
        ("[1, 2, 3]", "the metrics are [1, 2, 3], not a mapping of names to lists of numbers"),
        ("{}, 'tone': [1, 2, 3]", "the function returned the key 'tone' beside `scores`; put its numbers in `metrics`"),
    ],
)
def test_named_numbers_that_are_none_are_an_error_with_value_and_fix(
    scorer: Callable[..., FunctionScorer], metrics: str, part: str
) -> None:
    body = f'return {{"scores": [1, 2, 3], "metrics": {metrics}}}'
    assert part in failure(scorer(body, retries=0))


LOGS = """
def f(queries, prompts, labels):
    late = {{"late": 1.0}} if labels == ["{late}"] else {{}}
    return {{"rewards": [0.5], "extra_logs": {{"dummy": [float(labels[0])], "one": 1, **late}}}}
"""


@pytest.mark.parametrize("late", ["never", "2"])
def test_extra_logs_of_a_function_for_openrlhf_are_named_numbers(tmp_path: Path, late: str) -> None:
    path = tmp_path / "theirs.py"
    path.write_text(LOGS.format(late=late))
    one = FunctionScorer(FunctionReward(path=str(path), name="f", protocol="openrlhf", label="answer", retries=0))
    if late == "never":
        assert one.row_scores(rollouts(2)).named == [{"dummy": 0.0, "one": 1.0}, {"dummy": 1.0, "one": 1.0}]
    else:
        assert "extra_logs of response 2 are ['dummy', 'late', 'one'], and those of response 0" in failure(one)
    one.close()


def test_an_empty_shard_is_not_sent(scorer: Callable[..., FunctionScorer]) -> None:
    assert scorer("raise ValueError").score(rollouts(0)).shape == (0,)


def test_what_the_function_prints_is_no_answer(scorer: Callable[..., FunctionScorer], capfd: Any) -> None:
    body = "import os; print('hello'); os.write(1, b'raw'); assert input == input; return [0.0] * 3"
    assert scorer(body).score(rollouts(3)).tolist() == [0.0] * 3
    assert "hello" in capfd.readouterr().err


def test_a_function_keeps_its_state_and_imports_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "neighbour.py").write_text("calls = []\n")
    path = tmp_path / "reward.py"
    path.write_text(
        "import neighbour\n" + SIGNATURE + "    neighbour.calls.append(1)\n    return [len(neighbour.calls)] * 3"
    )
    counting = FunctionScorer(FunctionReward(path=str(path)))
    assert [counting.score(rollouts(3))[0].item() for _ in range(3)] == [1.0, 2.0, 3.0]
    counting.close()


@pytest.mark.parametrize(
    ("body", "parts"),
    [
        ("raise KeyError('no such answer')", ["KeyError: 'no such answer'", "reward.py", "line 2"]),
        ("return [0.0, 1.0]", ["2 scores for 3 responses"]),
        ("return [0.0, float('nan'), 1.0]", ["score 1 is nan"]),
        ("return [0.0, 1.0, float('inf')]", ["score 2 is inf"]),
        ("return [0.0, None, 1.0]", ["TypeError", "NoneType"]),
        ("return None", ["TypeError", "NoneType"]),
        ("return ['a', 'b', 'c']", ["ValueError", "'a'"]),
        ("return [0.0, 1e300, 1.0]", ["score 1 is 1e+300", "of float32"]),
        ("return {row: 0.5 for row in range(3)}", ["TypeError", "returned {0: 0.5", "not a list of numbers"]),
        ("return '123'", ["TypeError", "returned '123'", "not a list of numbers"]),
        ("return {1, 2, 3}", ["TypeError", "not a list of numbers"]),
        ("return ['1', '2', '3']", ["score 0 is the text '1'"]),
        ("import sys; sys.exit(3)", ["SystemExit: 3", "reward.py", "line 2"]),
        ("import os, time; os.closerange(0, 64); time.sleep(0.2); os._exit(3)", ["its process ended (exit code 3)"]),
        ("import os; os._exit(3)", ["its process ended (exit code 3)"]),
        ("import os; os.kill(os.getpid(), 11)", ["its process ended (signal 11)"]),
    ],
)
def test_a_failing_function_is_named(
    scorer: Callable[..., FunctionScorer], body: str, parts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("roles.functions.child.ENDING_S", 60.0)
    message = failure(scorer(body, retries=1))
    assert [p for p in [*parts, "reward function score of", "2 times"] if p not in message] == [], message


def test_a_failing_function_is_called_again(scorer: Callable[..., FunctionScorer], tmp_path: Path) -> None:
    body = f"""
    with open({str(tmp_path / "calls")!r}, "a+") as file:
        file.write("x")
        file.seek(0)
        if len(file.read()) < 3:
            raise ValueError
    return [1.0] * 3
    """
    assert scorer(body, retries=2).score(rollouts(3)).tolist() == [1.0] * 3


@pytest.mark.parametrize(
    "hang",
    [
        "import time; time.sleep(600)",
        "import re; re.match('(a+)+$', 'a' * 200 + 'b')",  # never lets go of the interpreter's lock
    ],
)
def test_a_hung_function_is_ended(scorer: Callable[..., FunctionScorer], tmp_path: Path, hang: str) -> None:
    pid_file = tmp_path / "pid"
    body = f"""
    import os
    open({str(pid_file)!r}, "w").write(str(os.getpid()))
    {hang}
    """
    began = time.monotonic()
    message = failure(scorer(body, retries=1, timeout_s=1))
    assert "no answer within 1 s" in message and "2 times" in message
    assert time.monotonic() - began < 100
    assert not Path(f"/proc/{pid_file.read_text()}").exists()


def test_what_a_hung_function_has_started_ends_with_it(scorer: Callable[..., FunctionScorer], tmp_path: Path) -> None:
    """A forked worker has the pipe of the answers too."""
    pid_file = tmp_path / "pid"
    body = f"""
    import os, time
    if not os.path.exists({str(pid_file)!r}):
        worker = os.fork()
        if worker:
            open({str(pid_file)!r}, "w").write(str(worker))
        time.sleep(600)
    return [2.0] * 3
    """
    assert scorer(body, retries=5, timeout_s=2).score(rollouts(3)).tolist() == [2.0] * 3
    until, worker = time.monotonic() + 60, Path(f"/proc/{pid_file.read_text()}/stat")
    while worker.exists() and worker.read_text().split()[2] != "Z":  # its parent is init now, which may be slow
        assert time.monotonic() < until
        time.sleep(0.05)


def test_no_group_is_killed_whose_number_may_be_anothers(
    scorer: Callable[..., FunctionScorer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the status of its leader has not been taken, it is the child's own."""
    kill, own = os.killpg, list[bool]()

    def killpg(group: int, number: int) -> None:
        own.append(Path(f"/proc/{group}").exists())
        kill(group, number)

    monkeypatch.setattr(os, "killpg", killpg)
    assert "its process ended (exit code 3)" in failure(scorer("import os; os._exit(3)", retries=1, timeout_s=60))
    assert own and all(own)


def test_a_function_that_hung_once_is_started_anew(scorer: Callable[..., FunctionScorer], tmp_path: Path) -> None:
    body = f"""
    import os, time
    if not os.path.exists({str(tmp_path / "once")!r}):
        open({str(tmp_path / "once")!r}, "w").close()
        time.sleep(600)
    return [2.0] * 3
    """
    slow = scorer(body, retries=5, timeout_s=2)  # on a busy machine another answer may be late, too
    assert slow.score(rollouts(3)).tolist() == [2.0] * 3
    assert slow.score(rollouts(3)).tolist() == [2.0] * 3


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("import no_such_module", "ModuleNotFoundError"),
        ("raise SystemExit(1)", "SystemExit"),
        ("def other(): ...", "has no attribute 'score'"),
    ],
)
def test_a_file_that_cannot_be_loaded_fails_at_the_start(tmp_path: Path, text: str, part: str) -> None:
    path = tmp_path / "reward.py"
    path.write_text(text)
    with pytest.raises(RewardError, match="cannot be loaded") as caught:
        FunctionScorer(FunctionReward(path=str(path)))
    assert part in str(caught.value) and str(path) in str(caught.value)


def test_the_child_dies_with_its_parent(tmp_path: Path) -> None:
    path, pid_file = tmp_path / "reward.py", tmp_path / "pid"
    body = f"    import os\n    open({str(pid_file)!r}, 'w').write(str(os.getpid()))\n    while True: pass\n"
    path.write_text(SIGNATURE + body)
    program = f"""
import os, signal, threading, time
from pathlib import Path
from roles.config.rewards import FunctionReward
from roles.reward_function import FunctionScorer
from tests_rollouts import rollouts
scorer = FunctionScorer(FunctionReward(path={str(path)!r}))
threading.Thread(target=scorer.score, args=(rollouts(1),), daemon=True).start()
while not Path({str(pid_file)!r}).exists():
    time.sleep(0.05)
os.kill(os.getpid(), signal.SIGKILL)
"""
    (tmp_path / "tests_rollouts.py").write_text(Path(__file__).read_text())
    root = Path(__file__).resolve().parents[3]
    environment = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{tmp_path}"}
    subprocess.run([sys.executable, "-c", program], env=environment, timeout=120, check=False)
    deadline = time.monotonic() + 30
    child = Path(f"/proc/{pid_file.read_text()}/stat")
    while child.exists() and child.read_text().split(") ")[1][0] != "Z" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not child.exists() or child.read_text().split(") ")[1][0] == "Z"
