"""A judge on a real engine: probabilities of its letters and its texts beside plain transformers."""

from __future__ import annotations

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


def test_a_judge_gives_the_probabilities_and_texts_of_its_model(tmp_path: Path) -> None:
    write(tmp_path)
    said = {"model.path": tmp_path / "policy", "engine.kv_cache_gib": 0.1}
    overrides = [f"labelling.judge.{key}={value}" for key, value in said.items()]
    config = load_root(LabellingRun, ROOT / "configs/label.yaml", [f"labelling.output={tmp_path}/out", *overrides])
    letters = [comparison("Better?", f"q{n}", (f"red {n}", f"blue {n}" * (n + 1)), 1) for n in range(4)]
    texts = [JudgeQuestion([{"role": "user", "content": f"draw {n}"}], max_tokens=6, seed=n) for n in range(2)]
    long = JudgeQuestion([{"role": "user", "content": "x" * 300}], letters=True)
    assert config.engines is not None
    with ExitStack() as started:
        model = AskedModel(config.engines.model_copy(update={"run_dir": str(tmp_path / "run")}), started)
        answers = dict(model.answers([*letters, long]))
        answers |= {5 + number: answer for number, answer in model.answers(texts)}
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
