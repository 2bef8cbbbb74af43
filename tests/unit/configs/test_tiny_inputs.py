"""What the tiny run reads: tokenizer, two models under a million parameters, prompts, a reward function."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

FOLDER = Path(__file__).resolve().parents[3] / "configs" / "tiny"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"tiny_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    load("inputs").write(folder)
    return folder


def test_tokenizer_reads_any_text_and_its_special_tokens_differ(written: Path) -> None:
    words = AutoTokenizer.from_pretrained(written / "policy")
    for text in ("tell me about the red river", "Ünïcödé 語 \n\t🙂"):
        assert words.decode(words(text)["input_ids"]) == text
    special = {words.pad_token_id, words.bos_token_id, words.eos_token_id}
    assert len(special) == 3
    assert len(words) <= 512
    chat = words.apply_chat_template([{"role": "user", "content": "hello"}], add_generation_prompt=True, tokenize=False)
    assert chat == "<bos><user>hello<assistant>"


def test_models_are_tiny_and_know_their_tokens(written: Path) -> None:
    words = AutoTokenizer.from_pretrained(written / "policy")
    policy = AutoModelForCausalLM.from_pretrained(written / "policy")
    reward = AutoModelForSequenceClassification.from_pretrained(written / "reward")
    assert reward.config.num_labels == 1
    for model in (policy, reward):
        assert sum(parameter.numel() for parameter in model.parameters()) < 1_000_000
        assert model.config.vocab_size == len(words)
        assert model.config.pad_token_id == words.pad_token_id
        assert model.config.eos_token_id == words.eos_token_id


def test_scores_of_the_reward_model_spread_by_about_one(written: Path) -> None:
    reward = AutoModelForSequenceClassification.from_pretrained(written / "reward")
    tokens = torch.randint(5, 320, (64, 24), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert 0.3 < reward(tokens).logits.std() < 3


def test_files_do_not_depend_on_the_callers_generator(written: Path, tmp_path: Path) -> None:
    torch.manual_seed(1234)
    before = torch.random.get_rng_state()
    load("inputs").write(tmp_path)
    assert torch.equal(torch.random.get_rng_state(), before)
    for file in ("policy/model.safetensors", "reward/model.safetensors", "policy/tokenizer.json", "train.jsonl"):
        assert (tmp_path / file).read_bytes() == (written / file).read_bytes()


def test_training_and_heldout_prompts_are_distinct(written: Path) -> None:
    train, heldout = (
        [json.loads(line) for line in (written / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
        for name in ("train", "heldout")
    )
    assert len(heldout) == 32
    assert len(train) == 160
    assert not {row["prompt"] for row in train} & {row["prompt"] for row in heldout}


def test_reward_is_the_share_of_lower_case_letters() -> None:
    responses = ["abcd", "ab12", "ÄÖ", ""]
    scores = load("reward").score([""] * 4, responses, response_token_ids=[[0]] * 4, finished=[True] * 4, columns={})
    assert scores == [1.0, 0.5, 0.0, 0.0]


def play(env: Any, low: int, high: int, responses: str) -> list[tuple[str | None, float]]:
    """What the game of `guess.py` answers to each character."""
    (first,) = env.reset({"low": low, "high": high}, 3)
    assert first["content"] == f"{low}{high}"
    answers = [env.step(response) for response in responses]
    return [(None if messages is None else messages[0]["content"], reward) for messages, reward in answers]


def test_the_guessing_game_narrows_and_pays() -> None:
    game = load("guess")
    number = next(n for n in range(10) if play(game.Env(), 0, 9, str(n))[0][0] is None)
    below, above = (number - 1, 9) if number else (1, 9)
    assert play(game.Env(), 0, 9, "=")[0] == ("4", game.CALCULATED)
    (left, cost), *_ = play(game.Env(), 0, 9, str(below))
    assert left == (f"{number}{above}" if number else "00") and cost == game.WRONG
    assert [play(game.Env(), 0, 9, said)[0] for said in ("x", "\u0663")] == [("?", game.UNREADABLE)] * 2
    assert play(game.Env(), 0, 9, f"{below}=")[1][1] == game.CALCULATED
    assert play(game.Env(), 0, 9, str(number)) == [(None, 1.0)]


def test_an_empty_answer_is_unreadable() -> None:
    game = load("guess").Env()
    game.reset({"low": 0, "high": 9}, 3)
    assert game.step("")[1] < 0


def test_games_have_two_digits_and_the_heldout_ones_are_others(written: Path) -> None:
    train, heldout = (
        [json.loads(line) for line in (written / f"guess-{name}.jsonl").read_text(encoding="utf-8").splitlines()]
        for name in ("train", "heldout")
    )
    pairs = [{(row["low"], row["high"]) for row in rows} for rows in (train, heldout)]
    assert (len(train), len(heldout), len(pairs[1])) == (37, 64, 8)
    assert not pairs[0] & pairs[1] and all(0 <= low < high <= 9 for low, high in pairs[0] | pairs[1])
