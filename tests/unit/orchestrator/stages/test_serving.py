"""The desk between HTTP and the roles, the address, and what a served configuration names."""

from __future__ import annotations

import math
import queue
import socket
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cluster.errors import DeadlineExceeded, RankFailure
from cluster.ranks.failures import Death
from cluster.ranks.identity import Identity
from orchestrator.config.loading import load_root
from orchestrator.config.recovery import RecoveryConfig
from orchestrator.config.serving import ServingConfig, ServingRun
from orchestrator.errors import ConfigError, RewardRestarted
from orchestrator.groups.recovery import Recovery
from orchestrator.stages import serving
from orchestrator.stages.http_server import listening, url_of
from orchestrator.stages.serving import WeightWatch
from orchestrator.stages.serving_desk import Desk
from orchestrator.stages.serving_jobs import Job, PromptRead, Refused, ScoredAnswer, Wish, responses_of
from roles.batch import Responses
from tests.unit.orchestrator.stages.served import EOS, EchoEngines, Letters, length, until, working

decode = Letters().decode


def job_of(text: str, responses: int = 1, **wish: Any) -> tuple[Job, queue.SimpleQueue[Any]]:
    told: queue.SimpleQueue[Any] = queue.SimpleQueue()
    prompt = PromptRead(text, [ord(letter) for letter in text])
    return Job(prompt, Wish(responses, 9, 1.0, **wish), told.put), told


def scored_with_a_bad_one(desk: Desk, score: Callable[[Responses], list[float]]) -> list[Any]:
    """What three jobs are told that are scored together, `bad` in the middle."""
    jobs = [job_of(text) for text in ("ab", "bad", "abc")]
    for job, _ in jobs:
        job.token_ids, job.finishes = {0: [97, EOS]}, {0: "stop"}
        assert desk.take(job) is None
    desk._score_some([job for job, _ in jobs], score)
    return [told.get(timeout=60) for _, told in jobs]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RankFailure("reward rank 0 raised RewardError\nlast lines of the log"), "reward rank 0 raised RewardError"),
        (RecursionError("maximum recursion depth exceeded"), "maximum recursion depth exceeded"),
    ],
)
def test_only_the_job_that_the_reward_cannot_read_fails(error: Exception, told: str) -> None:
    def score(responses: Responses) -> list[float]:
        if "bad" in responses.prompts:
            raise error
        return length(responses)

    desk = Desk(EchoEngines(), score, decode, most=9)
    answers = scored_with_a_bad_one(desk, score)
    assert answers[0] == answers[2] == [ScoredAnswer("a", 2, "stop", 1.0)]
    assert answers[1] == Refused(502, f"the reward failed: {told}")


def test_a_reward_that_failed_is_asked_for_each_job_alone_and_then_the_job_fails() -> None:
    asked = list[list[str]]()

    def score(responses: Responses) -> list[float]:
        asked.append(responses.prompts)
        if "bad" in responses.prompts:
            raise RewardRestarted("reward rank 0 died\nlast lines of the log")
        return length(responses)

    desk = Desk(EchoEngines(), score, decode, most=9)
    answers = scored_with_a_bad_one(desk, score)
    assert asked == [["ab", "bad", "abc"], ["ab"], ["bad"], ["abc"]]
    assert answers[0] == answers[2] == [ScoredAnswer("a", 2, "stop", 1.0)]
    assert answers[1] == Refused(502, "the reward failed: reward rank 0 died")
    alone, told = job_of("bad")
    alone.token_ids, alone.finishes = {0: [97, EOS]}, {0: "stop"}
    assert desk.take(alone) is None
    desk._score_some([alone], score)
    assert asked[4:] == [["bad"], ["bad"]] and told.get(timeout=60).status == 502


def test_a_scorer_that_died_ends_the_server() -> None:
    def score(responses: Responses) -> list[float]:
        raise Death("reward rank 0 died")

    desk = Desk(EchoEngines(), score, decode, most=9)
    job, told = job_of("ab")
    desk.take(job)
    with pytest.raises(Death):
        while True:
            desk.work()
    refused = desk.take(job_of("x")[0])
    assert refused is not None and refused.status == 503
    desk.refuse_all(Refused(503, "over"))
    assert told.get(timeout=60) == Refused(503, "over") and desk.open == 0


def test_new_weights_come_between_responses_and_new_jobs_wait_for_them() -> None:
    engines = EchoEngines()
    engines.gate.clear()
    with working(Desk(engines, None, decode, most=9)) as desk:
        (first, told), (second, later) = job_of("ab"), job_of("c")
        desk.take(first)
        until(lambda: bool(engines.wanted))
        desk.renew("folder")
        desk.take(second)
        engines.gate.set()
        assert told.get(timeout=60)[0].text == "ab" and later.get(timeout=60)[0].text == "c"
    assert engines.reloaded == [("folder", 0)] and desk.version == 1
    assert [one.name for one in engines.wanted] == ["0.0", "1.0"]


def test_a_job_that_the_engines_gave_up_is_refused_whole() -> None:
    engines = EchoEngines()
    engines.gate.clear()
    with working(Desk(engines, None, decode, most=9)) as desk:
        (job, told), (other, answered) = job_of("abc", responses=2), job_of("c")
        desk.take(job)
        desk.take(other)
        until(lambda: len(engines.left) == 3)
        engines.given_up.add("0.0")
        engines.gate.set()
        refused = told.get(timeout=60)
        assert refused.status == 503 and "ask again" in refused.message
        assert answered.get(timeout=60)[0].text == "c"
        until(lambda: engines.dropped == ["0.1"])
    assert told.empty() and not desk.open


def test_a_job_that_is_not_tried_again_is_told_before_a_stream_begins() -> None:
    engines = EchoEngines()
    engines.given_up.add("0.0")
    engines.why = "refused"
    with working(Desk(engines, None, decode, most=9)) as desk:
        job, told = job_of("abc")
        job.streams = True
        desk.take(job)
        refused = told.get(timeout=60)
    assert refused.status == 500 and "this very prompt" in refused.message


def test_a_dropped_job_is_never_told_and_its_responses_are_given_up() -> None:
    engines = EchoEngines()
    engines.gate.clear()
    with working(Desk(engines, None, decode, most=1)) as desk:
        job, told = job_of("ab", responses=2)
        desk.take(job)
        until(lambda: len(engines.wanted) == 2)
        desk.drop(job)
        until(lambda: not desk.open)
        engines.gate.set()
        other, answered = job_of("c")
        assert desk.take(other) is None and answered.get(timeout=60)[0].text == "c"
    assert engines.dropped == ["0.0", "0.1"] and told.empty()


def test_what_scores_reads_the_tokens_that_were_generated() -> None:
    job, _ = job_of("ab", responses=2, columns={"answer": "5"})
    job.token_ids, job.finishes = {0: [97, EOS], 1: [98, 99, 97]}, {0: "stop", 1: "length"}
    other, _ = job_of("c")
    other.token_ids, other.finishes = {0: [97]}, {0: "length"}
    rows = responses_of([job, other], decode)
    assert rows.token_ids.tolist() == [[97, 98, 97, EOS, 0], [97, 98, 98, 99, 97], [99, 97, 0, 0, 0]]
    assert rows.lengths.tolist() == [4, 5, 2] and rows.finished.tolist() == [True, False, False]
    assert rows.response_mask.int().tolist() == [[0, 0, 1, 1, 0], [0, 0, 1, 1, 1], [0, 1, 0, 0, 0]]
    assert (rows.prompts, rows.responses) == (["ab", "ab", "c"], ["a", "bca", "a"])
    assert rows.columns == {"answer": ["5", "5", None]}


def _refusal(**keys: Any) -> str:
    with pytest.raises(ConfigError) as caught, listening(ServingConfig(**keys)):
        pass
    return str(caught.value)


def test_a_port_in_use_is_told_before_anything_starts() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert f"serving.port={port}: the port is in use at 127.0.0.1" in _refusal(port=port)
    assert "serving.host=192.0.2.1" in _refusal(host="192.0.2.1")
    with listening(ServingConfig(port=0)) as found:
        assert url_of(found) == f"http://127.0.0.1:{found.getsockname()[1]}"


def test_what_a_request_does_not_say_is_as_the_rollout_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = dict[str, float]()

    def policy_app(*others: Any, **sampled: float) -> None:
        made.update(sampled)

    models = SimpleNamespace(actor=tmp_path, tokenizer=Letters())
    roles = SimpleNamespace(policy=SimpleNamespace(recovery=Recovery()), reward=SimpleNamespace(members={}))
    monkeypatch.setattr(serving, "policy_to_serve", lambda config: models)
    monkeypatch.setattr(serving, "serving_roles", lambda *others: nullcontext(roles))
    monkeypatch.setattr(serving, "answering", lambda *others: nullcontext())
    monkeypatch.setattr(serving, "work_until_told", lambda *others: None)
    monkeypatch.setattr(serving, "ORDERS", SimpleNamespace(listen=lambda: None))
    monkeypatch.setattr(serving, "policy_app", policy_app)
    own = [f"run_dir={tmp_path}", "serving.port=0", "rollout.temperature=0.7", "rollout.top_p=0.8"]
    serving.serve(load_root(ServingRun, Path("configs/tiny.yaml"), own))
    assert made == {"temperature": 0.7, "top_p": 0.8}


def test_the_watch_tells_new_weights_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "WATCH_S", 0.0)
    watch = WeightWatch(str(tmp_path))
    assert watch.newer() is None
    file = tmp_path / "actor/tetrarch.json"
    for step in (1, 2):
        file.parent.mkdir(exist_ok=True)
        file.write_text(f'{{"step": {step}}}')
        assert watch.newer() == str(file.parent) and watch.newer() is None
    file.unlink()
    assert watch.newer() is None


def test_a_score_that_json_cannot_write_is_a_failure_of_the_reward(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "wait_all", lambda calls, deadline_s: None)

    def start(values: list[float]) -> Any:
        return SimpleNamespace(spreads=[], result=lambda deadline_s: (torch.tensor(values), None))

    responses: Any = SimpleNamespace(select=lambda rows: responses)
    reward = SimpleNamespace(start=lambda responses: start([1.0, 2.0]))
    assert serving.scorer(reward, 1.0, Recovery())(responses) == [1.0, 2.0]  # type: ignore[arg-type]
    reward.start = lambda responses: start([1.0, float("nan")])
    with pytest.raises(RankFailure, match="not finite"):
        serving.scorer(reward, 1.0, Recovery())(responses)  # type: ignore[arg-type]


def test_a_reward_that_dies_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    who, restarts = Identity("reward", 0, "node", "log"), list[list[int]]()
    failures = [Death("reward rank 0 died", who=who), DeadlineExceeded("reward.score is late", [who])]

    class Group:
        def __len__(self) -> int:
            return 1

        def restart(self, numbers: range) -> Any:
            restarts.append(list(numbers))
            return SimpleNamespace(result=lambda deadline_s: None)

    def wait(calls: Any, deadline_s: float) -> None:
        if failures:
            raise failures.pop(0)

    monkeypatch.setattr(serving, "wait_all", wait)
    found = SimpleNamespace(spreads=[], result=lambda deadline_s: (torch.tensor([1.0]), None))
    reward: Any = SimpleNamespace(start=lambda responses: found)
    responses: Any = SimpleNamespace(select=lambda rows: responses)
    recovery = Recovery(RecoveryConfig(frozen_failures_per_hour=2), frozen={"reward": Group()}, has_steps=False)  # type: ignore[dict-item]
    score = serving.scorer(reward, 1.0, recovery)
    with pytest.raises(RewardRestarted, match="died"):  # and it is late with the response that shows it sound
        score(responses)
    assert score(responses) == [1.0] and restarts == [[0], [0]]
    failures.append(Death("reward rank 0 died", who=who))
    with pytest.raises(Death, match="number 3 within an hour"):
        score(responses)
    failures.append(RankFailure("it cannot read this", who=who))
    with pytest.raises(RankFailure, match="cannot read"):
        score(responses)
    assert len(restarts) == 2


def test_hangs_of_a_sound_reward_do_not_end_the_server_also_before_its_first_score(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    who, asked = Identity("reward", 0, "node", "log"), list[Any]()

    def start(responses: Any) -> Any:
        asked.append(responses)
        return SimpleNamespace(spreads=[], result=lambda deadline_s: (torch.tensor([1.0]), None))

    def wait(calls: Any, deadline_s: float) -> None:
        if asked[-1] is deadly:
            raise DeadlineExceeded("reward.score is late", [who])

    monkeypatch.setattr(serving, "wait_all", wait)
    restarted = SimpleNamespace(result=lambda deadline_s: None)
    group = type("Group", (), {"__len__": lambda self: 1, "restart": lambda self, numbers: restarted})()
    recovery = Recovery(RecoveryConfig(frozen_failures_per_hour=1), frozen={"reward": group})
    deadly, reward = SimpleNamespace(), SimpleNamespace(start=start)
    score: Any = serving.scorer(reward, 1.0, recovery)  # type: ignore[arg-type]
    for _ in range(3):
        with pytest.raises(RewardRestarted, match="late"):
            score(deadly)
    assert not recovery._failures["frozen_failures_per_hour"]
    assert asked[1].responses == ["b"] and len(asked) == 6


def test_requests_with_which_a_sound_reward_dies_do_not_end_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    who, restarts, ill = Identity("reward", 0, "node", "log"), list[int](), False
    found = [1.0]

    class Asked:
        def __init__(self, text: str) -> None:
            self.text = text

        def select(self, rows: list[int]) -> Asked:
            assert rows == [0], "one row is enough to see that the reward is sound"
            return self

    def start(asked: Asked) -> Any:
        return SimpleNamespace(spreads=[SimpleNamespace(call=asked.text)], result=lambda _: (torch.tensor(found), None))

    def wait(calls: list[str], deadline_s: float) -> None:
        if calls == ["deadly"] or ill:
            raise Death("reward rank 0 died", who=who)

    def restart(numbers: Any) -> Any:
        restarts.append(1)
        return SimpleNamespace(result=lambda _: None)

    monkeypatch.setattr(serving, "wait_all", wait)
    group = type("Group", (), {"__len__": lambda self: 1, "restart": lambda self, numbers: restart(numbers)})()
    recovery = Recovery(RecoveryConfig(frozen_failures_per_hour=2), frozen={"reward": group})
    score: Any = serving.scorer(SimpleNamespace(start=start), 1.0, recovery)  # type: ignore[arg-type]
    assert score(Asked("good")) == [1.0]
    for _ in range(5):
        with pytest.raises(RewardRestarted):
            score(Asked("deadly"))
    assert len(restarts) == 5 and score(Asked("another")) == [1.0]
    found = [math.nan]
    with pytest.raises(RewardRestarted):
        score(Asked("deadly"))
    assert len(recovery._failures["frozen_failures_per_hour"]) == 1, "it was up again, but not sound"
    recovery.forgive("frozen_failures_per_hour")
    found = [1.0]
    ill = True
    with pytest.raises(RewardRestarted):
        score(Asked("good"))
    with pytest.raises(Death, match="number 3 within an hour"):
        score(Asked("good"))
