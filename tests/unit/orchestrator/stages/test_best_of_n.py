"""The best of N: rows to learn from, and the KL of picking, beside distributions that can be counted out."""

from __future__ import annotations

import itertools
import json
import math
import random
from contextlib import nullcontext, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cluster.config import Deadlines
from cluster.errors import DeadlineExceeded, RankFailure
from configs.tiny.inputs import tokenizer
from orchestrator.config.data import RecordsConfig
from orchestrator.config.evaluation import EvaluationConfig
from orchestrator.config.recovery import RecoveryConfig
from orchestrator.config.serving import ServingConfig
from orchestrator.data.prompts import Questions
from orchestrator.data.record_values import BadRecord
from orchestrator.data.records import FORMATS, LEARNED_COLUMNS, RecordKind
from orchestrator.data.samples import read_samples
from orchestrator.errors import NotFinite
from orchestrator.groups import spread
from orchestrator.groups.recovery import Recovery
from orchestrator.groups.reward import Member, Reward
from orchestrator.stages import best_of_n
from orchestrator.stages.best_of_n import BestOfN, _scored, best_of_n_kl, best_rows, kl_bound, picked_rows, summary
from roles.batch import Rollouts
from roles.config.rewards import MeanScore
from tests.unit.orchestrator.fakes import prompts_of, rollouts_of
from tests.unit.orchestrator.groups.test_frozen_ranks import Group, death

USER, SAID = {"role": "user", "content": "p"}, {"role": "assistant", "content": " a"}


def exact_kl(probabilities: list[float], count: int) -> float:
    """KL of the best of `count` to the policy, by counting all samples; a later response has a higher score."""
    picked = [0.0] * len(probabilities)
    for sample in itertools.product(range(len(probabilities)), repeat=count):
        picked[max(sample)] += math.prod(probabilities[response] for response in sample)
    return sum(q * math.log(q / p) for q, p in zip(picked, probabilities, strict=True) if q)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_the_kl_of_one_sure_response_is_that_of_two_responses_counted_out(count: int) -> None:
    """The others' KL, of which each has next to no probability, is the limit of many equal ones."""
    p, others = 0.3, 6
    estimated = best_of_n_kl(math.log(p), count)
    coarse = exact_kl([(1 - p) / others] * others + [p], count) if count < 5 else 0.0
    assert coarse - 1e-12 <= estimated <= kl_bound(count) + 1e-12


def test_many_small_responses_and_a_likely_best_one_have_the_estimated_kl() -> None:
    p, count, others = 0.4, 4, 5000
    below = [index * (1 - p) / others for index in range(others + 1)]
    kl = sum(q * math.log(q * others / (1 - p)) for a, b in itertools.pairwise(below) if (q := b**count - a**count) > 0)
    best = 1 - (1 - p) ** count
    assert best_of_n_kl(math.log(p), count) == pytest.approx(kl + best * math.log(best / p), rel=1e-3)


@pytest.mark.parametrize("count", [2, 4, 64, 1000])
def test_the_kl_stays_under_its_bound_and_reaches_it_for_rare_responses(count: int) -> None:
    kls = [best_of_n_kl(logprob, count) for logprob in (-1e-9, -0.1, -1.0, -3.0, -10.0, -40.0, -2000.0)]
    assert all(0 <= kl <= kl_bound(count) + 1e-9 for kl in kls)
    assert kls[-1] == pytest.approx(math.log(count) - (count - 1) / count, rel=1e-9)
    assert kls[0] == pytest.approx(0.0, abs=1e-6) and best_of_n_kl(0.0, count) == 0.0


def test_the_best_of_each_prompt_is_picked() -> None:
    random.seed(0)
    scores = torch.tensor([0.0, 3.0, 1.0, 5.0, 4.0, -1.0])
    rollouts = rollouts_of(prompts_of(6), 0)
    rollouts.responses[:] = list("abcdef")
    tokens = rollouts.response_mask.sum(1)
    rollouts.rollout_logprobs[:] = (
        rollouts.response_mask * torch.tensor([9.0, 1, 9, 2, 9, 9])[:, None] / -tokens[:, None]
    )
    best = rollouts.select(best_rows(scores, 3))
    result = summary(best, scores, [0.5, 0.7], 3, samples=1)
    assert (result.prompts, result.responses, result.best_score.mean) == (2, 3, 4.0)
    assert result.score.mean == pytest.approx(scores.mean().item())
    assert result.kl.mean == pytest.approx((best_of_n_kl(-1.0, 3) + best_of_n_kl(-2.0, 3)) / 2)
    picked = result.picked
    assert picked.gold is not None and picked.gold.mean == pytest.approx(0.6) and picked.kl == result.kl
    assert (picked.proxy_values, picked.gold_values, picked.prompts) == ([3.0, 5.0], [0.5, 0.7], 2)
    assert [row.response for row in picked.samples] == ["b"]
    assert picked.length.mean == pytest.approx(tokens[[1, 3]].double().mean().item())
    assert not any("cut" in line for line in result.lines())
    best.finished[0] = False
    assert "of the best were cut    50.0%" in "".join(summary(best, scores, None, 3, samples=0).lines())


def test_a_row_is_a_demonstration_and_a_ranked_list() -> None:
    rollouts = rollouts_of(prompts_of(4), 0)
    rollouts.responses[:] = ["a", "b", "c", "d"]
    rollouts.columns["messages"] = [[{"role": "user", "content": "hi"}]] * 2 + [None] * 2
    first, second = picked_rows(rollouts, torch.tensor([1.0, 2.0, 4.0, 3.0]), 2)
    assert first == {
        "prompt": [{"role": "user", "content": "hi"}],
        "completion": "b",
        "score": 2.0,
        "responses": ["a", "b"],
        "scores": [1.0, 2.0],
    }
    assert (second["prompt"], second["completion"]) == ("p", "c")


def run_with(group: Any, recovery: Recovery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BestOfN:
    """Best of 2 with the judge `group`."""
    reward: Any = Reward({"reward": Member(Group("reward"))}, MeanScore())  # type: ignore[arg-type]
    policy = SimpleNamespace(generate=rollouts_of, recovery=recovery)
    questions = Questions(prompts_of(3).token_ids, ["p"] * 3, {}, "")
    monkeypatch.setattr(best_of_n, "policy_to_serve", lambda config: SimpleNamespace(actor=tmp_path))
    monkeypatch.setattr(best_of_n, "scored_policy", lambda *given: nullcontext((policy, reward, Member(group))))
    monkeypatch.setattr(best_of_n, "comparing", lambda config: None)
    monkeypatch.setattr(spread, "wait_all", lambda calls, deadline_s: [call.result(deadline_s) for call in calls])
    config: Any = SimpleNamespace(run_dir=str(tmp_path), seed=0, deadlines=Deadlines(), deciding_set="")
    config.serving, config.evaluation = ServingConfig(responses=2), EvaluationConfig()
    config.prompts = SimpleNamespace(tools=None)
    return best_of_n.best_of_n(config, questions, None)


def test_a_judge_that_dies_is_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All responses have been generated and scored by then."""
    group: Any = Group("judge", [death("judge")])
    result = run_with(group, Recovery(RecoveryConfig(), frozen={"judge": group}), tmp_path, monkeypatch)
    assert group.log == ["map", "restart [0, 1]", "map"] and result.picked.gold_values == [0.0, 1.0, 2.0]


def test_a_judge_that_stays_down_loses_no_response(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = tmp_path / "best-of-n.json"
    numbers.write_text("those of earlier rows")
    with pytest.raises(RankFailure, match="judge"):
        run_with(Group("judge", [death("judge")]), Recovery(), tmp_path, monkeypatch)
    rows = [json.loads(line) for line in (tmp_path / "best-of-n.jsonl").read_text().splitlines()]
    assert len(rows) == 3 and len(rows[0]["responses"]) == 2 and not numbers.exists()


def test_a_deadline_may_pass_in_each_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(best_of_n, "ROWS_AT_A_TIME", 1)
    recovery = Recovery(RecoveryConfig())
    late = DeadlineExceeded("score took too long")
    scores = torch.tensor([0.0])
    running = SimpleNamespace(spreads=[], result=lambda deadline_s: (scores, scores))

    def start(rollouts: Rollouts) -> Any:
        recovery.survive("frozen_failures_per_hour", late)
        return running

    reward: Any = SimpleNamespace(start=start)
    policy: Any = SimpleNamespace(generate=rollouts_of, recovery=recovery)
    config: Any = SimpleNamespace(serving=SimpleNamespace(responses=1), deadlines=Deadlines(), seed=1)
    questions = Questions(prompts_of(2).token_ids, ["p"] * 2, {}, "")
    assert len(list(_scored(config, questions, policy, reward))) == 2


@pytest.mark.parametrize("chat", [False, True])
def test_the_rows_are_demonstrations_of_the_best_response(tmp_path: Path, chat: bool) -> None:
    """Expert iteration: what `tetrarch sft` reads of them."""
    rollouts = rollouts_of(prompts_of(4), 0)
    rollouts.responses[:] = [" a", " b", " c", " d"]
    rollouts.columns["subject"] = ["river"] * 4
    if chat:
        rollouts.columns["messages"] = [[{"role": "user", "content": "p"}]] * 4
    rows = picked_rows(rollouts, torch.tensor([1.0, 2.0, 4.0, 3.0]), 2)
    (tmp_path / "best-of-n.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    read = read_samples(
        RecordsConfig(path=str(tmp_path / "best-of-n.jsonl")), "sft.data", "demonstrations", tokenizer()
    )
    texts, learned = [], []
    for (sample,) in read.groups:
        texts.append(tokenizer().decode(sample.token_ids))
        trained = [token for token, is_trained in zip(sample.token_ids, sample.trained, strict=True) if is_trained]
        learned.append(tokenizer().decode(trained))
    before = "<bos><user>p<assistant>" if chat else "p"
    assert texts == [f"{before} b<eos>", f"{before} c<eos>"] and learned == [" b<eos>", " c<eos>"]


OWN_COLUMNS: list[dict[str, Any]] = [
    {"chosen": " gold", "rejected": " bad", "chosen_probability": 0.9},
    {"instruction": "i", "input": "j", "output": " gold"},
    {"conversations": [{"from": "human", "value": "p"}, {"from": "gpt", "value": " gold"}]},
    {"text": "gold", "label": True, "ranks": [2, 1]},
]


@pytest.mark.parametrize("own", OWN_COLUMNS)
def test_what_the_data_set_says_of_its_own_responses_is_not_learned(tmp_path: Path, own: dict[str, Any]) -> None:
    rollouts = rollouts_of(prompts_of(2), 0)
    rollouts.responses[:] = [" a", " b"]
    rollouts.columns.update({name: [value] * 2 for name, value in {**own, "subject": "river"}.items()})
    rows = picked_rows(rollouts, torch.tensor([1.0, 2.0]), 2)
    assert list(rows[0]) == ["subject", "prompt", "completion", "score", "responses", "scores"]
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(rows[0]) + "\n")
    learned: list[tuple[RecordKind, list[str]]] = [
        ("preferences", ["p b<eos>", "p a<eos>"]),
        ("demonstrations", ["p b<eos>"]),
        ("candidates", ["p a<eos>", "p b<eos>"]),
    ]
    for kind, expected in learned:
        (group,) = read_samples(RecordsConfig(path=str(file)), "data", kind, tokenizer()).groups
        texts = [tokenizer().decode(sample.token_ids) for sample in group]
        assert sorted(texts) == sorted(expected)


class _Reads(dict[str, Any]):
    """A row that notes which columns are read."""

    def __init__(self, row: dict[str, Any], read: set[str]) -> None:
        super().__init__(row)
        self.read = read

    def __getitem__(self, name: str) -> Any:
        self.read.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.read.add(name)
        return super().get(name, default)


def test_every_column_that_a_format_reads_is_known_as_learned() -> None:
    whole = {key: value for own in OWN_COLUMNS for key, value in own.items()}
    row = {"prompt": "p", "completion": " a", "responses": [" a", " b"], "messages": [USER, SAID], **whole}
    read = set[str]()
    for form in FORMATS:
        for given in (row, {name: value for name, value in row.items() if name != "messages"}):
            noting: Any = _Reads(given, read)
            with suppress(KeyError, BadRecord):
                form.record(noting, False)
    assert read == LEARNED_COLUMNS


def test_a_score_that_is_not_finite_is_no_best_one() -> None:
    """Nothing is greater than NaN: the first response would be picked with it."""
    questions: Any = Questions([[5]], ["p"], {}, "")
    rollouts, scores = rollouts_of(prompts_of(2), 0), torch.tensor([math.nan, 1.0])
    running = SimpleNamespace(spreads=[], result=lambda deadline_s: (scores, scores))
    reward: Any = SimpleNamespace(start=lambda rollouts: running)
    policy: Any = SimpleNamespace(generate=lambda prompts, version: rollouts, recovery=Recovery())
    serving = SimpleNamespace(responses=2)
    config: Any = SimpleNamespace(serving=serving, deadlines=Deadlines(), seed=1)
    with pytest.raises(NotFinite, match="no response is the best"):
        list(_scored(config, questions, policy, reward))
    scores[0] = 0.0
    assert [found.tolist() for _, found in _scored(config, questions, policy, reward)] == [[0.0, 1.0]]
