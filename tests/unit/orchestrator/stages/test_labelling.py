"""`tetrarch label` with a judge on loopback: what it writes, what it asks, and how it stops and goes on."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from click.testing import Result
from typer.testing import CliRunner

from cluster.errors import Terminated
from orchestrator.commands.app import app
from orchestrator.data.answer_file import AnswerFile
from orchestrator.data.judge_prompts import JudgeAnswer
from orchestrator.stages import asked_endpoint, labelling
from roles import http_service
from tests.unit.orchestrator.stages.judge_server import (
    SURE,
    JudgeServer,
    Reply,
    chat,
    in_letters,
    in_probabilities,
    in_prose,
    judging,
    longer,
    text_of,
)

ROOT = Path(__file__).resolve().parents[4]
ROWS = [{"prompt": f"q{n}", "responses": ["a" * (n + 1), "b" * (n + 3)]} for n in range(6)]
KEY = "sk-0123456789abcdef"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_service, "BACKOFF_S", 0.01)
    monkeypatch.setattr(labelling.ORDERS, "listen", lambda: None)


class Desk:
    """A configuration in a folder, and what the command leaves there."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.out = folder, folder / "out"

    def write(self, server: JudgeServer, rows: list[dict[str, Any]] = ROWS, **section: Any) -> None:
        (self.folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        said = {"type": "endpoint", "url": server.url, "model": "m", "patience_s": 0.5, **section.pop("judge", {})}
        data = {"path": str(self.folder / "rows.jsonl")}
        labelled = {"output": str(self.out), "data": data, "judge": said, **section}
        (self.folder / "label.yaml").write_text(yaml.safe_dump({"labelling": labelled}))

    def label(self, *more: str) -> Result:
        return CliRunner().invoke(app, ["label", str(self.folder / "label.yaml"), *more])

    def rows(self, name: str = "pairs.jsonl") -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.out / name).read_text().splitlines()]

    @property
    def summary(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.out / "summary.json").read_text())
        return found

    @property
    def answers(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "out-run/answers.jsonl").read_text().splitlines()]


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_probabilities_become_soft_labels_that_reward_training_reads(desk: Desk) -> None:
    with judging(in_probabilities) as judge:
        desk.write(judge)
        result = desk.label()
    assert result.exit_code == 0, result.output
    soft = pytest.approx(SURE / (SURE + 0.1))
    assert [[row["prompt"], row["rejected"], row["chosen"]] for row in desk.rows()] == [
        [row["prompt"], *row["responses"]] for row in ROWS
    ]
    assert [row["chosen_probability"] for row in desk.rows()] == [soft] * 6
    assert len(judge.bodies) == len({text_of(body) for body in judge.bodies}) == 12
    assert all((body["logprobs"], body["top_logprobs"], body["max_tokens"]) == (True, 20, 16) for body in judge.bodies)
    assert "agreement" in desk.summary["judge"] and desk.summary["judge"]["agreement"] == 1
    assert desk.summary["spent"] == {"requests": 12, "prompt_tokens": 600, "completion_tokens": 24}
    from configs.tiny.inputs import tokenizer
    from orchestrator.config.data import RecordsConfig
    from orchestrator.data.preference_pairs import read_pairs

    read = read_pairs(RecordsConfig(path=str(desk.out / "pairs.jsonl")), tokenizer()).preferences
    assert len(read.comparisons()) == 6 and float(read.certainty[0]) == soft


def test_letters_alone_are_hard_labels_and_a_second_command_asks_nothing(desk: Desk) -> None:
    with judging(in_letters) as judge:
        desk.write(judge, judge={"top_logprobs": 0})
        assert desk.label().exit_code == 0
        first = desk.rows()
        assert {row["chosen_probability"] for row in first} == {1.0} and "logprobs" not in judge.bodies[0]
        assert desk.label().exit_code == 0 and desk.rows() == first and len(judge.bodies) == 12
        assert (desk.summary["asked"], desk.summary["reused"]) == (0, 12)
        assert desk.label("labelling.question=Which is shorter?").exit_code == 0
        assert len(judge.bodies) == 24, "another question is another answer"
        assert desk.label("labelling.judge.model=other").exit_code == 0 and len(judge.bodies) == 36


def test_the_tools_of_a_chat_stand_in_the_rows_that_are_written(desk: Desk) -> None:
    tools = [{"type": "function", "function": {"name": "draw"}}]
    rows = [
        {"prompt": [{"role": "user", "content": f"q{n}"}], "responses": ["a", "bb"], "tools": tools} for n in range(2)
    ]
    with judging(in_letters) as judge:
        desk.write(judge, [*rows, *ROWS[:1]])
        assert desk.label().exit_code == 0
        assert [row.get("tools") for row in desk.rows()] == [tools, tools, None]
    with judging(in_prose) as judge:
        desk.write(judge, [*rows, *ROWS[:1]])
        assert desk.label().exit_code == 0
        assert [row.get("tools") for row in desk.rows("left-out.jsonl")] == [tools, tools, None]


def test_prose_is_an_abstention(desk: Desk) -> None:
    with judging(in_prose) as judge:
        desk.write(judge)
        result = desk.label()
    assert result.exit_code == 0 and desk.rows() == []
    kept = desk.rows("left-out.jsonl")
    assert [{"prompt": row["prompt"], "responses": row["responses"]} for row in kept] == ROWS
    assert all(row["reason"].startswith("the judge abstained; it said") for row in kept)
    assert (desk.summary["judge"]["compared"], desk.summary["judge"]["abstained"]) == (6, 6)
    assert "6 comparisons in both orders, 6 abstentions" in result.output


def test_a_judge_that_likes_the_first_response_is_found_out(desk: Desk) -> None:
    with judging(lambda number, body: chat("A")) as judge:
        desk.write(judge)
        result = desk.label()
    assert result.exit_code == 0 and desk.rows() == [] and desk.summary["undecided"] == 6
    assert {row["reason"] for row in desk.rows("left-out.jsonl")} == {
        "undecided: the first is better with probability 0.500"
    }
    told = desk.summary["judge"]
    assert (told["agreement"], told["position_bias"], told["first_both_times"]) == (0, 0.5, 1)


@pytest.mark.parametrize(
    "bad", [(429, b"slow down"), (503, b"busy"), (408, b""), None, (200, b"not JSON"), (200, {"choices": []})]
)
def test_what_passes_is_asked_again(desk: Desk, bad: Reply) -> None:
    failed: set[str] = set()

    def answer(number: int, body: dict[str, Any]) -> Reply:
        if (text := text_of(body)) in failed:
            return chat(longer(body))
        failed.add(text)
        return bad

    with judging(answer) as judge:
        desk.write(judge, judge={"patience_s": 60})
        result = desk.label()
    assert result.exit_code == 0, result.output
    assert len(desk.rows()) == 6 and len(desk.answers) == 12 and len(judge.bodies) == 24


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ((500, b"broken"), "the judge failed"),
        (None, "the judge failed"),
        ((401, f"bad key {KEY}".encode()), "HTTP 401 bad key **********"),
        ((404, b"no such model"), "HTTP 404 no such model"),
    ],
)
def test_a_judge_that_fails_for_good_ends_the_command_and_what_was_labelled_stays(
    desk: Desk, bad: Reply, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    now = itertools.count()  # a clock that goes on by 0.05 s when it is looked at
    monkeypatch.setattr(asked_endpoint, "time", SimpleNamespace(monotonic=lambda: 0.05 * next(now)))

    def answer(number: int, body: dict[str, Any]) -> Reply:
        return chat(longer(body)) if number < 7 else bad

    with judging(answer) as judge:
        desk.write(judge, judge={"concurrency": 1, "api_key_env": "JUDGE_KEY", "patience_s": 0.2})
        result = desk.label()
        assert result.exit_code == 1, result.output
        assert "labelling has stopped" in result.output and said in " ".join(result.output.split())
        assert "3 of 6 are done" in result.output and "run the same command again" in result.output
        assert len(desk.rows()) == 3 and desk.summary["unfinished"] == 3 and len(desk.answers) == 7
        tried = len(judge.bodies) - 7
        assert tried == 1 if bad and bad[0] < 500 else tried > 2
    assert {headers["authorization"] for headers in judge.headers} == {f"Bearer {KEY}"}
    for file in desk.folder.rglob("*"):
        assert not file.is_file() or KEY.encode() not in file.read_bytes(), file


def test_an_answer_that_repeats_the_key_is_kept_without_it(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with judging(lambda number, body: chat(f"{longer(body)}\n\nYour key is {KEY}.")) as judge:
        desk.write(judge, judge={"api_key_env": "JUDGE_KEY"})
        assert desk.label().exit_code == 0 and len(desk.rows()) == 6
    assert "**********" in desk.answers[0]["text"] and KEY not in (desk.folder / "out-run/answers.jsonl").read_text()


def test_a_slow_judge_is_not_waited_for_for_ever(desk: Desk) -> None:
    over = threading.Event()

    def answer(number: int, body: dict[str, Any]) -> Reply:
        if number:
            over.wait(200)
        return chat(longer(body))

    with judging(answer) as judge:
        desk.write(judge, judge={"concurrency": 1})
        assert desk.label("labelling.budget.requests=1").exit_code == 1 and len(desk.answers) == 1
        began = time.monotonic()
        result = desk.label("labelling.judge.timeout_s=0.2", "labelling.judge.patience_s=0.3")
        assert time.monotonic() - began < 100
        over.set()
    assert result.exit_code == 1 and "no answer within 0.2 s" in " ".join(result.output.split())
    assert len(desk.answers) == 1


def test_a_question_that_is_refused_costs_its_pair_alone(desk: Desk) -> None:
    def answer(number: int, body: dict[str, Any]) -> Reply:
        return (400, b"context length exceeded") if "q3" in text_of(body) else chat(longer(body))

    with judging(answer) as judge:
        desk.write(judge, judge={"concurrency": 1})
        result = desk.label()
    assert result.exit_code == 0, result.output
    assert [row["prompt"] for row in desk.rows()] == ["q0", "q1", "q2", "q4", "q5"] and desk.summary["refused"] == 1
    (kept,) = desk.rows("left-out.jsonl")
    assert kept["prompt"] == "q3" and kept["reason"].startswith("the judge refused the question: ")
    assert kept["reason"].endswith("HTTP 400 context length exceeded")
    assert "HTTP 400 context length exceeded" in result.output


def test_a_judge_that_refuses_everything_ends_the_command(desk: Desk) -> None:
    with judging(lambda number, body: (400, b"unknown parameter logprobs")) as judge:
        desk.write(judge)
        result = desk.label()
    assert result.exit_code == 1 and "refuses every question" in result.output and "unknown parameter" in result.output


@pytest.mark.parametrize("budget", [{"requests": 5}, {"tokens": 5 * 52 + 500}, {"money": 5 * 66e-6 + 5e-4}])
def test_a_budget_stops_it_before_it_is_exceeded(desk: Desk, budget: dict[str, float]) -> None:
    with judging(in_letters) as judge:
        desk.write(judge, judge={"prices": {"prompt": 1.0, "completion": 8.0}}, budget=budget)
        result = desk.label()
        (key, limit), spent = next(iter(budget.items())), desk.summary["spent"]
        assert result.exit_code == 1 and f"labelling.budget.{key}={limit:g} does not allow another" in result.output
        assert len(judge.bodies) == spent["requests"] == len(desk.answers) and 5 <= spent["requests"] < 12
        found = {"requests": 5, "tokens": 52 * spent["requests"], "money": 66e-6 * spent["requests"]}[key]
        assert found <= limit and (key != "money" or desk.summary["cost"] == pytest.approx(found))
        assert desk.label().exit_code == 1 and len(judge.bodies) == spent["requests"], "it is spent"
        assert desk.label(f"labelling.budget.{key}={limit * 100}").exit_code == 0
        assert len(judge.answered) == len(set(judge.answered)) == 12 and len(desk.rows()) == 6


@pytest.mark.parametrize(
    ("override", "labelled", "asked", "abstained"),
    [
        ("labelling.minimum_probability=0.88", 6, 12, 0),
        ("labelling.minimum_probability=0.89", 0, 12, 0),
        ("labelling.minimum_mass=0.89", 6, 12, 0),
        ("labelling.minimum_mass=0.91", 0, 12, 6),
        ("labelling.data.limit=2", 2, 4, 0),
    ],
)
def test_what_the_judge_must_be_sure_of(desk: Desk, override: str, labelled: int, asked: int, abstained: int) -> None:
    with judging(in_probabilities) as judge:
        desk.write(judge)
        assert desk.label(override).exit_code == 0
    assert (len(desk.rows()), len(judge.bodies)) == (labelled, asked)
    assert desk.summary["judge"]["abstained"] == abstained


def test_some_pairs_of_each_prompt_drawn_by_the_seed(desk: Desk) -> None:
    found = []
    with judging(in_letters) as judge:
        desk.write(judge, [{"prompt": "q", "responses": ["a" * size for size in range(1, 9)]}], pairs_per_prompt=2)
        for seed in (1, 1, 2):
            assert desk.label(f"seed={seed}").exit_code == 0
            found.append(desk.rows())
    assert len(found[0]) == 2 and found[0] == found[1] != found[2] and len(judge.bodies) == 8


def test_what_the_endpoint_is_sent(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    (desk.folder / "rules.yaml").write_text(CONSTITUTION)
    with judging(in_character) as judge:
        desk.write(
            judge,
            [{"prompt": "q", "completion": "bad"}],
            judge={"headers": {"X-Org": " mine "}},
            reply_tokens=77,
            temperature=0.3,
        )
        assert desk.label("--constitution", str(desk.folder / "rules.yaml")).exit_code == 0
        assert [(body["max_tokens"], body["temperature"], body["model"]) for body in judge.bodies] == [
            (77, 0.3, "m")
        ] * 2
        assert judge.headers[0]["x-org"] == "mine" and "authorization" not in judge.headers[0]
        assert all("logprobs" not in body for body in judge.bodies)
        desk.write(judge, ROWS[:1], judge={"answer_tokens": 400})
        assert desk.label().exit_code == 0 and judge.bodies[-1]["max_tokens"] == 400
        monkeypatch.delenv("NO_SUCH_KEY", raising=False)
        refused = desk.label("labelling.judge.api_key_env=NO_SUCH_KEY")
    assert refused.exit_code == 2 and "the variable is not set; export it" in " ".join(refused.output.split())


def test_as_many_requests_at_a_time_as_said(desk: Desk) -> None:
    meet = threading.Barrier(4)

    def answer(number: int, body: dict[str, Any]) -> Reply:
        if number < 4:
            meet.wait(60)
        time.sleep(0.05)
        return chat(longer(body))

    with judging(answer) as judge:
        desk.write(judge, judge={"concurrency": 4})
        assert desk.label().exit_code == 0
    assert judge.most_at_a_time == 4


def test_the_completions_protocol(desk: Desk) -> None:
    """Log-probabilities by token, as servers of base models give them, and no counts of tokens."""

    def answer(number: int, body: dict[str, Any]) -> Reply:
        assert body["prompt"].endswith("Answer:") and body["logprobs"] == 5
        letter = longer(body)
        likely = {f" {letter}": -0.1, " I": -5.0}
        logprobs = {"tokens": [" ", f" {letter}"], "token_logprobs": [-1.0, -0.1], "top_logprobs": [None, likely]}
        return 200, {"choices": [{"text": f"  {letter}", "finish_reason": "stop", "logprobs": logprobs}]}

    with judging(answer) as judge:
        judge.url = judge.url.replace("/chat", "")
        desk.write(judge, judge={"top_logprobs": 5})
        result = desk.label()
    assert result.exit_code == 0, result.output
    assert [row["chosen_probability"] for row in desk.rows()] == [1.0] * 6
    assert desk.summary["spent"]["completion_tokens"] == 12 * 16, "what they may have been at most"


def test_rows_without_two_responses_are_counted_and_forms_are_kept(desk: Desk) -> None:
    user, long, short = (
        {"role": role, "content": text} for role, text in (("user", "q"), ("assistant", "long"), ("assistant", "s"))
    )
    rows = [
        {"prompt": "q", "responses": [" a", " a"]},
        {"prompt": [user], "responses": [[short], [long]]},
        {"prompt": "q", "responses": [" a", " bb", " ccc"]},
    ]
    with judging(in_letters) as judge:
        desk.write(judge, rows)
        result = desk.label()
    assert "1 left out: fewer than two different responses" in result.output
    first, *others = desk.rows()
    assert first == {"prompt": [user], "chosen": [long], "rejected": [short], "chosen_probability": 1.0}
    assert [(row["chosen"], row["rejected"]) for row in others] == [(" bb", " a"), (" ccc", " a"), (" ccc", " bb")]


def test_pairs_that_were_ranked_before_are_compared_afresh(desk: Desk) -> None:
    rows = [{"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: longer"}]
    with judging(in_letters) as judge:
        desk.write(judge, rows)
        assert desk.label().exit_code == 0
    row = {"prompt": "\n\nHuman: q\n\nAssistant:", "chosen": " longer", "rejected": " a", "chosen_probability": 1.0}
    assert desk.rows() == [row]


CONSTITUTION = "principles:\n  - critique: Is it rude?\n    revision: Make it kind.\n"


def in_character(number: int, body: dict[str, Any]) -> Reply:
    text = text_of(body)
    if "Revision request" in text:
        return chat("half a", finish="length") if "q2" in text else chat("kind" if "q1" not in text else "same")
    return chat("rude" if "Critique request" in text else "the judge's own")


def test_a_constitution_gives_demonstrations_and_pairs(desk: Desk) -> None:
    (desk.folder / "rules.yaml").write_text(CONSTITUTION)
    rows: list[dict[str, Any]] = [
        {"prompt": "q0", "completion": " bad"},
        {"prompt": "q1", "completion": "same"},
        {"prompt": "q2", "completion": "bad"},
    ]
    with judging(in_character) as judge:
        desk.write(judge, rows)
        result = desk.label("--constitution", str(desk.folder / "rules.yaml"))
        assert result.exit_code == 0, result.output
        assert desk.rows("demonstrations.jsonl") == [
            {"prompt": "q0", "completion": " kind"},
            {"prompt": "q1", "completion": "same"},
        ]
        assert desk.rows() == [{"prompt": "q0", "chosen": " kind", "rejected": " bad"}]
        assert desk.summary["unrevised"] == 1 and desk.summary["judge"] is None and len(judge.bodies) == 6
        assert "1 pair, 2 demonstrations" in result.output
        desk.write(judge, [{"prompt": "q0"}], constitution=str(desk.folder / "rules.yaml"))
        assert desk.label().exit_code == 0 and len(judge.bodies) == 9
    assert desk.rows() == [{"prompt": "q0", "chosen": "kind", "rejected": "the judge's own"}]


def test_a_judge_that_answers_itself_knows_the_tools_of_the_chat(desk: Desk) -> None:
    (desk.folder / "rules.yaml").write_text(CONSTITUTION)
    tools = [{"type": "function", "function": {"name": "draw"}}]
    with judging(in_character) as judge:
        rows = [{"prompt": [{"role": "user", "content": "q0"}], "tools": tools}]
        desk.write(judge, rows, constitution=str(desk.folder / "rules.yaml"))
        assert desk.label().exit_code == 0
    assert [body.get("tools") for body in judge.bodies] == [tools, None, None], "not those about its answer"
    assert [body.get("tool_choice") for body in judge.bodies] == ["none", None, None]
    assert [row["tools"] for row in (*desk.rows("demonstrations.jsonl"), *desk.rows())] == [tools] * 2


def test_a_revision_that_was_begun_goes_on(desk: Desk) -> None:
    """Killed between critique and revision: the critique is not paid for again."""
    (desk.folder / "rules.yaml").write_text(CONSTITUTION)
    with judging(in_character) as judge:
        desk.write(judge, [{"prompt": "q", "completion": "bad"}], constitution=str(desk.folder / "rules.yaml"))
        assert desk.label("labelling.budget.requests=1").exit_code == 1 and desk.rows("demonstrations.jsonl") == []
        assert desk.label("labelling.budget.requests=2").exit_code == 0
    assert len(judge.bodies) == 2 and desk.rows("demonstrations.jsonl") == [{"prompt": "q", "completion": "kind"}]


@pytest.mark.parametrize(("error", "code"), [(Terminated(), 143), (KeyboardInterrupt(), 130)])
def test_ended_by_the_user_it_says_how_to_go_on(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int
) -> None:
    kept = AnswerFile.add

    def add(file: AnswerFile, key: str, answer: JudgeAnswer) -> None:
        if file.spent.requests == 5:
            raise error
        kept(file, key, answer)

    with judging(in_letters) as judge:
        desk.write(judge, judge={"concurrency": 1})
        with monkeypatch.context() as patched:
            patched.setattr(AnswerFile, "add", add)
            result = desk.label()
        assert result.exit_code == code and "5 answers are kept in" in " ".join(result.output.split())
        assert "run the same command again" in " ".join(result.output.split())
        assert desk.label().exit_code == 0 and desk.summary["reused"] == 5 and len(desk.rows()) == 6


def test_killed_in_the_middle_it_goes_on_and_asks_nothing_twice(desk: Desk) -> None:
    rows = [{"prompt": f"q{n}", "responses": ["a" * (n + 1), "b" * (n + 3)]} for n in range(60)]
    killed = threading.Event()

    def answer(number: int, body: dict[str, Any]) -> Reply:
        if number < 60:
            time.sleep(0.01)
        else:  # a busy machine may be late with the kill
            killed.wait(200)
        return chat(longer(body))

    with judging(answer) as judge:
        desk.write(judge, rows, judge={"concurrency": 2})
        words = [sys.executable, "-m", "orchestrator", "label", str(desk.folder / "label.yaml")]
        with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            until = time.monotonic() + 100
            while len(judge.answered) < 20:
                assert time.monotonic() < until and process.poll() is None
                time.sleep(0.005)
            process.kill()
            process.wait()
        killed.set()
        kept = {answer["key"] for answer in desk.answers}
        desk.write(judge, rows, judge={"concurrency": 2, "headers": {"X-Run": "second"}})
        result = desk.label()
    assert result.exit_code == 0, result.output
    again = sum("x-run" in headers for headers in judge.headers)
    asked = len(judge.headers) - again
    assert 20 <= asked < 120 and asked - 2 <= len(kept) <= asked, "but for the requests that were under way"
    assert again == 120 - len(kept) and len(desk.rows()) == 60
    assert desk.summary["reused"] == len(kept) and desk.summary["spent"]["requests"] == 120
