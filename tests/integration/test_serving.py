"""`tetrarch serve` on the tiny model: OpenAI's client, best-of-N, new weights while requests are under way, the end."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from openai import OpenAI
from transformers import AutoModelForCausalLM, AutoTokenizer

from configs.tiny.inputs import write
from orchestrator.run.checkpoint import whole_folder

ROOT = Path(__file__).resolve().parents[2]
ONE_RANK = [f"placement.{group}.ranks=1" for group in ("reward", "rollout")]
PROMPT = "draw the red river"


@contextmanager
def command(words: list[str], log: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A server under way: its URL, and its process."""
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
    with log.open("w") as out:
        process = subprocess.Popen(words, cwd=ROOT, env=environment, text=True, stdout=out, stderr=subprocess.STDOUT)
    try:
        until = time.monotonic() + 200
        while not (found := re.search(r"serving at (http://\S+)", log.read_text())):
            assert process.poll() is None and time.monotonic() < until, log.read_text()
            time.sleep(0.1)
        yield found[1], process
    finally:
        process.kill()
        process.wait()


def greedy(model: Path, token_ids: list[int], count: int) -> list[int]:
    """What plain transformers generates."""
    policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    prompt = torch.tensor([token_ids])
    made = policy.generate(prompt, max_new_tokens=count, do_sample=False, attention_mask=torch.ones_like(prompt))
    return [int(token) for token in made[0, len(token_ids) :]]


def test_the_policy_is_served_and_goes_over_to_new_weights_without_losing_a_request(tmp_path: Path) -> None:
    inputs, actor = tmp_path / "inputs", tmp_path / "run/actor"
    write(inputs)
    text = (ROOT / "configs/tiny.yaml").read_text().replace("runs/inputs/tiny", str(inputs))
    assert "\nserving:" not in text
    (tmp_path / "tiny.yaml").write_text(f"{text}\nserving: {{port: 0, api_key: secret}}\n")
    shutil.copytree(inputs / "policy", actor)
    (actor / "tetrarch.json").write_text(json.dumps({"step": 1}))
    words = [sys.executable, "-m", "orchestrator", "serve", str(tmp_path / "tiny.yaml"), f"run_dir={tmp_path}/run"]
    words += ONE_RANK
    with command(words, tmp_path / "log") as (url, process):
        _openai_asks(url, actor)
        _weights_are_renewed(url, actor)
        with ThreadPoolExecutor() as pool:  # told to end while it answers
            asked, until = list[Future[httpx.Response]](), time.monotonic() + 60
            while "tetrarch_requests_under_way 0.0" in _metrics(url):
                assert time.monotonic() < until
                if all(answer.done() for answer in asked):
                    asked += [pool.submit(_generate, url, count=64) for _ in range(4)]
            process.send_signal(signal.SIGTERM)
            statuses = [_status(answer) for answer in asked]
            assert 200 in statuses and set(statuses) <= {200, 503, None}
        assert process.wait(timeout=60) == 143
    assert "ended by SIGTERM" in (tmp_path / "log").read_text()


@pytest.mark.slow
def test_engines_that_die_and_hang_lose_no_request(tmp_path: Path) -> None:
    """One of two is killed while both generate, the other is stopped then, a reward model is killed, and weights are
    renewed while no engine is up. Every greedy response is that of plain transformers."""
    inputs, actor = tmp_path / "inputs", tmp_path / "run/actor"
    write(inputs)
    text = (ROOT / "configs/tiny.yaml").read_text().replace("runs/inputs/tiny", str(inputs))
    (tmp_path / "tiny.yaml").write_text(
        f"{text}\nserving: {{port: 0, api_key: secret, stall_s: 15, max_requests: 999}}\n"
    )
    shutil.copytree(inputs / "policy", actor)
    (actor / "tetrarch.json").write_text(json.dumps({"step": 1}))
    words = [sys.executable, "-m", "orchestrator", "serve", str(tmp_path / "tiny.yaml"), f"run_dir={tmp_path}/run"]
    words += ["placement.reward.ranks=1", "placement.rollout.ranks=2", "rollout.max_response_tokens=64"]
    log = tmp_path / "log"
    with command(words, log) as (url, process), ThreadPoolExecutor(64) as pool:
        expected = _greedy_response(actor, 48)
        logs = tmp_path / "run/serve/logs"
        for number, how, role in (
            (0, signal.SIGKILL, "rollout"),
            (1, signal.SIGSTOP, "rollout"),
            (0, signal.SIGKILL, "reward"),
        ):
            told = log.read_text().count(f"{role} rank {number}") + log.read_text().count("reward: back")
            asked = [pool.submit(_generate, url, count=1, temperature=0, max_new_tokens=48) for _ in range(200)]
            while not any(answer.done() for answer in asked):
                time.sleep(0.005)
            os.kill(_pid(logs / f"{role}-{number}.log"), how)
            answers = [answer.result() for answer in asked]
            assert {answer.status_code for answer in answers} == {200}, log.read_text()
            assert {answer.json()["responses"][0] for answer in answers} == {expected}
            until = time.monotonic() + 60
            while log.read_text().count(f"{role} rank {number}") + log.read_text().count("reward: back") < told + 2:
                assert time.monotonic() < until, log.read_text()
                time.sleep(0.1)
        for number in (0, 1):
            os.kill(_pid(logs / f"rollout-{number}.log"), signal.SIGKILL)
        _change(actor)
        until = time.monotonic() + 60
        while "tetrarch_weights_version 1.0" not in _metrics(url):
            assert time.monotonic() < until
            time.sleep(0.1)
        asked = [pool.submit(_generate, url, count=1, temperature=0, max_new_tokens=48) for _ in range(100)]
        assert (
            {answer.result().json()["responses"][0] for answer in asked} == {_greedy_response(actor, 48)} != {expected}
        )
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 143
    said = log.read_text()
    assert re.search(r"rollout rank 0 \(node \S+\) is started again: it died in", said), said
    assert re.search(
        r"rollout rank 1 \(node \S+\) is started again: it was late: rollout\.advance did not end within 15 s", said
    )
    assert "reward: started again, since reward rank 0" in said
    assert len(re.findall(r"prompts that were moved: [1-9]", said)) >= 2, said


@pytest.mark.slow
def test_a_reward_that_is_served_alone_and_dies_loses_no_request(tmp_path: Path) -> None:
    """More often than a run would survive it: a request after which it scores as before was not its failure."""
    inputs, log = tmp_path / "inputs", tmp_path / "log"
    write(inputs)
    text = (ROOT / "configs/tiny.yaml").read_text().replace("runs/inputs/tiny", str(inputs))
    more = "serving: {port: 0}\nrecovery: {frozen_failures_per_hour: 1}\n"
    (tmp_path / "tiny.yaml").write_text(f"{text}\n{more}")
    words = [sys.executable, "-m", "orchestrator", "serve", str(tmp_path / "tiny.yaml"), "--reward"]
    words += [f"run_dir={tmp_path}/run", "placement.reward.ranks=1"]
    with command(words, log) as (said, process), ThreadPoolExecutor(1) as pool:
        url, body = said.rstrip(":"), {"prompts": [PROMPT], "responses": ["a red river"]}

        def score() -> httpx.Response:
            return httpx.post(f"{url}/score", json=body, timeout=120, trust_env=False)

        expected, seen = score().json(), set[str]()
        for _ in range(2):
            os.kill(_pid(tmp_path / "run/serve/logs/reward-0.log"), signal.SIGKILL)
            asked = pool.submit(score)
            while not asked.done():
                seen.add(_get(f"{url}/health").json()["status"])
                time.sleep(0.02)
            assert (asked.result().status_code, asked.result().json()) == (200, expected), log.read_text()
        assert "restarting" in seen and _get(f"{url}/health").json() == {"status": "ok"}
        assert "tetrarch_frozen_restarts 2.0" in _metrics(url)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 143
    assert log.read_text().count("reward: started again, since reward rank 0") == 2


def _get(url: str) -> httpx.Response:
    return httpx.get(url, trust_env=False, timeout=60)


def _metrics(url: str) -> str:
    return _get(f"{url}/metrics").text


def _pid(log: Path) -> int:
    """Of the process that now writes a rank's log."""
    return int(re.findall(r"pid (\d+)", log.read_text())[-1])


def _status(answer: Future[httpx.Response]) -> int | None:
    """None: the server did not listen any more. A connection that waited then to be taken is reset, which is an error
    while something is sent or read; one that the server had taken would end without an answer, which is another."""
    try:
        return answer.result().status_code
    except (httpx.ConnectError, httpx.ReadError, httpx.WriteError):
        return None


def _generate(url: str, *, count: int = 4, **more: Any) -> httpx.Response:
    body = {"prompt": PROMPT, "num_return_sequences": count, **more}
    headers = {"Authorization": "Bearer secret"}
    return httpx.post(f"{url}/generate", json=body, headers=headers, timeout=60, trust_env=False)


def _openai_asks(url: str, actor: Path) -> None:
    client = OpenAI(base_url=f"{url}/v1", api_key="secret", max_retries=0)
    assert [model.id for model in client.models.list()] == ["policy"]
    plain = client.completions.create(model="policy", prompt=PROMPT, max_tokens=8, temperature=0)
    stream = client.completions.create(model="policy", prompt=PROMPT, max_tokens=8, temperature=0, stream=True)
    pieces = [piece.choices[0] for piece in stream]
    assert "".join(piece.text for piece in pieces) == plain.choices[0].text
    assert pieces[-1].finish_reason == plain.choices[0].finish_reason == "length"
    best = client.completions.create(model="policy", prompt=PROMPT, n=2, best_of=6, max_tokens=8)
    scores = [choice.model_dump()["score"] for choice in best.choices]
    assert scores == sorted(scores, reverse=True) and best.usage is not None and best.usage.completion_tokens > 8
    told = _generate(url, max_new_tokens=8).json()
    assert told["best"] == max(range(4), key=told["scores"].__getitem__) and len(set(told["responses"])) > 1
    assert httpx.post(f"{url}/generate", json={"prompt": "a"}, trust_env=False, timeout=60).status_code == 401


def _weights_are_renewed(url: str, actor: Path) -> None:
    """Greedy responses are those of plain transformers before and after."""

    def response() -> str:
        told = _generate(url, count=1, temperature=0, max_new_tokens=8).json()
        return str(told["responses"][0])

    before = _greedy_response(actor, 8)
    assert response() == before
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(_generate, url) for _ in range(100)]
        _change(actor)
        until = time.monotonic() + 60
        while "tetrarch_weights_version 1.0" not in _metrics(url):
            assert time.monotonic() < until
            asked.append(pool.submit(_generate, url))
            time.sleep(0.05)
        assert {answer.result().status_code for answer in asked} == {200}
    after = _greedy_response(actor, 8)
    assert after != before and response() == after


def _greedy_response(actor: Path, count: int) -> str:
    """Of plain transformers to the prompt."""
    tokenizer = AutoTokenizer.from_pretrained(actor)
    token_ids = [int(token) for token in tokenizer(PROMPT)["input_ids"]]
    return str(tokenizer.decode(greedy(actor, token_ids, count), skip_special_tokens=True))


def _change(actor: Path) -> None:
    """Write other weights, so that greedy responses differ, as a run does after its second step."""
    torch.manual_seed(7)
    policy = AutoModelForCausalLM.from_pretrained(actor, dtype=torch.float32)
    for parameter in policy.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    with whole_folder(actor) as folder:
        shutil.copytree(actor, folder)
        policy.save_pretrained(folder)
        (folder / "tetrarch.json").write_text(json.dumps({"step": 2}))
