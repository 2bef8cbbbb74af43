"""A judge on a real engine: probabilities of its letters and its texts beside plain transformers."""

from __future__ import annotations

import os
import re
import signal
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from configs.tiny.inputs import write
from orchestrator.config.labelling import LabellingRun
from orchestrator.config.loading import load_root
from orchestrator.data.judge_prompts import JudgeAnswer, JudgeQuestion, comparison, letter_tokens
from orchestrator.stages.asked_model import AskedModel, question_tokens
from orchestrator.stages.asking import Refusal
from roles.text.tokenizer import load_tokenizer

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("hangs", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["sound", "hangs"])
def test_a_judge_gives_the_probabilities_and_texts_of_its_model(tmp_path: Path, hangs: bool) -> None:
    """Also if its only engine hangs meanwhile: it is started again, and asked what it has not answered."""
    write(tmp_path)
    said = {"model.path": tmp_path / "policy", "engine.kv_cache_gib": 0.1}
    overrides = [f"labelling.judge.{key}={value}" for key, value in said.items()]
    config = load_root(
        LabellingRun,
        ROOT / "configs/label.yaml",
        [f"labelling.output={tmp_path}/out", *overrides, f"deadlines.generate_s={10 if hangs else 600}"],
    )
    letters = [comparison("Better?", f"q{n}", (f"red {n}", f"blue {n}" * (n + 1)), 1) for n in range(4)]
    texts = [JudgeQuestion([{"role": "user", "content": f"draw {n}"}], max_tokens=6, seed=n) for n in range(2)]
    long = JudgeQuestion([{"role": "user", "content": "x" * 300}], letters=True)
    assert config.engines is not None
    told = list[str]()
    with ExitStack() as started:
        own = config.engines.model_copy(update={"run_dir": str(tmp_path / "run")})
        model = AskedModel(own, started, tell=told.append)
        answers = dict(model.answers([*letters, long]))
        if hangs:
            (log,) = (tmp_path / "run/logs").glob("rollout-0.log")
            os.kill(int(re.findall(r"pid (\d+)", log.read_text())[-1]), signal.SIGSTOP)
        answers |= {5 + number: answer for number, answer in model.answers(texts)}
    assert len(told) == (2 if hangs else 0)
    if hangs:
        assert "is started again: it was late: rollout.answers did not end within 10 s" in told[0]
        assert "is back after" in told[1] and told[1].endswith("prompts that were moved: 2")
    assert isinstance(answers.pop(4), Refusal)
    tokenizer = load_tokenizer(tmp_path / "policy")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "policy", dtype=torch.float32)
    for number, question in {**dict(enumerate(letters)), **dict(enumerate(texts, start=5))}.items():
        answer, token_ids = answers[number], torch.tensor([question_tokens(tokenizer, question)])
        assert isinstance(answer, JudgeAnswer) and answer.prompt_tokens == token_ids.shape[1]
        if question.letters:
            with torch.no_grad():
                probabilities = plain(token_ids).logits[0, -1].softmax(0)
            expected = [sum(float(probabilities[token]) for token in letter_tokens(tokenizer, one)) for one in "AB"]
            assert answer.letters == pytest.approx(expected, rel=1e-4)
            continue
        mask = torch.ones_like(token_ids)
        made = plain.generate(token_ids, max_new_tokens=6, do_sample=False, attention_mask=mask)
        assert answer.text == tokenizer.decode(made[0, token_ids.shape[1] :], skip_special_tokens=True)
        assert answer.letters is None and answer.cut == (answer.completion_tokens == 6)
