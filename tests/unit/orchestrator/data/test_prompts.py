"""Prompts of a run: their order, the cursor, tasks of an environment, and what is held out."""

from __future__ import annotations

import json
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from orchestrator.data.prompts import PromptSource, Questions, read_questions, read_tasks, with_overlap
from orchestrator.errors import CheckpointError, ConfigError
from tests.unit.orchestrator.data.prompt_files import LETTERS, Write, configuration, drawn, heldout, source_of

# Order


def test_each_pass_is_a_fresh_permutation(write: Write, tokenizer: PreTrainedTokenizerFast) -> None:
    texts = drawn(source_of(configuration(write(LETTERS)), tokenizer), steps=7)
    passes = [texts[start : start + 7] for start in (0, 7, 14)]
    assert [sorted(one) for one in passes] == [list("abcdefg")] * 3
    assert len({tuple(one) for one in passes}) == 3


def test_the_order_is_a_function_of_the_seed(write: Write, tokenizer: PreTrainedTokenizerFast) -> None:
    path = write(LETTERS)
    first, again, other = (source_of(configuration(path, seed=seed), tokenizer) for seed in (5, 5, 6))
    once = [first.next(3, 2) for _ in range(4)]
    assert once == [again.next(3, 2) for _ in range(4)]
    assert [p.texts for p in once] != [other.next(3, 2).texts for _ in range(4)]


def test_the_order_does_not_depend_on_how_many_are_drawn_at_once(
    write: Write, tokenizer: PreTrainedTokenizerFast
) -> None:
    config = configuration(write(LETTERS))
    assert drawn(source_of(config, tokenizer), steps=6, prompts=2) == drawn(source_of(config, tokenizer), steps=4)


def test_responses_of_a_prompt_are_neighbours_with_seeds_of_their_own(
    write: Write, tokenizer: PreTrainedTokenizerFast
) -> None:
    source = source_of(configuration(write(LETTERS)), tokenizer)
    batches = [source.next(3, 2) for _ in range(10)]
    assert all(batch.texts[0::2] == batch.texts[1::2] for batch in batches)
    seeds = [seed for batch in batches for seed in batch.seeds]
    assert len(set(seeds)) == 60 and all(0 <= seed < 2**62 for seed in seeds)


# Tasks of an environment


def test_tasks_are_the_columns_and_the_environment_makes_the_prompts(write: Write) -> None:
    rows = [{"prompt": "a", "messages": [{"role": "user", "content": "b"}], "n": n} for n in range(3)]
    tasks = read_tasks(configuration(write(rows)).prompts, "train")
    assert tasks.token_ids == [[], [], []] and tasks.texts == ["", "", ""]
    assert tasks.columns == {"prompt": ["a"] * 3, "messages": [rows[0]["messages"]] * 3, "n": [0, 1, 2]}


def test_responses_to_a_task_share_the_environments_seed(write: Write) -> None:
    source = PromptSource(read_tasks(configuration(write(LETTERS)).prompts, "train"), 1)
    first, second = source.next(2, 3), source.next(2, 3)
    seeds = [*first.environment_seeds, *second.environment_seeds]
    assert seeds[0] == seeds[1] == seeds[2] != seeds[3] == seeds[4] == seeds[5]
    assert len(set(seeds)) == 4 and len({*first.seeds, *seeds}) == 10
    again = PromptSource(read_tasks(configuration(write(LETTERS)).prompts, "train"), 1)
    assert again.next(2, 3) == first


def test_a_cursor_of_other_tasks_is_refused(write: Write) -> None:
    state = PromptSource(read_tasks(configuration(write(LETTERS)).prompts, "train"), 1).state_dict()
    other = [{**row, "topic": 7} for row in LETTERS]
    with pytest.raises(CheckpointError, match=r"prompts\.train are not those"):
        PromptSource(read_tasks(configuration(write(other)).prompts, "train"), 1).load_state_dict(state)


# Cursor


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 7])
def test_a_resumed_source_goes_on_where_it_was(write: Write, tokenizer: PreTrainedTokenizerFast, steps: int) -> None:
    config = configuration(write(LETTERS))
    straight = source_of(config, tokenizer)
    for _ in range(steps):
        straight.next(3, 2)
    state = json.loads(json.dumps(straight.state_dict()))
    resumed = source_of(config, tokenizer)
    resumed.load_state_dict(state)
    assert [resumed.next(3, 2) for _ in range(5)] == [straight.next(3, 2) for _ in range(5)]


def test_a_cursor_of_other_data_or_another_seed_is_refused(write: Write, tokenizer: PreTrainedTokenizerFast) -> None:
    state = source_of(configuration(write(LETTERS)), tokenizer).state_dict()
    with pytest.raises(CheckpointError, match=r"seed=9.*has 1"):
        source_of(configuration(write(LETTERS), seed=9), tokenizer).load_state_dict(state)
    with pytest.raises(CheckpointError, match=r"prompts\.train are not those"):
        source_of(configuration(write(LETTERS[1:])), tokenizer).load_state_dict(state)


# Held-out prompts


@pytest.mark.parametrize(("count", "texts"), [(2, "ab"), (128, "abcdefg"), (None, "abcdefg")])
def test_so_many_prompts_are_held_out_or_all(
    write: Write, tokenizer: PreTrainedTokenizerFast, count: int | None, texts: str
) -> None:
    config = configuration(write(LETTERS), evaluation={"prompts": count})
    assert heldout(config, tokenizer).texts == list(texts)


def test_heldout_prompts_are_the_first_ones_always_alike(write: Write, tokenizer: PreTrainedTokenizerFast) -> None:
    config = configuration(write(LETTERS), evaluation={"prompts": 3})
    assert heldout(config, tokenizer).texts == ["a", "b", "c"]
    assert heldout(config, tokenizer) == heldout(config, tokenizer)
    with pytest.raises(ConfigError, match=r"prompts\.heldout is null"):
        heldout(configuration("x", prompts={"heldout": None}), tokenizer)


def test_a_share_of_the_prompts_is_held_out_whatever_the_seed_and_the_other_rows(
    write: Write, tokenizer: PreTrainedTokenizerFast
) -> None:
    rows = [{"prompt": f"{a} {b}", "topic": f"{a}{b}"} for a in "abcdefghijklmnopqrst" for b in "abcdefghijklmnopqrst"]
    split = {"prompts": {"heldout": None, "heldout_fraction": 0.2}}

    def parts(rows: list[dict[str, Any]], **changes: Any) -> tuple[list[str], list[str]]:
        config = configuration(write(rows), **split, **changes)
        questions = [read_questions(config.prompts, part, tokenizer) for part in ("train", "heldout")]
        assert all([text.replace(" ", "") for text in one.texts] == one.columns["topic"] for one in questions)
        return questions[0].texts, questions[1].texts

    training, held = parts(rows)
    assert not {*training} & {*held} and len(training) + len(held) == 400 and 50 < len(held) < 110
    assert parts(rows, seed=5) == (training, held)
    again, still = parts([*rows[100:], *rows])  # equal prompts stay together
    assert {*again} == {*training} and {*still} == {*held} and len(again) + len(still) == 700
    tasks = configuration(write(rows), **split).prompts
    apart = [{*read_tasks(tasks, part).columns["topic"]} for part in ("train", "heldout")]
    assert not apart[0] & apart[1] and len(apart[0]) + len(apart[1]) == 400 and 50 < len(apart[1]) < 110
    with pytest.raises(ConfigError, match=r"prompts\.heldout_fraction=0\.2 leaves none of the 1 row of"):
        for part in ("train", "heldout"):
            read_questions(configuration(write(rows[:1]), **split).prompts, part, tokenizer)


MIXED = {"x": 60, "y": 20, "z": 10}


@pytest.mark.parametrize("said", ["heldout", "heldout_sets.both", "heldout_fraction"])
def test_the_first_held_out_prompts_of_a_mixture_are_of_all_sources(
    write: Write, tokenizer: PreTrainedTokenizerFast, said: str
) -> None:
    """In their shares, wherever an evaluation ends. Training prompts are drawn at random, and stay as they are."""
    pairs = [f"{a} {b}" for a in "abcdefgh" for b in "abcdefgh"]
    rows = {name: [{"prompt": f"{name} {pair}"} for pair in pairs[:size]] for name, size in MIXED.items()}
    files = {name: (file := write(own)).rename(file.with_name(f"{name}.jsonl")) for name, own in rows.items()}
    sources = {name: {"path": str(file)} for name, file in files.items()}
    mixture = {**sources["x"], "mixed_with": {name: sources[name] for name in "yz"}}
    key, _, name = said.partition(".")
    held: Any = {"heldout": mixture, "heldout_sets": {name: mixture}, "heldout_fraction": 0.5}[key]
    prompts = configuration("", prompts={"heldout": None, "train": mixture, key: held}).prompts
    training, heldout = (read_questions(prompts, part, tokenizer) for part in ("train", prompts.part(name)))
    for name, texts in ((name, heldout.texts) for name in MIXED):
        own = [row["prompt"] for row in rows[name] if row["prompt"] in texts]
        assert [text for text in texts if text[0] == name] == own and len(own) > 2
        for end in (9, 18, 30):
            found = sum(text[0] == name for text in texts[:end])
            assert found == pytest.approx(end * len(own) / len(texts), abs=1.5), texts[:end]
    assert training.texts == sorted(training.texts)
    place = next(row for row, text in enumerate(heldout.texts) if text[0] == "z")
    line = pairs.index(heldout.texts[place][2:])
    for where in (heldout.where.row(place), heldout.where.picked([place]).row(0)):
        assert where.endswith(f"z.jsonl, line {line + 1}: row {80 + line}")


def test_heldout_prompts_that_are_trained_on_are_counted(write: Write, tokenizer: PreTrainedTokenizerFast) -> None:
    def read(letters: str) -> Questions:
        config = configuration(write([{"prompt": letter, "topic": i} for i, letter in enumerate(letters)]))
        return read_questions(config.prompts, "train", tokenizer)

    training = read("abc")
    assert "; 3 of them are in prompts.train too" in with_overlap(training, training).summary
    assert "; 1 of them is in prompts.train too" in with_overlap(read("cd"), training).summary
    assert with_overlap(read("de"), training) == read("de")
    tasks = read_tasks(configuration(write(LETTERS)).prompts, "train")
    assert "; 7 of them are in prompts.train too" in with_overlap(tasks, tasks).summary
