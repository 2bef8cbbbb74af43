"""Rows that keepers keep reach every role as those of the driver do."""

from __future__ import annotations

import pickle
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import orchestrator.groups.spread
import orchestrator.ppo.kept_scoring
import orchestrator.ppo.step
from cluster.config import Deadlines
from cluster.ranks.watch import STARTED
from orchestrator.config.canary import CanaryConfig
from orchestrator.config.ppo import PpoConfig
from orchestrator.errors import NotFinite, WeightsDiffer
from orchestrator.groups.kept_rows import KeeperRows, keeper_rows
from orchestrator.groups.policy import Policy
from orchestrator.groups.reward import Member, Reward
from orchestrator.groups.scoring import Roles
from orchestrator.ppo.kept_batch import KeptBatch
from orchestrator.ppo.kl import FixedController
from orchestrator.ppo.row_shard import RowShard
from orchestrator.ppo.state import TrainState
from orchestrator.ppo.step import StepResult, step_metrics, train_step
from orchestrator.run.phase_clock import Clock
from orchestrator.stages.step_samples import told_samples
from roles.batch import Prompts, Rollouts, Sequences
from roles.config.models import WarmupConfig
from roles.config.rewards import MeanScore
from roles.config.rollout import RolloutConfig
from roles.reward_call import RowScores
from roles.rollout_facts import RolloutFacts
from roles.shares import RankShare
from tests.unit.orchestrator.fakes import ACTOR, CRITIC, Answers

EACH, PROMPTS = 2, 7
ROWS = EACH * PROMPTS
ENGINES = 3


def rollouts_of(prompts: Prompts, version: int) -> Rollouts:
    """Of each row a response whose length and numbers follow from its seed."""
    sizes = [len(ids) + 1 + seed % 5 for ids, seed in zip(prompts.token_ids, prompts.seeds, strict=True)]  # type: ignore[operator]
    width, begin = max(sizes), torch.tensor([len(ids) for ids in prompts.token_ids])
    columns, lengths = torch.arange(width), torch.tensor(sizes)
    mask = (columns >= begin[:, None]) & (columns < lengths[:, None])
    seeds = torch.tensor([float(seed) for seed in prompts.seeds])  # type: ignore[arg-type]
    tokens = torch.zeros(len(sizes), width, dtype=torch.int64)
    for row, ids in enumerate(prompts.token_ids):
        tokens[row, : len(ids)] = torch.tensor(ids)
    tokens = torch.where(mask, 3 + (columns * 7 + seeds[:, None].long()) % 11, tokens)
    return Rollouts(
        token_ids=tokens,
        lengths=lengths,
        response_mask=mask,
        rollout_logprobs=-torch.where(mask, 0.1 + 0.01 * tokens, 0.0),
        turn_rewards=torch.zeros(mask.shape),
        finished=torch.tensor([seed % 3 > 0 for seed in prompts.seeds]),  # type: ignore[operator]
        versions=torch.full((len(sizes),), version),
        prompts=list(prompts.texts),
        responses=[f"r{seed}" for seed in prompts.seeds],
        columns=prompts.columns,
        counted=[{} for _ in sizes],
    )


FACTORS = {"logprobs": -0.0101, "reference_logprobs": -0.012, "values": 0.03, "canary_logprobs": -0.0101}


@dataclass
class Ranks:
    """Ranks whose answers follow from the rows that they are given; of the role `keeper`, real shards."""

    role: str
    size: int
    wrong: float = 0.0
    """Added to what the actor and the critic say."""
    learned: list[RankShare[Any]] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    scored: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.shards = [RowShard() for _ in range(self.size)]

    def __len__(self) -> int:
        return self.size

    @property
    def ranks(self) -> list[str]:
        return [f"{self.role}-{rank}" for rank in range(self.size)]

    def check_alive(self, numbers: Any) -> None: ...

    def map(self, method: Any, shards: list[Any], *common: Any) -> Answers:
        return self.map_each(method, [(shard, *common) for shard in shards])

    def map_each(self, method: Any, arguments: list[tuple[Any, ...]]) -> Answers:
        self.asked.append(method.__name__)
        sent = [pickle.loads(pickle.dumps(own)) for own in arguments]
        if self.role == "keeper":
            made = [method(shard, *own) for shard, own in zip(self.shards, sent, strict=True)]
            return Referenced(pickle.loads(pickle.dumps(made)))
        return Referenced([self._answer(method.__name__, *own) for own in sent])

    def scatter(self, number: int, method: Any, count: int, *arguments: Any) -> tuple[Any, list[Any]]:
        made = method(self.shards[number], *pickle.loads(pickle.dumps(arguments)))
        assert len(made) == count
        return f"{self.role}-{number}.{method.__name__}", made

    def call(self, method: Any, *arguments: Any) -> Answers:
        self.asked.append(method.__name__)
        return Referenced([None] * self.size)

    def streaming(self, deadline_s: float) -> Stream:
        return Stream()

    def _answer(self, method: str, first: Any, *others: Any) -> Any:
        if method == "update":
            self.learned.append(first)
            return CRITIC if self.role == "critic" else ACTOR
        if method == "update_from":
            rows = others if self.role == "critic" else others[2:]
            self.learned.append(
                RankShare(type(rows[0]).concatenate(rows), first, None if self.role == "critic" else others[0])
            )
            return CRITIC if self.role == "critic" else ACTOR
        self.scored.append(first)
        if method == "row_scores":
            scores = torch.tensor([float(len(text) + ord(text[-1]) % 4) for text in first.responses])
            return RowScores(scores, [{"polite": score / 2} for score in scores.tolist()])
        if method == "score":
            return first.token_ids.sum(1).float() / 10
        numbers = first.token_ids[first.response_mask].float()
        return FACTORS[method] * numbers - 0.1 + self.wrong


@dataclass
class Referenced(Answers):
    """Values that stand for references to themselves."""

    @property
    def refs(self) -> list[Any]:
        return self.values

    def of_ranks(self, numbers: Any) -> Referenced:
        return Referenced([self.values[number] for number in numbers])


@dataclass
class Stream:
    calls: list[tuple[Any, Iterator[Any]]] = field(default_factory=list)

    def begin(self, key: Any, number: int, method: Any, shard: Any, version: int, *, pairs: bool = False) -> None:
        self.calls.append((key, parts(shard, version, pairs)))

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> tuple[Any, Any]:
        while self.calls:
            key, items = self.calls.pop(0)  # in turns: a keeper's parts come in any order
            for item in items:
                self.calls.append((key, items))
                return key, item
        raise StopIteration


def parts(prompts: Prompts, version: int, pairs: bool) -> Iterator[Any]:
    """Two rows at a time."""
    for first in range(0, len(prompts), 2):
        made = rollouts_of(prompts.select(range(first, min(first + 2, len(prompts)))), version)
        yield ((first, RolloutFacts.of(made)), made) if pairs else (first, made)


def prompts_of() -> Prompts:
    ids = [[5 + prompt] * (1 + prompt % 3) for prompt in range(PROMPTS) for _ in range(EACH)]
    texts = [f"prompt {row // EACH}" for row in range(ROWS)]
    return Prompts(ids, texts, {"answer": texts}, [row * 13 % 17 for row in range(ROWS)], [0] * ROWS)


@pytest.fixture(autouse=True)
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (orchestrator.ppo.step, orchestrator.groups.spread):
        monkeypatch.setattr(module, "wait_all", lambda calls, deadline_s: None)


def step(
    keepers: int,
    *,
    change: Callable[[dict[str, Ranks]], None] = lambda ranks: None,
    recomputes: bool = True,
    environment: bool = False,
    **ppo: Any,
) -> tuple[StepResult, dict[str, Ranks]]:
    """A step in which all rows are scored in one part, or in one of each keeper."""
    groups = {"actor": Ranks("actor", 2), "critic": Ranks("critic", 3), "reference": Ranks("reference", 2)}
    groups |= {"reward.model": Ranks("reward.model", 3), "reward.code": Ranks("reward.code", 2)}
    change(groups)
    members = {
        "reward.model": Member(groups["reward.model"], Sequences.of),  # type: ignore[arg-type]
        "reward.code": Member(groups["reward.code"], names=True),  # type: ignore[arg-type]
    }
    algorithm = PpoConfig.model_validate({"epochs": 2, "mini_batches": 2, "whiten_advantages": True, **ppo})
    roles: Any = Roles(
        cluster=SimpleNamespace(),  # type: ignore[arg-type]
        policy=Policy(Ranks("rollout", ENGINES), Deadlines(), environment=environment, stream_samples=2),  # type: ignore[arg-type]
        reward=Reward(members, MeanScore()),
        reference=groups["reference"],  # type: ignore[arg-type]
        judge=None,
        deadlines=Deadlines(),
        actor=groups["actor"],  # type: ignore[arg-type]
        critic=groups["critic"] if algorithm.uses_critic else None,  # type: ignore[arg-type]
        recomputes=recomputes,
        keepers=Ranks("keeper", keepers) if keepers else None,  # type: ignore[arg-type]
    )
    config: Any = SimpleNamespace(
        ppo=algorithm,
        deadlines=Deadlines(),
        seed=0,
        dtype="float32",
        rollout=RolloutConfig(prompts_per_step=PROMPTS, responses_per_prompt=EACH, max_response_tokens=5),
        critic=SimpleNamespace(warmup=WarmupConfig()),
        critic_alone=lambda step, warm_at: False,
        canary=CanaryConfig(limit=0.9),
        environment=None,
        report=SimpleNamespace(samples=None),
        steps=3,
    )
    state = TrainState(SimpleNamespace(drawn=list(range(PROMPTS))), FixedController(0.1))  # type: ignore[arg-type]
    result = train_step(roles, prompts_of(), state, config, Clock(lambda phase: None), lambda scored: None)
    groups["line"], groups["untrained"] = (  # type: ignore[assignment]
        told_samples(config, 1, one)[0] for one in (result, replace(result, trained=set()))
    )
    return result, groups


KEYS: list[dict[str, Any]] = [
    {},
    {"truncated": {"type": "mask"}, "advantage": {"type": "grpo"}},
    {"truncated": {"type": "bootstrap"}, "whiten_rewards": True, "score": {"normalise": True}},
    {"mini_batches": 1, "epochs": 1, "value": {"normalise": True}},
]


@pytest.mark.parametrize("keys", KEYS, ids=str)
@pytest.mark.parametrize("few", [False, True], ids=["all ranks for each keeper", "each keeper has ranks"])
@pytest.mark.parametrize("keepers", [1, 2, 3])
def test_ranks_learn_from_the_same_rows_in_the_same_steps(
    keepers: int, few: bool, keys: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orchestrator.ppo.kept_scoring, "ROWS_OF_A_RANK", 4 if few else 1)
    plain, ranks = step(0, **keys)
    result, theirs = step(keepers, **keys)
    assert isinstance(result.batch, KeptBatch) and result.trained == plain.trained
    assert step_metrics(result) == pytest.approx(step_metrics(plain), rel=1e-6)
    assert theirs["line"] == ranks["line"]
    assert result.batch.some([9, 2]).rollouts.responses == plain.own.some([9, 2]).rollouts.responses
    for role in ("actor", "critic") if plain.critic else ("actor",):
        own_ranks = few and 1 < keepers <= len(ranks[role])
        assert theirs[role].asked.count("logprobs" if role == "actor" else "values") == (1 if own_ranks else keepers)
        mine, wanted = learned(theirs[role].learned), learned(ranks[role].learned)
        assert [list(step) for step in mine] == [list(step) for step in wanted], "the same rows in each optimizer step"
        assert own_ranks or [share.steps for share in theirs[role].learned] == [
            share.steps for share in ranks[role].learned
        ]
        for of_step, theirs_of_step in zip(wanted, mine, strict=True):
            for row, numbers in of_step.items():
                for name, values in numbers.items():
                    found = theirs_of_step[row][name]
                    assert found == values if keepers == 1 else found == pytest.approx(values, rel=1e-5, abs=1e-6), name


def learned(shares: list[RankShare[Any]]) -> list[dict[int, dict[str, list[float]]]]:
    """Of each optimizer step, of each row of the batch that some rank learns from in it, all that it is told."""
    found: list[dict[int, dict[str, list[float]]]] = [{} for _ in shares[0].steps]
    for share in shares:
        rows, lengths = share.experience.rows.tolist(), share.experience.lengths.tolist()
        for told, places in zip(found, share.steps, strict=True):
            for place in places:
                assert rows[place] not in told
                told[rows[place]] = {
                    f.name: getattr(share.experience, f.name)[place][: lengths[place]].tolist()
                    for f in fields(share.experience)
                    if getattr(share.experience, f.name).dim() == 2
                }
    return [dict(sorted(told.items())) for told in found]


def test_every_rank_has_a_row_in_each_step_though_its_keeper_has_too_few() -> None:
    def more(ranks: dict[str, Ranks]) -> None:
        ranks["actor"].size = 5

    plain, ranks = step(0, change=more)
    result, theirs = step(2, change=more)  # 4 and 10 rows, for 2 and 3 ranks, in two mini-batches
    assert result.trained == plain.trained == set(range(ROWS))
    assert all(step for share in theirs["actor"].learned for step in share.steps)
    assert [list(step) for step in learned(theirs["actor"].learned)] == [
        list(step) for step in learned(ranks["actor"].learned)
    ]


@pytest.mark.parametrize("keepers", [0, 2])
def test_what_was_said_in_a_conversation_reaches_the_reward(keepers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment's engines answer with texts and columns of their own."""

    def talked(prompts: Prompts, version: int) -> Rollouts:
        made = plain(prompts, version)
        said = [f"talk of {text}" for text in prompts.texts]
        return replace(made, prompts=said, columns={**made.columns, "messages": said})

    plain = rollouts_of
    monkeypatch.setitem(globals(), "rollouts_of", talked)
    _, ranks = step(keepers, environment=True)
    scored = ranks["reward.code"].scored
    told = [f"talk of {text}" for text in prompts_of().texts]
    assert sorted(text for rows in scored for text in rows.prompts) == sorted(told)
    assert all(rows.columns["messages"] == rows.prompts for rows in scored)


@pytest.mark.parametrize(("truncated", "cut"), [({"type": "mask"}, {"truncated": 5}), ({"type": "score"}, {})])
def test_a_row_that_was_not_trained_on_has_no_reason_but_its_own(
    truncated: dict[str, str], cut: dict[str, int]
) -> None:
    """So that the check of the ledger tells of a row that was lost."""
    for keepers in (0, 2):
        line = step(keepers, truncated=truncated)[1]["untrained"]
        assert (line.trained, line.dropped) == (0, cut)


def test_rows_go_once_to_ranks_that_score_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    whole = RowShard.take

    def take(shard: RowShard, *given: Any) -> list[Any]:
        made = whole(shard, *given)
        taken.append(len(made))
        return made

    monkeypatch.setattr(RowShard, "take", take)
    monkeypatch.setattr(orchestrator.ppo.kept_scoring, "ROWS_OF_A_RANK", 1)
    _, ranks = step(2)
    # two ranks of actor and reference share two batches, three of critic and reward model three; texts go to two more
    assert taken == [2 + 3 + 2] * 2
    texts = [rows.prompts for rows in ranks["reward.code"].scored]
    assert sorted(text for rows in texts for text in rows) == sorted(prompts_of().texts)
    assert all(rows.columns["answer"] == rows.prompts for rows in ranks["reward.code"].scored)


def test_keepers_that_are_late_are_waited_for_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the ranks that wait for their rows alone, frozen ranks would be blamed, and started again."""
    waited: list[Any] = []
    monkeypatch.setattr(orchestrator.groups.spread, "wait_all", lambda calls, deadline_s: waited.extend(calls))
    step(2)
    assert {call for call in waited if isinstance(call, str)} == {"keeper-0.take", "keeper-1.take"}


def test_a_keeper_that_dies_before_the_ranks_have_their_rows_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """While actor and critic learn, the deaths of others are not looked at."""
    waited: list[Any] = []
    monkeypatch.setattr(orchestrator.ppo.step, "wait_all", lambda calls, deadline_s: waited.append([*calls]))

    @contextmanager
    def only(ranks: Any) -> Iterator[None]:
        waited.append("only those that learn")
        yield

    monkeypatch.setattr(STARTED, "only", only)
    step(2)
    assert waited[:2] == [["keeper-0.share", "keeper-1.share"], "only those that learn"]


def test_a_keeper_keeps_no_row_twice() -> None:
    result, _ = step(2)
    assert isinstance(result.batch, KeptBatch)
    shards: list[RowShard] = result.batch.keepers.shards  # type: ignore[attr-defined]
    assert not any(hasattr(shard, "experience") for shard in shards), "the ranks have been sent it"
    before = [weakref.ref(shard._scored.values) for shard in shards]
    for shard in shards:
        shard.take(0, None, [], rollouts_of(prompts_of(), 1))
    assert [row() for row in before] == [None, None], "of the step before"


def test_a_number_that_is_not_finite_ends_the_run_with_its_row() -> None:
    def broken(ranks: dict[str, Ranks]) -> None:
        ranks["critic"].wrong = torch.nan

    with pytest.raises(
        NotFinite, match=r"the critic's values are not finite in rows \[0, 1, 2, 3\] of the batch \(4 of 4; the first"
    ):
        step(2, change=broken)


@pytest.mark.parametrize("recomputes", [True, False])
def test_engines_with_other_weights_are_noticed(recomputes: bool) -> None:
    def other(ranks: dict[str, Ranks]) -> None:
        ranks["actor"].wrong = -2.0

    with pytest.raises(WeightsDiffer, match="the engines do not sample from the trainer's weights"):
        step(2, change=other, recomputes=recomputes)
    result, ranks = step(2, recomputes=recomputes)
    assert ("canary_logprobs" in ranks["actor"].asked) != recomputes
    assert (result.stats.logprob_gap_mean or 0) > 0


def test_each_keeper_has_whole_prompts_for_its_engines() -> None:
    assert keeper_rows(4, 2, engines=2, keepers=2) == [
        KeeperRows(range(0, 4), [range(0, 4)]),
        KeeperRows(range(4, 8), [range(4, 8)]),
    ]
    for prompts, engines, keepers in ((7, 3, 2), (64, 24, 5), (9, 9, 9), (1000, 7, 1)):
        made = keeper_rows(prompts, 3, engines=engines, keepers=keepers)
        assert [row for own in made for row in own.rows] == list(range(3 * prompts))
        assert [row for own in made for part in own.engines for row in part] == list(range(3 * prompts))
        assert all(own.rows.start % 3 == 0 and len(own.rows) for own in made)
        sizes = [len(part) for own in made for part in own.engines]
        assert len(sizes) == engines and max(sizes) - min(sizes) <= 3
