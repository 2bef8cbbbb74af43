"""A reward over HTTP: our own clients ask it, over a real socket, in both protocols."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from starlette.testclient import TestClient

from cluster.errors import DeadlineExceeded, RankFailure
from cluster.ranks.failures import Death
from cluster.ranks.identity import Identity
from configs.tiny.inputs import tokenizer
from orchestrator.config.loading import load_root
from orchestrator.config.recovery import RecoveryConfig
from orchestrator.config.serving import RewardServingRun, ServingConfig
from orchestrator.errors import RewardRestarted
from orchestrator.groups import build, reward_alone
from orchestrator.groups.recovery import Recovery
from orchestrator.groups.reward_alone import OwnTokens
from orchestrator.stages.http_server import answering, listening, url_of
from orchestrator.stages.reward_http import RewardDesk, reward_app
from roles.batch import Responses
from roles.config.rewards import RemoteReward
from roles.reward_service import RemoteScorer
from tests.unit.orchestrator.stages.served import EOS, Letters

seen: list[Responses] = []


def lengths(responses: Responses) -> list[float]:
    seen.append(responses)
    return [
        float(len(prompt + response)) for prompt, response in zip(responses.prompts, responses.responses, strict=True)
    ]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    serving = ServingConfig(port=0)
    with listening(serving) as found, answering(reward_app(RewardDesk(lengths), serving, Recovery()), found):
        yield url_of(found)


def answered() -> Responses:
    return Responses(
        token_ids=torch.tensor([[5, 7, 2], [5, 8, 0]]),
        lengths=torch.tensor([3, 2]),
        response_mask=torch.tensor([[False, True, True], [False, True, False]]),
        finished=torch.tensor([True, False]),
        prompts=["a", "b"],
        responses=["xyz", "x"],
        columns={"answer": ["5", "6"]},
    )


@pytest.mark.parametrize(("protocol", "path"), [("tetrarch", "score"), ("openrlhf", "get_reward")])
def test_our_client_is_answered(url: str, protocol: Any, path: str) -> None:
    label = "answer" if protocol == "openrlhf" else None
    scorer = RemoteScorer(RemoteReward(type="remote", protocol=protocol, urls=[f"{url}/{path}"], label=label))
    seen.clear()
    assert scorer.score(answered()).tolist() == [4.0, 2.0]
    (rows,) = seen
    if protocol == "tetrarch":
        assert rows.columns == {"answer": ["5", "6"]} and rows.finished.tolist() == [True, False]
        assert [row[mask].tolist() for row, mask in zip(rows.token_ids, rows.response_mask, strict=True)] == [
            [7, 2],
            [8],
        ]
    else:
        assert rows.columns == {"labels": ["5", "6"]} and rows.prompts == ["axyz", "bx"]


def asked(score: Any, path: str, body: Any) -> tuple[int, str]:
    client = TestClient(reward_app(RewardDesk(score), ServingConfig(), Recovery()), raise_server_exceptions=False)
    answer = client.post(path, content=json.dumps(body), headers={"Content-Type": "application/json"})
    return answer.status_code, answer.text


@pytest.mark.parametrize(
    ("path", "body", "told"),
    [
        ("/score", {"prompts": ["a"]}, "responses: Field required"),
        ("/score", {"prompts": ["a"], "responses": []}, "responses has 0 entries for 1 prompts"),
        ("/score", {"prompts": ["a"], "responses": ["b"], "columns": {"x": []}}, "columns.x has 0 entries"),
        ("/get_reward", {"query": ["a"], "labels": ["b", "c"]}, "labels has 2 entries for 1 queries"),
        ("/score", {"prompts": ["a"], "responses": ["b"], "response_token_ids": [[2**63]]}, "response_token_ids.0.0"),
        ("/get_reward", {"query": "a"}, "query"),
        ("/get_reward", {"query": ["\ud800"]}, "surrogate"),
    ],
)
def test_a_wrong_request_is_refused_with_the_reason(path: str, body: Any, told: str) -> None:
    status, text = asked(lengths, path, body)
    assert status == 400 and told in text


def test_nothing_to_score_is_no_error() -> None:
    assert asked(lengths, "/score", {"prompts": [], "responses": []}) == (200, '{"scores": []}')


@pytest.mark.parametrize(
    ("error", "status", "lives"),
    [
        (RankFailure("reward raised"), 502, True),
        (ValueError("bad chat"), 400, True),
        (DeadlineExceeded("d"), 503, False),
    ],
)
def test_what_fails_is_told(error: Exception, status: int, lives: bool) -> None:
    def score(responses: Responses) -> list[float]:
        raise error

    desk = RewardDesk(score)
    client = TestClient(reward_app(desk, ServingConfig(), Recovery()), raise_server_exceptions=False)
    assert client.post("/score", json={"prompts": ["a"], "responses": ["b"]}).status_code == status
    assert (desk.broken is None) == lives


def test_a_reward_that_is_started_again_is_asked_once_more_and_not_for_ever() -> None:
    fails = [RewardRestarted("reward rank 0 died\nits log")]

    def score(responses: Responses) -> list[float]:
        if fails:
            raise fails.pop()
        return [2.5]

    desk = RewardDesk(score)
    client = TestClient(reward_app(desk, ServingConfig(), Recovery()))
    body = {"prompts": ["a"], "responses": ["b"]}
    assert client.post("/score", json=body).json() == {"scores": [2.5]} and desk.scored == 1
    fails += [RewardRestarted("reward rank 0 died\nits log")] * 2
    told = client.post("/score", json=body)
    assert told.status_code == 502 and "the reward failed: reward rank 0 died" in told.text and desk.broken is None


def test_health_and_metrics_tell_of_restarts() -> None:
    recovery, seen = Recovery(RecoveryConfig()), list[str]()
    client = TestClient(reward_app(RewardDesk(lengths), ServingConfig(), recovery))

    class Group:
        def __len__(self) -> int:
            return 1

        def restart(self, numbers: range) -> Any:
            def result(deadline_s: float) -> None:
                seen.append(client.get("/health").json()["status"])

            return SimpleNamespace(result=result)

    recovery.frozen["reward"] = Group()  # type: ignore[assignment]
    assert "tetrarch_frozen_restarts 0.0" in client.get("/metrics").text
    recovery.revive(Death("reward rank 0 died", who=Identity("reward", 0, "node", "log")))
    recovery.drain()
    assert [*seen, client.get("/health").json()["status"]] == ["restarting", "ok"]
    assert "tetrarch_frozen_restarts 1.0" in client.get("/metrics").text


def test_every_scorer_that_is_served_alone_can_be_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = dict[str, bool]()

    class Cluster:
        def places(self, role: str) -> list[Any]:
            return []

        def places_again(self, role: str) -> None:
            raise AssertionError

        def check_places(self, groups: Any) -> None:
            pass

    def start(role: str, *others: Any, replaceable: bool, **more: Any) -> Any:
        started[role] = replaceable
        return SimpleNamespace(started=None)

    monkeypatch.setattr(build, "RayCluster", lambda *others, **more: nullcontext(Cluster()))
    monkeypatch.setattr(build.RoleGroup, "start", start)
    monkeypatch.setattr(build, "wait_all", lambda *others: None)
    monkeypatch.setattr(reward_alone, "resolve_model", lambda *others: tmp_path)
    monkeypatch.setattr(reward_alone, "load_tokenizer", lambda *others, **more: Letters())
    members = "{a: {type: model, model: {path: m}}, f: {path: x.py, type: function}}"
    (tmp_path / "r.yaml").write_text(f"run_dir: {tmp_path}\nreward: {{type: ensemble, members: {members}}}")
    (tmp_path / "config.json").write_text("{}")
    with reward_alone.reward_alone(load_root(RewardServingRun, tmp_path / "r.yaml")) as (reward, recovery):
        assert started == dict.fromkeys(reward.members, True) and recovery.frozen.keys() == reward.members.keys()
        assert not recovery.has_steps


def test_a_reward_model_reads_texts_with_its_own_tokenizer() -> None:
    client = TestClient(reward_app(RewardDesk(lengths), ServingConfig(), Recovery()))
    seen.clear()
    body = {"prompts": ["a", "b"], "responses": ["xy", "z"], "finished": [True, False]}
    client.post("/score", json=body)
    client.post("/get_reward", json={"query": ["ax\x02", "bz"]})
    ours, theirs = (OwnTokens(Letters())(rows) for rows in seen)  # type: ignore[arg-type]
    assert ours.token_ids.tolist() == [[97, 120, 121, EOS], [98, 122, 0, 0]] and ours.lengths.tolist() == [4, 2]
    assert theirs.token_ids.tolist() == [[97, 120, EOS], [98, 122, 0]]


@pytest.mark.parametrize(("finished", "end"), [(True, "<eos>"), (False, "")])
def test_a_reward_model_reads_a_conversation_once(finished: bool, end: str) -> None:
    words = tokenizer()
    tools = "{% for tool in tools or [] %}({{ tool.name }}){% endfor %}"
    words.chat_template = tools + "{% for m in messages %}<{{ m.role }}>{{ m.content }}<eos>{% endfor %}"
    asked, again = {"role": "user", "content": "what is"}, {"role": "user", "content": "draw"}
    said, last = {"role": "assistant", "content": "red"}, {"role": "assistant", "content": "blue"}
    client = TestClient(reward_app(RewardDesk(lengths), ServingConfig(), Recovery()))
    seen.clear()
    talks = [[asked, said, again, last], [asked], [asked, said, again], [asked, said]]
    responses = ["red\n[user] draw\nblue", "blue", "blue", " and blue"]
    body = {"prompts": ["what is"] * 4, "responses": responses, "finished": [finished] * 4}
    given = [None, [{"name": "pen"}], [], '[{"name": "pen"}]']
    client.post("/score", json={**body, "columns": {"messages": talks}})
    client.post("/score", json={**body, "columns": {"messages": talks, "tools": given}})
    texts, with_tools = (
        [words.decode(row[:size]) for row, size in zip(read.token_ids.tolist(), read.lengths.tolist(), strict=True)]
        for read in map(OwnTokens(words), seen)
    )
    assert with_tools == [texts[0], f"(pen){texts[1]}", texts[2], f"(pen){texts[3]}"]
    before = "<user>what is<eos><assistant>"
    assert texts == [
        f"{before}red<eos><user>draw<eos><assistant>blue{end}",
        f"{before}blue{end}",
        f"{before}red<eos><user>draw<eos><assistant>blue{end}",
        f"{before}red<eos><assistant> and blue{end}",
    ]


def test_the_reward_alone_needs_no_policy(tmp_path: Path) -> None:
    file = tmp_path / "reward.yaml"
    model = "{type: model, model: {path: m}}"
    file.write_text(
        f"run_dir: r\nreward: {{type: ensemble, members: {{a: {model}, f: {{path: x.py, type: function}}}}}}"
    )
    config = load_root(RewardServingRun, file)
    assert list(config.scorers) == ["reward.a", "reward.f"] and config.model_roles == ("reward.a",)
