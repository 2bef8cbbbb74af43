"""Keys of rewards that are no model, and of reading a reward model's text through its own tokenizer."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from pyarrow import parquet
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from roles.batch import Responses
from roles.reward_model import TextBridge
from tests.unit.wiring.base import short_run
from tests.unit.wiring.plain import Rows, classifier
from tests.unit.wiring.stage import Seen
from tests.unit.wiring.tiny import BEGINS, ENDS, PAD, VOCABULARY

PROVES = (
    "reward<function>",
    "reward<function>.path",
    "reward<function>.name",
    "reward<function>.protocol=*",
    "reward<function>.label",
    "reward<remote>",
    "reward<remote>.urls",
    "reward<remote>.headers",
    "reward<remote>.protocol=*",
    "reward<remote>.label",
    "reward<model>.text_bridge",
    "reward<ensemble>.members<function>",
    "reward<ensemble>.members<function>.path",
    "reward<ensemble>.members<function>.name",
    "reward<ensemble>.members<function>.protocol=*",
    "reward<ensemble>.members<function>.label",
    "reward<ensemble>.members<remote>",
    "reward<ensemble>.members<remote>.urls",
    "reward<ensemble>.members<remote>.headers",
    "reward<ensemble>.members<remote>.protocol=*",
    "reward<ensemble>.members<remote>.label",
    "reward<ensemble>.members<model>.text_bridge",
)

FUNCTION = "def {name}(prompts, responses, *, response_token_ids, finished, columns): return [{value}] * len(prompts)\n"


def score(seen: Seen) -> float:
    return seen.report.steps[0]["score/mean"]


@pytest.fixture
def service() -> Iterator[str]:
    """Scores by path, and 10 more with the right header."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
            value = {"/one": 1.0, "/two": 2.0}[self.path] + 10 * (self.headers["x-key"] == "secret")
            labels = asked.get("labels", [""])
            value += 100 * ("query" in asked) + 1000 * (labels[0] != "")
            body = json.dumps({"rewards" if "query" in asked else "scores": [value] * len(asked["prompts"])}).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def function(file: Path, name: str, value: float) -> dict[str, Any]:
    """The section, of a file that has another function as well."""
    file.write_text(FUNCTION.format(name=name, value=value) + FUNCTION.format(name="another", value=99.0))
    return {"type": "function", "path": str(file), "name": name}


def test_the_function_and_the_service_are_the_ones_that_are_named(folder: Path, tmp_path: Path, service: str) -> None:
    for name, value in (("score", 0.5), ("stern", -1.5)):
        for file in ("a.py", "b.py"):
            own = value + (file == "b.py")
            assert score(short_run(folder, {"reward": function(tmp_path / file, name, own)})) == pytest.approx(own)
    theirs = tmp_path / "theirs.py"
    theirs.write_text("def f(queries, prompts, labels): return len(labels) + 10 * (labels != [''])")
    asked: dict[str, Any] = {"type": "function", "path": str(theirs), "name": "f", "protocol": "openrlhf"}
    for more, expected in (({}, 1.0), ({"label": "id"}, 11.0)):
        assert score(short_run(folder, {"reward": {**asked, **more}})) == pytest.approx(expected)
        ensemble = {"type": "ensemble", "members": {"own": {**asked, **more}}}
        assert score(short_run(folder, {"reward": ensemble})) == pytest.approx(expected)
    one, two = {"type": "remote", "urls": [f"{service}/one"]}, {"type": "remote", "urls": [f"{service}/two"]}
    assert score(short_run(folder, {"reward": one})) == pytest.approx(1.0)
    assert score(short_run(folder, {"reward": two})) == pytest.approx(2.0)
    assert score(short_run(folder, {"reward": {**one, "headers": {"x-key": "secret"}}})) == pytest.approx(11.0)
    service_of_theirs = {**one, "protocol": "openrlhf"}
    assert score(short_run(folder, {"reward": service_of_theirs})) == pytest.approx(101.0)
    assert score(short_run(folder, {"reward": {**service_of_theirs, "label": "id"}})) == pytest.approx(1101.0)


def test_the_members_of_an_ensemble_are_the_ones_that_are_named(folder: Path, tmp_path: Path, service: str) -> None:
    for name, value, path, headers, remote in (
        ("score", 0.5, "one", {}, 1.0),
        ("stern", -1.5, "two", {"x-key": "secret"}, 12.0),
    ):
        members = {
            "own": function(tmp_path / f"{name}.py", name, value),
            "far": {"type": "remote", "urls": [f"{service}/{path}"], "headers": headers},
        }
        for more, added in (({}, 0), ({"protocol": "openrlhf"}, 100), ({"protocol": "openrlhf", "label": "id"}, 1100)):
            reward = {"type": "ensemble", "members": {**members, "far": {**members["far"], **more}}}
            assert score(short_run(folder, {"reward": reward})) == pytest.approx((value + remote + added) / 2)


def foreign(folder: Path, made: Path) -> Path:
    """A reward model whose tokenizer has the same words in the opposite order."""
    shutil.copytree(folder / "reward", made)
    ids = {"<pad>": PAD, "<s>": BEGINS, "</s>": ENDS} | {f"w{VOCABULARY + 2 - n}": n for n in range(3, VOCABULARY)}
    words = Tokenizer(models.WordLevel(ids, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(made)
    return made


@pytest.mark.parametrize("member", [False, True])
def test_the_text_bridge_is_where_it_is_said(folder: Path, tmp_path: Path, member: bool) -> None:
    """The last token is the EOS that ended a response, in both vocabularies the same."""
    path = str(foreign(folder, tmp_path / "foreign"))
    found = []
    for bridged in (False, True):
        own = {"type": "model", "model": {"path": path}, "zero": {"stage": 0}, "text_bridge": bridged}
        reward = {"type": "ensemble", "members": {"one": own}} if member else own
        seen = short_run(folder, {"reward": reward})
        rows = Rows.of(seen.llms[0].batches[0])
        if bridged:
            rows.tokens = torch.where(rows.tokens >= 3, VOCABULARY + 2 - rows.tokens, rows.tokens)
        network = classifier(path, seen.groups["reward.one" if member else "reward"].began)
        expected = network.numbers(rows).detach().gather(1, rows.lengths[:, None] - 1).mean()
        found.append(score(seen))
        assert found[-1] == pytest.approx(float(expected), abs=1e-5)
    assert abs(found[0] - found[1]) > 1e-2


def test_the_text_bridge_writes_the_tools_of_the_column(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted: list[list[int]] = []

    class Noted(TextBridge):
        def encode(self, answered: Responses) -> list[list[int]]:
            noted[:] = super().encode(answered)
            return noted

    monkeypatch.setattr("roles.reward_model.TextBridge", Noted)
    chat, reward = shutil.copytree(folder / "policy", tmp_path / "chat"), foreign(folder, tmp_path / "foreign")
    for model in (chat, reward):
        (model / "chat_template.jinja").write_text(
            "{% for t in tools or [] %}{{ t['w'] }} {% endfor %}{% for m in messages %}{{ m['content'] }} {% endfor %}"
        )
    row = {"messages": [{"role": "user", "content": "w7"}], "one": [{"w": "w5"}], "other": [{"w": "w6"}]}
    (tmp_path / "rows.jsonl").write_text(f"{json.dumps(row)}\n" * 9)
    given: dict[str, Any] = {"prompts.train.path": str(tmp_path / "rows.jsonl"), "actor.model.path": str(chat)}
    given["reward"] = {"type": "model", "model": {"path": str(reward)}, "zero": {"stage": 0}, "text_bridge": True}
    for column, read in ((None, [7]), ("one", [5, 7]), ("other", [6, 7])):
        short_run(folder, {**given, "prompts.tools": column})
        assert noted and all(row[: len(read)] == [VOCABULARY + 2 - n for n in read] for row in noted)


NAMING = """
def score(prompts, responses, *, response_token_ids, finished, columns):
    tokens = [len(ids) for ids in response_token_ids]
    return {"scores": [0.5 * count for count in tokens], "metrics": {"tokens": tokens}}
"""


def test_named_numbers_of_a_reward_are_metrics_and_columns_of_the_samples(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "naming.py").write_text(NAMING)
    one = {"type": "function", "path": str(tmp_path / "naming.py"), "workers": 2}
    plain = function(tmp_path / "plain.py", "score", 2.0)
    seen = short_run(folder, {"reward": {"type": "ensemble", "members": {"own": one, "flat": plain}}})
    metrics, length = seen.report.steps[0], seen.report.steps[0]["response/length_mean"]
    assert metrics["reward/own/tokens/mean"] == metrics["score/own/mean"] * 2 == pytest.approx(length)
    assert (metrics["score/flat/mean"], metrics["score/flat/std"]) == (2.0, 0.0)
    seen.report.kept[0](tmp_path / "step.parquet")
    kept = parquet.read_table(tmp_path / "step.parquet").to_pydict()
    assert kept["reward/own/tokens"] == kept["length"] and kept["score/own"] == [0.5 * n for n in kept["length"]]
    assert kept["score"] == pytest.approx([(0.5 * n + 2.0) / 2 for n in kept["length"]])
    alone = short_run(folder, {"reward": one}).report.steps[0]
    assert alone["reward/tokens/mean"] == pytest.approx(alone["response/length_mean"])
    assert not [key for key in alone if key.startswith("score/") and key.count("/") > 1]
