"""The served policy over HTTP, on engines that echo."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from orchestrator.config.serving import ServingConfig
from orchestrator.groups.recovery import Recovery
from orchestrator.stages.http_routes import policy_app
from orchestrator.stages.prompt_reader import PromptReader
from orchestrator.stages.serving_desk import Desk
from tests.unit.orchestrator.stages.served import EchoEngines, Letters, length, until, working

LONGEST, RESPONSE = 60, 40


def client_of(desk: Desk, **serving: Any) -> TestClient:
    reader = PromptReader(Letters(), LONGEST, RESPONSE)  # type: ignore[arg-type]
    return TestClient(
        policy_app(desk, reader, ServingConfig(**serving), Recovery(), temperature=0.7, top_p=0.8),
        raise_server_exceptions=False,
    )


@pytest.fixture
def engines() -> EchoEngines:
    return EchoEngines()


@pytest.fixture
def desk(engines: EchoEngines) -> Iterator[Desk]:
    with working(Desk(engines, length, Letters().decode, most=3)) as desk:
        yield desk


@pytest.fixture
def client(desk: Desk) -> TestClient:
    return client_of(desk)


def message(answer: Any) -> str:
    told: str = answer.json()["error"]["message"]
    return told


def test_generate_gives_responses_with_scores_and_the_best(client: TestClient, engines: EchoEngines) -> None:
    body = {"prompt": "ab", "num_return_sequences": 3, "max_new_tokens": 5, "temperature": 0.5, "seed": 7}
    told = client.post("/generate", json=body)
    assert told.status_code == 200
    assert told.json() == {
        "responses": ["ab", "abab", "ababa"],
        "scores": [2.0, 4.0, 5.0],
        "best": 2,
        "finish_reasons": ["stop", "stop", "length"],
    }
    assert [(one.seed, one.temperature, one.max_tokens) for one in engines.wanted] == [
        (7, 0.5, 5),
        (8, 0.5, 5),
        (9, 0.5, 5),
    ]


def test_what_is_not_said_is_the_configurations(client: TestClient, engines: EchoEngines) -> None:
    assert len(client.post("/generate", json={"prompt": "a"}).json()["responses"]) == 4
    assert {(one.temperature, one.max_tokens, one.top_p) for one in engines.wanted} == {(0.7, RESPONSE, 0.8)}
    assert len({one.seed for one in engines.wanted}) == 4


def test_a_chat_goes_through_the_template(client: TestClient) -> None:
    body = {"prompt": [{"role": "user", "content": "hi"}], "num_return_sequences": 1}
    assert client.post("/generate", json=body).json()["responses"] == ["<hi>"]


def test_without_a_reward_there_are_no_scores(engines: EchoEngines) -> None:
    with working(Desk(engines, None, Letters().decode, most=3)) as desk:
        client = client_of(desk)
        told = client.post("/generate", json={"prompt": "a", "num_return_sequences": 2}).json()
        assert (told["scores"], told["best"], told["responses"]) == (None, None, ["a", "aa"])
        refused = client.post("/v1/completions", json={"prompt": "a", "best_of": 2})
        assert refused.status_code == 400 and "needs a reward" in message(refused)


def test_completions_return_the_best_of(client: TestClient) -> None:
    told = client.post("/v1/completions", json={"model": "policy", "prompt": "ab", "n": 2, "best_of": 3}).json()
    assert told["object"] == "text_completion"
    assert [(choice["text"], choice["score"], choice["index"]) for choice in told["choices"]] == [
        ("ababab", 6.0, 0),
        ("abab", 4.0, 1),
    ]
    assert told["usage"] == {"prompt_tokens": 2, "completion_tokens": 3 + 5 + 7, "total_tokens": 17}


def test_chat_completions(client: TestClient) -> None:
    messages = [{"role": "user", "content": "hi"}]
    told = client.post("/v1/chat/completions", json={"messages": messages, "max_tokens": 2, "user": "me"}).json()
    assert told["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "<h"},
            "finish_reason": "length",
            "logprobs": None,
        }
    ]


def test_token_ids_are_a_prompt(client: TestClient) -> None:
    told = client.post("/v1/completions", json={"prompt": [97, 98]}).json()
    assert told["choices"][0]["text"] == "ab"
    refused = client.post("/v1/completions", json={"prompt": [97, 70000]})
    assert refused.status_code == 400 and "70000" in message(refused)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_a_stream_ends_with_the_reason_and_the_usage(client: TestClient, path: str) -> None:
    chat = "chat" in path
    prompt = {"messages": [{"role": "user", "content": "é\U0001f600"}]} if chat else {"prompt": "<é\U0001f600>"}
    body = {**prompt, "stream": True, "stream_options": {"include_usage": True}}
    with client.stream("POST", path, json=body) as answer:
        assert answer.status_code == 200
        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    assert lines[-1] == "[DONE]"
    *events, usage = [json.loads(line) for line in lines[:-1]]
    texts = [e["choices"][0]["delta"].get("content") if chat else e["choices"][0]["text"] for e in events]
    assert "".join(texts) == "<é\U0001f600>" and len(texts) > 3
    assert events[-1]["choices"][0]["finish_reason"] == "stop"
    assert usage["usage"]["completion_tokens"] == 5 and usage["choices"] == []


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({}, "prompt: Field required"),
        ({"prompt": ""}, "the prompt is empty"),
        ({"prompt": "a", "max_new_tokens": 0}, "max_new_tokens"),
        ({"prompt": "a", "max_new_tokens": 41}, "rollout.max_response_tokens=40"),
        ({"prompt": "a" * 30, "max_new_tokens": 31}, "together may have 60"),
        ({"prompt": "a" * 60}, "the prompt has 60 tokens"),
        ({"prompt": "a", "num_return_sequences": 65}, "serving.max_responses"),
        ({"prompt": "a", "temperature": 0.001}, "neither 0 nor"),
        ({"prompt": "a", "temperature": -1}, "temperature"),
        ({"prompt": "a", "temperature": True}, "temperature: Input should be a valid number"),
        ({"prompt": "a", "max_new_tokens": "5"}, "max_new_tokens: Input should be a valid integer"),
        ({"prompt": "a", "top_p": 0}, "top_p"),
        ({"prompt": "a", "seed": -1}, "seed"),
        ({"prompt": "a", "colour": "red"}, "colour: Extra inputs"),
        ({"prompt": "a\ud800"}, "surrogate"),
        ({"prompt": [{"role": "user"}]}, "cannot be read"),
        ({"prompt": []}, "cannot be read"),
    ],
)
def test_a_wrong_request_is_refused_with_the_reason(client: TestClient, body: dict[str, Any], told: str) -> None:
    answer = client.post("/generate", content=json.dumps(body), headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert told in message(answer)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[" * 5000, b'{"prompt": NaN}', b"null", b'"a"'])
def test_what_is_no_json_object_is_refused(client: TestClient, content: bytes) -> None:
    answer = client.post("/generate", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400 and message(answer)


@pytest.mark.parametrize(
    ("body", "status", "told"),
    [
        ({"prompt": "a", "n": 3, "best_of": 2}, 400, "best_of=2 is less than n=3"),
        ({"prompt": "a", "stream": True, "n": 2}, 400, "stream=true gives one response"),
        ({"prompt": "a", "model": "gpt-4"}, 404, "use 'policy'"),
        ({"prompt": "a", "stop": ["."]}, 400, "stop"),
        ({"prompt": "a", "frequency_penalty": 1}, 400, "frequency_penalty"),
    ],
)
def test_what_openai_has_and_we_do_not_is_said(
    client: TestClient, body: dict[str, Any], status: int, told: str
) -> None:
    answer = client.post("/v1/completions", json=body)
    assert answer.status_code == status and told in message(answer)


def test_neutral_values_of_what_we_do_not_have_are_taken(client: TestClient) -> None:
    body = {"prompt": "a", "frequency_penalty": 0, "stop": None, "logprobs": None, "user": "me"}
    assert client.post("/v1/completions", json=body).status_code == 200


def test_another_method_is_told_which_one_to_use(client: TestClient) -> None:
    answer = client.put("/generate", json={"prompt": "a"})
    assert answer.status_code == 405 and answer.headers["Allow"] == "POST" and message(answer) == "Method Not Allowed"


def test_a_large_body_is_refused_whether_it_says_its_length_or_not(desk: Desk) -> None:
    client = client_of(desk, max_body_kib=1)
    headers = {"Content-Type": "application/json"}
    body = json.dumps({"prompt": "a" * 2000}).encode()
    for content in (body, iter([body[:500], body[500:1500], body[1500:]])):
        answer = client.post("/generate", content=content, headers=headers)
        assert answer.status_code == 413 and "serving.max_body_kib=1" in message(answer)


def test_the_key_is_asked_for(desk: Desk) -> None:
    client = client_of(desk, api_key="secret")
    body = {"prompt": "a"}
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "secret"}):
        answer = client.post("/generate", json=body, headers=headers)
        assert answer.status_code == 401 and "secret" not in answer.text
    assert client.post("/generate", json=body, headers={"Authorization": "Bearer secret"}).status_code == 200
    assert client.get("/health").status_code == client.get("/").status_code == 200


def test_one_request_too_many_is_told_to_come_again(client: TestClient, engines: EchoEngines, desk: Desk) -> None:
    engines.gate.clear()
    client = client_of(desk, timeout_s=100)
    threads = [
        threading.Thread(target=client.post, args=("/generate",), kwargs={"json": {"prompt": "a"}}) for _ in "abc"
    ]
    for thread in threads:
        thread.start()
    until(lambda: desk.open == 3)
    answer = client.post("/generate", json={"prompt": "a"})
    assert answer.status_code == 503 and answer.headers["Retry-After"] == "1"
    engines.gate.set()
    for thread in threads:
        thread.join()


def test_a_request_that_takes_too_long_is_given_up(engines: EchoEngines, desk: Desk) -> None:
    engines.gate.clear()
    answer = client_of(desk, timeout_s=0.5).post("/generate", json={"prompt": "a", "num_return_sequences": 2})
    assert answer.status_code == 504 and "serving.timeout_s=0.5" in message(answer)
    until(lambda: not desk.open)
    # Both, unless a busy machine has not handed them to the engines within that time.
    assert engines.dropped == [one.name for one in engines.wanted] and not engines.left


def test_the_metrics_count_requests(client: TestClient) -> None:
    client.post("/generate", json={"prompt": "a", "num_return_sequences": 1})
    client.post("/generate", json={})
    client.get("/nothing/here")
    told = client.get("/metrics").text
    assert 'tetrarch_requests_total{route="/generate",status="200"} 1.0' in told
    assert 'tetrarch_requests_total{route="/generate",status="400"} 1.0' in told
    assert 'tetrarch_requests_total{route="other",status="404"} 1.0' in told
    assert "tetrarch_generated_tokens 2.0" in told and "tetrarch_requests_under_way 0.0" in told


def test_the_page_asks_for_generate_and_shows_texts_as_texts(client: TestClient) -> None:
    page = client.get("/").text
    assert "/generate" in page and "innerHTML" not in page and "http://" not in page and "https://" not in page


def test_the_models_are_listed(client: TestClient) -> None:
    assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["policy"]
