"""A column that a reward function reads by its name is there in every part of the prompts that it scores."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.checks.preparation import prepare_best_of_n
from orchestrator.config.data import DatasetConfig, PromptsConfig
from orchestrator.config.loading import validate_root
from orchestrator.config.serving import ServingRun
from orchestrator.data.prompts import read_questions
from orchestrator.errors import ConfigError
from roles.text.tokenizer import load_tokenizer
from tests.unit.orchestrator.checks.door import World, check, refused

HEAD = "def score(prompts, responses, *, response_token_ids, finished, columns):\n"
READS = HEAD + "    answers = columns['answer']\n    return [float(a == r) for a, r in zip(answers, responses)]\n"


def with_function(world: World, text: str, key: str = "reward") -> None:
    world.function.write_text(text)
    world.set("critic.initialise_from", "policy")
    world.set(key, {"type": "function", "path": str(world.function)})
    heldout = world.root / "heldout.jsonl"
    heldout.write_text('{"prompt": "a", "answer": "b"}\n')
    world.set("prompts.heldout.path", str(heldout))


def test_a_column_of_the_held_out_rows_alone_does_not_serve_the_training(world: World) -> None:
    with_function(world, READS)
    refused(
        world,
        f"reward.path={world.function}, line 2: score reads the column 'answer'",
        f"prompts.train.path={world.prompts} has no other than the prompt",
        "prompts.train.columns",
    )
    check("evaluate", world)
    world.prompts.write_text('{"prompt": "a", "answer": "b"}\n')
    check("train", world)


def test_a_judge_reads_what_is_held_out(world: World) -> None:
    with_function(world, READS, "evaluation.judge")
    check("train", world)
    (world.root / "heldout.jsonl").write_text('{"prompt": "a", "solution": "b"}\n')
    refused(world, f"evaluation.judge.path={world.function}, line 2", "heldout.jsonl has solution; add it to the rows")


@pytest.mark.parametrize(
    "body",
    [
        "    answers = columns['answer'] if 'answer' in columns else []\n    return [0.0] * len(prompts)\n",
        "    try:\n        columns['answer']\n    except KeyError:\n        pass\n    return [0.0] * len(prompts)\n",
        "    columns['made'] = 1\n    columns.get('answer')\n    return [0.0] * len(prompts)\n",
    ],
)
def test_a_function_that_looks_first_is_left_alone(world: World, body: str) -> None:
    with_function(world, HEAD + body)
    check("train", world)


def test_a_row_is_named_by_its_line_also_after_long_ones_were_left_out(world: World, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "a a a a"}\n\n{"prompt": "b"}\n{"prompt": "c"}\n')
    config = PromptsConfig(train=DatasetConfig(path=str(file)), max_tokens=2, too_long="skip")
    left = read_questions(config, "train", load_tokenizer(world.policy, trust_remote_code=False))
    assert [left.where.row(row) for row in (0, 1)] == [
        f"prompts.train.path={file}, line 3: row 1",
        f"prompts.train.path={file}, line 4: row 2",
    ]
    too_long = config.model_copy(update={"too_long": "error"})
    with pytest.raises(ConfigError, match=rf"{file}, line 1: row 0 has 4 tokens, more than prompts\.max_tokens=2"):
        read_questions(too_long, "train", load_tokenizer(world.policy, trust_remote_code=False))


def test_what_best_of_n_cannot_write_is_refused_before_anything_is_generated(world: World) -> None:
    world.prompts.write_text('{"prompt": "a b", "source": "x"}\n{"prompt": "c", "source": "\\ud800"}\n')
    config = validate_root(ServingRun, world.data)
    with pytest.raises(ConfigError, match=r"line 2: row 1 has str in the column `source`, which best-of-n cannot"):
        prepare_best_of_n(config)
    world.prompts.write_text('{"prompt": "a b", "text": "\\ud800"}\n')  # not among what it writes
    assert len(prepare_best_of_n(config)) == 1


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_the_column_of_the_evaluation_must_be_there(world: World, command: str) -> None:
    world.set("evaluation.by", "source")
    refused(world, "evaluation.by=source", "no other than the prompt, and no such column", command=command)
    world.prompts.write_text('{"prompt": "a b", "source": "x"}\n{"prompt": "c", "source": "y"}\n')
    check(command, world)
