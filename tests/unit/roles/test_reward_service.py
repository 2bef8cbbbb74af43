"""A reward over HTTP, with a real server on loopback."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import SecretStr, ValidationError

from configs.tiny.inputs import tokenizer
from roles import http_service
from roles.batch import Responses
from roles.config.rewards import FunctionReward, RemoteReward
from roles.packing import right_padded
from roles.reward_function import FunctionScorer
from roles.reward_service import RemoteScorer
from roles.text.policy_text import PolicyText
from tests.unit.roles.test_reward_function import failure, rollouts

Answer = Callable[[dict[str, Any]], tuple[int, Any]]


class Service:
    """An HTTP server that answers with what `answer` makes of a request, and remembers the requests."""

    def __init__(self, answer: Answer) -> None:
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["content-length"])))
                service.requests.append(request)
                service.headers.append({k.lower(): v for k, v in self.headers.items()})
                status, content = answer(request)
                body = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                with suppress(BrokenPipeError):  # the client gave up
                    self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/score"


@contextmanager
def serving(*answers: Answer) -> Iterator[list[Service]]:
    services = [Service(answer) for answer in answers]
    for service in services:
        threading.Thread(target=service.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield services
    for service in services:
        service.server.shutdown()
        service.server.server_close()


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_service, "BACKOFF_S", 0.01)


def remote(*services: Service, **options: Any) -> RemoteScorer:
    return RemoteScorer(RemoteReward(type="remote", urls=[service.url for service in services], **options))


def good(request: dict[str, Any]) -> tuple[int, Any]:
    return 200, {"scores": [int(answer) + 0.5 for answer in request["columns"]["answer"]]}


def broken(request: dict[str, Any]) -> tuple[int, Any]:
    return 503, b"overloaded"


def test_a_service_gets_everything_and_its_numbers_come_back() -> None:
    with serving(good) as (service,):
        scores = remote(service, headers={"Authorization": SecretStr("Bearer tok-123")}).score(rollouts(3))
    assert scores.dtype == torch.float32 and scores.tolist() == [0.5, 1.5, 2.5]
    assert service.requests == [
        {
            "prompts": ["prompt 0", "prompt 1", "prompt 2"],
            "responses": ["response 0", "response 1", "response 2"],
            "response_token_ids": [[10, 3], [11, 3], [12, 3]],
            "finished": [True, False, True],
            "columns": {"answer": ["0", "1", "2"]},
        }
    ]
    assert service.headers[0]["authorization"] == "Bearer tok-123"
    assert service.headers[0]["content-type"] == "application/json"


def openrlhf(request: dict[str, Any]) -> tuple[int, Any]:
    """A server as OpenRLHF's users have them: `rewards` are what counts, and it may say more."""
    assert set(request) == {"query", "prompts", "labels"}
    rewards = [float(label or 7) for label in request["labels"]]
    return 200, {"rewards": rewards, "scores": [0.0] * len(rewards), "extra_logs": {"length": rewards}}


def test_openrlhfs_protocol() -> None:
    with serving(openrlhf) as (service,):
        assert remote(service, protocol="openrlhf", label="answer").score(rollouts(3)).tolist() == [0.0, 1.0, 2.0]
        assert remote(service, protocol="openrlhf").score(rollouts(2)).tolist() == [7.0, 7.0]
    assert service.requests[0] == {
        "query": ["prompt 0response 0", "prompt 1response 1", "prompt 2response 2"],
        "prompts": ["prompt 0", "prompt 1", "prompt 2"],
        "labels": ["0", "1", "2"],
    }


def test_a_query_of_a_policy_ends_with_eos_if_the_response_has_ended_itself(tmp_path: Path) -> None:
    """As in OpenRLHF, which decodes all tokens with the special ones; a reward model finds its score there."""
    words = tokenizer()
    words.save_pretrained(tmp_path)
    texts = ["<bos>hi yes<eos>", "<bos>hi no yes"]
    token_ids, lengths = right_padded([words(text, add_special_tokens=False)["input_ids"] for text in texts])
    mask = torch.zeros_like(token_ids, dtype=torch.bool)
    said = Responses(token_ids, lengths, mask, torch.tensor([True, False]), ["hi"] * 2, ["yes", "no yes"], {})
    asked = list[dict[str, Any]]()

    def answer(request: dict[str, Any]) -> tuple[int, Any]:
        asked.append(request)
        return 200, {"rewards": [1.0, 2.0]}

    with serving(answer) as (service,):
        config = RemoteReward(type="remote", urls=[service.url], protocol="openrlhf")
        assert RemoteScorer(config, PolicyText(str(tmp_path))).score(said).tolist() == [1.0, 2.0]
    assert asked == [{"query": texts, "prompts": ["hi"] * 2, "labels": [""] * 2}]
    theirs = tmp_path / "theirs.py"
    theirs.write_text("def f(queries, prompts, labels):\n    return float(queries[0].endswith('<eos>'))\n")
    function = FunctionReward(path=str(theirs), name="f", protocol="openrlhf")
    for policy, expected in ((PolicyText(str(tmp_path)), [1.0, 0.0]), (None, [0.0, 0.0])):
        scorer = FunctionScorer(function, policy)
        assert scorer.score(said).tolist() == expected
        scorer.close()


@pytest.mark.parametrize(
    ("protocol", "keys"), [("tetrarch", ("scores", "metrics")), ("openrlhf", ("rewards", "extra_logs"))]
)
def test_named_numbers_of_services_come_back_in_the_order_of_the_batch(protocol: Any, keys: tuple[str, str]) -> None:
    def telling(request: dict[str, Any]) -> tuple[int, Any]:
        numbers = [float(prompt.split()[-1]) for prompt in request["prompts"]]
        return 200, {keys[0]: numbers, keys[1]: {"ten": [10 * number for number in numbers]}}

    with serving(telling, telling) as services:
        found = remote(*services, protocol=protocol).row_scores(rollouts(5))
    assert found.scores.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert found.named == [{"ten": 10.0 * number} for number in range(5)]


@pytest.mark.parametrize("metrics", ["high", [1.0], {"ten": [1.0, "x"]}, {"ten": 5}])
def test_named_numbers_of_a_service_that_are_none_are_an_error(metrics: Any) -> None:
    with serving(lambda request: (200, {"scores": [1.0, 2.0], "metrics": metrics})) as services:
        assert "metric" in failure(remote(*services, retries=0), rollouts(2))


def test_openrlhfs_protocol_names_what_is_wrong() -> None:
    with serving(good) as (service,):
        assert "reward.label=gold is no column" in failure(remote(service, protocol="openrlhf", label="gold"))
    with serving(lambda request: (200, {"scores": [1.0] * 3})) as (service,):
        assert 'not {"rewards": [...]}' in failure(remote(service, protocol="openrlhf", retries=0))
    with pytest.raises(ValidationError, match="label=answer is for protocol: openrlhf only"):
        RemoteReward(type="remote", urls=["http://a"], label="answer")


@pytest.mark.parametrize("size", [0, 1, 2, 5])
def test_the_batch_is_spread_over_the_services(size: int) -> None:
    with serving(good, good) as services:
        scores = remote(*services).score(rollouts(size))
    assert scores.tolist() == [i + 0.5 for i in range(size)]
    asked = [len(request["prompts"]) for service in services for request in service.requests]
    assert sum(asked) == size and all(share <= size - size // 2 for share in asked)


def test_a_failed_share_goes_to_the_next_service() -> None:
    with serving(broken, good) as services:
        assert remote(*services, retries=1).score(rollouts(4)).tolist() == [0.5, 1.5, 2.5, 3.5]
    assert [len(service.requests) for service in services] == [1, 2]


def test_a_service_that_recovers_is_asked_again() -> None:
    calls: list[int] = []

    def recovers(request: dict[str, Any]) -> tuple[int, Any]:
        calls.append(1)
        return good(request) if len(calls) == 3 else broken(request)

    with serving(recovers) as services:
        assert remote(*services, retries=2).score(rollouts(2)).tolist() == [0.5, 1.5]


@pytest.mark.parametrize(
    ("answer", "part"),
    [
        (broken, "HTTP 503 overloaded"),
        (lambda _: (302, b""), "HTTP 302"),
        (lambda _: (200, b"no json"), 'not {"scores": [...]} but no json'),
        (lambda _: (200, {"score": []}), 'not {"scores": [...]}'),
        (lambda _: (200, [1, 2, 3]), 'not {"scores": [...]}'),
        (lambda _: (200, {"scores": [0.0]}), "1 scores for 3 responses"),
        (lambda _: (200, {"scores": [0.0, None, 1.0]}), "score 1 is None"),
        (lambda _: (200, {"scores": [0.0, "1", 1.0]}), "score 1 is '1'"),
        (lambda _: (200, b'{"scores": [0, NaN, 1]}'), "score 1 is nan"),
        (lambda _: (200, {"scores": [0.0, 1e300, 1.0]}), "score 1 is 1e+300"),
        (lambda _: (200, {"scores": [0, 10**400, 1]}), "score 1 is 1000"),
        (lambda _: (200, {"scores": {"0": 1.0, "1": 1.0, "2": 1.0}}), "not a list of numbers"),
        (lambda _: (200, {"scores": "123"}), "not a list of numbers"),
        (lambda _: (200, {"scores": 3}), "not a list of numbers"),
    ],
)
def test_a_failing_service_is_named(answer: Answer, part: str) -> None:
    with serving(answer) as (service,):
        message = failure(remote(service, retries=1))
    assert part in message and service.url in message and "failed 2 times" in message
    assert len(service.requests) == 2


def test_a_slow_service_misses_the_deadline() -> None:
    over = threading.Event()

    def slow(request: dict[str, Any]) -> tuple[int, Any]:
        over.wait(200)
        return 200, {"scores": [0.0] * 3}

    with serving(slow) as (service,):
        began = time.monotonic()
        message = failure(remote(service, retries=1, timeout_s=0.3))
        took = time.monotonic() - began
        over.set()
    assert message.count("no answer within 0.3 s") == 2
    assert took < 100


def test_nobody_listening() -> None:
    with serving(good) as (service,):
        pass
    assert service.url in failure(remote(service, retries=0))


def test_secrets_stay_out_of_errors() -> None:
    with serving(lambda _: (401, b"bad token tok-123")) as (service,):
        scorer = remote(service, retries=0, headers={"Authorization": SecretStr("tok-123")})
        message = failure(scorer)
        url = service.url.replace("http://", "http://me:word@")
        other = failure(RemoteScorer(RemoteReward(type="remote", urls=[url], retries=0)))
    assert "HTTP 401" in message and "tok-123" not in message
    assert "HTTP 401" in other and "me:word" not in other


@pytest.mark.parametrize(
    ("headers", "sent"), [({"authorization": "Bearer key"}, "Bearer key"), ({}, "Basic bWU6d29yZA==")]
)
def test_a_header_of_the_configuration_wins_over_the_user_in_a_url(headers: dict[str, str], sent: str) -> None:
    with serving(good) as (service,):
        url = service.url.replace("http://", "http://me:word@")
        secret = {name: SecretStr(value) for name, value in headers.items()}
        RemoteScorer(RemoteReward(type="remote", urls=[url], headers=secret)).score(rollouts(1))
    assert [headers["authorization"] for headers in service.headers] == [sent]


def test_a_part_of_a_header_stays_out_of_errors_too() -> None:
    """The service echoes the key without `Bearer`, and far enough into its answer for the message to be cut there."""
    key = "sk-0123456789abcdef"
    with serving(lambda _: (500, b"." * 190 + key.encode())) as (service,):
        message = failure(remote(service, retries=0, headers={"Authorization": SecretStr(f"Bearer {key}\n")}))
    assert "HTTP 500" in message and key[:9] not in message


def test_headers_of_several_lines_are_refused_without_showing_them() -> None:
    with pytest.raises(ValidationError, match="X-Key has a line break") as caught:
        RemoteReward(type="remote", urls=["http://h"], headers={"X-Key": SecretStr("top\nsecret")})
    assert "secret" not in str(caught.value)


def test_columns_that_are_no_json_are_an_error_at_once() -> None:
    with serving(good) as (service,):
        message = failure(remote(service), rollouts(1, {"picture": [b"\x00"]}))
    assert "picture" in message and "bytes" in message and service.requests == []


def test_this_machine_is_reached_without_the_environments_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "[::1],fe80::/10")  # httpx reads neither
    with serving(good) as (service,):
        assert remote(service, retries=0).score(rollouts(1)).tolist() == [0.5]


def test_other_machines_are_reached_through_the_environments_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(good) as (service,):
        monkeypatch.setenv("http_proxy", service.url.removesuffix("/score"))
        asked = RemoteScorer(RemoteReward(type="remote", urls=["http://reward.invalid:8000/score?key=1"], retries=0))
        assert asked.score(rollouts(1)).tolist() == [0.5]
        monkeypatch.setenv("no_proxy", ".invalid")
        failure(asked)
    assert len(service.requests) == 1


def test_a_proxy_that_cannot_be_used_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "gopher://me:word@proxy")
    message = failure(RemoteScorer(RemoteReward(type="remote", urls=["http://reward.invalid/"])))
    assert "the environment's proxy gopher://***@proxy cannot be used" in message and "no_proxy" in message


@pytest.mark.parametrize("url", ["http://", "http://[::1/", "http://h:port/", "http://h:0/", "https://h/a b"])
def test_urls_that_lead_nowhere_are_refused(url: str) -> None:
    with pytest.raises(ValidationError, match="must be an address such as http://host:8000/score"):
        RemoteReward(type="remote", urls=[url])
