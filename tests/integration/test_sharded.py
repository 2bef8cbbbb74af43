"""DeepSpeed engines and the roles on them in one and two real processes, against plain torch in this one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from roles.config.losses import PolicyLossConfig, ValueLossConfig
from roles.config.models import LoraConfig, ScheduleConfig, ZeroConfig
from roles.config.preference_losses import PreferenceLossConfig
from roles.critic import load_critic
from roles.durable import hash_of
from roles.models.lora import adapt, adapted_layers, is_adapter, merged, plain_name
from roles.zero.model_folder import open_state, write_state_as_folder
from roles.zero.optimizer import rate_factor
from roles.zero.policy_loading import load_policy
from tests.integration import sharded_cases as cases
from tests.integration.ranks import Ranks
from tests.integration.tiny_model import save_tiny_llama


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    policy = save_tiny_llama(root / "policy", tie=False)
    tied = save_tiny_llama(root / "tied", tie=True)
    torch.manual_seed(3)
    reward = AutoModelForSequenceClassification.from_pretrained(policy, num_labels=1)
    reward.config.score_shift = 0.25
    reward.save_pretrained(root / "reward")
    AutoTokenizer.from_pretrained(policy).save_pretrained(root / "reward")
    return {"policy": policy, "tied": tied, "reward": root / "reward"}


@pytest.fixture(scope="module")
def groups(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, Ranks]]:
    os.environ["TORCH_EXTENSIONS_DIR"] = str(tmp_path_factory.mktemp("extensions") / "none")
    ranks = {1: Ranks(1), 2: Ranks(2)}
    yield ranks
    for group in ranks.values():
        group.close()
    del os.environ["TORCH_EXTENSIONS_DIR"]


@pytest.fixture(scope="module")
def four() -> Iterator[Ranks]:
    """Four ranks; for one test, since they take long to start."""
    ranks = Ranks(4)
    yield ranks
    ranks.close()


def same_files(folder: Path, other: Path) -> bool:
    """Whether both hold the same files, and at least weights."""
    contents = [{file.name: file.read_bytes() for file in one.iterdir()} for one in (folder, other)]
    return contents[0] == contents[1] and "model.safetensors" in contents[0]


def relative_error(a: dict[str, Any], b: dict[str, Any]) -> float:
    """Of all tensors together: ‖a - b‖ / ‖b‖."""
    apart = sum(float((a[name] - b[name]).double().square().sum()) for name in b)
    return float((apart / sum(float(tensor.double().square().sum()) for tensor in b.values())) ** 0.5)


def largest_difference(a: dict[str, Any], b: dict[str, Any]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


BATCHES = [cases.experience_of(7, seed) for seed in (0, 10, 20)]
STAGES = [3, 2, 1, 0]


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("tokens", [1, 40, 10_000])
def test_gradient_is_plain_torch_s_for_any_micro_batch_and_ranks(
    groups: dict[int, Ranks], folders: dict[str, Path], ranks: int, tokens: int
) -> None:
    config = PolicyLossConfig(entropy_coefficient=0.01)
    model = AutoModelForCausalLM.from_pretrained(folders["policy"])
    losses = [lambda m, b=b: cases.plain_policy_loss(m, b, config) for b in BATCHES]
    plain = cases.plain_training(model, losses)
    setup = cases.setup_of(folders["policy"], micro_batch_tokens=tokens)
    answers = groups[ranks].call(cases.update_actor, setup, config, BATCHES)
    for answer in answers:
        assert largest_difference(answer["gradients"][0], plain["gradients"][0]) < 1e-6
        assert largest_difference(answer["weights"], plain["weights"]) < 2e-5
        assert answer["stats"].gradient_norm == pytest.approx(sum(plain["norms"]) / 3, rel=1e-4)
    assert answers[0]["stats"] == answers[-1]["stats"]


TEXTS = [cases.experience_of(rows, seed) for rows, seed in ((4, 3), (2, 13), (6, 23))]


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("tokens", [1, 40, 10_000])
def test_the_gradient_with_a_pre_training_loss_is_plain_torch_s_for_any_micro_batch_and_ranks(
    groups: dict[int, Ranks], folders: dict[str, Path], ranks: int, tokens: int
) -> None:
    """Also where a rank has no text: -E log π of their tokens, at temperature 1, beside the loss of the responses."""
    config, coefficient = PolicyLossConfig(), 3.0
    model = AutoModelForCausalLM.from_pretrained(folders["policy"])

    def loss(model: Any, batch: Any, text: Any) -> Any:
        return cases.plain_policy_loss(model, batch, config) + coefficient * cases.plain_cross_entropy(model, text)

    losses = [lambda m, b=b, t=t: loss(m, b, t) for b, t in zip(BATCHES, TEXTS, strict=True)]
    plain = cases.plain_training(model, losses)
    setup = cases.setup_of(folders["policy"], micro_batch_tokens=tokens)
    answers = groups[ranks].call(cases.update_with_pretraining, setup, config, BATCHES, TEXTS, coefficient)
    for answer in answers:
        assert largest_difference(answer["gradients"][0], plain["gradients"][0]) < 3e-6
        assert largest_difference(answer["weights"], plain["weights"]) < 2e-5
        assert answer["stats"].gradient_norm == pytest.approx(sum(plain["norms"]) / 3, rel=1e-4)
        assert answer["stats"].ptx.tokens == sum(int(text.response_mask.sum()) for text in TEXTS)
    assert answers[0]["stats"] == answers[-1]["stats"]


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("tokens", [1, 40, 10_000])
def test_the_gradient_of_demonstrations_is_plain_torch_s_for_any_micro_batch_and_ranks(
    groups: dict[int, Ranks], folders: dict[str, Path], ranks: int, tokens: int
) -> None:
    model = AutoModelForCausalLM.from_pretrained(folders["policy"])
    first = float(cases.plain_cross_entropy(model, BATCHES[0]).detach())
    plain = cases.plain_training(model, [lambda m, b=b: cases.plain_cross_entropy(m, b) for b in BATCHES])
    setup = cases.setup_of(folders["policy"], micro_batch_tokens=tokens)
    answers = groups[ranks].call(cases.update_supervised, setup, BATCHES)
    for answer in answers:
        assert largest_difference(answer["gradients"][0], plain["gradients"][0]) < 1e-6
        assert largest_difference(answer["weights"], plain["weights"]) < 2e-5
        assert answer["stats"].gradient_norm == pytest.approx(sum(plain["norms"]) / 3, rel=1e-4)
        assert answer["stats"].tokens == sum(int(batch.response_mask.sum()) for batch in BATCHES)
    total = sum(float(answer["losses"].sum()) for answer in answers)
    assert total / int(BATCHES[0].response_mask.sum()) == pytest.approx(first, rel=1e-5)


@pytest.mark.parametrize(
    ("loss", "ranks", "tokens"),
    [
        ({"type": "sigmoid"}, 1, 1),
        ({"type": "sigmoid"}, 1, 10_000),
        ({"type": "sigmoid", "label_smoothing": 0.1}, 2, 90),
        ({"type": "robust"}, 2, 90),
        ({"type": "ipo"}, 2, 90),
        ({"type": "hinge"}, 2, 90),
        ({"type": "simpo"}, 2, 90),
        ({"type": "orpo"}, 2, 90),
        ({"type": "kto"}, 1, 1),
        ({"type": "kto"}, 2, 90),
    ],
)
def test_the_gradient_of_preferences_is_plain_torch_s_for_any_micro_batch_and_ranks(
    groups: dict[int, Ranks], folders: dict[str, Path], loss: dict[str, Any], ranks: int, tokens: int
) -> None:
    config: Any = TypeAdapter(PreferenceLossConfig).validate_python(loss)
    batches = [cases.preferences_of(seed, loss["type"] == "kto") for seed in (0, 10)]
    model = AutoModelForCausalLM.from_pretrained(folders["policy"])
    first = float(cases.plain_preference_loss(model, batches[0], config).detach())
    plain = cases.plain_training(model, [lambda m, b=b: cases.plain_preference_loss(m, b, config) for b in batches])
    setup = cases.setup_of(folders["policy"], micro_batch_tokens=tokens)
    answers = groups[ranks].call(cases.update_preferences, setup, config, batches)
    scale = max(1.0, *(float(gradient.abs().max()) for gradient in plain["gradients"][0].values()))  # IPO's is squared
    for answer in answers:
        assert largest_difference(answer["gradients"][0], plain["gradients"][0]) < 1e-6 * scale
        assert largest_difference(answer["weights"], plain["weights"]) < 2e-5
        assert answer["stats"][0].numbers.loss == pytest.approx(first, rel=1e-5)
        assert [step.gradient_norm for step in answer["stats"]] == pytest.approx(plain["norms"], rel=1e-4)
    assert answers[0]["stats"] == answers[-1]["stats"]


SIZES = {"1 row": 1, "2 rows": 2, "4 rows": 4, "8 rows": 8, "a budget of tokens": 2.5}
"""Rows of one length, so that a budget of so many of them is a micro-batch of so many rows."""


@pytest.mark.parametrize("kind", ["actor", "critic"])
def test_an_update_depends_on_neither_micro_batches_nor_ranks(
    groups: dict[int, Ranks], four: Ranks, folders: dict[str, Path], kind: str
) -> None:
    """Against the gradient of the whole batch at once, padded, in plain transformers; before clipping, so that a wrong
    scale shows."""
    batch, length = cases.long_experience(16), cases.EQUAL_LENGTH
    name = "policy" if kind == "actor" else "reward"
    update, loss = (
        (cases.update_actor, PolicyLossConfig())
        if kind == "actor"
        else (cases.update_critic, ValueLossConfig(coefficient=1.0))
    )

    def gradient(group: Ranks, **changes: Any) -> dict[str, Any]:
        setup = cases.setup_of(folders[name], **{"micro_batch_tokens": 3 * length, **changes})
        found: dict[str, Any] = group.call(update, setup, loss, [batch])[0]["gradients"][0]
        return found

    found = {label: gradient(groups[2], micro_batch_tokens=int(rows * length)) for label, rows in SIZES.items()}
    found |= {f"{group.size} ranks": gradient(group) for group in (groups[1], groups[2], four)}
    found |= {f"stage {stage}": gradient(groups[2], zero=ZeroConfig(stage=stage)) for stage in (1, 2)}  # type: ignore[arg-type]
    found["checkpointing"] = gradient(groups[2], gradient_checkpointing=True)
    expected = cases.padded_gradient(folders[name], batch, kind)
    errors = {label: relative_error(one, expected) for label, one in found.items()}
    assert max(errors.values()) < 1e-4, errors


def test_micro_batches_of_ever_new_lengths_do_not_fill_the_host(
    groups: dict[int, Ranks], folders: dict[str, Path]
) -> None:
    """Each length has kernels of its own, of which the libraries alone would keep two thousand, 0.3 to 0.6 MiB each."""
    setup = cases.setup_of(folders["policy"], dtype="bfloat16", micro_batch_tokens=10_000)
    (grown,) = groups[1].call(cases.grown_over_many_lengths, setup, 20, 60)
    assert grown < 150


@pytest.mark.parametrize("stage", [3, 0])
def test_a_slower_rate_holds_for_the_rest_of_the_schedule_and_after_a_resume(
    groups: dict[int, Ranks], folders: dict[str, Path], tmp_path: Path, stage: Any
) -> None:
    setup = cases.setup_of(folders["policy"], zero=ZeroConfig(stage=stage))
    first, slow, resumed = groups[2].call(cases.slowed_down, setup, BATCHES[0], str(tmp_path))[0]
    done = [rate_factor(setup.optimizer.schedule, step, setup.optimizer_steps) for step in range(3)]
    assert slow / first == pytest.approx(done[1] / done[0] / 4)
    assert resumed / first == pytest.approx(done[2] / done[0] / 4)


@pytest.mark.parametrize("stage", [3, 1, 0])
def test_a_resumed_actor_has_the_new_learning_rate_and_schedule(
    groups: dict[int, Ranks], folders: dict[str, Path], tmp_path: Path, stage: Any
) -> None:
    """Times the quarter that it has been slowed down to; with weight decay there are two groups of parameters."""
    linear = {"schedule": ScheduleConfig(type="linear"), "weight_decay": 0.1}
    setup = cases.setup_of(folders["policy"], zero=ZeroConfig(stage=stage))
    setup = replace(setup, optimizer=cases.OPTIMIZER.model_copy(update={"weight_decay": 0.1}))
    faster = cases.OPTIMIZER.model_copy(update={**linear, "learning_rate": 3e-3})
    changed = replace(setup, optimizer=faster, optimizer_steps=10)
    rates = groups[1].call(cases.resumed_with, setup, changed, BATCHES[0], str(tmp_path))[0]
    assert rates == pytest.approx([1e-3, 3e-3 / 4 * (1 - 1 / 10), 3e-3 / 4 * (1 - 2 / 10)])


def test_the_schedule_ends_where_it_is_told_to(groups: dict[int, Ranks], folders: dict[str, Path]) -> None:
    optimizer = cases.OPTIMIZER.model_copy(update={"schedule": ScheduleConfig(type="linear")})
    setup = cases.setup_of(folders["policy"], optimizer=optimizer, optimizer_steps=100)
    rates = groups[1].call(cases.expected_end, setup, BATCHES[0])[0]
    assert rates == pytest.approx([1e-3, 1e-3 * (1 - 1 / 100), 1e-3 * (1 - 2 / 3)])


@pytest.mark.parametrize("stage", [3, 0])
def test_the_mean_of_the_weights_follows_them_and_survives_a_resume(
    groups: dict[int, Ranks], folders: dict[str, Path], tmp_path: Path, stage: Any
) -> None:
    setup = cases.setup_of(folders["tied"], zero=ZeroConfig(stage=stage), ema_decay=0.5)
    answer = groups[2].call(cases.averaged, setup, BATCHES, str(tmp_path))[0]
    first, *others = answer["weights"]
    mean = first
    for weights in others:
        mean = {name: 0.5 * mean[name] + 0.5 * weights[name] for name in mean}
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "mean")
    assert largest_difference({"model." + name: p.detach() for name, p in saved.named_parameters()}, mean) < 1e-6
    assert largest_difference(answer["unmoved"], others[-1]) == 0
    assert largest_difference(mean, others[-1]) > 1e-4


@pytest.mark.parametrize(("kind", "estimator"), [("gspo", "k2"), ("cispo", "k3")])
def test_other_losses_with_a_kl_in_them_are_plain_torch_s_too(
    groups: dict[int, Ranks], folders: dict[str, Path], kind: Any, estimator: str
) -> None:
    config, extra = PolicyLossConfig(type=kind, clip=0.1, mean="constant"), (9, estimator, 0.3)
    model = AutoModelForCausalLM.from_pretrained(folders["policy"])
    losses = [lambda m, b=b: cases.plain_loss_with_kl(m, b, config, extra) for b in BATCHES]
    plain = cases.plain_training(model, losses)
    setup = cases.setup_of(folders["policy"], micro_batch_tokens=40)
    answer = groups[2].call(cases.update_actor, setup, config, BATCHES, extra)[0]
    assert largest_difference(answer["gradients"][0], plain["gradients"][0]) < 5e-6
    assert largest_difference(answer["weights"], plain["weights"]) < 2e-5


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_stage_trains_alike(
    groups: dict[int, Ranks], folders: dict[str, Path], stage: Any, checkpointing: bool
) -> None:
    config = PolicyLossConfig(mean="sequence")
    model = AutoModelForCausalLM.from_pretrained(folders["tied"])
    plain = cases.plain_training(model, [lambda m, b=b: cases.plain_policy_loss(m, b, config) for b in BATCHES])
    setup = cases.setup_of(
        folders["tied"], zero=ZeroConfig(stage=stage), micro_batch_tokens=30, gradient_checkpointing=checkpointing
    )
    answer = groups[2].call(cases.update_actor, setup, config, BATCHES)[0]
    assert largest_difference(answer["gradients"][0], plain["gradients"][0]) < 1e-6
    assert largest_difference(answer["weights"], plain["weights"]) < 2e-5
    assert answer["stats"].gradient_norm == pytest.approx(sum(plain["norms"]) / 3, rel=1e-4)


def test_loading_in_shards_gives_the_same_model(groups: dict[int, Ranks], folders: dict[str, Path]) -> None:
    """As on GPUs, where transformers shards each weight as it loads it."""
    for name in ("policy", "tied"):
        setup = cases.setup_of(folders[name])
        plain = groups[2].call(cases.update_actor, setup, PolicyLossConfig(), BATCHES)[0]
        sharded = groups[2].call(cases.update_actor_loaded_in_shards, setup, PolicyLossConfig(), BATCHES)[0]
        assert largest_difference(sharded["gradients"][0], plain["gradients"][0]) < 1e-7
        assert largest_difference(sharded["weights"], plain["weights"]) < 1e-6


def test_critic_gradient_is_plain_torch_s(groups: dict[int, Ranks], folders: dict[str, Path]) -> None:
    config = ValueLossConfig(coefficient=0.5)
    model = AutoModelForSequenceClassification.from_pretrained(folders["reward"])
    plain = cases.plain_training(model, [lambda m, b=b: cases.plain_value_loss(m, b, config) for b in BATCHES])
    setup = cases.setup_of(folders["reward"], micro_batch_tokens=25)
    answer = groups[2].call(cases.update_critic, setup, config, BATCHES)[1]
    assert largest_difference(answer["gradients"][0], plain["gradients"][0]) < 1e-6
    assert largest_difference(answer["weights"], plain["weights"]) < 2e-5


def test_after_scoring_no_gather_is_under_way(groups: dict[int, Ranks], folders: dict[str, Path]) -> None:
    """The trace of an update makes ZeRO-3 gather for a backward pass after each forward pass. Saving, pushing and
    fingerprints gather the weights themselves then."""
    setup, rollouts, batch = cases.setup_of(folders["policy"]), cases.rollouts_of(6), cases.experience_of(6)
    for left, numbers, again in groups[1].call(cases.gathered_ahead, setup, rollouts, batch):
        assert left == {"ZeroParamStatus.NOT_AVAILABLE"}
        assert torch.equal(numbers, again)


@pytest.mark.parametrize("ranks", [1, 2])
def test_first_ratio_is_one(groups: dict[int, Ranks], folders: dict[str, Path], ranks: int) -> None:
    rollouts = cases.rollouts_of(9)
    setup = cases.setup_of(folders["policy"], micro_batch_tokens=40)
    answers = groups[ranks].call(cases.first_ratio, setup, rollouts)
    model = AutoModelForCausalLM.from_pretrained(folders["policy"])
    for (old, stats), mine in zip(answers, cases.shares(rollouts, ranks), strict=True):
        assert stats.ratio_first_minibatch == pytest.approx(1.0, abs=1e-5)
        for row, length in enumerate(mine.lengths.tolist()):
            ids = mine.token_ids[row, :length]
            logprobs = (model(ids[None]).logits[0, :-1] / cases.TEMPERATURE).log_softmax(-1).gather(1, ids[1:, None])
            expected = torch.zeros(old.shape[1])
            expected[1:length] = logprobs[:, 0].detach()
            torch.testing.assert_close(old[row], expected * mine.response_mask[row], atol=1e-5, rtol=0)


@pytest.mark.parametrize("stage", [3, 0])
def test_frozen_model_is_sharded_and_never_moves(
    groups: dict[int, Ranks], folders: dict[str, Path], stage: Any
) -> None:
    rollouts = cases.rollouts_of(6)
    setup = cases.setup_of(folders["policy"], optimizer=None, zero=ZeroConfig(stage=stage))
    one, two = (groups[n].call(cases.frozen, setup, rollouts) for n in (1, 2))
    prints = {fingerprint for answer in [*one, *two] for fingerprint in answer["fingerprints"]}
    assert len(prints) == 1
    assert one[0]["nothing"].shape[0] == 0
    joined = torch.zeros(one[0]["logprobs"].shape)
    joined[1:, : two[0]["logprobs"].shape[1]] = two[0]["logprobs"]
    joined[0, : two[1]["logprobs"].shape[1]] = two[1]["logprobs"][0]
    torch.testing.assert_close(joined, one[0]["logprobs"], atol=1e-5, rtol=0)
    if stage == 3:
        assert [answer["kept"] for answer in two] == [answer["whole"] // 2 for answer in two]


def test_a_rank_without_rows_answers(groups: dict[int, Ranks], folders: dict[str, Path]) -> None:
    setup = cases.setup_of(folders["reward"])
    rollouts = cases.rollouts_of(3)
    shapes = groups[2].call(cases.empty_shard, setup, rollouts)
    assert shapes == [[int(rollouts.response_mask.sum())], [0]]


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_resuming_is_exact(
    groups: dict[int, Ranks], folders: dict[str, Path], tmp_path: Path, ranks: int, dtype: Any
) -> None:
    setup = cases.setup_of(folders["tied"], dtype=dtype)
    batches = [cases.experience_of(6, seed) for seed in range(4)]
    for answer in groups[ranks].call(cases.interrupted, setup, batches, str(tmp_path / "state")):
        expected, resumed = answer["expected"], answer["resumed"]
        assert resumed[0] == expected[0]
        assert all(torch.equal(resumed[1][name], expected[1][name]) for name in expected[1])


def test_states_that_sleep_change_no_number_and_no_checkpoint(
    groups: dict[int, Ranks], folders: dict[str, Path], tmp_path: Path
) -> None:
    """The host copies do not get into a checkpoint, and gradients take no host memory."""
    setup = cases.setup_of(folders["tied"], dtype="bfloat16")
    batches = [cases.experience_of(6, seed) for seed in range(4)]
    plain = groups[2].call(cases.interrupted, setup, batches, str(tmp_path / "awake"))
    for answer, other in zip(groups[2].call(cases.asleep, setup, batches, str(tmp_path / "state")), plain, strict=True):
        expected = other["expected"]
        assert answer["saved"] == {"weight", "step", "exp_avg", "exp_avg_sq"}
        assert answer["asleep"] and answer["gradient_bytes"] == 4
        assert answer["resumed"][0] == expected[0]
        assert all(torch.equal(answer["resumed"][1][name], expected[1][name]) for name in expected[1])


@pytest.mark.parametrize(("kind", "name"), [("policy", "policy"), ("policy", "tied"), ("value", "reward")])
def test_saved_folder_opens(
    groups: dict[int, Ranks], folders: dict[str, Path], tmp_path: Path, kind: str, name: str
) -> None:
    setup = cases.setup_of(folders[name])
    batch = cases.experience_of(5)
    weights, fingerprint = groups[2].call(cases.saved, setup, batch, str(tmp_path / "saved"), kind)[1]
    auto = AutoModelForCausalLM if kind == "policy" else AutoModelForSequenceClassification
    model, report = auto.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert all(torch.equal(weights["model." + n], p) for n, p in model.named_parameters())
    assert AutoTokenizer.from_pretrained(tmp_path / "saved").pad_token_id == 0
    load: Any = load_policy if kind == "policy" else load_critic
    write_state_as_folder(load(setup), open_state(tmp_path / "saved-state", setup), tmp_path / "exported", setup)
    assert same_files(tmp_path / "exported", tmp_path / "saved")
    if kind == "policy":
        frozen = cases.setup_of(tmp_path / "saved", optimizer=None)
        assert groups[1].call(cases.frozen, frozen, cases.rollouts_of(2))[0]["fingerprints"][0] == fingerprint
        assert model.config.tie_word_embeddings == (name == "tied")


@pytest.mark.parametrize("stage", [3, 0])
def test_bfloat16_keeps_full_precision_between_steps(
    groups: dict[int, Ranks], folders: dict[str, Path], stage: Any
) -> None:
    small = cases.OPTIMIZER.model_copy(update={"learning_rate": 1e-5})
    setup = cases.setup_of(folders["policy"], dtype="bfloat16", optimizer=small, zero=ZeroConfig(stage=stage))
    batches = [cases.experience_of(6)] * 40
    coarse = groups[2].call(cases.update_actor, setup, PolicyLossConfig(), batches)[0]
    fine = groups[2].call(cases.update_actor, replace(setup, dtype="float32"), PolicyLossConfig(), batches)[0]
    assert all(tensor.dtype == torch.bfloat16 for tensor in coarse["weights"].values())
    name = "model.model.layers.0.mlp.up_proj.weight"
    a, b = (answer["gradients"][0][name].flatten() for answer in (coarse, fine))
    assert torch.cosine_similarity(a, b, dim=0) > 0.98
    # 40 steps of 1e-5 are too small for bfloat16's 8 bits one by one, but not together.
    start = AutoModelForCausalLM.from_pretrained(folders["policy"]).get_parameter(name.removeprefix("model.")).detach()
    moved = (coarse["weights"][name].float() - start.bfloat16().float()).flatten()
    wanted = (fine["weights"][name] - start).flatten()
    assert torch.corrcoef(torch.stack([moved, wanted]))[0, 1] > 0.3


@pytest.mark.parametrize("ranks", [1, 2])
def test_score_is_read_at_the_last_token(groups: dict[int, Ranks], folders: dict[str, Path], ranks: int) -> None:
    rollouts = cases.rollouts_of(5)
    setup = cases.setup_of(folders["reward"], optimizer=None, micro_batch_tokens=30)
    answers = groups[ranks].call(cases.scored, setup, str(folders["policy"]), False, rollouts)
    model = AutoModelForSequenceClassification.from_pretrained(folders["reward"])
    for scores, mine in zip(answers, cases.shares(rollouts, ranks), strict=True):
        for row, length in enumerate(mine.lengths.tolist()):
            with torch.no_grad():
                hidden = model.base_model(mine.token_ids[None, row, :length]).last_hidden_state[0, -1]
                expected = float(model.score(hidden)) - 0.25
            assert float(scores[row]) == pytest.approx(expected, abs=1e-5)


def test_the_bridge_reads_the_text(groups: dict[int, Ranks], folders: dict[str, Path]) -> None:
    """The same words in both tokenizers: bridged and direct scores agree, with and without an EOS."""
    rollouts = cases.worded(folders["policy"], cases.rollouts_of(4))
    setup = cases.setup_of(folders["reward"], optimizer=None)
    direct, bridged = (
        groups[1].call(cases.scored, setup, str(folders["policy"]), bridge, rollouts)[0] for bridge in (False, True)
    )
    torch.testing.assert_close(bridged, direct, atol=1e-5, rtol=0)
    assert direct.unique().numel() == 4


@pytest.mark.parametrize("stage", [3, 0])
@pytest.mark.parametrize(
    ("advantage", "told"),
    [(1e38, "a gradient is not finite"), (float("nan"), r"the loss of rows \[.*1.*\] of the batch")],
)
def test_a_loss_or_gradient_that_is_not_finite_ends_the_run(
    groups: dict[int, Ranks], folders: dict[str, Path], stage: Any, advantage: float, told: str
) -> None:
    batch = cases.experience_of(4)
    batch.advantages[1] = batch.advantages[1].masked_fill(batch.response_mask[1], advantage)
    with pytest.raises(RuntimeError, match=told):
        setup = cases.setup_of(folders["policy"], zero=ZeroConfig(stage=stage))
        groups[1].call(cases.update_actor, setup, PolicyLossConfig(), [batch])


def test_a_response_too_long_for_the_reward_model_is_named(groups: dict[int, Ranks], folders: dict[str, Path]) -> None:
    rollouts = cases.long_rollouts(300)
    setup = cases.setup_of(folders["reward"], optimizer=None)
    with pytest.raises(RuntimeError, match="makes 300 tokens with its prompt, but the reward model"):
        groups[1].call(cases.scored, setup, str(folders["policy"]), False, rollouts)


LORA = LoraConfig(rank=4, alpha=8)


def plain_with_adapters(folder: Path, auto: Any, loss: Any) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Training by plain torch and PEFT alone; the merged weights that it ends with."""
    model = auto.from_pretrained(folder)
    adapt(model, LORA, seed=1)
    plain = cases.plain_training(model, [lambda m, b=b: loss(m, b) for b in BATCHES])
    layers = adapted_layers(model)
    names = {plain_name(n): p for n, p in model.named_parameters() if not is_adapter(n)}
    return plain, {f"model.{n}": merged(p.data, layers[n]) if n in layers else p.data for n, p in names.items()}


@pytest.mark.parametrize(
    ("stage", "ranks", "checkpointing"), [(3, 1, False), (3, 2, True), (2, 2, False), (0, 2, True)]
)
def test_adapters_alone_are_trained(
    groups: dict[int, Ranks], folders: dict[str, Path], tmp_path: Path, stage: Any, ranks: int, checkpointing: bool
) -> None:
    config = PolicyLossConfig()
    plain, whole = plain_with_adapters(
        folders["tied"], AutoModelForCausalLM, lambda m, b: cases.plain_policy_loss(m, b, config)
    )
    setup = cases.setup_of(
        folders["tied"],
        zero=ZeroConfig(stage=stage),
        lora=LORA,
        micro_batch_tokens=30,
        gradient_checkpointing=checkpointing,
    )
    rollouts = cases.rollouts_of(5)
    answer = groups[ranks].call(cases.adapted, setup, BATCHES, rollouts, str(tmp_path))[0]
    assert all(is_adapter(name) for name in answer["gradients"][0]) and len(answer["gradients"][0]) == 28
    for step, expected in enumerate(plain["gradients"]):
        assert largest_difference(answer["gradients"][step], expected) < 1e-5
    assert answer["stats"].gradient_norm == pytest.approx(sum(plain["norms"]) / 3, rel=1e-4)
    untouched = AutoModelForCausalLM.from_pretrained(folders["tied"]).state_dict()
    off, moved = (
        sum(float((a[name] - b[name.removeprefix(cut)]).square().sum()) for name in a) ** 0.5
        for a, b, cut in ((answer["weights"], whole, ""), (whole, untouched, "model."))
    )
    assert off / moved < 1e-4, "the same update for any number of ranks and any stage"
    for name, now in answer["weights"].items():
        adapted = name.endswith("proj.weight")
        assert torch.equal(now, untouched[name.removeprefix("model.")]) != adapted, name
    write_state_as_folder(load_policy(setup), open_state(tmp_path / "state", setup), tmp_path / "exported", setup)
    assert same_files(tmp_path / "exported", tmp_path / "model")
    if stage == 3:
        _merged_and_unmerged_agree(answer, folders["tied"], tmp_path / "model", groups[1])
    size = sum(file.stat().st_size for file in (tmp_path / "state").rglob("*") if file.is_file())
    adapters = sum(gradient.numel() for gradient in answer["gradients"][0].values())
    frozen = sum(tensor.numel() for tensor in whole.values())
    assert size < 4 * frozen, f"{adapters} trained numbers and {frozen} frozen ones make a checkpoint of {size} bytes"


def _merged_and_unmerged_agree(answer: dict[str, Any], base: Path, saved: Path, ranks: Ranks) -> None:
    """The folder that is saved answers as the actor with its adapters does; without them, the actor is the base."""
    setup, rollouts = cases.setup_of(base, optimizer=None), cases.rollouts_of(5)
    reference = ranks.call(cases.frozen, setup, rollouts)[0]
    model, report = AutoModelForCausalLM.from_pretrained(saved, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert all(torch.equal(answer["weights"]["model." + n], p) for n, p in model.named_parameters())
    merged_logprobs = ranks.call(cases.frozen, replace(setup, model_path=str(saved)), rollouts)[0]["logprobs"]
    ((first, base_first), print_first), ((last, base_last), print_last) = answer["before"], answer["after"]
    assert torch.equal(first, base_first) and torch.equal(base_first, base_last)
    torch.testing.assert_close(base_last, reference["logprobs"], atol=1e-6, rtol=0)
    torch.testing.assert_close(last, merged_logprobs, atol=1e-4, rtol=0)
    assert (last - base_last).abs().max() > 1e-3
    assert {print_first, print_last} == set(reference["fingerprints"])


def test_a_critic_trains_its_adapters_and_its_head(groups: dict[int, Ranks], folders: dict[str, Path]) -> None:
    config = ValueLossConfig()
    plain, whole = plain_with_adapters(
        folders["reward"], AutoModelForSequenceClassification, lambda m, b: cases.plain_value_loss(m, b, config)
    )
    setup = cases.setup_of(folders["reward"], lora=LORA, micro_batch_tokens=25)
    answer = groups[2].call(cases.update_critic, setup, config, BATCHES)[1]
    assert [name for name in answer["gradients"][0] if not is_adapter(name)] == ["model.score.weight"]
    assert largest_difference(answer["gradients"][0], plain["gradients"][0]) < 1e-5
    assert largest_difference(answer["weights"], whole) < 2e-5


def test_adapters_on_a_model_loaded_in_shards(groups: dict[int, Ranks], folders: dict[str, Path]) -> None:
    setup = cases.setup_of(folders["tied"], lora=LORA)
    plain = groups[2].call(cases.update_actor, setup, PolicyLossConfig(), BATCHES)[0]
    sharded = groups[2].call(cases.update_actor_loaded_in_shards, setup, PolicyLossConfig(), BATCHES)[0]
    assert largest_difference(sharded["gradients"][0], plain["gradients"][0]) < 1e-7
    assert largest_difference(sharded["weights"], plain["weights"]) < 1e-6


@pytest.mark.parametrize(("stage", "dtype"), [(3, "bfloat16"), (3, "float32"), (2, "bfloat16"), (0, "float32")])
def test_resuming_with_adapters_is_exact(
    groups: dict[int, Ranks], folders: dict[str, Path], tmp_path: Path, stage: Any, dtype: Any
) -> None:
    setup = cases.setup_of(folders["tied"], dtype=dtype, zero=ZeroConfig(stage=stage), lora=LORA)
    batches = [cases.experience_of(6, seed) for seed in range(4)]
    for answer in groups[2].call(cases.interrupted, setup, batches, str(tmp_path / "state")):
        expected, resumed = answer["expected"], answer["resumed"]
        assert resumed[0] == expected[0]
        assert all(torch.equal(resumed[1][name], expected[1][name]) for name in expected[1])
    for lora in (
        None,
        LoraConfig(rank=8),
        LoraConfig(rank=4, targets=("q_proj",)),
        LORA.model_copy(update={"alpha": 1.0}),
    ):
        if stage == 3 and dtype == "float32":
            with pytest.raises(RuntimeError, match=r"holds no (state|adapters-.*); .* with `lora` as it was"):
                groups[1].call(cases.resumed_as, replace(setup, lora=lora), str(tmp_path / "state"))


@pytest.mark.parametrize(
    ("left", "taken", "dtype", "lora"),
    [
        ((2, 3), (1, 2), "float32", None),
        ((1, 2), (2, 3), "bfloat16", LORA),
        ((2, 1), (1, 0), "bfloat16", None),
        ((1, 0), (2, 2), "bfloat16", None),
        ((2, 2), (2, 1), "float32", LORA),
        ((1, 3), (2, 0), "float32", LORA),
    ],
)
def test_another_number_of_ranks_and_another_stage_go_on_with_the_same_state(
    groups: dict[int, Ranks], folders: dict[str, Path], tmp_path: Path, left: Any, taken: Any, dtype: Any, lora: Any
) -> None:
    """Two groups of parameters (matrices with weight decay, vectors without), a falling rate, a mean of the weights."""
    schedule = {"weight_decay": 0.1, "schedule": ScheduleConfig(type="linear")}
    optimizer = cases.OPTIMIZER.model_copy(update=schedule)
    more = {"dtype": dtype, "lora": lora, "optimizer": optimizer, "ema_decay": 0.5}
    zeros = (ZeroConfig(stage=stage) for _, stage in (left, taken))
    before, after = (cases.setup_of(folders["tied"], zero=zero, **more) for zero in zeros)
    batches = [cases.experience_of(6, seed) for seed in range(4)]
    expected = groups[left[0]].call(cases.left_state, before, batches, str(tmp_path))[0]
    for found in groups[taken[0]].call(cases.taken_up, after, batches, str(tmp_path)):
        assert found["state"].keys() == expected["state"].keys()
        wrong = [name for name, tensor in expected["state"].items() if not torch.equal(found["state"][name], tensor)]
        assert not wrong
        rates = [[stats.learning_rate for stats in one["stats"]] for one in (found, expected)]
        assert rates[0] == rates[1] == pytest.approx([7e-4 * (1 - step / 100) for step in (2, 3)])
        assert largest_difference(found["weights"], expected["weights"]) < (1e-5 if dtype == "float32" else 2e-2)


@pytest.mark.parametrize(("stage", "dtype"), [(3, "float32"), (2, "bfloat16"), (0, "float32")])
def test_a_checkpoint_that_is_written_while_the_actor_trains_has_the_same_bits(
    groups: dict[int, Ranks], folders: dict[str, Path], tmp_path: Path, stage: Any, dtype: Any
) -> None:
    setup = cases.setup_of(folders["tied"], zero=ZeroConfig(stage=stage), dtype=dtype, ema_decay=0.5)
    for at_once, behind in groups[2].call(cases.saved_behind, setup, BATCHES[:2], str(tmp_path)):
        assert at_once == behind and at_once
        for name, found in behind.items():
            assert hash_of(tmp_path / "behind" / name) == hash_of(tmp_path / "at-once" / name) == found


@pytest.mark.parametrize("stage", [3, 0])
def test_no_file_of_a_foreign_checkpoint_is_run(
    groups: dict[int, Ranks], folders: dict[str, Path], tmp_path: Path, stage: Any
) -> None:
    setup = cases.setup_of(folders["policy"], zero=ZeroConfig(stage=stage), ema_decay=0.5)
    hashes, *_ = groups[1].call(cases.state_of, setup, str(tmp_path / "state"))
    folder = tmp_path / "state"
    written = {str(file.relative_to(folder)): file for file in folder.rglob("*") if file.is_file()}
    assert {name: hash_of(file) for name, file in written.items()} == hashes
    for file in written.values():
        kept = file.read_bytes()
        torch.save({"module": cases.Malicious(tmp_path / "mark")}, file)
        with pytest.raises(RuntimeError, match="is no file of a checkpoint"):
            groups[1].call(cases.resumed_as, setup, str(tmp_path / "state"))
        file.write_bytes(kept)
    assert not (tmp_path / "mark").exists()
    groups[1].call(cases.resumed_as, setup, str(tmp_path / "state"))


def test_nothing_was_compiled(groups: dict[int, Ranks]) -> None:
    for group in groups.values():
        for traces in group.call(cases.compiled):
            assert traces == {"extensions": False, "inductor": False}
