"""The viewer's page in a real browser (Chromium, where it is installed): what a reader sees, does and cannot run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlencode

import pytest
from PIL import Image

from orchestrator.config.serving import ServingConfig
from orchestrator.report.run_files import read_record, samples_of, write_state
from orchestrator.stages.http_server import answering, listening, url_of
from orchestrator.viewer import sample_search
from orchestrator.viewer.shelf import Shelf
from orchestrator.viewer.viewer_app import viewer_app
from tests import viewer_picture
from tests.readmes import ROOT
from tests.unit.chromium import CHROMIUM, Browser, browser
from tests.unit.orchestrator.viewer.written_runs import (
    ROWS,
    Said,
    a_run,
    an_evaluation,
    report_step,
    step_samples_of,
    words,
    writing,
)

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")

HOSTILE = ("<script>window.ran = 1</script>", '"><img src=x onerror="window.ran = 2">', "<svg onload=window.ran=3>")
"""Texts that must stay texts."""
ROW = "document.querySelectorAll('#table tbody tr')"


class Page:
    """The page of a viewer."""

    def __init__(self, page: Browser, url: str) -> None:
        self.browser, self._url = page, url

    def open(self, ready: str, **shown: str) -> None:
        self.browser.open(f"{self._url}/?{urlencode(shown)}", ready)

    def texts(self, where: str) -> list[str]:
        """The texts of all elements that a selector finds, as they are seen."""
        script = f"JSON.stringify([...document.querySelectorAll({json.dumps(where)})].map(one => one.innerText.trim()))"
        found: list[str] = json.loads(self.browser.evaluate(script))
        return found

    def text(self, where: str) -> str:
        (found,) = self.texts(where)
        return found

    def press(self, *keys: str) -> None:
        for key in keys:
            self.browser.press(key)


@contextmanager
def viewing(profile: Path, *folders: Path) -> Iterator[Page]:
    with (
        listening(ServingConfig(port=0)) as found,
        answering(viewer_app(Shelf(folders)), found),
        browser(profile) as page,
    ):
        page.call("Log.enable")
        yield Page(page, url_of(found))


def test_what_a_model_wrote_in_a_step_is_found_by_curve_search_sort_filter_and_keys(tmp_path: Path) -> None:
    runs = a_run(tmp_path / "first"), a_run(tmp_path / "second", steps=2, rows=ROWS[1:])
    with viewing(tmp_path / "profile", *runs) as page:
        # Two runs that are named are laid over each other.
        page.open("document.querySelectorAll('#charts .main-svg').length")
        assert page.texts(".run-state strong") == ["first", "second"]
        assert "score/mean" in page.texts("#charts h3")
        traces = "[...document.querySelectorAll('#charts figure')][0].querySelector('.plot').data.map(one => one.name)"
        assert [name.split(" ")[0] for name in page.browser.evaluate(traces)] == ["first", "second"]
        # A chart of any metric.
        page.browser.evaluate(
            "(() => { const box = document.getElementById('metric'); box.value = 'response/length_mean';"
            " box.dispatchEvent(new Event('change')); })()"
        )
        page.browser.wait("document.querySelector('#charts h3').innerText === 'response/length_mean'")
        # A click on a step of a curve leads to its samples.
        page.browser.evaluate("document.querySelector('#charts .plot').emit('plotly_click', {points: [{x: 1}]})")
        page.browser.wait(f"{ROW}.length === 2 && document.getElementById('step').value === '1'")
        page.press("1")
        # Pairs by prompt, from the best to the worst for the second run.
        page.press("2")
        page.browser.wait(f"{ROW}.length === 2")
        assert page.texts("#table td.prompt") == [ROWS[1].prompt, ROWS[2].prompt]
        # One run alone: its step 3, sorted and filtered.
        page.open(f"{ROW}.length === 3", run=str(runs[0]), tab="samples")
        assert page.browser.evaluate("document.getElementById('step').value") == "3"  # the newest
        page.press("[")
        page.browser.wait("document.getElementById('step').value === '2'")
        page.browser.wait(f"{ROW}[0].innerText.includes('it is red 2')")
        page.browser.evaluate("document.querySelector('#table th.score button').click()")
        page.browser.wait(f"{ROW}[0].innerText.includes('Small')")
        assert page.texts("#table td.number.tint") == ["3.000", "1.500", "−0.500"]
        page.browser.evaluate("document.querySelector('[data-where=\"finished=false\"]').click()")
        page.browser.wait(f"{ROW}.length === 1")
        assert "old river" in page.text("#table tbody tr") and page.text("#summary strong") == "1 of 3"
        page.browser.evaluate("document.querySelector('[data-where=\"finished=false\"]').click()")
        page.browser.wait(f"{ROW}.length === 3")
        page.press("e")
        page.browser.wait("document.getElementById('found').innerText.includes('Say what to search')")
        page.press("e", "/", *"SHIP")
        page.browser.wait(f"{ROW}.length === 1")
        # In all steps: the samples that the search finds, and from there to one of them.
        page.browser.evaluate("document.getElementById('search').blur()")
        page.press("e")
        page.browser.wait("document.querySelectorAll('#found table').length === 3")
        assert page.texts("#found h3") == [f"step {step} 1 of 3" for step in (3, 2, 1)]
        assert page.text("#found .further") == "3 of 3 steps looked through."
        page.browser.evaluate("document.querySelectorAll('#found h3 button')[2].click()")
        page.browser.wait(f"document.getElementById('step').value === '1' && {ROW}[0].innerText.includes('engine 1')")
        assert page.browser.evaluate("document.getElementById('everywhere').open") is False
        page.press("]")
        page.browser.wait(f"{ROW}[0].innerText.includes('engine 2')")
        page.press("/")
        # Opened, its tokens are coloured; the keyboard goes through them.
        page.press("Enter")
        page.browser.wait("document.querySelectorAll('.token').length")
        assert "".join(page.texts(".token")).replace(" ", "") == "aSmallengine2"
        page.browser.wait("document.querySelector('#same table')")
        assert page.texts("#same tbody tr button") == ["step 1", "step 2", "step 3"]
        amounts = "[...document.querySelectorAll('.token.plus')].map(one => one.style.getPropertyValue('--amount'))"
        assert len(page.browser.evaluate(amounts)) == len(page.texts(".token"))
        page.press("ArrowRight", "ArrowRight")
        begin = len(words().encode(ROWS[2].prompt))
        assert f"{2 + 0.01 * (begin + 1):.3f}" in page.text("#readout") and " 2/" in page.text("#readout")
        third = "document.querySelectorAll('.token')[2]"
        page.browser.evaluate(f"{third}.dispatchEvent(new PointerEvent('pointerenter'))")
        assert f"{2 + 0.01 * (begin + 2):.3f}" in page.text("#readout") and " 3/" in page.text("#readout")
        page.press("c", "c")
        assert page.browser.evaluate("document.getElementById('colour').value") == "advantage"
        assert "entropy: no setting records it" in page.browser.evaluate(
            "document.querySelector('.missing').textContent"
        )
        page.press("Escape")
        page.browser.wait("document.getElementById('sample').hidden")
        assert page.text("#problem") == ""


def test_steps_that_a_search_could_not_read_stay_named_when_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = a_run(tmp_path / "run")
    for step in (2, 3):
        samples_of(run, step).write_bytes(f"damage {step}".encode())
    monkeypatch.setattr(sample_search, "LOOKING_S", 0.0)
    with viewing(tmp_path / "profile", run) as page:
        page.open(f"{ROW}.length === 1", tab="samples", at="1", search="red")
        page.press("e")
        for seen in (1, 2, 3):
            page.browser.wait(f"document.querySelector('#found .further')?.innerText.includes('{seen} of 3 steps')")
            page.browser.evaluate("document.querySelector('#found .further button')?.click()")
        assert [text.split(":")[0] for text in page.texts("#found .unanswered")] == ["step 3", "step 2"]
        assert page.texts("#found h3") == ["step 1 1 of 3"]
        assert page.text("#found .further") == "3 of 3 steps looked through." and page.text("#problem") == ""


def test_foreign_text_is_only_text_wherever_it_stands(tmp_path: Path) -> None:
    chat = tuple({"role": role, "content": text} for role, text in (("user", HOSTILE[0]), ("system", HOSTILE[2])))
    rows = [
        Said(text, other, float(place)) for place, (text, other) in enumerate(zip(HOSTILE, HOSTILE[::-1], strict=True))
    ]
    hostile = [replace(rows[0], chat=chat), *rows[1:]]
    run = tmp_path / 'x"><img src=x onerror="window.ran = 4">'
    with writing(run, title=HOSTILE[1], facts={HOSTILE[0]: HOSTILE[1]}) as report:
        report.evaluation(an_evaluation(0, HOSTILE[1], hostile))
        report_step(report, step_samples_of(1, hostile, named={f"reward/{HOSTILE[1]}": 1.0}))
        report.sync()
    state = read_record(run).state
    write_state(run, replace(state, status="failed", error=HOSTILE[1], ended=HOSTILE[0]))
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 2, f"reward/{HOSTILE[1]}/mean": 1.0, HOSTILE[0]: 2.0}) + "\n")
    alert = {"step": 1, "rule": HOSTILE[0], "seen": HOSTILE[1], "means": HOSTILE[2]}
    (run / "alerts.jsonl").write_text(json.dumps(alert) + "\n")
    with viewing(tmp_path / "profile", run) as page:
        page.open(
            "document.querySelectorAll('#charts .main-svg').length", tab="curves", metric=f"reward/{HOSTILE[1]}/mean"
        )
        for place in range(3):
            page.open("document.querySelector('#same h3')", tab="samples", at="1", row=str(place))
        assert HOSTILE[0] in page.texts("#table td.response")
        page.open("document.querySelector('#same h3')", tab="samples", at="e0", row="0")
        page.open(f"{ROW}.length", tab="samples", at="1", where=f"prompt~{HOSTILE[1]}", search=HOSTILE[1])
        page.open("!document.getElementById('problem').hidden", tab="samples", at=HOSTILE[1], sort=HOSTILE[0])
        assert HOSTILE[1] in page.text("#problem")
        planted = "document.querySelectorAll('body script, img, body svg[onload], [onerror]').length"
        assert page.browser.evaluate("window.ran === undefined") and page.browser.evaluate(planted) == 0


def test_the_picture_of_the_readme_can_be_drawn_again(tmp_path: Path) -> None:
    run, file = a_run(tmp_path / "run", steps=1), tmp_path / "viewer.png"
    viewer_picture.draw(run, step=1, row=0, output=file)
    with Image.open(file) as image:
        assert image.size == (viewer_picture.WIDTH, viewer_picture.HEIGHT)
        assert len(image.convert("RGB").getcolors(10**6) or ()) > 20  # something is to be seen
    there = ROOT / "orchestrator/viewer.png"
    assert there.stat().st_size < 150_000


def test_another_run_is_chosen_beside_and_let_go_again(tmp_path: Path) -> None:
    one, other = a_run(tmp_path / "one"), a_run(tmp_path / "other", steps=2)

    def choose(page: Page, which: str, run: str) -> None:
        select = f"document.getElementById('{which}')"
        page.browser.evaluate(f"{select}.value = {json.dumps(run)}; {select}.dispatchEvent(new Event('change'))")

    with viewing(tmp_path / "profile", tmp_path) as page:
        page.open(f"{ROW}.length === 3", tab="samples", run=str(one))
        choose(page, "beside", str(other))
        page.browser.wait("document.querySelectorAll('#state .run-state').length === 2")
        assert page.text("#problem") == ""
        choose(page, "beside", "")
        page.browser.wait("document.querySelectorAll('#state .run-state').length === 1")
        choose(page, "run", str(other))
        page.browser.wait("document.title.startsWith('other')")
        assert page.text("#problem") == "" and page.texts("#state strong") == ["other"]


def test_a_running_run_is_followed(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with writing(run, steps=9) as report:
        report_step(report, step_samples_of(1, ROWS))
        report.sync()
        with viewing(tmp_path / "profile", run) as page:
            page.open(f"{ROW}.length === 3", tab="samples")
            assert page.browser.evaluate("document.getElementById('step').value") == "1"
            report_step(report, step_samples_of(2, ROWS[:2]))
            report.sync()
            page.browser.wait("document.getElementById('step').value === '2'")
            page.browser.wait(f"{ROW}.length === 2")
            # A step that is being read stays.
            page.press("[")
            page.browser.wait("document.getElementById('step').value === '1'")
            report_step(report, step_samples_of(3, ROWS))
            report.sync()
            page.browser.wait("document.querySelector('#state').innerText.includes('step 3 of 9')")
            assert page.browser.evaluate("document.getElementById('step').value") == "1"


def test_chats_are_turns_and_the_page_fits_small_and_dark_windows(tmp_path: Path) -> None:
    chat = ({"role": "system", "content": "be kind"}, {"role": "user", "content": "who are you?"})
    said = Said("<|im_start|>system\nbe kind<|im_end|>\n<|im_start|>user\nwho are you?", "a poem", chat=chat)
    run = a_run(tmp_path / "run", steps=1, rows=[said, replace(said, finished=False)])
    texts = [
        ("user", "guess"),
        ("assistant", "is it 5?"),
        ("user", "higher"),
        ("assistant", "is it 7?"),
        ("user", "yes"),
    ]
    turns = tuple({"role": role, "content": text} for role, text in texts)
    talk = ("is it 5?", "<|im_end|> <|im_start|>user higher", "is it 7?")
    talks = a_run(tmp_path / "talks", steps=1, rows=[Said("<|im_start|>guess", talk=talk, chat=turns)])
    with viewing(tmp_path / "profile", run, talks) as page:
        page.open("document.querySelector('#same h3')", run=str(talks), tab="samples", at="1", row="0")
        assert page.texts(".said .who") == ["user", "response", "user", "response", "user"]
        assert page.texts(".said .words") == [text for _, text in texts]
        assert "".join(page.texts(".token")).replace(" ", "") == "isit5?isit7?"
        for width, dark in ((1280, False), (700, True), (380, False)):
            page.browser.look(width, 800, dark)
            page.open("document.querySelector('#same h3')", run=str(run), tab="samples", at="1", row="1")
            assert page.texts(".said .who") == ["system", "user", "response"]
            assert [text for text in page.texts(".said .words") if "im_start" in text] == []
            assert page.texts("td.prompt .line") == ["who are you?"] * 2
            covered = "document.querySelector('.list').offsetParent === null"
            assert page.browser.evaluate(covered) == (width < 900)  # in a small window the sample covers the table
            assert page.browser.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
            colour = page.browser.evaluate("getComputedStyle(document.body).backgroundColor")
            assert (colour == "rgb(16, 20, 26)") == dark
