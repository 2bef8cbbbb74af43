"""The day that chat templates write: the run's."""

from __future__ import annotations

from datetime import date

import pytest

from configs.tiny.inputs import tokenizer
from orchestrator.groups.imports import rank_environment
from roles.text.loss_spans import assistant_spans
from roles.text.prompt_tokens import chat_text
from roles.text.template_date import DAY, keep_day

CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
TODAY = "{% if strftime_now is defined %}{{ strftime_now('%Y-%m-%d') }}{% endif %} "
PLAIN = TODAY + "{% for m in messages %}{{ m['role'] + ':' + m['content'] }}{% endfor %}"
MARKED = (
    TODAY
    + "{% for m in messages %}{{ m['role'] + ':' }}{% generation %}{{ m['content'] }}{% endgeneration %}{% endfor %}"
)
FIXED = "{% if date_string is not defined %}{% set date_string = '26 Jul 2024' %}{% endif %}{{ date_string }}"


@pytest.fixture(autouse=True)
def unkept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DAY, "")  # put back at the end, whatever a test keeps


@pytest.mark.parametrize("template", [PLAIN, MARKED], ids=["plain", "marked"])
def test_every_way_to_write_a_chat_writes_the_kept_day(template: str) -> None:
    words = tokenizer()
    words.chat_template = template
    for kept in ("2026-01-31", "2027-02-01"):
        keep_day(kept)
        written = f"{kept} user:hiassistant:yes"
        assert (chat_text(words, CHAT), assistant_spans(words, CHAT)[0]) == (written, written)


def test_a_new_run_keeps_today_and_its_ranks_have_it() -> None:
    keep_day(None)
    assert rank_environment("cpu")[DAY] == rank_environment("cuda")[DAY] == date.today().isoformat()
    keep_day("2026-01-31")
    keep_day(None)
    assert rank_environment("cpu")[DAY] == "2026-01-31", "a day that is kept stays"


def test_a_template_with_a_date_of_its_own_writes_that() -> None:
    words = tokenizer()
    words.chat_template = FIXED
    keep_day("2026-01-31")
    assert chat_text(words, CHAT) == "26 Jul 2024"
